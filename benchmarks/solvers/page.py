"""What the page of solvers is filled with; the words are in solvers.md.j2."""

from math import inf
from typing import Any

from experiments.common.page import Target, grid, passes, provenance, share, states, table
from experiments.common.store import Row, Store

from benchmarks.solvers.contestants import TABLE
from benchmarks.solvers.measure import LEVELS, STOP
from benchmarks.solvers.paper import COLUMNS, EPOCHS, TARGET
from benchmarks.solvers.spectra import ALPHAS, CONDITIONS, KINDS

FACTOR = 1.5  # by which a stated error may be off
_SLACK = 1.5  # how far the true error may lie above the tolerance of a solve that says it has converged
_AGAINST_SOLVE = 1.5  # a whole fit over one solve at fixed alpha, at most
_BEST = ((64, 6.0), (16, 10.0))  # K, and the passes in which a true error of 2 % is asked for on MNIST
_TITLES = {"mnist": "LeNet on MNIST", "resnet": "ResNet-20 on part of CIFAR-10"}
_LISTED = 40


def page(store: Store) -> dict[str, Any]:
    """What the template is filled with."""
    facts, seconds = store.environment, store.under("seconds/")
    command = "benchmarks.solvers --root DATA --checkpoints DIR" + " --quick" * store.settings["quick"]
    machine = f", {facts['cores']} cores, {facts['threads']} threads"
    return {
        "provenance": provenance(store, command, "torch", machine), "states": states(store),
        "parts": ", ".join(f"{part} {row['seconds']:.0f} s" for part, row in seconds.items()) or "nothing yet",
        "quick": store.settings["quick"], "targets": [*_best(store), *_whole_fits(store), *_silence(store)],
        "networks": [_network(store, part) for part in _TITLES if f"{part}/problem" in store.rows],
        "spectra": _spectra(store), "fits": _fits_section(store), "estimates": _estimates(store),
        "exact": table(_exact_cases(store), _EXACT, left=3), "promises": _promises(store),
        "factor": FACTOR, "slack": _SLACK, "epochs": EPOCHS, "paper_columns": COLUMNS,
    }  # fmt: skip


# Passes to a given true error, for the networks and the spectra.


def _best(store: Store) -> list[Target]:
    """The best of the library's own solvers at each K."""
    rows, found = [row for row in store.under("mnist/rows/").values() if not row["reference"]], []
    for columns, most in _BEST:
        those = [row for row in rows if row["columns"] == columns]
        spent = {r["solver"]: r["to"]["0.02"] + r["elsewhere"] for r in those if r["to"]["0.02"] is not None}
        name = min(spent, key=spent.__getitem__, default=None)
        detail = "never" if name is None else f"{passes(spent[name])} passes with {name}, all counted"
        what = f"MNIST LeNet, true error of 2 % in at most {most:.0f} passes with K = {columns}"
        if those:
            found.append((name is not None and spent[name] <= most, what, detail))
    return found


def _network(store: Store, part: str) -> dict[str, Any]:
    known = store.under(f"{part}/rows/")
    rows = {entry.name: known[entry.name] for entry in TABLE if entry.name in known}
    short = [f"{row['steps']} steps ({name})" for name, row in rows.items() if row["to"]["0.001"] is None]
    raced = [f"{name}: number {row['chosen'] + 1} of {row['of']}" for name, row in rows.items() if "chosen" in row]
    return {
        "title": _TITLES[part], "facts": store.rows[f"{part}/problem"], "table": table(rows, _SOLVES),
        "short": ", ".join(short), "raced": "; ".join(raced),
    }  # fmt: skip


def _stopped(row: Any) -> Any:
    return None if row["reference"] else row["stopped"]


def _at_the_end(row: Any) -> str:
    last = row["last"]
    return f"{share(last['true'])} after {passes(last['passes'])}" if last and row["to"]["0.001"] is None else ""


