"""The demo's table: every measure for every method, and whether each target is met. Computed, never written by hand."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from sampla.apps.demo.evaluate import MONTE_CARLO, NETWORK, Evaluation, Scores, SetScores

CLEAN_NLL_ALLOWANCE = 1.05
"""sampla's NLL on clean images may be this many times the network's."""
ACCURACY, CLEAN_NLL = "accuracy not lower", "NLL on clean images at most 5 % above"
ROTATED_NLL, NOISY_NLL = "NLL better on every rotated set", "NLL better on every noisy set"
JOINT_NLL, AUROC = "joint NLL better", "AUROC not lower"


@dataclass(frozen=True)
class Row:
    """One measure; the target compares sampla (Monte Carlo) with the network alone."""

    measure: str
    values: dict[str, float | None]
    """Method -> value; None where a method has no such value."""
    target: str | None = None
    met: bool | None = None
    percent: bool = False

    def cells(self) -> list[str]:
        """The values as text, one for each method."""
        return [self._cell(value) for value in self.values.values()]

    def verdict(self) -> str:
        """met, not met, or nothing where no target was set."""
        return "" if self.met is None else ("met" if self.met else "not met")

    def _cell(self, value: float | None) -> str:
        if value is None:
            return "-"
        return f"{value:.2%}" if self.percent else f"{value:.4f}"


@dataclass(frozen=True)
class Verdict:
    """One target, over all rows it speaks of."""

    target: str
    met: bool
    detail: str


def table(evaluation: Evaluation) -> list[Row]:
    """All rows: clean measures, AUROC, then the NLL of every rotated and noisy set."""
    clean = evaluation.clean
    rows = [
        _row("accuracy", clean, lambda s: s.accuracy, ACCURACY, _not_lower, percent=True),
        _row("NLL", clean, lambda s: s.nll, CLEAN_NLL, lambda ours, theirs: ours <= CLEAN_NLL_ALLOWANCE * theirs),
        _row("ECE", clean, lambda s: s.ece),
        _row("joint NLL, 10 labels", clean, lambda s: s.joint_nll, JOINT_NLL, _lower),
    ]
    for foreign, areas in evaluation.auroc.items():
        met = _not_lower(areas[MONTE_CARLO], areas[NETWORK])
        rows.append(Row(f"AUROC, {foreign}", dict(areas), AUROC, met))
    for s in evaluation.rotated:
        rows.append(_row(f"NLL, rotated by {s.strength:g} degrees", s, lambda m: m.nll, ROTATED_NLL, _lower))
    for s in evaluation.noisy:
        rows.append(_row(f"NLL, noise of deviation {s.strength:g}", s, lambda m: m.nll, NOISY_NLL, _lower))
    return rows


def joint_rows(evaluation: Evaluation) -> list[Row]:
    """Joint NLL over rotations: shown beside the table, without a target of its own."""
    return [_row(f"joint NLL, rotated by {s.strength:g} degrees", s, lambda m: m.joint_nll) for s in evaluation.rotated]


def verdicts(rows: list[Row]) -> list[Verdict]:
    """One verdict for each target; met only if every row that speaks of it is."""
    return [_verdict(target, [r for r in rows if r.target == target]) for target in _targets(rows)]


def as_text(rows: list[Row]) -> str:
    """The table in aligned plain text."""
    lines = [["", *rows[0].values, "target"], *([row.measure, *row.cells(), row.verdict()] for row in rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]

    def text(line: list[str]) -> str:
        cells = [cell.rjust(width) for cell, width in zip(line[1:-1], widths[1:-1], strict=True)]
        return "  ".join([line[0].ljust(widths[0]), *cells, line[-1]]).rstrip()

    return "\n".join(text(line) for line in lines)


def as_json(rows: list[Row]) -> list[dict[str, Any]]:
    """The table as plain JSON types."""
    return [asdict(row) for row in rows]


def _row(
    measure: str,
    scores: SetScores,
    value: Callable[[Scores], float | None],
    target: str | None = None,
    compare: Callable[[float, float], bool] | None = None,
    percent: bool = False,
) -> Row:
    values = {method: value(each) for method, each in scores.methods.items()}
    ours, theirs = values[MONTE_CARLO], values[NETWORK]
    met = compare(ours, theirs) if compare and ours is not None and theirs is not None else None
    return Row(measure, values, target, met, percent)


def _targets(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row.target for row in rows if row.target is not None))


def _verdict(target: str, rows: list[Row]) -> Verdict:
    missed = [row for row in rows if not row.met]
    if len(rows) == 1:
        return Verdict(target, not missed, _both(rows[0]))
    detail = f"on {len(rows) - len(missed)} of {len(rows)} sets"
    if missed:
        detail += "; not on: " + "; ".join(row.measure.split(", ", 1)[1] for row in missed)
    return Verdict(target, not missed, detail)


def _both(row: Row) -> str:
    cells = dict(zip(row.values, row.cells(), strict=True))
    words = f"{NETWORK} {cells[NETWORK]}, {MONTE_CARLO} {cells[MONTE_CARLO]}"
    theirs, ours = row.values[NETWORK], row.values[MONTE_CARLO]
    return words if row.percent or not theirs or ours is None else f"{words} ({ours / theirs - 1:+.0%})"


def _lower(ours: float, theirs: float) -> bool:
    return ours < theirs


def _not_lower(ours: float, theirs: float) -> bool:
    return ours >= theirs
