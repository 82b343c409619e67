"""Large linear models beside scikit-learn's: time, peak memory, quality. Writes linear_models.md and .json.

    python benchmarks/linear_models.py [--threads 2] [--only sizes] [--quick] [--out benchmarks]

Every case runs in a process of its own, so that ru_maxrss is its own peak. What is done is kept in the JSON file, and a
run that was cut off goes on there; ``--anew`` starts from nothing.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from linear_cases import cases
from linear_cases.settings import EXACT, PEER_COLUMNS, Sizes
from linear_cases.writing import write

PARTS = ("sizes", "outputs", "file", "sparse")
Case = dict[str, Any]


def main() -> None:
    """Every case that is not known yet, one after the other."""
    arguments = _arguments()
    if arguments.case:
        cases.main(arguments.case)
        return
    sizes = Sizes.quick() if arguments.quick else Sizes()
    path = arguments.out / ("linear_models-quick.json" if arguments.quick else "linear_models.json")
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() and not arguments.anew else {}
    if kept.get("threads") != arguments.threads:
        kept = {"threads": arguments.threads, "results": {}}
    start = perf_counter()
    for part in arguments.only or PARTS:
        for name, case in _cases(part, sizes):
            if name not in kept["results"]:
                kept["results"][name] = _apart(case, arguments.threads, sizes)
                print(f"{perf_counter() - start:7.0f} s  {name}: {_short(kept['results'][name])}", flush=True)
                path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
            write(path.with_suffix(".md"), kept, sizes, arguments.quick)


def _cases(part: str, sizes: Sizes) -> list[tuple[str, Case]]:
    """Name and case, in the order in which they run: contestants of one size one after the other."""
    if part == "outputs":
        return [("outputs", {"kind": "outputs", "sizes": sizes.outputs})]
    if part == "file":
        return [("file", {"kind": "file", "gib": sizes.file_gib, "columns": sizes.file_columns})]
    if part == "sparse":
        return [("sparse", {"kind": "sparse", "sizes": sizes.sparse})]
    found = []
    for columns in sizes.columns:
        methods = ["sampla", "sampla, matrix-free", *(p for p, most in PEER_COLUMNS.items() if columns <= most)]
        if columns > EXACT:
            methods.remove("sampla, matrix-free")  # what sampla does by default at this size
        for method in methods:
            solver = "krylov" if "free" in method else "auto"
            case = {"kind": "size", "columns": columns, "rows": sizes.rows(columns), "method": method, "solver": solver}
            found.append((f"{columns}/{method}", case))
    return found


def _apart(case: Case, threads: int, sizes: Sizes) -> dict[str, Any]:
    """Run a case in a process of its own; what it prints last, or why there is nothing."""
    if case["kind"] == "file":
        free, needed = shutil.disk_usage(tempfile.gettempdir()).free, (case["gib"] + 2) * 2**30
        if free < needed:
            return {"failed": f"{needed / 2**30:.0f} GiB of disk needed, {free / 2**30:.0f} GiB free"}
    limit = sizes.peer_seconds if case.get("method") in PEER_COLUMNS else sizes.seconds
    environment = os.environ | {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS")}
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"stopped after {limit:.0f} s, the making of the data included", "limit": limit}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _short(result: dict[str, Any]) -> str:
    if "failed" in result:
        return str(result["failed"])
    return f"{result['seconds']:.1f} s, peak {result['peak'] / 2**30:.2f} GiB, error {result['error']:.4f}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every contestant alike")
    parser.add_argument("--only", choices=PARTS, action="append", help="only this part; may be given several times")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that everything works")
    parser.add_argument("--anew", action="store_true", help="forget what is known")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where the results go")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
