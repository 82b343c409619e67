"""The operations of a network in reduced precision: what multiplies matrices takes the coarser type of its arguments.

torch.autocast casts weights anew in every call, and refuses convolutions without bias inside vmap. Here the engine has
cast the parameters before (``_reduced.py``), and this mode casts what meets them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from sampla.features._attention import multi_head, scaled_dot_product
from sampla.features._convolution import Geometry, convolution
from sampla.features._linear import linear
from sampla.features._pointwise import gelu
from sampla.features._standardising import ChannelGroups, LastAxes, standardised

_TAKES_COARSER = frozenset(
    {
        F.linear, F.bilinear, F.layer_norm, F.group_norm, F.instance_norm, F.scaled_dot_product_attention,
        F.multi_head_attention_forward,
        torch.conv1d, torch.conv2d, torch.conv3d,
        torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
        torch.matmul, torch.mm, torch.bmm, torch.mv, torch.einsum, torch.addmm, torch.baddbmm,
        Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, Tensor.mm, Tensor.bmm, Tensor.mv, Tensor.addmm,
        Tensor.baddbmm,
    }
)  # fmt: skip


class Coarse(TorchFunctionMode):
    """Casts the arguments of products to their coarsest floating type, and takes some operations as its own.

    ``conv2d`` is ``convolution`` where that has it. ``batch_norm`` in evaluation mode is a factor and a shift, found in
    the type of its statistics: torch's own derivative of it takes several passes over K images.

    ``group_norm`` and ``layer_norm`` are ``standardised``, with a factor and a shift; ``view`` copies where the
    layout has no view of that shape.

    Args:
        dtype: to which products are reduced.
        folded: ids of the running variances of normalisation layers that have gone into what precedes them.
    """

    def __init__(self, dtype: torch.dtype, folded: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self._dtype, self._folded = dtype, folded

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options: Mapping[str, Any] = kwargs or {}
        if func in _TAKES_COARSER:
            args, options = self._cast(args), {name: self._cast(value) for name, value in options.items()}
        if func is torch.conv2d:
            return _conv2d(*args, **options)
        if func is F.linear:
            return linear(*args, **options)
        if func is F.multi_head_attention_forward:
            return multi_head(*args, **options)
        if func is F.scaled_dot_product_attention:
            return scaled_dot_product(*args, **options)
        if func is F.gelu:
            return gelu(*args, **options)
        if func is F.batch_norm:
            return self._batch_norm(*args, **options)
        if func is F.group_norm:
            return _group_norm(*args, **options)
        if func is F.layer_norm:
            return _layer_norm(*args, **options)
        if func is Tensor.view and not isinstance(args[1], torch.dtype):  # channels last, there may be no view
            return Tensor.reshape(*args, **options)
        return func(*args, **options)

    def _cast(self, given: Any) -> Any:
        if isinstance(given, Tensor):
            return given.to(self._dtype) if given.is_floating_point() else given
        if isinstance(given, (tuple, list)) and any(isinstance(each, Tensor) for each in given):
            return type(given)(self._cast(each) for each in given)
        return given

    def _batch_norm(
        self,
        input: Tensor,  # noqa: A002
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if training or running_mean is None or running_var is None:
            result: Tensor = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
            return result
        factor, shift = affine(running_mean, running_var, weight, bias, eps)
        shape = (-1, *[1] * (input.ndim - 2))
        scaled = input if id(running_var) in self._folded else input * factor.to(input.dtype).view(shape)
        return scaled + shift.to(input.dtype).view(shape)


def affine(
    mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Factor and shift (D,) by which a normalisation layer in evaluation mode takes its input."""
    factor = (variance + eps).rsqrt()
    if weight is not None:
        factor = factor * weight.to(variance.dtype)
    shift = -mean * factor
    return factor, shift if bias is None else shift + bias


def _group_norm(
    input: Tensor,  # noqa: A002
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    return standardised(input, ChannelGroups(num_groups, tuple(input.shape[1:])), eps, weight, bias)


def _layer_norm(
    input: Tensor,  # noqa: A002
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    return standardised(input, LastAxes(tuple(normalized_shape)), eps, weight, bias)


def _conv2d(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if groups != 1 or input.ndim != 4 or isinstance(padding, str):
        result: Tensor = torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
        return result
    return convolution(input, weight, bias, Geometry(_pair(stride), _pair(padding), _pair(dilation)))


def _pair(given: Any) -> tuple[int, int]:
    pair = (given, given) if isinstance(given, int) else tuple(given)
    return pair if len(pair) == 2 else (pair[0], pair[0])
