"""What the figures of a run depend on: versions, machine, the state of the repository, the memory of the process."""

import importlib.metadata
import os
import platform
import resource
import subprocess
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "sampla", "torch", "numpy", "scipy", "scikit-learn", "GPyTorch", "laplace-torch", "curvlinops-for-pytorch", "jax",
)  # fmt: skip
GIB = 2**30


def environment() -> dict[str, Any]:
    """Versions of everything that takes part and is installed, the commit, and the machine."""
    found: dict[str, Any] = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    found["torch"] = torch.__version__  # says whether the build is for a CPU
    return found | {
        "python": platform.python_version(),
        "commit": commit(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
    }


def commit() -> str:
    """The short name of the commit that is checked out."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def peak_memory() -> int:
    """Most bytes that this process has held in memory (ru_maxrss, which Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
