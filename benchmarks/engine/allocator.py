"""What keeping freed memory saves: products with M (32 images, K = 16, a LeNet) with and without, interleaved.

Run by hand: ``python -m benchmarks.engine.allocator``. Prints the medians and their ratio.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from experiments.common.timing import interleaved

from benchmarks.engine.networks import lenet_mnist
from sampla import NetworkFeatures
from sampla.core.allocator import freed_memory_kept
from sampla.features import select_parameters

REPEATS, ROUNDS, IMAGES, SAMPLES = 8, 6, 32, 16


def main() -> None:
    """Measure in one process, side by side."""
    network, images = lenet_mnist()
    features = NetworkFeatures(network, select_parameters(network)[0])
    batch, vectors = features.linearise(images[:IMAGES]), torch.randn(SAMPLES, features.layout.total)

    def products(context: Callable[[], Any]) -> None:
        with context():
            for _ in range(REPEATS):
                batch.vjp(batch.jvp(vectors))

    ways = {"defaults": partial(products, nullcontext), "freed memory kept": partial(products, freed_memory_kept)}
    times = interleaved(ways, least=ROUNDS, most=ROUNDS)
    for name, seconds in times.items():
        print(f"{name:18} {1e3 * seconds / REPEATS:6.1f} ms")
    print(f"ratio              {times['defaults'] / times['freed memory kept']:6.2f}")


if __name__ == "__main__":
    main()
