"""More than one process: two against one on a ResNet-20, the memory of each, and designs that Dask makes by chunk.

    python -m benchmarks.scale [--only ranks] [--most 10000000] [--quick] [--anew] [--out benchmarks]

Writes scale.md and scale.json. ``--most`` ends the designs at so many rows; 1e7 x 500 are meant for two free cores.
Every design is fitted in a process of its own, so that its peak is its own; none of it is ever stored.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np
from experiments.common.command import command, say
from experiments.common.facts import GIB, peak_memory
from experiments.common.page import BENCHMARKS, Target, provenance, table, write_page
from experiments.common.process import Case, apart
from experiments.common.store import Store

import sampla

FASTER, FLAT, OVERHEAD = 1.7, 1.25, 1.25
"""Two processes against one; peak of the most rows over that of the fewest; Dask's time a row over one process's."""
LEFT = 1.1
"""Part by which the peak of a process may fall less than its slice of the Krylov space would have it."""
PARTS = ("ranks", "space", "designs")
WAYS = ("chunks, one process", "Dask, one thread", "Dask, two threads")
RANKS = {
    False: {"images": 256, "samples": 8, "batch": 32, "turns": 3},
    True: {"images": 8, "samples": 2, "batch": 4, "turns": 1},
}
SPACE = {
    False: {"width": 1000, "data": 64, "outputs": 4, "samples": 4, "rows": 250, "ranks": (1, 2, 4)},
    True: {"width": 16, "data": 16, "outputs": 2, "samples": 2, "rows": 16, "ranks": (1, 2)},
}
DESIGNS = {
    False: {"rows": (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000), "columns": 500, "chunk": 20_000},
    True: {"rows": (2_000, 6_000), "columns": 20, "chunk": 1_000},
}


def main() -> None:
    """Every case that is not known yet; one way after the other for each size."""
    most = max(DESIGNS[False]["rows"])
    asked = command(
        __doc__, BENCHMARKS, quick="tiny sizes, to see that everything works", only=PARTS, anew=True,
        most=(most, "rows of the largest design"),
    )  # fmt: skip
    store = Store(asked.out / "scale.json", {"quick": asked.quick}, asked.cache, asked.anew)
    for name, compute in cases(asked.quick, asked.most):
        if name.split("/")[0] in (asked.only or PARTS):
            row = store.once(name, compute)
            say(f"{name}: {row}")
            write_page(asked.out / "scale.md", "benchmarks/scale.md.j2", **page(store))


def cases(quick: bool, most: int) -> Iterator[tuple[str, Any]]:
    """Name of each case, and what computes it."""
    yield "ranks", partial(against_one, RANKS[quick])
    yield "space", partial(in_slices, SPACE[quick])
    sizes = DESIGNS[quick]
    for rows in sizes["rows"]:
        for way in WAYS if rows <= most else ():
            case = {"rows": rows, "columns": sizes["columns"], "chunk": sizes["chunk"], "way": way}
            yield f"designs/{rows}/{way}", partial(apart, fitted, case, 1)


def against_one(case: Case) -> Case:
    """What scale_ranks finds in two processes."""
    return case | launched("scale_ranks", case, 2)


def in_slices(case: Case) -> Case:
    """What a fit adds to the peak of the process that holds most, by their number; P, and vectors of the space."""
    found = {number: launched("scale_space", case, number) for number in case["ranks"]}
    added = {f"{number}": max(row["peak"] - row["before"] for row in rows) for number, rows in found.items()}
    first = found[case["ranks"][0]][0]
    return case | {"added": added, "parameters": first["parameters"], "vectors": first["vectors"]}


def launched(module: str, case: Case, processes: int) -> Any:
    """What a module of benchmarks finds in so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        root = Path(__file__).resolve().parents[1]
        subprocess.run([*launch, "-m", f"benchmarks.{module}", json.dumps(case), str(path)], cwd=root, check=True)
        return json.loads(path.read_text(encoding="utf-8"))


def made(number: int, rows: int, columns: int) -> np.ndarray:
    """Chunk of that number: (rows, columns + 1) of X and, behind it, y; the same each time."""
    rng = np.random.default_rng([7, number])
    x = rng.standard_normal((rows, columns))
    y = x @ np.cos(np.arange(columns)) + 3 * rng.standard_normal(rows)
    return np.concatenate([x, y[:, None]], axis=1)


