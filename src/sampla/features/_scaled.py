"""One batch of features with their columns scaled."""

from torch import Tensor

from sampla.features._base import Linearisation, OutputCurvature


class Scaled(Linearisation):
    """phi diag(s) on one batch."""

    def __init__(self, base: Linearisation, scale: Tensor) -> None:
        self._base, self._scale = base, scale

    @property
    def outputs(self) -> Tensor:
        return self._base.outputs

    def jvp(self, vectors: Tensor) -> Tensor:
        return self._base.jvp(vectors * self._scale)

    def vjp(self, cotangents: Tensor) -> Tensor:
        return self._base.vjp(cotangents) * self._scale

    def product(self, vectors: Tensor, output_curvature: OutputCurvature) -> Tensor:
        return self._base.product(vectors * self._scale, output_curvature) * self._scale

    def squared_vjp(self, cotangents: Tensor) -> Tensor:
        return self._base.squared_vjp(cotangents) * self._scale.square()
