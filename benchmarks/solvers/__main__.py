"""Every solver on problems whose answer is known: passes, error estimates, whole fits. Writes solvers.md, solvers.json.

    python -m benchmarks.solvers --root DATA --checkpoints DIR [--only spectra] [--quick] [--anew] [--out benchmarks]

``--root`` holds mnist/ and cifar10/, ``--checkpoints`` the ResNet. A run that was interrupted goes on from
OUT/solvers.json; draws, networks and solutions in float64 are in the cache. ``--anew`` measures rows again that were
measured with another state of the library's source.
"""

import argparse
from pathlib import Path
from time import perf_counter

from experiments.common.command import parser, say
from experiments.common.page import ROOT, write_page
from experiments.common.store import Store

from benchmarks.solvers import on_estimates, on_exact, on_mnist, on_resnet, on_spectra
from benchmarks.solvers.page import page
from benchmarks.solvers.sizes import Run, Sizes
from sampla.core.allocator import freed_memory_kept

PARTS = {
    "spectra": on_spectra.run,
    "estimates": on_estimates.run,
    "exact": on_exact.run,
    "mnist": on_mnist.run,
    "resnet": on_resnet.run,
}


def main() -> None:
    """Run the parts asked for, one after the other, and write everything that is known."""
    asked = _arguments()
    sizes = Sizes.quick() if asked.quick else Sizes()
    path = asked.out / f"solvers{'-quick' * asked.quick}.json"
    store = Store(path, sizes.settings() | {"quick": asked.quick}, asked.cache, asked.anew)
    store.cache.mkdir(parents=True, exist_ok=True)
    run = Run(store, sizes, asked.root, asked.checkpoints)
    with freed_memory_kept():
        for part in asked.only or PARTS:
            before = perf_counter()
            PARTS[part](run)
            known = store.rows[f"seconds/{part}"]["seconds"] if f"seconds/{part}" in store.rows else 0.0
            store.put(f"seconds/{part}", {"seconds": known + perf_counter() - before})
            write_page(path.with_suffix(".md"), "benchmarks/solvers/solvers.md.j2", **page(store))
    say(f"written: {path.with_suffix('.md')}")


def _arguments() -> argparse.Namespace:
    options = parser(
        __doc__, ROOT / "benchmarks", checkpoints="resnet20_cifar10.safetensors",
        quick="small sizes, to see that everything works",
    )  # fmt: skip
    options.add_argument("--root", type=Path, help="folder that holds mnist/ and cifar10/")
    options.add_argument("--only", choices=PARTS, action="append", help="only this part; may be given several times")
    options.add_argument("--anew", action="store_true", help="measure anew where the source has changed")
    asked = options.parse_args()
    parts = asked.only or PARTS
    if asked.root is None and {"mnist", "resnet"} & set(parts):
        options.error("expected --root DIR (mnist/ and cifar10/) for the parts mnist and resnet, got none")
    if asked.checkpoints is None and "resnet" in parts:
        options.error("expected --checkpoints DIR (resnet20_cifar10.safetensors) for the part resnet, got none")
    return asked


if __name__ == "__main__":
    main()
