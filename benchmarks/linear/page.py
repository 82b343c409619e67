"""What the page of linear models is filled with; the words are in linear_models.md.j2."""

from typing import Any

import numpy as np
from experiments.common.facts import GIB
from experiments.common.page import Columns, Target, provenance, table
from experiments.common.store import Row, Store

from benchmarks.linear.sizes import AHEAD_FROM, DOUBLE, MEMMAP_GIB, PEERS, SLOPE, SPARSE_GIB, Sizes

_OURS, _FREE, _RIDGE = "sampla", "sampla, matrix-free", "BayesianRidge"
Rows = dict[str, Row]


def page(store: Store) -> dict[str, Any]:
    """What the template is filled with."""
    rows, threads, sizes = store.rows, store.settings["threads"], Sizes.of(store.settings["quick"])
    command = f"benchmarks.linear --threads {threads}" + " --quick" * store.settings["quick"]
    machine = f", {store.environment['machine']}; {threads} thread(s) for every contestant"
    shapes = {name: f"{size[0]:,} x {size[1]:,}" for name, size in vars(sizes).items() if name in ("sparse", "outputs")}
    entries = f"{shapes['sparse']} with {sizes.sparse[0] * sizes.sparse[2]:,} non-zeros, K = 16"
    titles = {
        "sparse": f"A sparse matrix like text, {entries}",
        "file": f"A np.memmap of {sizes.file_gib:g} GiB, {sizes.file_columns:,} columns, K = 16",
        "outputs": f"{sizes.outputs[2]:,} outputs with full noise covariance, {shapes['outputs']}",
    }
    return {
        "provenance": provenance(store, command, "sampla torch scikit-learn numpy scipy", machine),
        "quick": store.settings["quick"], "targets": targets(rows, sizes), "double": DOUBLE,
        "by_size": _by_size(rows, sizes), "agreement": _agreement(rows, sizes),
        "cases": {title: rows[name] for name, title in titles.items() if name in rows},
    }  # fmt: skip


def targets(rows: Rows, sizes: Sizes) -> list[Target]:
    """What was to be shown."""
    found = [*_faster(rows, sizes), *_near_linear(rows, sizes)]
    for name, limit, what in (
        ("sparse", SPARSE_GIB, f"the sparse matrix within {SPARSE_GIB:g} GiB"),
        ("file", MEMMAP_GIB, f"{sizes.file_gib:g} GiB on disk within {MEMMAP_GIB:g} GiB"),
        ("outputs", None, f"{sizes.outputs[2]:,} outputs with full noise covariance"),
    ):
        if name in rows:
            row = rows[name]
            met = not row.failed and row["settled"] and (limit is None or row["peak"] <= limit * GIB)
            found.append((met, what, row["failed"] if row.failed else _told(row, limit is not None)))
    return found


def _told(row: Row, within: bool) -> str:
    seconds, peak = f"{row['seconds']:.0f} s", f"peak {row['peak'] / GIB:.2f} GiB"
    return f"{peak}, {seconds}, {'settled' if row['settled'] else 'NOT settled'}" if within else f"{seconds}, {peak}"


def _faster(rows: Rows, sizes: Sizes) -> list[Target]:
    """sampla against BayesianRidge from a size on."""
    met, details = True, []
    for columns in sizes.columns:
        ours, peer = rows.get(f"{columns}/{_OURS}"), rows.get(f"{columns}/{_RIDGE}")
        if columns < AHEAD_FROM or ours is None or peer is None:
            continue
        if ours.failed:
            met, detail = False, f"sampla {ours['failed']}"
        elif peer.failed and "limit" not in peer:
            detail = f"BayesianRidge {peer['failed']}"
        else:
            ratio = (peer["limit"] if peer.failed else peer["seconds"]) / ours["seconds"]
            met, detail = met and ratio > 1, f"{'more than ' * peer.failed}{ratio:.2g} times as fast"
        details.append(f"P = {columns:,}: {detail}")
    return [(met, f"ahead of BayesianRidge from P = {AHEAD_FROM:,} on", "; ".join(details))] if details else []


def _near_linear(rows: Rows, sizes: Sizes) -> list[Target]:
    """Exponent of P in the matrix-free time of a pass and row, the whole fit over both."""
    points = []
    for columns in sizes.columns:
        row = rows.get(f"{columns}/{_FREE}", rows.get(f"{columns}/{_OURS}"))
        if row is not None and _iterative(row):
            points.append((columns, float(row["fit seconds"] / row["passes"] / row["rows"])))
    if len(points) < 2:
        return []
    slope = float(np.polyfit(*np.log(np.array(points)).T, 1)[0])
    detail = f"exponent {slope:.2f} from P = {points[0][0]:,} to {points[-1][0]:,}"
    return [(slope <= SLOPE, f"time of a pass and row near linear in P (exponent at most {SLOPE:g})", detail)]


def _by_size(rows: Rows, sizes: Sizes) -> str:
    found = []
    for columns in sizes.columns:
        for method in (_OURS, _FREE, *PEERS):
            if f"{columns}/{method}" in rows:
                ours, row = rows.get(f"{columns}/{_OURS}"), rows[f"{columns}/{method}"]
                found.append({"P": columns, "who": method, "ours": ours, **row})
    return table(found, _COLUMNS)


def _ratio(row: Any) -> str:
    ours, failed = row["ours"], "failed" in row
    if ours is None or ours.failed or (failed and "limit" not in row):
        return "-"
    return f"> {row['limit'] / ours['seconds']:.2g}" if failed else f"{row['seconds'] / ours['seconds']:.2g}"


def _iterative(row: Any) -> bool:
    """Whether sampla solved by products alone (rows of before call its solver by another name)."""
    return "solver" in row and not row["solver"].startswith("exact")


def _number(name: str, spec: str, unit: float = 1.0) -> Any:
    """A cell; a dash where the row has no such number."""
    return lambda row: "-" if row.get(name) is None else f"{row[name] / unit:{spec}}"


_COLUMNS: Columns = {
    "P, method": "{P:,}, {who}",
    "s": lambda row: row.get("failed") or f"{row['seconds']:.3g}", "times sampla's": _ratio,
    "peak GiB": _number("peak", ".2f", GIB), "data": _number("data", ".2f", GIB),
    "error": _number("error", ".4f"), "prior": _number("prior", ".4g"), "noise": _number("noise", ".4g"),
    "passes": lambda row: f"{row['passes']:.1f}" if _iterative(row) else "exact" if "passes" in row else "-",
    "s a pass": lambda row: f"{row['fit seconds'] / row['passes']:.3g}" if _iterative(row) else "-",
    "settled": lambda row: {True: "yes", False: "NO"}.get(row.get("settled"), "-"),
}  # fmt: skip


def _agreement(rows: Rows, sizes: Sizes) -> list[str]:
    lines = []
    for columns in sizes.columns:
        for method in (_OURS, _FREE):
            both = [row for name in (method, _RIDGE) if "mean" in (row := rows.get(f"{columns}/{name}", Row({})))]
            if len(both) == 2:
                mean, std = (np.array([row[what] for row in both]) for what in ("mean", "std"))
                apart = np.linalg.norm(mean[0] - mean[1]) / np.linalg.norm(mean[1])
                wide = np.abs(std[0] / std[1] - 1)
                lines.append(
                    f"P = {columns:,}, {method}: predictions {apart:.2%} from BayesianRidge's, predictive standard "
                    f"deviations {np.sqrt(np.mean(wide**2)):.2%} (root mean square; {wide.max():.2%} at most)"
                )
    return lines
