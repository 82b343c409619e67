"""results.md of the UCI sets from the store of a run; the words are in uci.md.j2."""

from collections.abc import Callable
from math import log1p
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.page import Columns, provenance, states, table, write_page
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


def write(out: Path, store: Store) -> None:
    """The file, from everything known so far."""
    write_page(out / "results.md", "experiments/regression/uci.md.j2", **page(store))


def page(store: Store) -> dict[str, Any]:
    """What the template is filled with."""
    packages = "sampla torch scikit-learn GPyTorch"
    threads = f", {store.environment.get('threads')} thread"
    return {
        "provenance": provenance(store, "experiments.regression.uci --root DIR", packages, threads),
        "states": states(store),
        "features": sets.FEATURES, "distances": sets.DISTANCES, "steps": sets.STEPS, "on_all": sets.LEARNT_ON_ALL,
        "subset": sets.SUBSET, "kernel": sets.LARGEST_KERNEL, "noise": sets.LEAST_NOISE, "limit": _LIMIT,
        "num_sets": len(SETS), "samples": oracle.SAMPLES, "seeds": oracle.SEEDS,
        "rmse": scores(store, "rmse"), "log_likelihood": scores(store, "log_likelihood"),
        "beside": _of_fits(store, _BESIDE, RIDGE), "solved": _of_fits(store, _SOLVED),
        "process": _process(store),
        "exact": _exact(store), "sampled": _sampled(store), "intercept": store.under("intercept/").values(),
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
    columns = {head: lambda name, at=at: cell(name, *at) for head, at in _COLUMNS.items()}
    return table(known, {"set": str} | columns)


Pair = tuple[str, dict[str, Row], dict[str, Row]]
"""Name, sampla's rows by split, another method's on the same splits."""


def _over(measure: Callable[[Row, Row], float], best: Callable[[list[float]], float]) -> Callable[[Pair], float]:
    """A number of every split that both have, summarised."""
    return lambda pair: best([measure(pair[1][split], pair[2][split]) for split in sorted(pair[1])])


def _largest(values: list[float]) -> float:
    return max(values, key=abs)


def _mean(values: list[float]) -> float:
    return float(np.mean(values))


def _likelihood(ours: Row, theirs: Row) -> float:
    return float(ours["log_likelihood"] - theirs["log_likelihood"])


_BESIDE: Columns = {
    "": lambda pair: pair[0],
    "splits": lambda pair: f"{len(pair[1])}",
    "RMSE, largest": lambda pair: f"{_over(lambda o, t: o['rmse'] / t['rmse'] - 1, _largest)(pair):+.2%}",
    "log-likelihood, mean": lambda pair: f"{_over(_likelihood, _mean)(pair):+.4f}",
    "largest": lambda pair: f"{_over(_likelihood, _largest)(pair):+.4f}",
    "s, sampla": lambda pair: f"{_over(lambda o, _: o['seconds'], _mean)(pair):.2g}",
    "s, BayesianRidge": lambda pair: f"{_over(lambda _, t: t['seconds'], _mean)(pair):.2g}",
}
_SOLVED: Columns = {
    "": lambda pair: pair[0],
    "solver": lambda pair: " / ".join(sorted({row["solver"] for row in pair[1].values()})),
    "settled": lambda pair: f"{sum(row['settled'] for row in pair[1].values())} of {len(pair[1])}",
    "effective dimension": lambda pair: f"{_over(lambda o, _: o['effective dimension'], _mean)(pair):.1f}",
    "passes": lambda pair: f"{_over(lambda o, _: o['passes'], _mean)(pair):.1f}",
}


def _of_fits(store: Store, columns: Columns, beside: str = SAMPLA) -> str:
    """A line for each kind of features and set, of the splits that both methods have."""
    pairs = []
    for features in (RAW, RANDOM):
        for name in SETS:
            ours, theirs = (_rows(store, features, name, method) for method in (SAMPLA, beside))
            both = set(ours) & set(theirs)
            if both:
                pairs.append((f"{name}, {features}", *({s: rows[s] for s in both} for rows in (ours, theirs))))
    return table(pairs, columns)


def _process(store: Store) -> str:
    """How the exact Gaussian process came to its hyperparameters."""
    found = {name: list(_rows(store, RAW, name, PROCESS).values()) for name in SETS}
    least = sets.LEAST_NOISE[0]
    return table(
        [(name, rows) for name, rows in found.items() if rows],
        {
            "set": lambda pair: pair[0],
            "splits": lambda pair: f"{len(pair[1])}",
            "rows learnt on": lambda pair: f"{pair[1][0]['learnt on rows']:,}",
            "evaluations": lambda pair: f"{_mean([row['steps'] for row in pair[1]]):.0f}",
            "line search broke off": lambda pair: f"{sum(row['broke off'] for row in pair[1])}",
            "least noise raised": lambda pair: f"{sum(row.get('least noise', least) > least for row in pair[1])}",
            "s": lambda pair: f"{_mean([row['seconds'] for row in pair[1]]):.3g}",
        },
    )


def _exact(store: Store) -> dict[str, Any]:
    """sampla (exact) against BayesianRidge where both are the same model."""
    found = store.under("oracle/")
    names = [name for name in SETS if name in found]
    worst = max((found[name][measure] for name in names for measure in _AGREE), default=0.0)
    columns = {measure: lambda name, m=measure: f"{found[name][m]:.1e}" for measure in _AGREE}
    sizes = {"set": str, "N x D": lambda name: f"{found[name]['rows']:,} x {found[name]['columns']}"}
    return {"count": len(found), "worst": worst, "table": table(names, sizes | columns)}


def _sampled(store: Store) -> dict[str, Any]:
    """The matrix-free way against BayesianRidge: z-scores of what it finds."""
    found = [
        (f"{name}, {features}", store.rows[prefix + name]["runs"])
        for prefix, features in (("sampled/", "raw"), ("sampled, random features/", "random"))
        for name in SETS
        if prefix + name in store.rows
    ]
    kinds = {
        "z, prior": lambda runs: _scores(runs, "prior"),
        "z, noise": lambda runs: _scores(runs, "noise"),
        "z, z'Hz": lambda runs: [run["z of the quadratic form"] for run in runs],
    }
    columns = {
        "set": lambda pair: pair[0],
        "gamma": lambda pair: f"{_mean([run['effective dimension'] for run in pair[1]]):.1f}",
        "settled": lambda pair: f"{sum(run['settled'] for run in pair[1])} of {len(pair[1])}",
        "mean": lambda pair: f"{_mean([run['mean'] for run in pair[1]]):.2%}",
        **{head: lambda pair, z=z: _spread(z(pair[1])) for head, z in kinds.items()},
        "z, variances": lambda pair: f"{_size([run['mean square z of variances'] ** 0.5 for run in pair[1]]):.2f}",
    }
    every = [z for _, runs in found for kind in kinds.values() for z in kind(runs)]
    return {
        "table": table(found, columns), "count": len(every), "size": _size(every) if every else 0.0,
        "beyond": sum(abs(z) > 3 for z in every), "largest": max(map(abs, every), default=0.0),
    }  # fmt: skip


def _size(values: list[float]) -> float:
    """Root mean square."""
    return float((sum(value**2 for value in values) / len(values)) ** 0.5)


def _spread(z: list[float]) -> str:
    return f"{_size(z):.2f} ({_largest(z):+.1f})" if z else "-"


def _scores(runs: list[dict[str, Any]], measure: str) -> list[float]:
    found = (_score(run[f"{measure} precision"], run[f"stated {measure}"]) for run in runs)
    return [z for z in found if z is not None]


def _score(difference: float, stated: list[float] | None) -> float | None:
    """Log ratio over its stated standard error, what more iterations may change taken off."""
    if stated is None or stated[0] < _ROUNDING:
        return None
    off = log1p(difference)
    return max(abs(off) - stated[1], 0.0) * (1 if off > 0 else -1) / stated[0]
