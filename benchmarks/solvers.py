"""Every solver on problems whose answer is known: passes, error estimates, whole fits. Writes solvers.md, solvers.json.

    python benchmarks/solvers.py --root DATA --checkpoints DIR [--only spectra] [--quick] [--out benchmarks]

``--root`` holds mnist/ and cifar10/, ``--checkpoints`` the ResNet. What is done is kept under OUT/solver_cache, and
a run that was interrupted goes on there; a change of the library's source starts rows anew (``--reuse`` keeps them).
"""

import argparse
from pathlib import Path
from time import perf_counter

from solver_cases import part_estimates, part_exact, part_mnist, part_resnet, part_spectra
from solver_cases.settings import PARTS, Settings
from solver_cases.store import Store
from solver_cases.writing import write

from sampla._allocator import freed_memory_kept

RUNS = {
    "spectra": part_spectra.run,
    "estimates": part_estimates.run,
    "exact": part_exact.run,
    "mnist": part_mnist.run,
    "resnet": part_resnet.run,
}


def main() -> None:
    """Run the parts asked for, one after the other, and write everything that is known."""
    arguments = _arguments()
    start = perf_counter()

    def say(text: str) -> None:
        print(f"{perf_counter() - start:7.1f} s  {text}", flush=True)

    settings = Settings(arguments.out, arguments.root, arguments.checkpoints, arguments.quick, say)
    settings.cache.mkdir(parents=True, exist_ok=True)
    (settings.cache / ".gitignore").write_text("*\n", encoding="utf-8")
    store = Store(settings.cache / f"{settings.name}.json", settings.sizes(), arguments.reuse)
    with freed_memory_kept():
        for part in arguments.only or PARTS:
            before = perf_counter()
            RUNS[part](settings, store)
            store.add_seconds(part, perf_counter() - before)
            write(settings, store)
    say(f"written: {settings.out / settings.name}.md and .json")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder that holds mnist/ and cifar10/")
    parser.add_argument("--checkpoints", type=Path, help="folder that holds resnet20_cifar10.safetensors")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where the results go")
    parser.add_argument("--only", choices=PARTS, action="append", help="only this part; may be given several times")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that everything works")
    parser.add_argument("--reuse", action="store_true", help="keep rows measured with another source of the library")
    arguments = parser.parse_args()
    parts = arguments.only or PARTS
    if arguments.root is None and {"mnist", "resnet"} & set(parts):
        parser.error("expected --root DIR (mnist/ and cifar10/) for the parts mnist and resnet, got none")
    if arguments.checkpoints is None and "resnet" in parts:
        parser.error("expected --checkpoints DIR (resnet20_cifar10.safetensors) for the part resnet, got none")
    return arguments


if __name__ == "__main__":
    main()