def _pace(row: Any) -> str:
    counted = row["last"]["passes"] - row["spent"] if row["last"] else 0
    return f"{row['seconds'] / counted if counted else float('nan'):.2f}"


_SOLVES = {
    "solver": "{solver}",
    **{
        head: lambda row, level=level: passes(row["to"][str(level)])
        for head, level in zip(("to 10 %", "2 %", "0.1 %"), LEVELS, strict=True)
    },
    "spent before": lambda row: passes(row["spent"]) if row["spent"] else "",
    "EM's own": lambda row: passes(row["elsewhere"]) if row["elsewhere"] else "",
    "stops": lambda row: (
        passes(row["stopped"]["passes"]) if _stopped(row) else "" if row["reference"] else row["status"]
    ),
    "estimate": lambda row: share(row["stopped"]["estimate"]) if _stopped(row) else "",
    "truth": lambda row: share(row["stopped"]["true"]) if _stopped(row) else "",
    "at the end": _at_the_end,
    "s a pass": _pace,
}


def _spectra(store: Store) -> dict[str, Any]:
    rows = store.under("spectra/")
    solvers = list(dict.fromkeys(row["solver"] for row in rows.values()))
    wanted = [(k, c) for k in KINDS for c in CONDITIONS if any(f"condition {c:.0e}," in key for key in rows)]

    def cell(kind: str, condition: float, alpha: float, solver: str) -> str:
        row = rows.get(f"{kind}, condition {condition:.0e}, alpha {alpha:.0e}/{solver}")
        return "" if row is None else passes(row["to"]["0.02"])

    tables = []
    for alpha in ALPHAS:
        columns = {f"{k} {c:.0e}": lambda solver, k=k, c=c, a=alpha: cell(k, c, a, solver) for k, c in wanted}
        tables.append(table(solvers, {f"alpha = {alpha:.0e}": str} | columns))
    steps = ", ".join(f"{entry.name} {entry.max_steps}" for entry in TABLE if entry.name in solvers)
    return {"steps": steps, "tables": tables if rows else []}


# Whole fits: against one solve, and against the paper's schedule.


def _fits(store: Store) -> list[dict[str, Any]]:
    """Every fit with its network and the passes of one solve; with the library's number of samples first.

    One solve: passes at which the fit's solver stops at 2 %, from zero, at the alpha that EM found.
    """
    found = []
    for part in _TITLES:
        for key in sorted(store.rows):
            if key.split("-")[0] == f"{part}/fit":
                fit = store.rows[key]
                stopped = store.under(f"{part}/rows/").get(f"block CG, K = {fit['columns']}", {}).get("stopped")
                found.append({"part": part, "solve": stopped and stopped["passes"], **fit})
    return found


def _whole_fits(store: Store) -> list[Target]:
    """Against one solve on every network, against the paper's schedule on MNIST."""
    found: list[Target] = []
    for fit in _fits(store):
        if fit["solve"] is not None:
            ratio = fit["passes"] / fit["solve"]
            detail = f"{passes(fit['passes'])} passes against {passes(fit['solve'])}, ratio {ratio:.2f}"
            what = f"a whole fit costs at most {_AGAINST_SOLVE} times one solve at fixed alpha"
            found.append((ratio <= _AGAINST_SOLVE, f"{fit['part']}, K = {fit['columns']}: {what}", detail))
    if {"mnist/fit", "mnist/paper"} <= set(store.rows):
        fit, paper = store.rows["mnist/fit"], store.rows["mnist/paper"]
        ratio, more = paper["passes"] / fit["passes"], "" if paper["reached"] else "more than "
        detail = f"{more}{paper['passes']:.0f} passes against {passes(fit['passes'])}, ratio {more}{ratio:.1f}"
        found.append((ratio >= TARGET, f"a whole fit costs at most 1/{TARGET:.0f} of the paper's schedule", detail))
    return found


