"""Every solver on problems whose answer is known: passes, error estimates, whole fits. Writes solvers.md, solvers.json.

    python -m benchmarks.solvers --root DATA --checkpoints DIR [--only spectra] [--quick] [--anew] [--out benchmarks]

``--root`` holds mnist/ and cifar10/, ``--checkpoints`` the ResNet; only the parts mnist and resnet need them. A run
that was interrupted goes on from OUT/solvers.json; draws, networks and solutions in float64 are in the cache.
"""

from time import perf_counter

from experiments.common.command import command, say
from experiments.common.page import BENCHMARKS, write_page
from experiments.common.store import Store

from benchmarks.solvers import on_exact, on_networks, on_spectra
from benchmarks.solvers.page import page
from benchmarks.solvers.problem import Run, Sizes
from sampla.core.allocator import freed_memory_kept

PARTS = {
    "spectra": on_spectra.spectra, "estimates": on_spectra.estimates, "exact": on_exact.run,
    "mnist": on_networks.mnist, "resnet": on_networks.resnet,
}  # fmt: skip


def main() -> None:
    """Run the parts asked for, one after the other, and write everything that is known."""
    asked = command(
        __doc__, BENCHMARKS, "mnist/ and cifar10/", on_networks.CHECKPOINT, "small sizes, to see that everything works",
        only=PARTS, anew=True, threads=None,
    )  # fmt: skip
    parts = asked.only or PARTS
    if {"mnist", "resnet"} & set(parts) and not asked.root.is_dir():
        raise SystemExit(f"expected --root DIR with mnist/ and cifar10/ for mnist and resnet, got {asked.root}.")
    if "resnet" in parts and not (asked.checkpoints / on_networks.CHECKPOINT).is_file():
        raise SystemExit(
            f"expected --checkpoints DIR with {on_networks.CHECKPOINT} for resnet, got {asked.checkpoints}."
        )
    sizes = Sizes.of(asked.quick)
    store = Store(asked.out / "solvers.json", vars(sizes), asked.cache, asked.anew)
    store.cache.mkdir(parents=True, exist_ok=True)
    run = Run(store, sizes, asked.root, asked.checkpoints)
    with freed_memory_kept():
        for part in parts:
            before = perf_counter()
            PARTS[part](run)
            known = store.rows[f"seconds/{part}"]["seconds"] if f"seconds/{part}" in store.rows else 0.0
            store.put(f"seconds/{part}", {"seconds": known + perf_counter() - before})
            write_page(asked.out / "solvers.md", "benchmarks/solvers/solvers.md.j2", **page(store))
    say(f"written: {asked.out / 'solvers.md'}")


if __name__ == "__main__":
    main()
