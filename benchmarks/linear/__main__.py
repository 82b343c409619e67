"""Large linear models beside scikit-learn's: time, peak memory, quality. Writes linear_models.md and .json.

    python -m benchmarks.linear [--threads 2] [--only sizes] [--quick] [--anew] [--out benchmarks]

Every case runs in a process of its own, so that ru_maxrss is its own peak. What is done is kept in the JSON file, and a
run that was cut off goes on there; ``--anew`` runs again what ran with another state of the library's source.
"""

import os
import shutil
import tempfile
from functools import partial

from experiments.common.command import command, say
from experiments.common.facts import GIB
from experiments.common.page import BENCHMARKS, write_page
from experiments.common.process import Case, apart
from experiments.common.store import Row, Store

from benchmarks.linear.cases import run
from benchmarks.linear.page import page
from benchmarks.linear.sizes import EXACT, PEERS, Sizes

PARTS = ("sizes", "outputs", "file", "sparse")


def main() -> None:
    """Every case that is not known yet, one after the other."""
    quick = "small sizes, to see that everything works"
    asked = command(__doc__, BENCHMARKS, quick=quick, only=PARTS, anew=True, threads=os.cpu_count())
    settings, sizes = {"threads": asked.threads, "quick": asked.quick}, Sizes.of(asked.quick)
    store = Store(asked.out / "linear_models.json", settings, asked.cache, asked.anew)
    for part in asked.only or PARTS:
        for name, case in _cases(part, sizes):
            row = store.once(name, partial(_apart, case, asked.threads, sizes), case.get("method") not in PEERS)
            say(f"{name}: {_short(row)}")
            write_page(asked.out / "linear_models.md", "benchmarks/linear/linear_models.md.j2", **page(store))


def _cases(part: str, sizes: Sizes) -> list[tuple[str, Case]]:
    """Name and case, in the order in which they run: contestants of one size one after the other."""
    if part == "file":
        return [("file", {"kind": "file", "sizes": (sizes.file_gib, sizes.file_columns)})]
    if part != "sizes":
        return [(part, {"kind": part, "sizes": getattr(sizes, part)})]
    found = []
    for columns in sizes.columns:
        free = ["sampla, matrix-free"] if columns <= EXACT else []  # beyond, what sampla does by default
        for method in ("sampla", *free, *(peer for peer, most in PEERS.items() if columns <= most)):
            case = {"kind": "size", "sizes": (columns, sizes.rows(columns)), "method": method}
            found.append((f"{columns}/{method}", case))
    return found


def _apart(case: Case, threads: int, sizes: Sizes) -> Case:
    """Run a case in a process of its own."""
    if case["kind"] == "file":
        free, needed = shutil.disk_usage(tempfile.gettempdir()).free, (case["sizes"][0] + 2) * GIB
        if free < needed:
            return {"failed": f"{needed / GIB:.0f} GiB of disk needed, {free / GIB:.0f} GiB free"}
    return apart(run, case, threads, sizes.peer_seconds if case.get("method") in PEERS else sizes.seconds)


def _short(row: Row) -> str:
    if row.failed:
        return str(row["failed"])
    return f"{row['seconds']:.1f} s, peak {row['peak'] / GIB:.2f} GiB, error {row['error']:.4f}"


if __name__ == "__main__":
    main()
