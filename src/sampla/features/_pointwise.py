"""Activations whose slope costs as much as they do themselves: it is found once, not for each of K vectors."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F  # noqa: N812

from sampla.features._dual import dual, opened
from sampla.features._stacking import require_constant


def gelu(input: Tensor, approximate: str = "none") -> Tensor:  # noqa: A002
    """As torch.nn.functional.gelu."""
    x, dx = opened(input)
    if dx is None:
        result: Tensor = _Gelu.apply(x, approximate)[0]
        return result
    return dual(F.gelu(x, approximate=approximate), _slope(x, approximate) * dx)


class _Gelu(Function):
    @staticmethod
    def forward(x: Tensor, approximate: str) -> tuple[Tensor, Tensor]:
        return F.gelu(x, approximate=approximate), _slope(x, approximate)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ARG004
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1])

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[tuple[Tensor, Tensor], tuple[None, None]]:  # noqa: ARG004
        require_constant(in_dims)
        result: tuple[Tensor, Tensor] = _Gelu.apply(*args)
        return result, (None, None)

    @staticmethod
    def backward(ctx: Any, u: Tensor | None, _: Any) -> Any:
        return None if u is None else ctx.saved_tensors[0] * u, None


def _slope(x: Tensor, approximate: str) -> Tensor:
    slope: Tensor = torch.ops.aten.gelu_backward(torch.ones_like(x), x, approximate=approximate)
    return slope
