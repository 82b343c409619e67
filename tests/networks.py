"""The table of networks of every kind that test_architectures.py runs over; a new kind joins it here.

A case is a network in float64 on a few data; ``mode`` says how its products are to be taken, ``where`` which module
stands in the way of forward mode.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from cases import randn

COUNT, CLASSES = 5, 3
SEQUENCE, FLAT = randn(COUNT, 4, 6), randn(COUNT, 6)
TOKENS = torch.arange(COUNT * 4).view(COUNT, 4) * 3 % 7


class Cube(torch.autograd.Function):
    """x^3 as functions were written before torch.func: no setup_context, no jvp."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class CubeWithoutJvp(torch.autograd.Function):
    """x^3 as torch.func wants it, but for the jvp."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class Unstackable(Cube):
    """x^3 with a backward that looks at numbers, so that no vmap goes through it."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad if float(grad.detach().sum()) == 0 else 3 * x * x * grad


class Applied(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        return self.function(*args, **kwargs)


class Attention(nn.Module):
    """Self-attention by torch's module, with a residual."""

    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.attention, self.need_weights = nn.MultiheadAttention(6, 2, batch_first=True), need_weights

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(x, x, x, need_weights=self.need_weights)[0]


class Kernel(nn.Module):
    """Self-attention by torch's function."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(6, 18)

    def forward(self, x: Tensor) -> Tensor:
        return scaled_dot_product_attention(*self.projection(x).chunk(3, dim=-1), is_causal=True)


class Recurrent(nn.Module):
    """The last state of a recurrent layer."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.layer = kind(6, 4, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0][:, -1]


class Checkpointed(nn.Module):
    """A block whose activations are computed again in the backward pass."""

    def __init__(self, reentrant: bool = False) -> None:
        super().__init__()
        self.first, self.block = nn.Linear(6, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.block, self.first(x), use_reentrant=self.reentrant)


class Tied(nn.Module):
    """A small language model whose output weights are its embedding: (n, L) tokens to (n, L, V)."""

    def __init__(self, vocabulary: int = 7, width: int = 3, padding: int | None = None) -> None:
        super().__init__()
        self.embedding, self.mix = nn.Embedding(vocabulary, width, padding), nn.Linear(width, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.embedding(tokens).cumsum(1))))


class Scaled(nn.Module):
    """A parameter of shape ()."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(self.scale * x)


class Shared(nn.Module):
    """One layer used twice, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(6, 6)
        self.two = self.one

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x)))


@dataclass
class Output:
    """As some libraries return it."""

    logits: Tensor
    hidden: Tensor
    cache: Any = None


class Pair(NamedTuple):
    """As others do."""

    scores: Tensor
    features: Tensor


class Returning(nn.Module):
    """A linear layer whose logits are one of two tensors that come back."""

    def __init__(self, wrap: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.wrap = nn.Linear(6, CLASSES), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.layer(x), x)


@dataclass(frozen=True)
class Case:
    """A network, its inputs and what sampla is to say about its products."""

    make: Callable[[], nn.Module]
    inputs: Any
    mode: str = "forward"
    where: str = ""
    options: tuple[tuple[str, Any], ...] = ()
    pick: Callable[[Any], Tensor] = lambda outputs: outputs
    attention: bool = False
    stacked: bool = True


def _image(*size: int) -> Tensor:
    return randn(COUNT, 2, *size)


def _head(features: int) -> list[nn.Module]:
    return [nn.Flatten(), nn.Tanh(), nn.Linear(features, CLASSES)]


def _function(function: type[torch.autograd.Function]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(6, 4), Applied(function.apply), *_head(4))


def _layer(build: Callable[[], list[nn.Module]]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*build())


def _encoder_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)


