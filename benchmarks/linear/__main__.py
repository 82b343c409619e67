"""Large linear models beside scikit-learn's: time, peak memory, quality. Writes linear_models.md and .json.

    python -m benchmarks.linear [--threads 2] [--only sizes] [--quick] [--anew] [--out benchmarks]

Every case runs in a process of its own, so that ru_maxrss is its own peak. What is done is kept in the JSON file, and a
run that was cut off goes on there; ``--anew`` runs again what ran with another state of the library's source.
"""

import os
import shutil
import tempfile
from functools import partial

from experiments.common.command import parser, say
from experiments.common.facts import GIB
from experiments.common.page import ROOT, write_page
from experiments.common.process import apart
from experiments.common.store import Row, Store

from benchmarks.linear.cases import Case, run
from benchmarks.linear.page import page
from benchmarks.linear.sizes import EXACT, PEER_COLUMNS, Sizes

PARTS = ("sizes", "outputs", "file", "sparse")


def main() -> None:
    """Every case that is not known yet, one after the other."""
    options = parser(__doc__, ROOT / "benchmarks", quick="small sizes, to see that everything works")
    options.add_argument("--threads", type=int, default=os.cpu_count(), help="of every contestant alike")
    options.add_argument("--only", choices=PARTS, action="append", help="only this part; may be given several times")
    options.add_argument("--anew", action="store_true", help="run anew where the source has changed")
    asked = options.parse_args()
    sizes = Sizes.quick() if asked.quick else Sizes()
    path = asked.out / f"linear_models{'-quick' * asked.quick}.json"
    store = Store(path, {"threads": asked.threads, "quick": asked.quick}, asked.cache, asked.anew)
    for part in asked.only or PARTS:
        for name, case in _cases(part, sizes):
            ours = case.get("method") not in PEER_COLUMNS
            row = store.once(name, partial(_apart, case, asked.threads, sizes), ours)
            say(f"{name}: {_short(row)}")
            write_page(path.with_suffix(".md"), "benchmarks/linear/linear_models.md.j2", **page(store, sizes))


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
            solver = "block-cg" if "free" in method else "auto"
            case = {"kind": "size", "columns": columns, "rows": sizes.rows(columns), "method": method, "solver": solver}
            found.append((f"{columns}/{method}", case))
    return found


def _apart(case: Case, threads: int, sizes: Sizes) -> Case:
    """Run a case in a process of its own."""
    if case["kind"] == "file":
        free, needed = shutil.disk_usage(tempfile.gettempdir()).free, (case["gib"] + 2) * GIB
        if free < needed:
            return {"failed": f"{needed / GIB:.0f} GiB of disk needed, {free / GIB:.0f} GiB free"}
    return apart(run, case, threads, sizes.peer_seconds if case.get("method") in PEER_COLUMNS else sizes.seconds)


def _short(row: Row) -> str:
    if row.failed:
        return str(row["failed"])
    return f"{row['seconds']:.1f} s, peak {row['peak'] / GIB:.2f} GiB, error {row['error']:.4f}"


if __name__ == "__main__":
    main()
