"""What a machine without a network must be given, in parts that are small enough to travel one at a time.

    python -m experiments.accelerator.carry FOLDER --root DATA --checkpoints DIR [--there FILE] [--no-wheels]

FOLDER gets one folder for each command (1 and 2: CIFAR-100 and a scan; 3 and 4: CIFAR-10 and its networks), each with
data/, checkpoints/ or wheels/ as they are to lie on the machine. FILE is the machine's `pip list --format=freeze`, if
it is known: what is in it is not carried. Wheels come from pip's own index, for Python 3.12 on x86-64.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from experiments.common.page import ROOT

LIMIT = 64 * 2**20
"""Bytes of a command's files, those of the repository among them."""
_STRIPS = 20
"""Of a hundred images each, that are enough of a set that is foreign to another."""
WHEELS = (
    "tqdm", "torchmetrics", "lightning-utilities", "jinja2", "markupsafe", "einops", "laplace-torch", "asdfghjkl",
    "backpack-for-pytorch", "curvlinops-for-pytorch", "einconv", "unfoldNd", "opt_einsum", "linear_operator",
    "tabulate",
)  # fmt: skip
"""Small, and all but markupsafe pure Python. The rest (NumPy, SciPy, scikit-learn, safetensors, Pillow, Matplotlib,
scikit-image, pytest) must be there; ``--check`` says whether it is."""
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def parts(root: Path, checkpoints: Path) -> dict[str, dict[str, Path]]:
    """Number of the part -> where a file goes in it -> the file. One that ends in .cut goes as a few strips of it."""

    def of(name: str, *files: str) -> dict[str, Path]:
        return {f"data/{name}/{file}.npz": root / name / f"{file}.npz" for file in files}

    def cut(name: str) -> dict[str, Path]:
        return {f"data/{name}/test.npz.cut": root / name / "test.npz"}

    networks = {f"checkpoints/{path.name}": path for path in sorted(checkpoints.glob("published_*.safetensors"))}
    scan = {"data/ct/walnut_slice_1024.png": root / "ct" / "walnut_slice_1024.png"}
    first, second = ("train_0", "train_1", "train_2"), ("train_3", "train_4", "test")
    return {
        "1": of("cifar100", *first) | scan, "2": of("cifar100", *second) | cut("cifar10"),
        "3": of("cifar10", *first) | networks, "4": of("cifar10", *second) | cut("cifar100"),
    }  # fmt: skip


def put(files: dict[str, Path], folder: Path) -> None:
    """Copy the files of a part to where they go in it."""
    for name, source in files.items():
        target = folder / name.removesuffix(".cut")
        target.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".cut"):
            strips(source, target)
        else:
            shutil.copyfile(source, target)


def strips(source: Path, target: Path, count: int = _STRIPS) -> None:
    """A file of CIFAR with few of its strips, evenly spaced, as images are ordered by class."""
    with np.load(source) as held:
        data, offsets, labels = held["data"], held["offsets"], held["labels"]
    each = len(labels) // (len(offsets) - 1)
    kept = np.linspace(0, len(offsets) - 2, count).round().astype(int)
    pieces = [data[offsets[k] : offsets[k + 1]] for k in kept]
    shown = np.concatenate([labels[k * each : (k + 1) * each] for k in kept])
    np.savez(target, data=np.concatenate(pieces), offsets=np.cumsum([0, *map(len, pieces)]), labels=shown)


def wheels(folder: Path, there: str) -> None:
    """Download what is not in the machine's list of packages; where they are known, in the versions of our tests."""
    known = {_plain(line.split("==")[0]) for line in there.splitlines() if "==" in line}
    pinned = {}
    for file in (ROOT / "constraints.txt", ROOT / "experiments" / "requirements.txt"):
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        pinned |= {_plain(line.split("==")[0]): line for line in lines if "==" in line and not line.startswith("#")}
    wanted = [pinned.get(_plain(name), name) for name in WHEELS if _plain(name) not in known]
    if not wanted:
        return
    call = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    call += ["--python-version", "3.12", "--implementation", "cp", "--dest", str(folder)]
    subprocess.run([*call, *(word for name in _PLATFORMS for word in ("--platform", name)), *wanted], check=True)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def size(folder: Path) -> int:
    """Bytes of all files in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def checkout() -> int:
    """Bytes of what git knows, or would, of the repository."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    return sum((ROOT / os.fsdecode(n)).stat().st_size for n in names if n and (ROOT / os.fsdecode(n)).is_file())


def main() -> None:
    """The command line."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("folder", type=Path)
    asked.add_argument("--root", type=Path, default=Path("data"))
    asked.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    asked.add_argument("--there", type=Path, help="the machine's pip list --format=freeze")
    asked.add_argument("--no-wheels", action="store_true", help="everything is there")
    found = asked.parse_args()
    own, wrong = checkout(), []
    for number, files in parts(found.root, found.checkpoints).items():
        folder = found.folder / number
        shutil.rmtree(folder, ignore_errors=True)
        put(files, folder)
        if number == "2" and not found.no_wheels:
            wheels(folder / "wheels", found.there.read_text(encoding="utf-8") if found.there else "")
        total = own + size(folder)
        print(
            f"{folder}: {size(folder) / 2**20:.1f} MiB, with the repository {total / 2**20:.1f} of {LIMIT / 2**20:.0f}"
        )
        wrong += [number] * (total > LIMIT)
    if wrong:
        raise SystemExit(f"too large: {', '.join(wrong)}. Leave wheels out that are there (--there, --no-wheels).")


if __name__ == "__main__":
    main()
