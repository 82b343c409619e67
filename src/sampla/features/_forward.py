"""Both products of a network's Jacobian: forward mode by torch.func for phi v, reverse mode for phi' u."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.func import jvp, vmap

from sampla.core.params import ParameterLayout, side_by_side
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
    """phi v by a jvp, phi' u by a vjp, K at a time.

    The vjp is torch.autograd's own: torch.func.vjp gives the same, and on small networks its bookkeeping for every
    operation takes longer than the operations.
    """

    def __init__(self, features: Callee, inputs: Inputs) -> None:
        self._features, self._inputs = features, inputs
        self._kept: tuple[dict[str, Tensor], Tensor] | None = None
        self._placed: Mapping[str, Tensor] | None = None

    def _forward(self, point: Mapping[str, Tensor]) -> Tensor:
        return self._features.call(point, self._inputs)

    def _graph(self) -> tuple[dict[str, Tensor], Tensor]:
        """The parameters as leaves, and the outputs that depend on them."""
        if self._kept is None:
            leaves = leaves_of(self._features.point)
            with recorded():
                self._kept = leaves, self._forward(leaves)
        return self._kept

    def _point(self) -> Mapping[str, Tensor]:
        """The parameters where their tangents lie, but for those that do not lie row by row as these do.

        Forward mode copies each of the K tangents that lies otherwise in its storage than its parameter.
        """
        if self._placed is None:
            given = self._features.point
            placed = side_by_side(self._features.layout, given)
            self._placed = {n: placed[n] if _lies_by_rows(each) else each for n, each in given.items()}
        return self._placed

    @property
    def outputs(self) -> Tensor:
        return self._graph()[1].detach()

    def jvp(self, vectors: Tensor) -> Tensor:
        point, tangents = self._point(), self._features.layout.views(from_the_start(vectors))
        push = vmap(lambda tangent: jvp(self._forward, (point,), (tangent,))[1])
        pushed: Tensor = push(tangents)
        return pushed.detach()

    def product(self, vectors: Tensor, output_curvature: OutputCurvature) -> Tensor:
        """Reverse mode through the jvps, which are linear in v: one forward serves both products."""
        if not self._features.products.shared:
            return super().product(vectors, output_curvature)
        point, tangents = self._point(), leaves_of(self._features.layout.views(from_the_start(vectors)))

        def pushed(tangent: dict[str, Tensor]) -> Any:
            return jvp(self._forward, (point,), (tangent,))[::-1]

        dims: Any = (0, None)  # the outputs are the same for all K
        with recorded():
            outer, outputs = vmap(pushed, out_dims=dims)(tangents)
        cotangents = output_curvature(outputs.detach(), outer.detach())
        return self._features.layout.flatten(pulled(outer, tangents, cotangents, again=False))

    def vjp(self, cotangents: Tensor) -> Tensor:
        leaves, outputs = self._graph()
        pull = vmap(lambda cotangent: pulled(outputs, leaves, cotangent, again=True))
        return self._features.layout.flatten(pull(cotangents)).detach()


@contextmanager
def recorded() -> Iterator[None]:
    """Operations have a graph; what computes parts of it again in the backward pass is refused, as by torch.func.vjp.

    The parameters are no longer in place then (``ReverseAt``).
    """
    with (
        torch.enable_grad(),
        disable_saved_tensors_hooks("a graph in forward mode does not go with saved tensor hooks"),
    ):
        yield


def _lies_by_rows(tensor: Tensor) -> bool:
    """Whether it does, or must: derivatives of convolutions in float64, which are torch's own, know nothing else."""
    return tensor.is_contiguous() or tensor.dtype == torch.float64


def from_the_start(vectors: Tensor) -> Tensor:
    """The vectors at the start of a storage: for some rows of more the same memory, where that can be had."""
    if not vectors.storage_offset():
        return vectors
    return torch.from_dlpack(vectors.detach()) if vectors.device.type in ("cpu", "cuda") else vectors.clone()


def leaves_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}


def pulled(outputs: Tensor, leaves: Mapping[str, Tensor], cotangents: Tensor, again: bool) -> dict[str, Tensor]:
    """The cotangents of the leaves, zero for those on which the outputs do not depend; the graph may serve again."""
    if not outputs.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    gradients = torch.autograd.grad(
        outputs, list(leaves.values()), cotangents, retain_graph=again, allow_unused=True, materialize_grads=True
    )
    return dict(zip(leaves, gradients, strict=True))
