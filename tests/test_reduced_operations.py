"""What products in reduced precision take as their own, in float64 against the Jacobian written out."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from dense import jacobian
from sampla.features import NetworkFeatures
from sampla.features._reduced import LaidNetwork, ReducedNetwork

N, LENGTH, WIDTH, HEADS = 3, 5, 8, 2


class Network(nn.Module):
    """Tokens (n, L, E) through a linear layer, something, and a linear layer without bias."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.start, self.inner, self.end = nn.Linear(WIDTH, WIDTH), inner, nn.Linear(WIDTH, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.end(self.inner(self.start(x)).mean(1))
        return outputs


class Function(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Attention(nn.Module):
    """Tokens among themselves, or their first ones among all."""

    def __init__(self, first: int = LENGTH, batch_first: bool = True, need_weights: bool = False) -> None:
        super().__init__()
        self.own = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first)
        nn.init.normal_(self.own.in_proj_bias)
        self.first, self.need_weights = first, need_weights

    def forward(self, x: Tensor) -> Tensor:
        query = x if self.first == LENGTH else x[:, : self.first]
        outputs: Tensor = self.own(query, x, x, need_weights=self.need_weights)[0]
        return outputs


def heads(x: Tensor) -> Sequence[Tensor]:
    """Queries, keys and values of as many heads as there are, (n, h, L, d) each."""
    q = x.unflatten(-1, (HEADS, -1)).transpose(1, 2)
    return q, q.flip(2), q.square()


def among(**options: object) -> Callable[[Tensor], Tensor]:
    """torch's attention with these options."""

    def attend(x: Tensor) -> Tensor:
        q, k, v = heads(x)
        return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2).flatten(2)  # type: ignore[arg-type]

    return attend


def cut(x: Tensor) -> Tensor:
    """Fewer queries than keys."""
    q, k, v = heads(x)
    return F.scaled_dot_product_attention(q[:, :, :2], k, v).transpose(1, 2).flatten(2)


ALLOWED = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 0, 1]]) > 0
"""The third token may look nowhere."""
CASES: dict[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "gelu": nn.GELU,
    "gelu by tanh": lambda: nn.GELU("tanh"),
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "layer norm of two axes": lambda: nn.LayerNorm((LENGTH, WIDTH), elementwise_affine=False),
    "group norm of vectors": lambda: nn.Sequential(
        nn.Flatten(0, 1), nn.GroupNorm(2, WIDTH), nn.Unflatten(0, (N, LENGTH))
    ),
    "group norm of sequences": lambda: nn.Sequential(
        Function(lambda x: x.mT), nn.GroupNorm(2, WIDTH), Function(lambda x: x.mT)
    ),
    "group norm of images": lambda: nn.Sequential(
        Function(lambda x: x.unflatten(2, (4, 2)).transpose(1, 2)), nn.GroupNorm(2, 4),
        Function(lambda x: x.transpose(1, 2).flatten(2)),
    ),
    "attention": Attention,
    "attention, batch second": lambda: Attention(batch_first=False),
    "attention across": lambda: Attention(first=2),
    "attention with weights": lambda: Attention(need_weights=True),
    "encoder": lambda: nn.TransformerEncoderLayer(WIDTH, HEADS, 12, 0.1, "gelu", batch_first=True, norm_first=True),
    "among": lambda: Function(among()),
    "among, causal": lambda: Function(among(is_causal=True, scale=0.7)),
    "among the allowed": lambda: Function(among(attn_mask=ALLOWED)),
    "among all, weighed": lambda: Function(among(attn_mask=torch.linspace(0, 1, 25, dtype=torch.double).view(5, 5))),
    "across": lambda: Function(cut),
}  # fmt: skip
"""Name -> what lies between the linear layers."""


def features_of(net: nn.Module, frozen: str) -> NetworkFeatures:
    names = [name for name, _ in net.named_parameters() if not (frozen and name.startswith(frozen))]
    return NetworkFeatures(net, names, precision="auto")


@pytest.mark.parametrize("frozen", ["", "start", "inner"])
@pytest.mark.parametrize("case", CASES)
def test_both_products_are_those_of_the_jacobian(case: str, frozen: str) -> None:
    """Laid and as reduced products are taken, but in float64."""
    torch.manual_seed(0)
    net = Network(CASES[case]()).double().eval()
    for parameter in net.parameters():
        if parameter.ndim < 2:  # those of normalisation would be ones and zeros
            nn.init.normal_(parameter)
    x = torch.randn(N, LENGTH, WIDTH, dtype=torch.double)
    features = features_of(net, frozen)
    features.choose_products(x)
    rows = jacobian(net, list(features.layout.names), x)  # (n, C, P)
    v, u = torch.randn(6, features.layout.total).double(), torch.randn(6, N, 2).double()
    pushed, pulled = torch.einsum("ncp,kp->knc", rows, v), torch.einsum("ncp,knc->kp", rows, u)
    both = torch.einsum("ncp,ncq,kq->kp", rows, rows, v)

    laid = LaidNetwork(features, torch.float64).linearise(x)
    torch.testing.assert_close(laid.outputs, net(x))
    torch.testing.assert_close(laid.jvp(v), pushed)
    torch.testing.assert_close(laid.vjp(u), pulled)
    torch.testing.assert_close(laid.product(v, lambda _, at: at), both)  # reverse mode through forward mode

    reduced = ReducedNetwork(features, torch.float64)
    at = reduced.linearise(x)
    torch.testing.assert_close(at.jvp(reduced.entering(v)), pushed)
    torch.testing.assert_close(at.jvp(reduced.entering(v)[2:]), pushed[2:])  # not from the start of their storage
    torch.testing.assert_close(reduced.leaving(at.vjp(u)), pulled)