class Chunks:
    """The chunks, made anew on every pass."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for number in range(self.case["rows"] // self.case["chunk"]):
            both = made(number, self.case["chunk"], self.case["columns"])
            yield both[:, :-1], both[:, -1]


def fitted(case: Case) -> Case:
    """Seconds, CPU seconds and peak of a fit; in a process of its own."""
    regression = sampla.BayesianLinearRegression(progress=False)
    if case["way"] == WAYS[0]:
        data: tuple[Any, ...] = (Chunks(case),)
        start, busy = perf_counter(), process_time()
        regression.fit(*data)
    else:
        import dask
        import dask.array as da

        number, columns = case["rows"] // case["chunk"], case["columns"]
        kind = {"chunks": ((case["chunk"],) * number, (columns + 1,)), "dtype": np.float64, "meta": np.empty((0, 0))}
        both = da.map_blocks(lambda block_id: made(block_id[0], case["chunk"], columns), **kind)
        with dask.config.set(scheduler="threads", num_workers=1 + (case["way"] == WAYS[2])):
            start, busy = perf_counter(), process_time()
            regression.fit(both[:, :-1], both[:, -1])
    seconds, cpu = perf_counter() - start, process_time() - busy
    off = float(np.abs(regression.coef_ - np.cos(np.arange(case["columns"]))).max())
    return case | {
        "seconds": seconds, "cpu": cpu, "peak": peak_memory(), "off": off, "passes": regression.report_.passes,
        "solver": regression.report_.solver, "evidence": regression.log_marginal_likelihood_,
    }  # fmt: skip


def page(store: Store) -> dict[str, Any]:
    """What the template is filled with."""
    ranks, space, rows = store.rows.get("ranks"), store.rows.get("space"), store.under("designs/")
    designs = [row for row in rows.values() if not row.failed]
    alone = {row["rows"]: row["cpu"] for row in designs if row["way"] == WAYS[0]}
    columns = {
        "rows": "{rows:,}", "way": "{way}", "s": "{seconds:.1f}", "CPU s": "{cpu:.1f}",
        "us of CPU a row": lambda row: f"{1e6 * row['cpu'] / row['rows']:.1f}",
        "over one process": lambda row: f"{row['cpu'] / alone[row['rows']]:.2f}",
        "peak, GiB": lambda row: f"{row['peak'] / GIB:.2f}",
        "design, GiB": lambda row: f"{8 * row['rows'] * row['columns'] / GIB:.2f}",
        "passes": "{passes:.0f}", "log p(y)": "{evidence:,.4f}",
    }  # fmt: skip
    quick = store.settings["quick"]
    return {
        "provenance": provenance(store, "benchmarks.scale" + " --quick" * quick, "sampla torch numpy"),
        "facts": store.environment, "quick": quick, "ranks": ranks, "targets": targets(ranks, space, designs),
        "designs": table(designs, columns, left=0), "ways": WAYS,
        "ratios": None if ranks is None else told(ranks), "space": space, "held": slices_of(space),
        "largest": max((row["rows"] for row in designs), default=0), "columns": designs[0]["columns"] if designs else 0,
    }  # fmt: skip


def ratios(ranks: Case) -> list[float]:
    """One process's seconds over those of all processes, turn by turn."""
    return [one / both for one, both in zip(ranks["one"], ranks["all"], strict=True)]


def told(ranks: Case) -> dict[str, list[float]]:
    """The ratios, what the machine allows, and what CPU seconds tell, of the busiest process."""
    cpu = ranks["cpu"]
    allowed = [ranks["ranks"] * one / alone for one, alone in zip(ranks["one"], ranks["alone"], strict=True)]
    return {"all": ratios(ranks), "allowed": allowed, "cpu": ratios(cpu)}


def slices_of(space: Case | None) -> str:
    """One row for each number of processes."""
    if space is None:
        return ""
    whole = 4 * space["parameters"] * space["vectors"]
    rows = [
        {"key": number, "slice": whole / number / GIB, "added": space["added"][f"{number}"] / GIB}
        for number in space["ranks"]
    ]
    rows = [row | {"rest": row["added"] - row["slice"]} for row in rows]
    columns = {
        "processes": "{key}", "the fit adds to the peak of one, GiB": "{added:.2f}",
        "slice of the space, GiB": "{slice:.2f}", "all else, GiB": "{rest:.2f}",
    }  # fmt: skip
    return table(rows, columns, left=0)


def targets(ranks: Case | None, space: Case | None, designs: list[Any]) -> list[Target]:
    """What was to be shown."""
    found: list[Target] = []
    if ranks is not None:
        ratio = median(ratios(ranks))
        found.append((ratio >= FASTER, f"two processes at least {FASTER} times as fast as one", f"{ratio:.2f} times"))
    if space is not None:
        first, last = space["ranks"][0], space["ranks"][-1]
        fallen = (space["added"][f"{first}"] - space["added"][f"{last}"]) / (4 * space["parameters"] * space["vectors"])
        should = 1 / first - 1 / last
        words = f"{fallen:.2f} of the space's bytes less on each of {last} than on {first}, of {should:.2f}"
        found.append((fallen * LEFT >= should, "a process holds its slice of the Krylov space alone", words))
    dask = [row for row in designs if row["way"] == WAYS[1]]
    if len(dask) > 1:
        first, last = dask[0], dask[-1]
        grown, most = last["peak"] / first["peak"], f"{last['rows'] / first['rows']:.0f} times as many rows"
        found.append((grown <= FLAT, "memory flat in rows", f"{grown:.2f} times the peak for {most}"))
        alone = next(row for row in designs if row["rows"] == last["rows"] and row["way"] == WAYS[0])
        more = last["cpu"] / alone["cpu"]
        found.append((more <= OVERHEAD, "CPU time a row near that of one process", f"{more:.2f} times"))
    return found


if __name__ == "__main__":
    from benchmarks import scale  # by its own name: the processes of the designs look their function up in it

    scale.main()
