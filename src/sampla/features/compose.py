"""Feature maps made from feature maps."""

from copy import copy

import torch
from torch import Tensor

from sampla.core.typing import Inputs
from sampla.features._base import Features, Linearisation, OutputCurvature


class ScaledFeatures(Features):
    """phi diag(s): columns scaled by s, of shape (P,). Parameters become theta / s."""

    def __init__(self, base: Features, scale: Tensor) -> None:
        self.layout, self.like = base.layout, base.like
        self.absorbed, self.squares_data = base.absorbed, base.squares_data
        self._base, self._scale = base, scale
        self._on_device = scale.to(base.device)
        if base.origin is not None:
            self.origin = torch.where(scale == 0, 0, base.origin / scale)

    @property
    def device(self) -> torch.device:
        return self._base.device

    def linearise(self, inputs: Inputs) -> Linearisation:
        return _Scaled(self._base.linearise(inputs), self._on_device)

    def rounded_otherwise(self) -> Features:
        other = copy(self)  # which keeps the scale where it is on the device
        other._base = self._base.rounded_otherwise()
        return other

    @property
    def rounding(self) -> float:
        return self._base.rounding

    def unscaled(self) -> tuple[Features, Tensor | None]:
        base, inner = self._base.unscaled()
        return base, self._scale if inner is None else inner * self._scale


class OutputsAt(Features):
    """The same features phi, with the curvature taken where the linear model is at theta, not at the network's outputs.

    Args:
        base: phi.
        theta: (1, P), a parameter vector of the linear model, such as its mode.
    """

    def __init__(self, base: Features, theta: Tensor) -> None:
        self.layout, self.like = base.layout, base.like
        self.absorbed, self.squares_data = base.absorbed, base.squares_data
        self._base, self._theta = base, theta.to(base.device)
        self.origin = None if base.origin is None else theta[0]

    @property
    def device(self) -> torch.device:
        return self._base.device

    def linearise(self, inputs: Inputs) -> Linearisation:
        return _At(self._base.linearise(inputs), self._theta, self._base.origin)

    def rounded_otherwise(self) -> Features:
        return self._base.rounded_otherwise()

    def unscaled(self) -> tuple[Features, Tensor | None]:
        base, scale = self._base.unscaled()
        if scale is None:
            return self, None
        return OutputsAt(base, base.rescaled(self._theta, scale.to(base.device))), scale

    @property
    def rounding(self) -> float:
        return self._base.rounding

    def cheaper(self) -> Features:
        base = self._base.cheaper()
        return self if base is self._base else OutputsAt(base, self._theta)


class _At(Linearisation):
    def __init__(self, base: Linearisation, theta: Tensor, origin: Tensor | None) -> None:
        self._base = base
        self._outputs = base.linear_outputs(theta, origin)[0]

    @property
    def outputs(self) -> Tensor:
        return self._outputs

    def jvp(self, vectors: Tensor) -> Tensor:
        return self._base.jvp(vectors)

    def vjp(self, cotangents: Tensor) -> Tensor:
        return self._base.vjp(cotangents)

    def product(self, vectors: Tensor, output_curvature: OutputCurvature) -> Tensor:
        return self._base.product(vectors, lambda _, pushed: output_curvature(self._outputs, pushed))

    def squared_vjp(self, cotangents: Tensor) -> Tensor:
        return self._base.squared_vjp(cotangents)


class _Scaled(Linearisation):
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
