"""Replaces torch's kernels that have no derivatives, or costly ones, while a network runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import embedding, linear, multi_head_attention_forward, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

_EMBEDDING = signature(embedding)


class _Substituted(TorchFunctionMode):
    """Replaces three operations of torch.nn.functional by ones with the same values, on this thread only.

    ``linear``: all axes of the input but the last are made one. Where they are transposed, torch multiplies the input
    by K weights as by a copy of each for every token, which is more than half of a transformer's jvp.

    ``multi_head_attention_forward``: query, key and value are made contiguous, for the same reason. The linear layers
    inside it are out of reach, because torch takes a mode off while the function that it was asked about runs.

    ``embedding``: the gradient is dense, and is the derivative. A sparse gradient goes through neither torch.func nor a
    second backward, and one that is divided by how often an entry occurs (scale_grad_by_freq) is for optimisers.

    Args:
        fold: whether the first two are replaced.
    """

    def __init__(self, fold: bool) -> None:
        super().__init__()
        self._fold = fold

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func is linear and self._fold:
            return _folded_linear(*args, **options)
        if func is embedding:
            return _dense_embedding(*args, **options)
        if func is multi_head_attention_forward and self._fold:
            return _contiguous_attention(*args, **options)
        return func(*args, **options)


def _folded_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002
    if input.ndim < 3 or input.is_nested:
        return linear(input, weight, bias)
    rows: Tensor = linear(input.reshape(-1, input.shape[-1]), weight, bias)
    unfolded: Tensor = rows.unflatten(0, input.shape[:-1])
    return unfolded


def _dense_embedding(*args: Any, **kwargs: Any) -> Tensor:
    bound = _EMBEDDING.bind(*args, **kwargs)
    bound.arguments |= {"sparse": False, "scale_grad_by_freq": False}
    result: Tensor = embedding(*bound.args, **bound.kwargs)
    return result


def _contiguous_attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Which of the three are one tensor stays as it is: torch projects those together."""
    contiguous = {id(each): each.contiguous() for each in (query, key, value)}
    return multi_head_attention_forward(
        contiguous[id(query)], contiguous[id(key)], contiguous[id(value)], *args, **kwargs
    )


@contextmanager
def differentiable(native_rnn: bool, compiled: bool, fold: bool) -> Iterator[None]:
    """Switch off fused kernels that have no derivatives: attention, encoder layers and cuDNN's recurrent layers.

    Three operations are replaced as ``_Substituted`` says. Compiled modules run in eager mode: torch.func goes through
    them so in any case, and a second backward cannot go through them otherwise.

    Args:
        native_rnn: whether recurrent layers are to be kept from cuDNN.
        compiled: whether there are compiled modules (or else the 2 ms that this takes are saved).
        fold: whether linear layers are computed with the axes of their inputs made one, which forward mode needs.
            Double reverse mode must not have it: a checkpointed part of the network is computed again in the backward
            pass, where torch has taken the mode off, and would save other tensors than in the forward pass.
    """
    # cuDNN's other flags stay the user's. torch.backends.cudnn.flags would set each to a default of its own (TF32 on,
    # deterministic off), and raises where the user has chosen a precision with fp32_precision.
    fast, cudnn = torch.backends.mha.get_fastpath_enabled(), torch.backends.cudnn.enabled
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        if native_rnn:
            torch.backends.cudnn.enabled = False
        eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
        with _Substituted(fold), eager, sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        if native_rnn:
            torch.backends.cudnn.enabled = cudnn


@contextmanager
def constant_padding(embeddings: Sequence[tuple[nn.Embedding, Tensor]]) -> Iterator[None]:
    """Keep the row of padding_idx constant in forward mode, as torch does in backward."""

    def fixed(row: Tensor) -> Callable[..., Tensor]:
        def hook(module: Any, args: tuple[Tensor], output: Tensor) -> Tensor:
            return torch.where(args[0].eq(module.padding_idx).unsqueeze(-1), row.to(output.dtype), output)

        return hook

    handles = [module.register_forward_hook(fixed(row), prepend=True) for module, row in embeddings]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Attention(TorchFunctionMode):
    """Sees whether the network asks for an attention kernel."""

    seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        fused = func is multi_head_attention_forward and not options.get("need_weights", True)
        self.seen = self.seen or fused or func is scaled_dot_product_attention
        return func(*args, **options)


class OnceOnly(TorchFunctionMode):
    """Sees what cannot be differentiated again: gradients that the network takes, and flex attention.

    Raises:
        RuntimeError: where flex attention gets what depends on the parameters.
    """

    cut = False
    """Whether the network takes gradients without create_graph=True."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        self.cut = self.cut or (func is torch.autograd.grad and not options.get("create_graph", False))
        flex = isinstance(func, HigherOrderOperator) and func.name() == "flex_attention"
        if flex and any(isinstance(each, Tensor) and each.requires_grad for each in args):
            raise RuntimeError("FlexAttention has no forward derivative, and its backward has none.")
        return func(*args, **options)
