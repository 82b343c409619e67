"""A product with M for a language model's vocabulary, beside the matrix products that it cannot do without.

    python benchmarks/vocabulary.py [--quick] [--out benchmarks]

Run by hand; a minute on one core. Writes vocabulary.md. Tied weights, one hidden layer, the softmax's curvature B. In
the output layer a jvp takes two matrix products for each vector, h dW' and dh W', and a vjp two, g W and g'h; the rest
of the network is small. All contestants in one process, interleaved, on one thread, with freed memory kept.
"""

import argparse
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from engine import interleaved
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sampla import Categorical, NetworkFeatures
from sampla._allocator import freed_memory_kept
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a second for each vocabulary, at most 10,000 words")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with freed_memory_kept():
        rows = [measured(size, 1.0 if asked.quick else 15.0) for size in VOCABULARIES[: 2 if asked.quick else 3]]
    (asked.out / "vocabulary.md").write_text(words(rows), encoding="utf-8")


def measured(vocabulary: int, seconds: float) -> dict[str, Any]:
    """Median seconds of each contestant."""
    torch.manual_seed(0)
    network = Words(vocabulary).eval()
    tokens, targets = (torch.randint(0, vocabulary, (TEXTS, LENGTH)) for _ in range(2))
    features = NetworkFeatures(network, select_parameters(network)[0])
    features.settle(tokens[:1])
    other, likelihood = features.other_way(), Categorical()
    assert isinstance(other, NetworkFeatures)
    vectors = torch.randn(K, features.layout.total)
    ways = {("one forward" if way.products.shared else "two"): way for way in (features, other)}
    contestants: dict[str, Callable[[], Any]] = {
        "matrix products": matrix_products(vocabulary),
        "forward + backward": lambda: [ordinary(network, tokens, targets) for _ in range(K)],
    }
    for name, way in ways.items():
        contestants[name] = lambda w=way: w.linearise(tokens).product(vectors, likelihood.curvature_product)
    row = {"vocabulary": vocabulary, "P": features.layout.total} | interleaved(contestants, seconds)
    print(row, flush=True)
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


def words(rows: list[dict[str, Any]]) -> str:
    """vocabulary.md."""
    lines = [
        "# Large vocabularies",
        "",
        f"Written by `python benchmarks/vocabulary.py`: torch {torch.__version__}, {platform.system()} "
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread, load average "
        f"{os.getloadavg()[0]:.1f} at the end. Tied weights of width {WIDTH}, {TEXTS * LENGTH} tokens, K = {K}.",
        "",
        "A product with M for K vectors, B included, over the matrix products of the output layer alone (four a "
        "vector: two in the jvp, two in the vjp), and over K forwards and backwards. 'one forward' serves both "
        "products, 'two' are jvps and then vjps: a fit that is long enough measures both and takes the faster. "
        "Medians, interleaved.",
        "",
        "| vocabulary | P | matrix products, ms | K forwards + backwards, ms | one forward, ms | two, ms | over the "
        "matrix products | over forwards + backwards |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        best, bare, base = min(row["one forward"], row["two"]), row["matrix products"], row["forward + backward"]
        times = " | ".join(f"{1e3 * each:.1f}" for each in (bare, base, row["one forward"], row["two"]))
        lines.append(f"| {row['vocabulary']:,} | {row['P']:,} | {times} | {best / bare:.2f} | {best / base:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
