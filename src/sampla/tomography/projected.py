"""Features T J: a measured image that a network makes from a fixed input. One datum, thousands of outputs."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sampla.core.checks import require
from sampla.core.inputs import input_tensors
from sampla.core.noise import PROBE, standard_normal
from sampla.core.progress import Progress
from sampla.core.typing import Inputs
from sampla.features import Features, Linearisation, NetworkFeatures
from sampla.tomography.operators import Operator, Whitened

_BYTES_IN_FLIGHT = 2**23
"""Bytes of the images that go through the network at once. Of activations the U-Net of 2 million has 500 times as much:
4 GiB; twice as much at once is no faster."""
_PROBES = 128
"""Vectors behind the diagonal of M, which is then known to 13 %: half as many products."""


class ProjectedFeatures(Features):
    """phi = T J with J = d f(w, input) / dw the Jacobian of an image (H, W); outputs (1, m).

    The linearisation at the fixed input is made once and kept.

    Args:
        network: J.
        operator: T.
        fixed_input: (1, ...) what the network makes its image from.
        progress: where products that take long are shown.

    Raises:
        ValueError: if the network's output is no image of the operator's size.
    """

    def __init__(
        self, network: NetworkFeatures, operator: Operator, fixed_input: Tensor, progress: Progress | None = None
    ) -> None:
        self.layout, self.like = network.layout, network.like
        self._operator, self._input = operator, fixed_input
        self.image = network.linearise(fixed_input)
        check_image(self.image.outputs, operator)
        pixels = operator.image_shape[0] * operator.image_shape[1]
        self._columns = max(1, _BYTES_IN_FLIGHT // (pixels * self.like.element_size()))
        self._measured = operator.forward(self.image.outputs[0])
        self._progress = progress or Progress(False)

    @property
    def rounding(self) -> float:
        return max(super().rounding, self._operator.rounding)

    def linearise(self, inputs: Inputs) -> Linearisation:
        (given,) = input_tensors(inputs)
        same = given.shape == self._input.shape and torch.equal(given, self._input)
        require(same, "the fixed input of the features as the only datum", f"{tuple(given.shape)}", "Pass that one.")
        return _Projected(self)

    def _parts(self, block: Tensor) -> Iterator[Tensor]:
        """A block of vectors, a few at a time."""
        parts = block.split(self._columns)
        return self._progress.sweep(parts, len(parts))

    def image_jvp(self, vectors: Tensor) -> Tensor:
        """J v: (K, P) -> (K, H, W), a few at a time."""
        return torch.cat([self.image.jvp(part)[:, 0, 0] for part in self._parts(vectors)])

    def jvp(self, vectors: Tensor) -> Tensor:
        """T J v: (K, P) -> (K, 1, m)."""
        parts = [self._operator.forward(self.image.jvp(part)[:, 0, 0]) for part in self._parts(vectors)]
        return torch.cat(parts).unsqueeze(1)

    def vjp(self, cotangents: Tensor) -> Tensor:
        """J' T' u: (K, 1, m) -> (K, P)."""
        parts = self._parts(cotangents[:, 0])
        return torch.cat([self.image.vjp(self._operator.adjoint(part)[:, None, None]) for part in parts])

    def diagonal(self, seed: int, num_probes: int = _PROBES) -> Tensor:
        """(P,) diagonal of J' T' T J: the mean square of J' T' xi over standard normal xi, which is unbiased.

        The noise pass of a fit estimates it too, but here from one datum, and so from the K draws alone: K is too few,
        and scales made from the draws that they then multiply would not be independent of them.
        """
        total = self.like.new_zeros(self.layout.total)
        starts = range(0, num_probes, self._columns)
        for start in self._progress.sweep(starts, len(starts)):
            probes = range(start, min(start + self._columns, num_probes))
            xi = standard_normal(seed, PROBE, probes, 0, tuple(self._measured.shape), self.like)
            total += self.image.vjp(self._operator.adjoint(xi[:, 0])[:, None, None]).square().sum(0)
        return total / num_probes

    @property
    def deviations(self) -> Tensor | None:
        """(m,) standard deviations by which measurements were divided; None where they were not."""
        return self._operator.std if isinstance(self._operator, Whitened) else None

    @property
    def measured(self) -> Tensor:
        """(1, m) T f(w)."""
        return self._measured


def check_image(output: Tensor, operator: Operator) -> None:
    """Refuse a network's output that is no image of the operator's size.

    Raises:
        ValueError: naming both shapes.
    """
    found, wanted = tuple(output.shape), (1, 1, *operator.image_shape)
    fix = "Build the network and the operator for the same image."
    require(found == wanted, f"a network output of shape {wanted} for this operator", f"{found}", fix)


class _Projected(Linearisation):
    def __init__(self, features: ProjectedFeatures) -> None:
        self._features = features

    @property
    def outputs(self) -> Tensor:
        return self._features.measured

    def jvp(self, vectors: Tensor) -> Tensor:
        return self._features.jvp(vectors)

    def vjp(self, cotangents: Tensor) -> Tensor:
        return self._features.vjp(cotangents)
