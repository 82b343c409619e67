"""Linear layers whose derivatives take K vectors at once, each tangent of the weights where it lies.

    y = x W' + b,    dy_k = dx_k W' + x dW_k' + db_k,    (dx_k, dW_k, db_k)' u = (u_k W, u_k' x, sum over rows of u_k).

The K tangents of a weight are parts of vectors of P, so far apart that torch's batched product would copy them: here
each is multiplied by itself, and added to the rest of dy_k by the same call. Everything is linear in the K, and is
taken for reverse mode through forward mode as well (``_PushAll.backward``).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F  # noqa: N812

from sampla.features._stacking import Stacking, require_constant


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., I) by (D, I), and a bias (D,) added."""
    rows: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias)
    return rows.view(*x.shape[:-1], len(weight))


class _Linear(Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        x, weight, _ = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, None]:  # noqa: ARG004
        require_constant(in_dims)
        result: Tensor = _Linear.apply(*args)
        return result, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dweight: Tensor | None, dbias: Tensor | None) -> Any:
        if dx is None and dweight is None and dbias is None:
            return None
        return _Push.apply(dx, dweight, dbias, *ctx.saved_tensors)

    @staticmethod
    def backward(ctx: Any, u: Tensor | None) -> Any:
        if u is None:
            return None, None, None
        (x, weight), wanted = ctx.saved_tensors, ctx.needs_input_grad
        return (
            _PullInput.apply(u, weight) if wanted[0] else None,
            _PullWeight.apply(u, x) if wanted[1] else None,
            u.sum(0) if wanted[2] else None,
        )


class _Push(Stacking):
    varying = 3

    @staticmethod
    def stacked(*args: Any) -> Tensor:
        result: Tensor = _PushAll.apply(*args)
        return result


class _PushAll(Function):
    """(K, n, I), (K, D, I) and (K, D) to (K, n, D), with the transpose as its derivative."""

    @staticmethod
    def forward(dx: Tensor | None, dweight: Tensor | None, dbias: Tensor | None, x: Tensor, weight: Tensor) -> Tensor:
        return _pushed(dx, dweight, dbias, x, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs[3:])

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Any:
        (x, weight), wanted = ctx.saved_tensors, ctx.needs_input_grad
        by_input = _input_pulled(u, weight) if wanted[0] else None
        by_weight = _weight_pulled(u, x) if wanted[1] else None
        return by_input, by_weight, u.sum(1) if wanted[2] else None, None, None


class _PullInput(Stacking):
    @staticmethod
    def stacked(*args: Any) -> Tensor:
        return _input_pulled(*args)


class _PullWeight(Stacking):
    @staticmethod
    def stacked(*args: Any) -> Tensor:
        return _weight_pulled(*args)


def _pushed(dx: Tensor | None, dweight: Tensor | None, dbias: Tensor | None, x: Tensor, weight: Tensor) -> Tensor:
    given = next(each for each in (dx, dweight, dbias) if each is not None)
    shape = (len(given), len(x), len(weight))
    moved = None if dbias is None else dbias[:, None].expand(shape).contiguous()
    if dx is not None:
        rows = dx.reshape(-1, dx.shape[-1])
        if moved is None:
            moved = (rows @ weight.T).view(shape)
        else:
            moved.view(-1, shape[2]).addmm_(rows, weight.T)
    if dweight is not None:
        fresh = moved is None
        moved = x.new_empty(shape) if moved is None else moved
        for each, change in zip(moved.unbind(), dweight.unbind(), strict=True):
            if fresh:
                torch.mm(x, change.T, out=each)
            else:
                each.addmm_(x, change.T)
    assert moved is not None
    return moved


def _input_pulled(u: Tensor, weight: Tensor) -> Tensor:
    return (u.reshape(-1, u.shape[-1]) @ weight).view(*u.shape[:-1], -1)


def _weight_pulled(u: Tensor, x: Tensor) -> Tensor:
    return u.mT @ x
