"""Total variation: the reference that needs no network (Chambolle and Pock 2011, Sidky, Jorgensen and Pan 2012).

    minimise TV(x)   subject to   |T x - y|^2 <= m sigma^2,

the same problem as the deep image prior's (``dip.py``) with free pixels instead of a network.
"""

import torch
from torch import Tensor

from sampla.core.checks import require
from sampla.core.noise import PROBE, standard_normal
from sampla.tomography.operators import Operator

_POWER_STEPS = 20
_SAFETY = 1.05
"""The power iteration approaches the norm from below."""


def tv_reconstruction(operator: Operator, measurements: Tensor, noise_std: float, steps: int = 500) -> Tensor:
    """(H, W) by the primal-dual method; the operator is scaled to norm 1 beside a gradient of norm sqrt(8).

    Args:
        operator: T.
        measurements: (m,) y.
        noise_std: sigma.
        steps: of the method; it converges like 1 / steps.

    Raises:
        ValueError: if the measurements do not fit the operator.
    """
    count = operator.num_measurements
    fits, got = tuple(measurements.shape) == (count,), f"shape {tuple(measurements.shape)}"
    require(fits, f"{count} measurements in one row", got, "Flatten the sinogram.")
    y = measurements.to(operator.like)
    scale = operator_norm(operator) * _SAFETY / 8**0.5
    y, radius = y / scale, count**0.5 * noise_std / scale
    step = 1 / (8 + 8) ** 0.5
    x = torch.zeros(1, *operator.image_shape).to(operator.like)
    ahead, dual, slopes = x, torch.zeros_like(y), torch.zeros(2, *operator.image_shape).to(x)
    for _ in range(steps):
        dual = dual + step * (operator.forward(ahead)[0] / scale - y)
        size = float(dual.norm())
        dual = dual * max(0.0, 1 - step * radius / size) if size > 0 else dual
        slopes = (slopes + step * _gradient(ahead[0])).clamp(-1, 1)
        before = x
        x = x - step * (operator.adjoint(dual[None]) / scale + _gradient_adjoint(slopes)[None])
        ahead = 2 * x - before
    return x[0]


def operator_norm(operator: Operator) -> float:
    """|T| by power iteration on T' T."""
    x = standard_normal(0, PROBE, range(1), 0, operator.image_shape, operator.like)
    size = 1.0
    for _ in range(_POWER_STEPS):
        x = operator.adjoint(operator.forward(x / x.norm()))
        size = float(x.norm())
    return float(size**0.5)


def _gradient(image: Tensor) -> Tensor:
    """(2, H, W) differences to the neighbour below and to the right; zero at the last row and column."""
    slopes = torch.zeros(2, *image.shape).to(image)
    slopes[0, :-1] = image[1:] - image[:-1]
    slopes[1, :, :-1] = image[:, 1:] - image[:, :-1]
    return slopes


def _gradient_adjoint(slopes: Tensor) -> Tensor:
    """The transpose of ``_gradient``: minus a divergence."""
    image = torch.zeros_like(slopes[0])
    image[:-1] -= slopes[0, :-1]
    image[1:] += slopes[0, :-1]
    image[:, :-1] -= slopes[1, :, :-1]
    image[:, 1:] += slopes[1, :, :-1]
    return image
