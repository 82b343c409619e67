"""Passes to a given true error, for the networks and the spectra."""

from typing import Any

from solver_cases.contestants import TABLE
from solver_cases.measure import LEVELS
from solver_cases.sections._table import Verdict, passes, share, table, under
from solver_cases.spectra import ALPHAS, CONDITIONS, KINDS

_TITLES = {"mnist": "LeNet on MNIST", "resnet": "ResNet-20 on part of CIFAR-10"}
_TARGETS = ((64, 6.0), (16, 10.0))
"""K, and the passes in which a true error of 2 % is asked for on MNIST."""


def sections(results: dict[str, Any]) -> list[str]:
    """A table for each network, and one for all spectra."""
    found = [_network(part, title, results) for part, title in _TITLES.items()]
    return [section for section in [*found, _spectra(results)] if section]


def verdicts(results: dict[str, Any]) -> list[Verdict]:
    """The best of the library's own solvers at each K."""
    rows = [row for row in under(results, "mnist/rows/").values() if not row["reference"]]
    found = []
    for columns, most in _TARGETS:
        those = [row for row in rows if row["columns"] == columns and row["to"]["0.02"] is not None]
        if not any(row["columns"] == columns for row in rows):
            continue
        best = min(those, key=lambda row: row["to"]["0.02"] + row["elsewhere"], default=None)
        spent = None if best is None else best["to"]["0.02"] + best["elsewhere"]
        detail = "never" if best is None else f"{passes(spent)} passes with {best['solver']}, all counted"
        target = f"MNIST LeNet, true error of 2 % in at most {most:.0f} passes with K = {columns}"
        found.append((spent is not None and spent <= most, target, detail))
    return found


def _network(part: str, title: str, results: dict[str, Any]) -> str:
    rows, facts = under(results, f"{part}/rows/"), results.get(f"{part}/problem")
    if not rows or facts is None:
        return ""
    words = (
        f"{facts['N']:,} images, P = {facts['P']:,}, alpha = {facts['alpha']:g} (what EM finds, to two digits). Truth: "
        f"{facts['truth']}; relative residual {facts['accuracy']:.0e}."
    )
    rows = {entry.name: rows[entry.name] for entry in TABLE if entry.name in rows}
    head = ["solver", "to 10 %", "2 %", "0.1 %", "spent before", "EM's own", "stops", "estimate", "truth"]
    head += ["at the end", "s a pass"]
    return f"## {title}\n\n{words}\n\n" + table(head, [_row(row) for row in rows.values()]) + "\n\n" + _notes(rows)


def _row(row: dict[str, Any]) -> list[str]:
    stopped = None if row["reference"] else row["stopped"]
    counted = row["last"]["passes"] - row["spent"] if row["last"] else 0
    seconds = row["seconds"] / counted if counted else float("nan")
    return [
        row["solver"],
        *(passes(row["to"][str(level)]) for level in LEVELS),
        passes(row["spent"]) if row["spent"] else "",
        passes(row["elsewhere"]) if row["elsewhere"] else "",
        passes(stopped["passes"]) if stopped else "" if row["reference"] else row["status"],
        share(stopped["estimate"]) if stopped else "",
        share(stopped["true"]) if stopped else "",
        ""
        if row["to"]["0.001"] is not None or not row["last"]
        else f"{share(row['last']['true'])} after " + passes(row["last"]["passes"]),
        f"{seconds:.2f}",
    ]


def _notes(rows: dict[str, Any]) -> str:
    lines = [
        "'spent before': passes for sketches, already in the columns on its left. 'EM's own': passes per sample of the "
        "Krylov space that EM builds for gamma anyway, not in the columns on its left. A dash: not reached in "
        + ", ".join(f"{row['steps']} steps ({name})" for name, row in rows.items() if row["to"]["0.001"] is None)
        + "."
    ]
    raced = [f"{name}: number {row['chosen'] + 1} of {row['of']}" for name, row in rows.items() if "chosen" in row]
    if raced:
        lines.append("Step size, the best of a grid (choosing it is not counted): " + "; ".join(raced) + ".")
    return " ".join(lines)


def _spectra(results: dict[str, Any]) -> str:
    rows = under(results, "spectra/")
    if not rows:
        return ""
    solvers = list(dict.fromkeys(row["solver"] for row in rows.values()))
    conditions = [c for c in CONDITIONS if any(f"condition {c:.0e}," in key for key in rows)]
    steps = ", ".join(f"{entry.name} {entry.max_steps}" for entry in TABLE if entry.name in solvers)
    pieces = [
        "## Prescribed spectra\n\nPasses to a true error of 2 %; M has mean eigenvalue 1, float64. A dash: not reached "
        f"in as many steps as the solver is given ({steps})."
    ]
    for alpha in ALPHAS:
        head = [f"alpha = {alpha:.0e}", *(f"{kind} {condition:.0e}" for kind in KINDS for condition in conditions)]
        lines = []
        for solver in solvers:
            cells = [_cell(rows, kind, condition, alpha, solver) for kind in KINDS for condition in conditions]
            lines.append([solver, *cells])
        pieces.append(table(head, lines))
    return "\n\n".join(pieces)


def _cell(rows: dict[str, Any], kind: str, condition: float, alpha: float, solver: str) -> str:
    row = rows.get(f"{kind}, condition {condition:.0e}, alpha {alpha:.0e}/{solver}")
    return "" if row is None else passes(row["to"]["0.02"])
