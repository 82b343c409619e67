"""What stands in the way of derivatives inside torch's own kernels, put aside while a network runs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import multi_head_attention_forward, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


def _folding(linear: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch's linear with all axes but the last made one: the same numbers.

    Where the input's axes are transposed, as inside nn.MultiheadAttention, torch multiplies it by K weights as by a
    copy of each for every token: more than half of a transformer's jvp.
    """

    def folded(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002
        if input.ndim < 3 or input.is_nested:
            return linear(input, weight, bias)
        rows: Tensor = linear(input.reshape(-1, input.shape[-1]), weight, bias)
        unfolded: Tensor = rows.unflatten(0, input.shape[:-1])
        return unfolded

    return folded


def _dense(embed: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch's embedding, whose gradient is a dense tensor and the derivative: the same numbers.

    A sparse gradient goes through neither torch.func nor a second backward, and one that is divided by how often an
    entry occurs (scale_grad_by_freq) is for optimisers.
    """
    kinds = signature(embed)

    def dense(*args: Any, **kwargs: Any) -> Tensor:
        bound = kinds.bind(*args, **kwargs)
        bound.arguments |= {"sparse": False, "scale_grad_by_freq": False}
        result: Tensor = embed(*bound.args, **bound.kwargs)
        return result

    return dense


@contextmanager
def _replaced(changes: Mapping[str, Callable[[Callable[..., Tensor]], Callable[..., Tensor]]]) -> Iterator[None]:
    """Functions of torch.nn.functional by what is made of them."""
    before = {name: getattr(torch.nn.functional, name) for name in changes}
    try:
        for name, change in changes.items():
            setattr(torch.nn.functional, name, change(before[name]))
        yield
    finally:
        for name, function in before.items():
            setattr(torch.nn.functional, name, function)


@contextmanager
def differentiable(native_rnn: bool, compiled: bool) -> Iterator[None]:
    """Fused kernels put aside that have no derivatives: attention, encoder layers and cuDNN's recurrent layers.

    And linear layers folded, embeddings with dense gradients (see ``_folding`` and ``_dense``), and compiled modules in
    eager mode: torch.func goes through them so in any case, and a second backward not at all otherwise.

    Args:
        native_rnn: whether recurrent layers are to be kept from cuDNN.
        compiled: whether there are compiled modules (or else the 2 ms that this takes are saved).
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    cudnn = torch.backends.cudnn.enabled and not native_rnn
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        replaced, flags = (
            _replaced({"linear": _folding, "embedding": _dense}),
            torch.backends.cudnn.flags(enabled=cudnn),
        )
        eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
        with replaced, flags, eager, sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def constant_padding(embeddings: Sequence[tuple[nn.Embedding, Tensor]]) -> Iterator[None]:
    """The row of padding_idx is no parameter: its backward says so, and in forward mode this does."""

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
