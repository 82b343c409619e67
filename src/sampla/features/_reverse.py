"""Products of a network without forward mode: phi' u by a vjp, phi v as the transpose of that, by another."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from sampla.core.params import ParameterLayout
from sampla.core.typing import Inputs
from sampla.features._base import Linearisation

Gradients: TypeAlias = Sequence[Tensor | None]


class Callee(Protocol):
    """What is needed of a network."""

    layout: ParameterLayout

    @property
    def point(self) -> Mapping[str, Tensor]:
        """The trained values of the chosen parameters."""

    def call(self, point: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
        """f(point, inputs)."""

    def within(self, point: Mapping[str, Tensor], work: Callable[[], Gradients]) -> Gradients:
        """The result of work done while the network has these parameters."""


class ReverseAt(Linearisation):
    """phi v = d/du (phi' u)' v: phi' u is linear in u, so its own vjp is its transpose (Christianson 1992).

    By torch.autograd, which also takes functions that torch.func refuses. Needs a backward that can be differentiated.
    Backward passes run with the parameters in place, because checkpointed parts of a network are computed again there.
    """

    def __init__(self, network: Callee, inputs: Inputs, stacked: bool) -> None:
        self._network, self._inputs, self._stacked = network, inputs, stacked
        self._forward: tuple[dict[str, Tensor], Tensor] | None = None
        self._pulled: tuple[Tensor, list[Tensor | None]] | None = None

    def _graph(self) -> tuple[dict[str, Tensor], Tensor]:
        """The parameters as leaves, and the outputs that depend on them."""
        if self._forward is None:
            leaves = {name: value.detach().requires_grad_() for name, value in self._network.point.items()}
            with torch.enable_grad():
                self._forward = leaves, self._network.call(leaves, self._inputs)
        return self._forward

    def _pullback(self) -> tuple[Tensor, list[Tensor | None]]:
        """u, and phi' u as a function of it."""
        if self._pulled is None:
            outputs = self._graph()[1]
            at = torch.zeros_like(outputs, requires_grad=True)
            pulled = self._gradients([outputs], self._leaves(), [at], create=True)
            _require_twice(pulled)
            self._pulled = at, pulled
        return self._pulled

    def _leaves(self) -> list[Tensor]:
        return list(self._graph()[0].values())

    @property
    def outputs(self) -> Tensor:
        return self._graph()[1].detach()

    def jvp(self, vectors: Tensor) -> Tensor:
        outputs = self._graph()[1]
        zero = vectors.new_zeros(len(vectors), *outputs.shape)
        if not outputs.requires_grad:
            return zero
        at, pulled = self._pullback()
        tangents = self._network.layout.views(vectors).values()
        pairs = [(p, t) for p, t in zip(pulled, tangents, strict=True) if p is not None and p.requires_grad]
        if not pairs:
            return zero
        (pushed,) = self._stack([p for p, _ in pairs], [at], [t for _, t in pairs])
        return zero if pushed is None else pushed.detach()

    def vjp(self, cotangents: Tensor) -> Tensor:
        leaves, outputs = self._graph()
        none: list[Tensor | None] = [None] * len(leaves)
        gradients = self._stack([outputs], self._leaves(), [cotangents]) if outputs.requires_grad else none
        named = zip(leaves.items(), gradients, strict=True)
        count = len(cotangents)
        return self._network.layout.flatten(
            {n: cotangents.new_zeros(count, *leaf.shape) if p is None else p.detach() for (n, leaf), p in named}
        )

    def _stack(self, of: list[Tensor], by: list[Tensor], cotangents: list[Tensor]) -> list[Tensor | None]:
        """Gradients for K cotangents, stacked: all at once or one after another."""
        if self._stacked:
            return self._gradients(of, by, cotangents, batched=True)
        rows = [self._gradients(of, by, list(each)) for each in zip(*cotangents, strict=True)]
        return [
            None if any(p is None for p in gradients) else torch.stack(gradients)
            for gradients in zip(*rows, strict=True)
        ]

    def _gradients(
        self, of: list[Tensor], by: list[Tensor], cotangents: list[Tensor], create: bool = False, batched: bool = False
    ) -> list[Tensor | None]:
        def work() -> Gradients:
            with torch.enable_grad():
                return torch.autograd.grad(
                    of, by, cotangents,
                    retain_graph=True, create_graph=create, is_grads_batched=batched, allow_unused=True,
                )  # fmt: skip

        return list(self._network.within(self._graph()[0], work))


def _require_twice(pulled: list[Tensor | None]) -> None:
    """Refuse gradients that torch has cut off from their cotangents: it fails only where the cut would be crossed."""
    todo = [part.grad_fn for part in pulled if part is not None]
    seen = set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        if node.name() == "torch::autograd::Error":
            raise RuntimeError("trying to differentiate twice a function that was marked with @once_differentiable")
        seen.add(node)
        todo += [following for following, _ in node.next_functions]