def _fits_section(store: Store) -> dict[str, Any]:
    fits = _fits(store)
    columns = {
        "network": "{part}", "K": "{columns}",
        "EM steps": lambda fit: f"{len(fit['steps'])}{'' if fit['settled'] else ' (not settled)'}",
        "alpha": "{alpha:.4g}", "gamma": "{gamma:.1f}", "passes": lambda fit: passes(fit["passes"]),
        "of one solve": lambda fit: passes(fit["solve"]),
        "ratio": lambda fit: "-" if fit["solve"] is None else f"{fit['passes'] / fit['solve']:.2f}",
        "seconds": "{seconds:.0f}",
    }  # fmt: skip
    found = {"table": table(fits, columns), "each": fits, "paper": None}
    if {"mnist/fit", "mnist/paper"} <= set(store.rows):
        fit, paper = store.rows["mnist/fit"], store.rows["mnist/paper"]
        timing, more = paper["timing"], "" if paper["reached"] else "more than "
        total = (paper["passes"] - paper["mode_epochs"] / fit["columns"]) * timing["epoch"]
        total += paper["mode_epochs"] * timing["mode_epoch"]
        lines = [
            ["this library (measured as a whole)", passes(fit["passes"]), "", f"{fit['seconds']:.0f}"],
            ["the paper's schedule (passes x measured time)", f"{more}{paper['passes']:.0f}",
             f"{more}{paper['passes'] / fit['passes']:.1f}", f"{more}{total:.0f}"],
        ]  # fmt: skip
        error = share(paper["error"]) if paper["error"] != inf else "not asked for, alpha was not found"
        schedule = grid(["whole fit", "passes", "ratio", "seconds"], lines)
        found |= {"paper": paper, "fit": fit, "error": error, "schedule": schedule}
    return found


# The stated error against the true one, and EM against exact values.


def _estimates(store: Store) -> dict[str, Any]:
    cases, lines = store.under("estimate/"), []
    for solver in dict.fromkeys(key.rsplit("/", 1)[0] for key in cases):
        for kind in (*KINDS, "all"):
            those = [c for key, c in cases.items() if key.startswith(f"{solver}/") and kind in (c["kind"], "all")]
            lines.append([solver, kind, *_summary(those)])
    head = ["solver", "spectrum", "cases", f"within {FACTOR}", "smallest", "median", "largest", "true error too large"]
    spans = {n: [case[n] for case in cases.values()] for n in ("condition", "alpha", "columns", "tolerance")}
    ranges = ", ".join(f"{name} {min(span):.2g} to {max(span):.2g}" for name, span in spans.items() if span)
    return {"table": grid(head, lines, left=2), "ranges": ranges}


