"""What the figures of a run depend on: versions, machine, the state of the repository, the memory of the process."""

import importlib.metadata
import os
import platform
import resource
import subprocess
from pathlib import Path
from typing import Any

import torch

_PACKAGES = (
    "sampla", "torch", "numpy", "scipy", "scikit-learn", "GPyTorch", "laplace-torch", "curvlinops-for-pytorch", "jax",
)  # fmt: skip
GIB = 2**30


def environment() -> dict[str, Any]:
    """Versions of everything that takes part and is installed, the commit, and the machine."""
    found: dict[str, Any] = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | {
        "torch": torch.__version__,  # says whether the build is for a CPU
        "python": platform.python_version(), "commit": commit(),
        "machine": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count(),
        "threads": torch.get_num_threads(), "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def commit() -> str:
    """The short name of the commit that is checked out."""
    asked = ["git", "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(asked, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout[:-1]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def peak_memory() -> int:
    """Most bytes that this process has held in memory (ru_maxrss, which Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
