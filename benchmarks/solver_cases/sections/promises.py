"""No case diverges or stops silently short: what solves return, and what is true of it."""

from typing import Any

from solver_cases.measure import STOP
from solver_cases.sections._table import Verdict, passes, share, table, under

_SLACK = 1.5
"""How far the true error may lie above the tolerance of a solve that says it has converged."""

_LISTED = 40


def sections(results: dict[str, Any]) -> list[str]:
    """Counts by solver, then every case that is not plainly fine."""
    cases = under(results, "solved/")
    if not cases and not _rows(results):
        return []
    pieces = [
        "## No case diverges or stops silently short\n\n`solve` to 2 % on every spectrum, and every row of the "
        f"networks' tables. Silent: says it has converged, and the true error is above {_SLACK} x 2 %; or neither "
        "converged nor said otherwise."
    ]
    if cases:
        pieces.append(
            table(["solver, spectra", "cases", "converged", "said it stopped short", "silent"], _counts(cases))
        )
    listed = [_line(key, case) for key, case in cases.items() if case["status"] != "CONVERGED" or _silent(case)]
    if listed:
        head = ["spectrum and solver", "status", "passes", "stated", "true", "verdict"]
        more = f" (the first {_LISTED} of {len(listed)}; all are in the JSON file)" if len(listed) > _LISTED else ""
        pieces.append(f"Those that did not converge{more}:\n\n" + table(head, listed[:_LISTED], left=2))
    if _rows(results):
        head = ["row", "status at 2 %", "passes", "stated there", "true there", "verdict"]
        pieces.append(table(head, [_row_line(key, row) for key, row in _rows(results).items()], left=2))
    return ["\n\n".join(pieces)]


def verdicts(results: dict[str, Any]) -> list[Verdict]:
    """One line."""
    cases, rows = under(results, "solved/"), _rows(results)
    if not cases and not rows:
        return []
    bad = [key for key, case in cases.items() if _silent(case)]
    bad += [key for key, row in rows.items() if row["stopped"] and row["stopped"]["true"] > _SLACK * STOP]
    detail = f"{len(bad)} of {len(cases) + len(rows)} cases" + (f": {'; '.join(bad[:5])}" if bad else "")
    return [(not bad, "no case diverges or stops silently short", detail)]


def _rows(results: dict[str, Any]) -> dict[str, Any]:
    """The networks' rows of the library's own solvers."""
    found = {f"{part}: {key}": row for part in ("mnist", "resnet") for key, row in
             under(results, f"{part}/rows/").items()}  # fmt: skip
    return {key: row for key, row in found.items() if not row["reference"]}


def _silent(case: dict[str, Any]) -> bool:
    if case["status"] == "CONVERGED":
        return not case["true"] <= _SLACK * STOP
    return not case["warned"]


def _counts(cases: dict[str, Any]) -> list[list[str]]:
    solvers = list(dict.fromkeys(key.split("/")[-1] for key in cases))
    rows = []
    for solver in solvers:
        those = [case for key, case in cases.items() if key.endswith(f"/{solver}")]
        silent = sum(_silent(case) for case in those)
        converged = sum(case["status"] == "CONVERGED" and not _silent(case) for case in those)
        rows.append([solver, str(len(those)), str(converged), str(len(those) - converged - silent), str(silent)])
    return rows


def _line(key: str, case: dict[str, Any]) -> list[str]:
    verdict = "SILENT" if _silent(case) else "says so"
    return [
        key.replace("/", ": "),
        case["status"],
        passes(case["passes"]),
        share(case["stated"]),
        share(case["true"]),
        verdict,
    ]


def _row_line(key: str, row: dict[str, Any]) -> list[str]:
    at = row["stopped"] or row["last"]
    if at is None:
        return [key, row["status"], "0", "-", "-", "says so"]
    silent = row["stopped"] is not None and at["true"] > _SLACK * STOP
    verdict = "SILENT" if silent else "ok" if row["stopped"] else "says so"
    return [key, row["status"], passes(at["passes"]), share(at["estimate"]), share(at["true"]), verdict]
