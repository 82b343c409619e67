"""Convolutions whose derivatives take K vectors at once in the layout that matrix products want.

torch.func folds K tangents of the weights into channels and K tangents of the input into the batch; each of the two
results has another layout, and bringing them together costs more than both convolutions. Here everything is kept with
channels last, and what concerns the weights is one matrix product of the patches of the input (``_patches``) with the K
tangents or cotangents:

    y = w * x,    dy_k = w * dx_k + dw_k * x,    (dx_k, dw_k)' u = (w *' u_k, sum over places of u_k patches').

Both are linear in the K, and are taken for reverse mode through forward mode as well (``_PushAll.backward``).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import conv2d, pad

from sampla.features._stacking import Stacking, require_constant

Pair = tuple[int, int]
_WIDE = {16: torch.complex128, 8: torch.complex64}
"""Bytes -> a type of so many, in which rows of a coarser type are moved faster."""


@dataclass(frozen=True)
class Geometry:
    """How a kernel goes over an image: rows and columns each."""

    stride: Pair
    padding: Pair
    dilation: Pair


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The convolution of (n, C, H, W) with (D, C, h, w), and a bias (D,) added."""
    result: Tensor = _Convolution.apply(x, weight, geometry)
    return result if bias is None else result + bias[:, None, None]


class _Convolution(Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        return _convolved(x, weight, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        x, weight, ctx.geometry = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, None]:  # noqa: ARG004
        require_constant(in_dims)
        result: Tensor = _Convolution.apply(*args)
        return result, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dweight: Tensor | None, _: Any) -> Any:
        if dx is None and dweight is None:
            return None
        return _Push.apply(dx, dweight, *ctx.saved_tensors, ctx.geometry)

    @staticmethod
    def backward(ctx: Any, u: Tensor | None) -> Any:
        if u is None:
            return None, None, None
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        by_input = _PullInput.apply(u, x, weight, ctx.geometry) if wanted[0] else None
        by_weight = _PullWeight.apply(u, x, weight, ctx.geometry) if wanted[1] else None
        return by_input, by_weight, None


class _Push(Stacking):
    varying = 2

    @staticmethod
    def stacked(dx: Tensor | None, dweight: Tensor | None, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        result: Tensor = _PushAll.apply(dx, dweight, x, weight, geometry)
        return result


class _PushAll(Function):
    """(K, n, C, H, W) and (K, D, C, h, w) to (K, n, D, H', W'), with the transpose as its derivative."""

    @staticmethod
    def forward(dx: Tensor | None, dweight: Tensor | None, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        return _pushed(dx, dweight, x, weight, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        _, _, x, weight, ctx.geometry = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        by_input = _input_pulled(u, x, weight, ctx.geometry) if wanted[0] else None
        by_weight = _weight_pulled(u, x, weight, ctx.geometry) if wanted[1] else None
        return by_input, by_weight, None, None, None


class _PullInput(Stacking):
    @staticmethod
    def stacked(*args: Any) -> Tensor:
        return _input_pulled(*args)


class _PullWeight(Stacking):
    @staticmethod
    def stacked(*args: Any) -> Tensor:
        return _weight_pulled(*args)


def _convolved(x: Tensor, weight: Tensor, g: Geometry) -> Tensor:
    return conv2d(_last(x), _last(weight), None, g.stride, g.padding, g.dilation)


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _pushed(dx: Tensor | None, dweight: Tensor | None, x: Tensor, weight: Tensor, g: Geometry) -> Tensor:
    count = len(dx) if dx is not None else len(dweight) if dweight is not None else 0
    moved: Tensor | None = None
    if dx is not None:
        moved = _last(_convolved(dx.flatten(0, 1), weight, g)).unflatten(0, (count, len(x)))
    if dweight is not None:
        patches, places = _patches(x, weight.shape[2:], g)
        kernels = dweight.permute(0, 1, 3, 4, 2).reshape(-1, patches.shape[1])  # (K D, h w C), a view
        fresh = _swapped((patches @ kernels.T).unflatten(1, (count, -1)))  # (K, places, D)
        turned = fresh.unflatten(1, (len(x), *places)).permute(0, 1, 4, 2, 3)
        moved = turned if moved is None else moved.add_(turned)
    assert moved is not None
    return moved


def _input_pulled(u: Tensor, x: Tensor, weight: Tensor, g: Geometry) -> Tensor:
    count, channels, height, width = u.shape[0] * u.shape[1], *x.shape[1:]
    like = x.new_empty(count, height, width, channels).permute(0, 3, 1, 2)  # a shape; what repeats is copied first
    pulled: Tensor = torch.ops.aten.convolution_backward(
        _last(u.flatten(0, 1)), like, _last(weight), None, g.stride, g.padding, g.dilation, False, (0, 0), 1,
        (True, False, False),
    )[0]  # fmt: skip
    result: Tensor = _last(pulled).unflatten(0, u.shape[:2])
    return result


def _weight_pulled(u: Tensor, x: Tensor, weight: Tensor, g: Geometry) -> Tensor:
    patches, _ = _patches(x, weight.shape[2:], g)
    rows = u.permute(0, 1, 3, 4, 2).reshape(len(u), len(patches), -1)  # (K, places, D)
    kernels = _swapped(rows).flatten(1).T @ patches
    result: Tensor = kernels.unflatten(0, (len(u), -1)).unflatten(2, (*weight.shape[2:], -1))
    return result.permute(0, 1, 4, 2, 3)


def _patches(x: Tensor, size: torch.Size, g: Geometry) -> tuple[Tensor, Pair]:
    """(places, h w C), what the kernel sees at each place of each image, and the numbers of rows and columns."""
    (above, beside), (down, along) = g.padding, g.dilation
    padded = _last(pad(x, (beside, beside, above, above)) if above or beside else x)
    height, width = (
        (padded.shape[2 + axis] - g.dilation[axis] * (size[axis] - 1) - 1) // g.stride[axis] + 1 for axis in (0, 1)
    )
    image, channel, row, column = padded.stride()
    windows = padded.as_strided(
        (len(x), height, width, *size, x.shape[1]),
        (image, row * g.stride[0], column * g.stride[1], row * down, column * along, channel),
        padded.storage_offset(),
    )
    return windows.reshape(len(x) * height * width, -1), (height, width)


def _swapped(rows: Tensor) -> Tensor:
    """(a, b, D) to (b, a, D), contiguous."""
    size = rows.shape[2] * rows.element_size()
    wide = next((kind for bytes_, kind in _WIDE.items() if size % bytes_ == 0), None)
    rows = rows.contiguous()
    if wide is None:
        return rows.transpose(0, 1).contiguous()
    return rows.view(wide).transpose(0, 1).contiguous().view(rows.dtype)