def _summary(cases: list[Row]) -> list[str]:
    ratios = sorted(_ratio(case) for case in cases)
    if not ratios:
        return ["0", "", "", "", "", ""]
    near = sum(1 / FACTOR <= ratio <= FACTOR for ratio in ratios)
    late = sum(case["status"] == "CONVERGED" and case["true"] > FACTOR * case["tolerance"] for case in cases)
    ends = [f"{ratio:.2f}" for ratio in (ratios[0], ratios[len(ratios) // 2], ratios[-1])]
    return [str(len(cases)), f"{near / len(cases):.0%}", *ends, f"{late} of {len(cases)}"]


def _ratio(case: Row) -> float:
    if case["true"] == case["stated"]:
        return 1.0
    return case["stated"] / case["true"] if case["true"] > 0 else inf


def _exact_cases(store: Store) -> list[dict[str, Any]]:
    """What every method said of every case, beside what is exact at the best alpha."""
    return [
        {**row, "case": case["name"], "P": case["P"], "best": case["exact"], "method": method}
        for case in store.under("exact/").values()
        for method, row in case["rows"].items()
    ]


def _beside(value: float, exact: float) -> str:
    return f"{value:.4g} ({(value - exact) / abs(exact):+.2%})"


def _two(name: str) -> Any:
    return lambda row: "" if row[name] is None else f"{row[name]:.2f}"


_EXACT = {
    "case": "{case}", "P": "{P}", "EM by": lambda row: row["method"] + ("" if row["settled"] else " (not settled)"),
    "alpha": lambda row: _beside(row["alpha"], row["best"]["alpha"]), "exact": "{best[alpha]:.4g}",
    "gamma": lambda row: _beside(row["gamma"], row["gamma_exact"]), "exact ": "{gamma_exact:.2f}",
    "sampling": lambda row: share(row["sampling"]), "log evidence": _two("log_evidence"),
    "stated": _two("log_evidence_error"), "exact  ": "{log_evidence_exact:.2f}",
    "lost": lambda row: f"{row['best']['log_evidence'] - row['log_evidence_exact']:.4f}", "products": "{products:.0f}",
}  # fmt: skip


# No case diverges or stops silently short: what solves return, and what is true of it.


def _network_rows(store: Store) -> dict[str, Row]:
    """The networks' rows of the library's own solvers."""
    every = {f"{part}: {key}": row for part in _TITLES for key, row in store.under(f"{part}/rows/").items()}
    return {key: row for key, row in every.items() if not row["reference"]}


def _silent(case: Row) -> bool:
    return not case["true"] <= _SLACK * STOP if case["status"] == "CONVERGED" else not case["warned"]


def _too_late(row: Row) -> bool:
    return row["stopped"] is not None and row["stopped"]["true"] > _SLACK * STOP


def _silence(store: Store) -> list[Target]:
    cases, rows = store.under("solved/"), _network_rows(store)
    bad = [key for key, case in cases.items() if _silent(case)] + [key for key, row in rows.items() if _too_late(row)]
    detail = f"{len(bad)} of {len(cases) + len(rows)} cases" + (f": {'; '.join(bad[:5])}" if bad else "")
    return [(not bad, "no case diverges or stops silently short", detail)] if cases or rows else []


def _promises(store: Store) -> dict[str, Any]:
    """Counts by solver, then every case that is not plainly fine, then the networks' rows."""
    cases, lines = store.under("solved/"), []
    for solver in dict.fromkeys(key.split("/")[-1] for key in cases):
        those = [case for key, case in cases.items() if key.endswith(f"/{solver}")]
        silent = sum(_silent(case) for case in those)
        converged = sum(case["status"] == "CONVERGED" and not _silent(case) for case in those)
        lines.append([solver, *map(str, (len(those), converged, len(those) - converged - silent, silent))])
    listed = [
        [key.replace("/", ": "), case["status"], passes(case["passes"]), share(case["stated"]), share(case["true"]),
         "SILENT" if _silent(case) else "says so"]
        for key, case in cases.items() if case["status"] != "CONVERGED" or _silent(case)
    ]  # fmt: skip
    more = f" (the first {_LISTED} of {len(listed)}; all are in the JSON file)" if len(listed) > _LISTED else ""
    rows = [_promise(key, row) for key, row in _network_rows(store).items()]
    return {
        "counts": grid(["solver, spectra", "cases", "converged", "said it stopped short", "silent"], lines),
        "listed": grid(["spectrum and solver", "status", "passes", "stated", "true", "verdict"], listed[:_LISTED], 2),
        "more": more,
        "rows": grid(["row", "status at 2 %", "passes", "stated there", "true there", "verdict"], rows, 2),
    }  # fmt: skip


def _promise(key: str, row: Row) -> list[str]:
    at = row["stopped"] or row["last"]
    if at is None:
        return [key, row["status"], "0", "-", "-", "says so"]
    verdict = "SILENT" if _too_late(row) else "ok" if row["stopped"] else "says so"
    return [key, row["status"], passes(at["passes"]), share(at["estimate"]), share(at["true"]), verdict]
