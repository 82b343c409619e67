"""Group and layer normalisation whose derivative takes K vectors at once.

z = w y + b with y = (x - mean) / deviation, so that with <> the mean of what is normalised together

    dz = w (dx - <dx> - y <y dx>) / deviation,    (dx)' u = (w u - <w u> - y <y w u>) / deviation,

where w and b are constants. torch's own takes three times as many passes over K images. Everything is computed in rows
(``Means.rows``), along which whatever is the same for several places is repeated: loops of eight channels are slow.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from sampla.features._dual import dual, opened
from sampla.features._stacking import Stacking, require_constant


@dataclass(frozen=True)
class LastAxes:
    """Means over the last axes, of these lengths."""

    shape: tuple[int, ...]

    def rows(self, values: Tensor) -> Tensor:
        """(..., *shape) to (..., D)."""
        return values.reshape(*values.shape[: values.ndim - len(self.shape)], -1)

    def back(self, rows: Tensor) -> Tensor:
        """The inverse."""
        result: Tensor = rows.unflatten(-1, self.shape)
        return result

    def repeated(self, weight: Tensor) -> Tensor:
        """A weight as wide as a row."""
        return weight.reshape(-1)

    def mean(self, rows: Tensor, weight: Tensor | None = None) -> Tensor:
        """(..., D) to (..., 1), with a weight as wide as a row."""
        weighed = rows if weight is None else rows * weight
        return weighed.sum(-1, keepdim=True) / rows.shape[-1]


@dataclass(frozen=True)
class ChannelGroups:
    """Means over groups of channels (C, *places) and all places."""

    groups: int
    shape: tuple[int, ...]

    @property
    def _line(self) -> int:
        """How often the channels are repeated along a row."""
        return self.shape[-1] if len(self.shape) > 1 else 1

    def rows(self, values: Tensor) -> Tensor:
        """(..., C, *places) to (..., A, B C), B the length of the last axis; a view where channels lie last."""
        last = values.movedim(-len(self.shape), -1)
        return last.reshape(*values.shape[: values.ndim - len(self.shape)], -1, self._line * self.shape[0])

    def back(self, rows: Tensor) -> Tensor:
        """The inverse."""
        last = rows.reshape(*rows.shape[:-2], *self.shape[1:], self.shape[0])
        return last.movedim(-1, -len(self.shape))

    def repeated(self, weight: Tensor) -> Tensor:
        """A weight (C,) as wide as a row."""
        return weight.repeat(self._line)

    def mean(self, rows: Tensor, weight: Tensor | None = None) -> Tensor:
        """(..., A, B C) to (..., 1, B C), with a weight as wide as a row."""
        along = rows.sum(-2) if weight is None else rows.sum(-2) * weight
        each = along.unflatten(-1, (self._line, self.groups, -1))
        common = each.sum((-3, -1), keepdim=True) / (rows.shape[-2] * each.shape[-3] * each.shape[-1])
        repeated: Tensor = common.expand_as(each).flatten(-3).unsqueeze(-2)
        return repeated


Means: TypeAlias = LastAxes | ChannelGroups


def standardised(
    x: Tensor, over: Means, eps: float, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """x less its mean, over its deviation, both found in float32, times a weight and more by a bias."""
    if not (_constant(weight) and _constant(bias)):
        bare = over.rows(standardised(x, over, eps))
        bare = bare if weight is None else bare * over.repeated(weight)
        return over.back(bare if bias is None else bare + over.repeated(bias))
    at, dx = opened(x)
    if dx is None:
        result: Tensor = _Standardised.apply(at, weight, bias, over, eps)[0]
        return result
    z, y, factor = _found(at, weight, bias, over, eps)
    return dual(z, _moved(dx, y, factor, weight, over))


def _constant(tensor: Tensor | None) -> bool:
    return tensor is None or not (tensor.requires_grad or forward_ad.unpack_dual(tensor).tangent is not None)


class _Standardised(Function):
    @staticmethod
    def forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, over: Means, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _found(x, weight, bias, over, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        _, weight, _, ctx.over, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output[1:], weight)
        ctx.save_for_forward(*output[1:], weight)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[tuple[Tensor, ...], tuple[None, ...]]:  # noqa: ARG004
        require_constant(in_dims)
        result: tuple[Tensor, ...] = _Standardised.apply(*args)
        return result, (None, None, None)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, *_: Any) -> Any:
        return (None if dx is None else _Moved.apply(dx, *ctx.saved_tensors, ctx.over)), None, None

    @staticmethod
    def backward(ctx: Any, u: Tensor | None, *_: Any) -> Any:
        return (None if u is None else _Pulled.apply(u, *ctx.saved_tensors, ctx.over)), None, None, None, None


class _Moved(Stacking):
    @staticmethod
    def stacked(*args: Any) -> Tensor:
        return _moved(*args)


class _Pulled(Stacking):
    @staticmethod
    def stacked(*args: Any) -> Tensor:
        return _pulled(*args)


def _found(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, over: Means, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """z as x is, and in rows y and one over the deviation, all in the type of x."""
    rows = over.rows(x).to(torch.promote_types(x.dtype, torch.float32))
    centred = rows - over.mean(rows)
    factor = (over.mean(centred.square()) + eps).rsqrt()
    y = (centred * factor).to(x.dtype)
    z = y if weight is None else y * over.repeated(weight)
    return over.back(z if bias is None else z + over.repeated(bias)), y, factor.to(x.dtype)


def _moved(dx: Tensor, y: Tensor, factor: Tensor, weight: Tensor | None, over: Means) -> Tensor:
    """dz; a product and a difference take less than torch's addcmul."""
    rows, first = over.rows(dx), factor if weight is None else factor * over.repeated(weight)
    along = (y * first) * over.mean(y * rows)
    return over.back((rows * first).sub_(along).sub_(over.mean(rows) * first))


def _pulled(u: Tensor, y: Tensor, factor: Tensor, weight: Tensor | None, over: Means) -> Tensor:
    """The transpose of ``_moved``, which differs from it by where the weight stands."""
    rows, wide = over.rows(u), None if weight is None else over.repeated(weight)
    weighed = y if wide is None else y * wide
    along = (y * factor) * over.mean(weighed * rows)
    first = factor if wide is None else factor * wide
    return over.back((rows * first).sub_(along).sub_(over.mean(rows, wide) * factor))
