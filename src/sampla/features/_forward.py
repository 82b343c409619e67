"""Both products of a network's Jacobian by torch.func: forward mode for phi v, reverse mode for phi' u."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor
from torch.func import jvp, vjp, vmap

from sampla.core.params import ParameterLayout
from sampla.core.typing import Inputs
from sampla.features._base import Linearisation, OutputCurvature
from sampla.features._products import Products


class Callee(Protocol):
    """What is needed of a network."""

    layout: ParameterLayout
    products: Products

    @property
    def point(self) -> Mapping[str, Tensor]:
        """The trained values of the chosen parameters."""

    def call(self, point: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
        """f(point, inputs)."""


class ForwardAt(Linearisation):
    """phi v by a jvp, phi' u by a vjp, K at a time."""

    def __init__(self, features: Callee, inputs: Inputs) -> None:
        self._features, self._inputs = features, inputs
        self._pulled: tuple[Tensor, Callable[..., Any]] | None = None

    def _forward(self, point: Mapping[str, Tensor]) -> Tensor:
        return self._features.call(point, self._inputs)

    def _pullback(self) -> tuple[Tensor, Callable[..., Any]]:
        if self._pulled is None:
            outputs, pull, *_ = vjp(self._forward, self._features.point)
            self._pulled = outputs.detach(), pull
        return self._pulled

    @property
    def outputs(self) -> Tensor:
        return self._pullback()[0]

    def jvp(self, vectors: Tensor) -> Tensor:
        tangents = self._features.layout.views(vectors)
        push = vmap(lambda tangent: jvp(self._forward, (self._features.point,), (tangent,))[1])
        pushed: Tensor = push(tangents)
        return pushed.detach()

    def product(self, vectors: Tensor, output_curvature: OutputCurvature) -> Tensor:
        """Reverse mode through the jvps, which are linear in v: one forward serves both products."""
        if not self._features.products.shared:
            return super().product(vectors, output_curvature)
        point, features = self._features.point, self._features

        def pushed(tangents: dict[str, Tensor]) -> Any:
            dims: Any = (0, None)  # the outputs are the same for all K
            return vmap(lambda tangent: jvp(self._forward, (point,), (tangent,))[::-1], out_dims=dims)(tangents)

        found: Any = vjp(pushed, features.layout.views(vectors), has_aux=True)
        outer, pull, outputs = found
        (pulled,) = pull(output_curvature(outputs.detach(), outer.detach()))
        return features.layout.flatten(pulled).detach()

    def vjp(self, cotangents: Tensor) -> Tensor:
        (pulled,) = vmap(self._pullback()[1])(cotangents)
        return self._features.layout.flatten(pulled).detach()