REVERSE = "double-reverse"
CASES = {
    "linear": Case(_layer(lambda: [nn.Linear(6, 4), nn.GELU(), *_head(4)]), FLAT),
    "conv1d": Case(_layer(lambda: [nn.Conv1d(2, 3, 3, padding=1), *_head(15)]), _image(5)),
    "conv2d": Case(_layer(lambda: [nn.Conv2d(2, 2, 3, stride=2), nn.MaxPool2d(2), *_head(2)]), _image(5, 5)),
    "conv3d": Case(_layer(lambda: [nn.Conv3d(2, 2, 2), *_head(16)]), _image(3, 3, 3)),
    "grouped and dilated": Case(_layer(lambda: [nn.Conv2d(2, 4, 2, groups=2, dilation=2), *_head(16)]), _image(4, 4)),
    "transposed 1d": Case(_layer(lambda: [nn.ConvTranspose1d(2, 2, 3, stride=2), *_head(14)]), _image(3)),
    "transposed 2d": Case(_layer(lambda: [nn.ConvTranspose2d(2, 1, 2, stride=2), *_head(16)]), _image(2, 2)),
    "batch norm": Case(_layer(lambda: [nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), *_head(12)]), _image(3, 3)),
    "layer norm": Case(_layer(lambda: [nn.Linear(6, 4), nn.LayerNorm(4), *_head(4)]), FLAT),
    "rms norm": Case(_layer(lambda: [nn.Linear(6, 4), nn.RMSNorm(4), *_head(4)]), FLAT),
    "group norm": Case(_layer(lambda: [nn.Conv2d(2, 4, 2), nn.GroupNorm(2, 4), *_head(16)]), _image(3, 3)),
    "weight norm": Case(
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)), *_head(4)),
        FLAT, REVERSE, "'0.parametrizations.weight.0' (_WeightNorm)",
    ),
    "embedding": Case(_layer(lambda: [nn.Embedding(7, 3), *_head(12)]), TOKENS),
    "embedding with padding": Case(_layer(lambda: [nn.Embedding(7, 3, padding_idx=0), *_head(12)]), TOKENS),
    "tied embedding": Case(Tied, TOKENS),
    "tied embedding with padding": Case(lambda: Tied(padding=3), TOKENS),
    "a scalar": Case(lambda: nn.Sequential(Scaled(), *_head(6)), FLAT),
    "shared layer": Case(lambda: nn.Sequential(Shared(), *_head(6)), FLAT),
    "attention": Case(lambda: nn.Sequential(Attention(True), *_head(24)), SEQUENCE),
    "attention without weights": Case(lambda: nn.Sequential(Attention(False), *_head(24)), SEQUENCE, attention=True),
    "attention kernel": Case(lambda: nn.Sequential(Kernel(), *_head(24)), SEQUENCE, attention=True),
    "encoder layer": Case(lambda: nn.Sequential(_encoder_layer(), *_head(24)), SEQUENCE, attention=True),
    "encoder": Case(
        lambda: nn.Sequential(nn.TransformerEncoder(_encoder_layer(), 2, enable_nested_tensor=False), *_head(24)),
        SEQUENCE, attention=True,
    ),
    "recurrent": Case(lambda: nn.Sequential(Recurrent(nn.RNN), *_head(4)), SEQUENCE),
    "gru": Case(lambda: nn.Sequential(Recurrent(nn.GRU), *_head(4)), SEQUENCE),
    "lstm": Case(lambda: nn.Sequential(Recurrent(nn.LSTM), *_head(4)), SEQUENCE, "any"),
    "lstm, two layers, both ways": Case(
        lambda: nn.Sequential(Recurrent(nn.LSTM, num_layers=2, bidirectional=True), *_head(8)), SEQUENCE, "any",
    ),
    "old function": Case(_function(Cube), FLAT, REVERSE, "module '1' (Applied)"),
    "function without jvp": Case(_function(CubeWithoutJvp), FLAT, REVERSE, "module '1' (Applied)"),
    "function that cannot be stacked": Case(
        _function(Unstackable), FLAT, REVERSE, "module '1' (Applied)", stacked=False
    ),
    "checkpointed": Case(lambda: nn.Sequential(Checkpointed(), *_head(4)), FLAT, REVERSE, "'0' (Checkpointed)"),
    "a dict with logits": Case(
        lambda: Returning(lambda y, x: {"hidden": x, "logits": y}), FLAT, pick=lambda o: o["logits"]
    ),
    "an ordered dict by name": Case(
        lambda: Returning(lambda y, x: OrderedDict(hidden=x, scores=y, n=3)), FLAT,
        options=(("output", "scores"),), pick=lambda o: o["scores"],
    ),
    "a dataclass": Case(lambda: Returning(Output), FLAT, pick=lambda o: o.logits),
    "a tuple by index": Case(
        lambda: Returning(lambda y, x: (x, y)), FLAT, options=(("output", 1),), pick=lambda o: o[1]
    ),
    "a named tuple by name": Case(
        lambda: Returning(Pair), FLAT, options=(("output", "scores"),), pick=lambda o: o.scores
    ),
    "one floating tensor among others": Case(
        lambda: Returning(lambda y, _: (y, y.argmax(-1), None)), FLAT, pick=lambda o: o[0]
    ),
    "a tuple within double reverse mode": Case(
        lambda: nn.Sequential(nn.Linear(6, 6), Applied(Cube.apply), Returning(lambda y, x: (x, y))), FLAT,
        REVERSE, "module '1' (Applied)", options=(("output", -1),), pick=lambda o: o[1],
    ),
}  # fmt: skip
