"""What stands in the way of derivatives inside torch's own kernels, put aside while a network runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
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


@contextmanager
def differentiable(native_rnn: bool) -> Iterator[None]:
    """Fused kernels put aside that have no derivatives: attention, encoder layers and cuDNN's recurrent layers.

    And linear layers folded: see ``_folding``.
    """
    fast, linear = torch.backends.mha.get_fastpath_enabled(), torch.nn.functional.linear
    cudnn = torch.backends.cudnn.enabled and not native_rnn
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        torch.nn.functional.linear = _folding(linear)
        with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=cudnn):
            yield
    finally:
        torch.nn.functional.linear = linear
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
