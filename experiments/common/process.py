"""One case in a process of its own: its peak memory, its threads and its crashes are its own."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

Case = dict[str, Any]


def apart(function: Callable[[Case], Case], case: Case, threads: int, seconds: float | None = None) -> Case:
    """What the function returns for this case in a fresh process, or ``failed``: why it returned nothing.

    Args:
        function: of a module, plain JSON in and out.
        case: its argument.
        threads: of every library in the process.
        seconds: after which the process is stopped; ``limit`` is then among what is returned.
    """
    environment = os.environ | {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS")}
    with tempfile.TemporaryDirectory() as folder:
        path, name = Path(folder) / "found.json", f"{function.__module__}:{function.__qualname__}"
        command = [sys.executable, "-m", "experiments.common.process", name, json.dumps(case), str(path)]
        root = Path(__file__).resolve().parents[2]
        try:
            done = subprocess.run(command, env=environment, cwd=root, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            return {"failed": f"stopped after {seconds:.0f} s, the making of the data included", "limit": seconds}
        if path.is_file():
            found: Case = json.loads(path.read_text(encoding="utf-8"))
            return found
    return {"failed": f"the process ended with status {done.returncode} and without a result (out of memory?)"}


def _main(name: str, case: str, path: str) -> None:
    """Run in the fresh process: an exception is a result too, its first line is told."""
    module, function = name.split(":")
    try:
        found = getattr(importlib.import_module(module), function)(json.loads(case))
    except Exception as error:
        traceback.print_exc()
        found = {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
    Path(path).write_text(json.dumps(found, default=float), encoding="utf-8")


if __name__ == "__main__":
    _main(*sys.argv[1:])
