"""What the page of the UCI sets is filled with; the words are in uci.md.j2."""

from collections.abc import Callable
from math import log1p
from typing import Any

import numpy as np

from experiments.common.page import Columns, provenance, states, table
from experiments.common.store import Row, Store
from experiments.regression import oracle, sets
from experiments.regression.sets import PROCESS, RANDOM, RAW, RIDGE, SAMPLA, SETS, SPLITS

_COLUMNS = {
    "raw: sampla": (RAW, SAMPLA), "BayesianRidge": (RAW, RIDGE), "random features: sampla": (RANDOM, SAMPLA),
    "BayesianRidge ": (RANDOM, RIDGE), PROCESS: (RAW, PROCESS),
}  # fmt: skip
_LIMIT = 1e-3
"""Largest relative difference from BayesianRidge that is allowed where both are the same model."""
_AGREE = ("coefficients", "noise precision", "prior precision", "predictive std")
_ROUNDING = 1e-9
"""Stated errors below this are rounding, and make no z-score."""


def page(store: Store) -> dict[str, Any]:
    """What the template is filled with."""
    threads = f", {store.environment['threads']} thread"
    packages = "sampla torch scikit-learn GPyTorch"
    return {
        "provenance": provenance(store, "experiments.regression.uci --root DIR", packages, threads),
        "states": states(store), "sets": sets, "limit": _LIMIT, "oracle": oracle,
        "rmse": scores(store, "rmse"), "log_likelihood": scores(store, "log_likelihood"),
        "beside": _of_fits(store, _BESIDE, RIDGE), "solved": _of_fits(store, _SOLVED, SAMPLA),
        "process": _process(store), "exact": _exact(store), "sampled": _sampled(store),
        "intercept": store.under("intercept/").values(),
    }  # fmt: skip


def _rows(store: Store, features: str, name: str, method: str) -> dict[str, Row]:
    """Split -> row."""
    return store.under(f"{features}/{name}/{method}/")


def scores(store: Store, measure: str) -> str:
    """Mean and standard error over splits, set by set and method by method."""

    def cell(name: str, features: str, method: str) -> str:
        values = [row[measure] for row in _rows(store, features, name, method).values()]
        if len(values) < 2:
            return f"{values[0]:.4g} (1)" if values else "-"
        count = "" if len(values) == SPLITS[name] else f" ({len(values)})"
        return f"{np.mean(values):.4g} ± {np.std(values, ddof=1) / len(values) ** 0.5:.2g}{count}"

    known = [name for name in SETS if any(_rows(store, f, name, m) for f, m in _COLUMNS.values())]
    return table(known, {"set": str} | {head: lambda name, at=at: cell(name, *at) for head, at in _COLUMNS.items()})


def _of_fits(store: Store, columns: Columns, beside: str) -> str:
    """A line for each kind of features and set: sampla's rows and another method's, of the splits that both have."""
    lines = []
    for features in (RAW, RANDOM):
        for name in SETS:
            ours, theirs = (_rows(store, features, name, method) for method in (SAMPLA, beside))
            both = sorted(set(ours) & set(theirs))
            if both:
                pairs = [(ours[split], theirs[split]) for split in both]
                lines.append({"name": f"{name}, {features}", "splits": len(both), "pairs": pairs})
    return table(lines, columns)


Summary = Callable[[list[float]], float]


def _over(measure: Callable[[Row, Row], float], summary: Summary, spec: str) -> Callable[[Any], str]:
    """A number of every split, summarised."""
    return lambda line: format(summary([measure(*pair) for pair in line["pairs"]]), spec)


def _largest(values: list[float]) -> float:
    return max(values, key=abs)


def _mean(values: list[float]) -> float:
    return float(np.mean(values))


def _likelihood(ours: Row, theirs: Row) -> float:
    return float(ours["log_likelihood"] - theirs["log_likelihood"])


