"""A product with M for a language model's vocabulary, beside the matrix products that it cannot do without.

    python -m benchmarks.engine.vocabulary [--quick] [--out benchmarks]

Run by hand; a minute on one core. Writes vocabulary.md. Tied weights, one hidden layer, the softmax's curvature B. In
the output layer a jvp takes two matrix products for each vector, h dW' and dh W', and a vjp two, g W and g'h; the rest
of the network is small. All contestants in one process, interleaved, on one thread, with freed memory kept.
"""

from collections.abc import Callable
from typing import Any

import torch
from experiments.common.command import command, say
from experiments.common.facts import environment
from experiments.common.page import BENCHMARKS, table, write_page
from experiments.common.timing import interleaved
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.engine.__main__ import ms
from sampla import Categorical, NetworkFeatures
from sampla.core.allocator import freed_memory_kept
from sampla.features import select_parameters

VOCABULARIES, WIDTH, TEXTS, LENGTH, K = (1_000, 10_000, 50_000), 64, 16, 8, 4


class Words(nn.Module):
    """Tokens (n, length) -> logits (n, length, vocabulary), with one weight for embedding and output."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, WIDTH)
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, vocabulary, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Any:
        return self.output(torch.tanh(self.hidden(self.embedding(tokens))))


def main() -> None:
    """Measure every vocabulary and write."""
    quick = "a second for each vocabulary, at most 10,000 words"
    asked = command(__doc__, BENCHMARKS, quick=quick)
    with freed_memory_kept():
        rows = [measured(size, 1.0 if asked.quick else 15.0) for size in VOCABULARIES[: 2 if asked.quick else 3]]
    write_page(
        asked.out / "vocabulary.md", "benchmarks/engine/vocabulary.md.j2", facts=environment(), width=WIDTH,
        tokens=TEXTS * LENGTH, samples=K, rows=table(rows, _COLUMNS, left=0),
    )  # fmt: skip


def measured(vocabulary: int, seconds: float) -> dict[str, Any]:
    """Median seconds of each contestant."""
    torch.manual_seed(0)
    network = Words(vocabulary).eval()
    tokens, targets = (torch.randint(0, vocabulary, (TEXTS, LENGTH)) for _ in range(2))
    features = NetworkFeatures(network, select_parameters(network)[0])
    features.choose_products(tokens[:1])
    other, likelihood = features.alternative(), Categorical()
    assert other is not None, "forward mode knows two ways"
    vectors = torch.randn(K, features.layout.total)
    ways = {("one forward" if way.products.shared else "two"): way for way in (features, other)}
    contestants: dict[str, Callable[[], Any]] = {
        "matrix products": matrix_products(vocabulary),
        "forward + backward": lambda: [ordinary(network, tokens, targets) for _ in range(K)],
    }
    for name, way in ways.items():
        contestants[name] = lambda w=way: w.linearise(tokens).product(vectors, likelihood.curvature_product)
    row = {"vocabulary": vocabulary, "P": features.layout.total} | interleaved(contestants, seconds)
    say(str(row))
    return row


def matrix_products(vocabulary: int) -> Callable[[], Any]:
    """Those of the output layer, for K vectors."""
    count = TEXTS * LENGTH
    weight, hidden = torch.randn(vocabulary, WIDTH), torch.randn(count, WIDTH)
    change, moved = torch.randn(K, vocabulary, WIDTH), torch.randn(K, count, WIDTH)
    slope = torch.randn(K, count, vocabulary)

    def run() -> None:
        for k in range(K):
            _ = hidden @ change[k].mT, moved[k] @ weight.mT, slope[k] @ weight, slope[k].mT @ hidden

    return run


def ordinary(network: nn.Module, tokens: Tensor, targets: Tensor) -> None:
    """What one step of training costs, without the optimiser."""
    network.zero_grad()
    cross_entropy(network(tokens).flatten(0, 1), targets.flatten()).backward()


def _over(name: str) -> Callable[[Any], str]:
    return lambda row: f"{min(row['one forward'], row['two']) / row[name]:.2f}"


_COLUMNS = {
    "vocabulary": "{vocabulary:,}", "P": "{P:,}", "matrix products, ms": ms("matrix products"),
    "K forwards + backwards, ms": ms("forward + backward"), "one forward, ms": ms("one forward"), "two, ms": ms("two"),
    "over the matrix products": _over("matrix products"), "over forwards + backwards": _over("forward + backward"),
}  # fmt: skip


if __name__ == "__main__":
    main()
