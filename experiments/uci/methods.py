"""The linear models that are compared: each is fitted to a split and says what it predicts for the test rows."""

from time import perf_counter
from typing import Any

import numpy as np
from sets import Split
from sklearn.linear_model import BayesianRidge

import sampla


def fit_sampla(split: Split) -> dict[str, Any]:
    """sampla with its defaults: exact where that is cheap, otherwise from samples."""
    start = perf_counter()
    model = sampla.BayesianLinearRegression(random_state=split.number, progress=False).fit(split.x, split.y)
    seconds = perf_counter() - start
    report = model.report_
    details = {
        "solver": f"{report.solver}, {report.world}" if report.solver == "exact" else report.solver,
        "passes": report.passes,
        "settled": bool(report.settled),
        "effective dimension": report.effective_dimension,
    }
    return scores(split, *model.predict(split.test_x, return_std=True), seconds) | details


def fit_ridge(split: Split) -> dict[str, Any]:
    """scikit-learn's BayesianRidge with its defaults."""
    start = perf_counter()
    model = BayesianRidge().fit(split.x, split.y)
    return scores(split, *model.predict(split.test_x, return_std=True), perf_counter() - start)


def scores(split: Split, mean: np.ndarray, std: np.ndarray, seconds: float) -> dict[str, Any]:
    """RMSE and mean log density of the test targets in their own units."""
    missed = (split.test_y - mean) / std
    density = -0.5 * (missed**2 + np.log(2 * np.pi)) - np.log(std * split.unit)
    return {
        "rmse": float(split.unit * np.sqrt(np.mean((split.test_y - mean) ** 2))),
        "log_likelihood": float(density.mean()),
        "seconds": seconds,
    }
