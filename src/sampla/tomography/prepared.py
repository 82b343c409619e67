"""A sinogram made ready: checked, whitened where its deviations are known, in units in which the image is about one."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sampla.core.checks import require, require_finite
from sampla.core.inputs import as_tensor
from sampla.core.noise import PROBE, standard_normal
from sampla.tomography.dip import noise_seen
from sampla.tomography.operators import Operator, Whitened

_TRACE_PROBES = 64
_TRACE_SEED = 1


@dataclass(frozen=True)
class Prepared:
    """A sinogram in the units in which the image is of about unit size."""

    operator: Operator
    """T, whitened where deviations are given."""
    measurements: Tensor
    """(m,)."""
    scale: float
    """Image units in one unit of these."""
    noise_std: float
    """Of the measurements in these units: as given, or as seen."""


def prepare(operator: Operator, sinogram: Tensor | np.ndarray, noise_std: Tensor | None, learn_noise: bool) -> Prepared:
    """The scale is that of the best constant image, <T 1, y> / <T 1, T 1>.

    Args:
        operator: T.
        sinogram: (A, D), or any shape with m entries whose last axis runs along the detector.
        noise_std: a number or one for each measurement; None: as seen in the sinogram.
        learn_noise: whether ``noise_std`` is known only up to a factor, which is then seen in the sinogram.

    Raises:
        ValueError: for a sinogram that does not fit the operator, is not finite or sees nothing.
    """
    array = isinstance(sinogram, (Tensor, np.ndarray))
    require(array, "a sinogram as a tensor or a NumPy array", type(sinogram).__name__, "Convert it: np.asarray(...).")
    sinogram = as_tensor(sinogram, "the sinogram")
    require(not sinogram.is_complex(), "real measurements", f"{sinogram.dtype}", "Take their real part.")
    count = operator.num_measurements
    fix = "Give the sinogram that belongs to the operator, (angles, bins)."
    require(sinogram.numel() == count, f"{count} measurements", f"{tuple(sinogram.shape)}", fix)
    require_finite(sinogram, "measurements", "Leave out dead detector bins, or give them a large noise_std.")
    seen = sinogram.double().reshape(-1, sinogram.shape[-1])
    if noise_std is not None:
        spread = noise_std.expand(sinogram.shape).reshape(seen.shape)
        operator, seen = Whitened(operator, spread.flatten()), seen / spread
    known = noise_std is not None and not learn_noise
    flat = seen.flatten().to(operator.like)
    ones = operator.forward(torch.ones(1, *operator.image_shape).to(operator.like))[0]
    scale = float(ones @ flat) / float(ones @ ones)
    require(scale > 0, "a sinogram of an object that attenuates", f"a mean of {scale:g}", "Check its sign.")
    noise = (1.0 if known else noise_seen(seen)) / scale
    return Prepared(operator, flat / scale, scale, noise)


def pixel_share(operator: Operator) -> float:
    """s / sigma = sqrt(d / |T|_F^2): what a unit of measurement noise does to one pixel if all others are known.

    |T|_F^2 = E |T' u|^2 over standard normal u; the mean of 64 is within a few per cent.
    """
    u = standard_normal(
        _TRACE_SEED, PROBE, range(_TRACE_PROBES), 0, (operator.num_measurements,), operator.like
    )  # fmt: skip
    frobenius = float(operator.adjoint(u).double().square().sum()) / _TRACE_PROBES
    pixels = operator.image_shape[0] * operator.image_shape[1]
    return float((pixels / frobenius) ** 0.5)
