"""Feature maps made from feature maps."""

from copy import copy

import torch
from torch import Tensor

from sampla.core.typing import Inputs
from sampla.features._base import Features, Linearisation, OutputCurvature
from sampla.features._scaled import Scaled


class ScaledFeatures(Features):
    """phi diag(s): columns scaled by s, of shape (P,). Parameters become theta / s."""

    def __init__(self, base: Features, scale: Tensor) -> None:
        self.layout, self.like = base.layout, base.like
        self.absorbed, self.squares_data = base.absorbed, base.squares_data
        self._base, self._scale, self.from_prior = base, scale, base.from_prior
        self._on_device = scale.to(base.device)
        if base.origin is not None:
            self.origin = base.origin.moved(torch.where(scale == 0, 0, base.origin.point / scale))

    @property
    def device(self) -> torch.device:
        return self._base.device

    def linearise(self, inputs: Inputs) -> Linearisation:
        return Scaled(self._base.linearise(inputs), self._on_device)

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

    def about(self, mean: Tensor | None) -> "ScaledFeatures":
        own = None if mean is None else mean.to(self._scale) * self._scale
        return ScaledFeatures(self._base.about(own), self._scale)


class OutputsAt(Features):
    """The same features phi, with the curvature taken where the linear model is at theta, not at the network's outputs.

    Args:
        base: phi.
        theta: (1, P), a parameter vector of the linear model, such as its mode.
        products: phi in reduced precision; None: as phi is.
    """

    def __init__(self, base: Features, theta: Tensor, products: Features | None = None) -> None:
        self.layout, self.like = base.layout, base.like
        self.absorbed, self.squares_data = base.absorbed, base.squares_data
        self._base, self._theta = base, theta.to(base.device)
        self._products = products or base
        self.origin = base.origin.moved(theta[0]) if base.origin is not None and base.origin.tangent else base.origin

    @property
    def device(self) -> torch.device:
        return self._base.device

    def linearise(self, inputs: Inputs) -> Linearisation:
        base = self._base.linearise(inputs)
        outputs = base.linear_outputs(self._theta, self._base.origin)[0]
        return _At(base if self._products is self._base else self._products.linearise(inputs), outputs)

    def entering(self, vectors: Tensor) -> Tensor:
        return self._products.entering(vectors)

    def leaving(self, vectors: Tensor) -> Tensor:
        return self._products.leaving(vectors)

    def rounded_otherwise(self) -> Features:
        return self._base.rounded_otherwise()

    def unscaled(self) -> tuple[Features, Tensor | None]:
        base, scale = self._base.unscaled()
        if scale is None:
            return self, None
        return OutputsAt(base, base.rescaled(self._theta, scale.to(base.device))), scale

    @property
    def rounding(self) -> float:
        return self._products.rounding

    def cheaper(self) -> Features:
        products = self._base.cheaper()
        return self if products is self._base else OutputsAt(self._base, self._theta, products)


class _At(Linearisation):
    def __init__(self, base: Linearisation, outputs: Tensor) -> None:
        self._base, self._outputs = base, outputs

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
