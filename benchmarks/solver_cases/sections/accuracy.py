"""The stated error against the true one, and EM against exact values."""

from math import inf
from typing import Any

from solver_cases.sections._table import share, table, under
from solver_cases.spectra import KINDS

FACTOR = 1.5


def sections(results: dict[str, Any]) -> list[str]:
    """Two sections."""
    return [section for section in (_estimates(results), _exact(results)) if section]


def _estimates(results: dict[str, Any]) -> str:
    cases = under(results, "estimate/")
    if not cases:
        return ""
    solvers = list(dict.fromkeys(key.rsplit("/", 1)[0] for key in cases))
    rows = []
    for solver in solvers:
        those = [case for key, case in cases.items() if key.startswith(f"{solver}/")]
        for kind in (*KINDS, "all"):
            rows.append([solver, kind, *_summary([case for case in those if kind in (case["kind"], "all")])])
    words = (
        f"Random cases with fixed seeds, each solved as a user would: {_range(cases, 'condition')}, "
        f"{_range(cases, 'alpha')}, {_range(cases, 'columns')}, {_range(cases, 'tolerance')}, float32 or float64. "
        "Ratio: stated over true error where the solve stopped."
    )
    head = ["solver", "spectrum", "cases", f"within {FACTOR}", "smallest", "median", "largest", "true error too large"]
    return f"## The stated error\n\n{words}\n\n" + table(head, rows, left=2)


def _range(cases: dict[str, Any], name: str) -> str:
    values = [case[name] for case in cases.values()]
    return f"{name} {min(values):.2g} to {max(values):.2g}"


def _summary(cases: list[dict[str, Any]]) -> list[str]:
    ratios = sorted(_ratio(case) for case in cases)
    if not ratios:
        return ["0", "", "", "", "", ""]
    near = sum(1 / FACTOR <= ratio <= FACTOR for ratio in ratios)
    late = [case for case in cases if case["status"] == "CONVERGED" and case["true"] > FACTOR * case["tolerance"]]
    number = f"{len(late)} of {len(cases)}"
    ends = [f"{ratio:.2f}" for ratio in (ratios[0], ratios[len(ratios) // 2], ratios[-1])]
    return [str(len(cases)), f"{near / len(cases):.0%}", *ends, number]


def _ratio(case: dict[str, Any]) -> float:
    if case["true"] == case["stated"]:
        return 1.0
    return case["stated"] / case["true"] if case["true"] > 0 else inf


def _exact(results: dict[str, Any]) -> str:
    cases = under(results, "exact/")
    if not cases:
        return ""
    words = (
        "Exact: eigenvalues of M in float64, MacKay's fixed point to ten digits. gamma is that of the last EM step and "
        "compared at the alpha it belongs to, the log evidence at the alpha found; beside it the standard error that "
        "the fit states. 'sampling' is the relative error sqrt(2 / (probes gamma)) that so many probes or samples "
        "leave in gamma, of which alpha's is a small multiple. 'lost' is what alpha costs in log evidence against the "
        "exact fixed point."
    )
    head = ["case", "P", "EM by", "alpha", "exact", "gamma", "exact", "sampling", "log evidence", "stated", "exact"]
    head += ["lost", "products"]
    rows = [_exact_row(case, method, row) for case in cases.values() for method, row in case["rows"].items()]
    return f"## gamma, alpha and evidence against exact values\n\n{words}\n\n" + table(head, rows, left=3)


def _exact_row(case: dict[str, Any], method: str, row: dict[str, Any]) -> list[str]:
    exact, stated = case["exact"], row["log_evidence_error"]
    return [
        case["name"], str(case["P"]), method + ("" if row["settled"] else " (not settled)"),
        _with_error(row["alpha"], exact["alpha"]), f"{exact['alpha']:.4g}",
        _with_error(row["gamma"], row["gamma_exact"]), f"{row['gamma_exact']:.2f}", share(row["sampling"]),
        "" if row["log_evidence"] is None else f"{row['log_evidence']:.2f}", "" if stated is None else f"{stated:.2f}",
        f"{row['log_evidence_exact']:.2f}", f"{exact['log_evidence'] - row['log_evidence_exact']:.4f}",
        f"{row['products']:.0f}",
    ]  # fmt: skip


def _with_error(value: float | None, exact: float) -> str:
    return "" if value is None else f"{value:.4g} ({(value - exact) / abs(exact):+.2%})"
