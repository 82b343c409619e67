"""What keeping freed memory saves: one product with M (32 images, K = 16, a LeNet) with and without, interleaved.

Run by hand: ``python -m benchmarks.engine.allocator``. Prints the medians and their ratio.
"""

from contextlib import nullcontext
from statistics import median
from time import perf_counter

import torch

from sampla import NetworkFeatures
from sampla.apps.demo.networks import lenet
from sampla.core.allocator import freed_memory_kept

REPEATS, ROUNDS, IMAGES, SAMPLES = 8, 6, 32, 16


def main() -> None:
    """Measure in one process, side by side."""
    images = torch.rand(IMAGES, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    network = lenet(images).eval()
    features = NetworkFeatures(network, [name for name, _ in network.named_parameters()])
    vectors = torch.randn(SAMPLES, features.layout.total, generator=torch.Generator().manual_seed(1))

    def product() -> float:
        start = perf_counter()
        batch = features.linearise(images)
        batch.vjp(batch.jvp(vectors))
        return perf_counter() - start

    times: dict[str, list[float]] = {"defaults": [], "freed memory kept": []}
    for _ in range(ROUNDS):
        for name, context in (("defaults", nullcontext()), ("freed memory kept", freed_memory_kept())):
            with context:
                product()
                times[name] += [product() for _ in range(REPEATS)]
    for name, seconds in times.items():
        print(f"{name:18} {1e3 * median(seconds):6.1f} ms")
    print(f"ratio              {median(times['defaults']) / median(times['freed memory kept']):6.2f}")


if __name__ == "__main__":
    main()
