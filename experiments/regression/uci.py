"""Test error and test log-likelihood on the UCI regression sets: sampla, BayesianRidge, an exact Gaussian process.

    python -m experiments.regression.uci --root DIR [--only boston] [--splits 3] [--anew] [--out DIR]

``--root`` holds the npz files. Every fit is kept in OUT/results.json as soon as it is done, its predictions in the
cache, and a run that was cut off goes on there; ``--anew`` fits sampla again where the library's source has changed
since. Writes OUT/results.md.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from time import perf_counter
from typing import Any

import numpy as np
from scipy.stats import norm
from sklearn.linear_model import BayesianRidge
from sklearn.metrics import root_mean_squared_error

import sampla
from experiments.common.command import command, say
from experiments.common.page import RESULTS, write_page
from experiments.common.store import Measures, Store, save_arrays
from experiments.regression import oracle
from experiments.regression.sets import PROCESS, RANDOM, RAW, RIDGE, SAMPLA, SETS, DataSet, Fitted, Split
from experiments.regression.sets import random_features as drawn
from experiments.regression.uci_page import page

_FIRST = 3
"""Splits that every set gets before any gets more: a run that is cut off has something of everything."""
Fit = Callable[[Split], Fitted]


def fit_sampla(split: Split) -> Fitted:
    """sampla with its defaults: exact where that is cheap, otherwise from samples."""
    start = perf_counter()
    model = sampla.BayesianLinearRegression(random_state=split.number, progress=False).fit(split.x, split.y)
    seconds, report = perf_counter() - start, model.report_
    return *model.predict(split.test_x, return_std=True), {
        "seconds": seconds, "solver": f"{report.solver}, {report.world}" if report.solver == "exact" else report.solver,
        "passes": report.passes, "settled": bool(report.settled), "effective dimension": report.effective_dimension,
    }  # fmt: skip


def fit_ridge(split: Split) -> Fitted:
    """scikit-learn's BayesianRidge with its defaults."""
    start = perf_counter()
    model = BayesianRidge().fit(split.x, split.y)
    return *model.predict(split.test_x, return_std=True), {"seconds": perf_counter() - start}


MEASURES: Measures = {
    "rmse": lambda p: float(p["unit"]) * root_mean_squared_error(p["y"], p["mean"]),
    "log_likelihood": lambda p: float(norm.logpdf(p["y"], p["mean"], p["std"]).mean() - np.log(p["unit"])),
}
"""In the targets' own units, from the predictions of the test rows: add a line for another one."""


def main() -> None:
    """Everything that is not known yet, then the tables."""
    asked = command(
        __doc__, RESULTS / "uci", "the npz files", only=SETS, anew=True, splits=(20, "of each set, at most")
    )
    store = Store(asked.out / "results.json", {}, asked.cache, asked.anew)
    sets = [DataSet(asked.root, name) for name in asked.only or SETS]
    for data in sets:
        for key, compute in oracle.parts(data):
            store.once(key, compute)
    for data, number, process in _order(sets, asked.splits):
        for features, method, fit in _fits(data, process):
            key = f"{features}/{data.name}/{method}/{number:02d}"
            compute = partial(_fitted, store, key, data, number, features, fit)
            row = store.once(key, compute, ours=method == SAMPLA, measures=MEASURES)
            say(f"{key}: {row['rmse']:.4g} {row['seconds']:.1f} s")
        write_page(asked.out / "results.md", "experiments/regression/uci.md.j2", **page(store))


def _fitted(store: Store, key: str, data: DataSet, number: int, features: str, fit: Fit) -> dict[str, Any]:
    """Fit a split; its predictions go to the cache."""
    split = data.split(number) if features == RAW else _random(data, number)
    mean, std, facts = fit(split)
    save_arrays(store.predictions(key), mean=mean, std=std, y=split.test_y, unit=np.array(split.unit))
    return facts


@lru_cache(maxsize=1)
def _random(data: DataSet, number: int) -> Split:
    """Random features are drawn when they are first needed, and once for all methods."""
    return drawn(data.split(number))


def _order(sets: list[DataSet], splits: int) -> Iterator[tuple[DataSet, int, bool]]:
    """Set, split and whether it is the Gaussian process's turn: the first splits, then the others; the cheap first."""
    cheap_first = sorted(sets, key=lambda data: len(data.x))
    for first in (True, False):
        for process in (False, True):
            for data in cheap_first:
                for number in range(min(splits, data.num_splits)):
                    if (number < _FIRST) == first:
                        yield data, number, process


def _fits(data: DataSet, process: bool) -> Iterator[tuple[str, str, Fit]]:
    """What is fitted to a split."""
    from experiments.regression.gaussian_process import fit_process, fits  # GPyTorch, an extra

    if not process:
        for features in (RAW, RANDOM):
            yield features, SAMPLA, fit_sampla
            yield features, RIDGE, fit_ridge
    elif fits(len(data.x)):
        yield RAW, PROCESS, fit_process


if __name__ == "__main__":
    warnings.simplefilter("default")  # each place warns once: seen, and not a flood
    main()