_BESIDE: Columns = {
    "": "{name}", "splits": "{splits}",
    "RMSE, largest": _over(lambda ours, theirs: ours["rmse"] / theirs["rmse"] - 1, _largest, "+.2%"),
    "log-likelihood, mean": _over(_likelihood, _mean, "+.4f"), "largest": _over(_likelihood, _largest, "+.4f"),
    "s, sampla": _over(lambda ours, _: ours["seconds"], _mean, ".2g"),
    "s, BayesianRidge": _over(lambda _, theirs: theirs["seconds"], _mean, ".2g"),
}  # fmt: skip
_SOLVED: Columns = {
    "": "{name}", "solver": lambda line: " / ".join(sorted({ours["solver"] for ours, _ in line["pairs"]})),
    "settled": lambda line: f"{sum(ours['settled'] for ours, _ in line['pairs'])} of {line['splits']}",
    "effective dimension": _over(lambda ours, _: ours["effective dimension"], _mean, ".1f"),
    "passes": _over(lambda ours, _: ours["passes"], _mean, ".1f"),
}  # fmt: skip


def _process(store: Store) -> str:
    """How the exact Gaussian process came to its hyperparameters."""
    found = {name: list(_rows(store, RAW, name, PROCESS).values()) for name in SETS}
    least = sets.LEAST_NOISE[0]
    columns = {
        "set": "{name}", "splits": lambda line: f"{len(line['rows'])}", "rows learnt on": "{rows[0][learnt on rows]:,}",
        "evaluations": lambda line: f"{_mean([row['steps'] for row in line['rows']]):.0f}",
        "line search broke off": lambda line: f"{sum(row['broke off'] for row in line['rows'])}",
        "least noise raised": lambda line: f"{sum(row.get('least noise', least) > least for row in line['rows'])}",
        "s": lambda line: f"{_mean([row['seconds'] for row in line['rows']]):.3g}",
    }  # fmt: skip
    return table([{"name": name, "rows": rows} for name, rows in found.items() if rows], columns)


def _exact(store: Store) -> dict[str, Any]:
    """sampla (exact) against BayesianRidge where both are the same model."""
    known = store.under("oracle/")
    found = {name: known[name] for name in SETS if name in known}
    worst = max((row[measure] for row in found.values() for measure in _AGREE), default=0.0)
    columns = {"set": "{key}", "N x D": "{rows:,} x {columns}"} | {measure: f"{{{measure}:.1e}}" for measure in _AGREE}
    return {"count": len(found), "worst": worst, "table": table(found, columns)}


def _sampled(store: Store) -> dict[str, Any]:
    """The matrix-free way against BayesianRidge: z-scores of what it finds."""
    found = {
        f"{name}, {features}": store.rows[prefix + name]["runs"]
        for prefix, features in (("sampled/", "raw"), ("sampled, random features/", "random"))
        for name in SETS
        if prefix + name in store.rows
    }
    scored = {name: [_scores(runs, "prior"), _scores(runs, "noise"), _of(runs, "z of the quadratic form")]
              for name, runs in found.items()}  # fmt: skip
    columns = {
        "set": str,
        "gamma": lambda name: f"{_mean(_of(found[name], 'effective dimension')):.1f}",
        "settled": lambda name: f"{sum(_of(found[name], 'settled'))} of {len(found[name])}",
        "mean": lambda name: f"{_mean(_of(found[name], 'mean')):.2%}",
        "z, prior": lambda name: _spread(scored[name][0]), "z, noise": lambda name: _spread(scored[name][1]),
        "z, z'Hz": lambda name: _spread(scored[name][2]),
        "z, variances": lambda name: f"{_mean(_of(found[name], 'mean square z of variances')) ** 0.5:.2f}",
    }  # fmt: skip
    every = [z for kinds in scored.values() for each in kinds for z in each]
    return {
        "table": table(found.keys(), columns), "count": len(every), "size": _size(every) if every else 0.0,
        "beyond": sum(abs(z) > 3 for z in every), "largest": max(map(abs, every), default=0.0),
    }  # fmt: skip


def _of(runs: list[dict[str, Any]], name: str) -> list[Any]:
    return [run[name] for run in runs]


def _size(values: list[float]) -> float:
    """Root mean square."""
    return float(np.mean(np.square(values)) ** 0.5)


def _spread(z: list[float]) -> str:
    return f"{_size(z):.2f} ({_largest(z):+.1f})" if z else "-"


def _scores(runs: list[dict[str, Any]], measure: str) -> list[float]:
    """Log ratios over their stated standard errors, what more iterations may change taken off."""
    found = []
    for difference, stated in zip(_of(runs, f"{measure} precision"), _of(runs, f"stated {measure}"), strict=True):
        if stated is not None and stated[0] >= _ROUNDING:
            off = log1p(difference)
            found.append(max(abs(off) - stated[1], 0.0) * (1 if off > 0 else -1) / stated[0])
    return found
