"""phi v with torch's graph of the inputs kept, so that it can be differentiated by them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import jvp, vmap

from sampla.core.params import ParameterLayout
from sampla.core.typing import Inputs


class Callee(Protocol):
    """What is needed of a network whose calls keep the graph."""

    layout: ParameterLayout

    @property
    def point(self) -> Mapping[str, Tensor]:
        """The trained values of the chosen parameters."""

    def call(self, point: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
        """f(point, inputs)."""

    def within(self, point: Mapping[str, Tensor], work: Callable[[], Any]) -> Any:
        """The result of work done while the network has these parameters."""


def pushed_forward(network: Callee, inputs: Inputs, vectors: Tensor) -> Tensor:
    """phi v in forward mode: (K, P) -> (K, n, *out)."""
    point = network.point
    push = vmap(lambda tangent: jvp(lambda at: network.call(at, inputs), (point,), (tangent,))[1])
    pushed: Tensor = push(network.layout.views(vectors))
    return pushed


def pushed_by_reverse(network: Callee, inputs: Inputs, vectors: Tensor) -> Tensor:
    """The same where the network has no forward mode, as d/du (phi' u)' v, one vector after the other."""
    leaves = {name: value.detach().requires_grad_() for name, value in network.point.items()}

    def gradients(of: Sequence[Tensor], by: Sequence[Tensor], cotangents: Sequence[Tensor]) -> list[Tensor | None]:
        return list(torch.autograd.grad(of, by, cotangents, create_graph=True, allow_unused=True))

    def rows(outputs: Tensor) -> list[Tensor]:
        at = torch.zeros_like(outputs, requires_grad=True)
        pulled = gradients([outputs], list(leaves.values()), [at])
        found = []
        for vector in vectors:
            tangents = [t[0] for t in network.layout.views(vector[None]).values()]
            pairs = [(p, t) for p, t in zip(pulled, tangents, strict=True) if p is not None and p.requires_grad]
            row = gradients([p for p, _ in pairs], [at], [t for _, t in pairs])[0] if pairs else None
            found.append(torch.zeros_like(outputs) if row is None else row)
        return found

    with torch.enable_grad():
        outputs = network.call(leaves, inputs)
        if not outputs.requires_grad:
            return outputs.new_zeros(len(vectors), *outputs.shape)
        return torch.stack(network.within(leaves, lambda: rows(outputs)))
