"""sampla against BayesianRidge where both are the same model: centred, standardised columns and no intercept."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sklearn.linear_model import BayesianRidge

import sampla
from experiments.regression.sets import DataSet, random_features

SAMPLES, SEEDS = 64, 10
"""K of the matrix-free way when it is held against BayesianRidge; fits of that kind on each set."""
_RANDOM = ("boston", "concrete", "energy", "yacht", "wine-red")
"""Sets on which that is done with random features too."""

Part = tuple[str, Callable[[], dict[str, Any]]]


def parts(data: DataSet) -> Iterator[Part]:
    """What is compared on a set: key, and how to compute it."""
    yield f"oracle/{data.name}", lambda: _exact(*data.standardised())
    yield f"intercept/{data.name}", lambda: _intercept(*data.standardised())
    yield f"sampled/{data.name}", lambda: _sampled(*data.standardised())
    if data.name in _RANDOM:
        yield f"sampled, random features/{data.name}", lambda: _sampled(*_random(data))


def reference(x: np.ndarray, y: np.ndarray, intercept: bool = False) -> BayesianRidge:
    """scikit-learn's fixed point to rounding, hyperpriors switched off.

    Its tolerance is about the sum of all changes: thousands of columns do not come below the rounding of few.
    """
    tolerance, steps = (1e-12, 100_000) if x.shape[1] < 100 else (1e-8, 3000)
    return BayesianRidge(
        alpha_1=0, alpha_2=0, lambda_1=0, lambda_2=0, fit_intercept=intercept, tol=tolerance, max_iter=steps
    ).fit(x, y)


def _exact(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Largest relative differences; of coefficients relative to the largest."""
    peer = reference(x, y)
    ours = sampla.BayesianLinearRegression(fit_intercept=False, solver="exact", max_iter=100_000, progress=False)
    ours.fit(x, y)
    std, peer_std = (model.predict(x, return_std=True)[1] for model in (ours, peer))
    return {
        "rows": len(x), "columns": x.shape[1],
        "coefficients": float(np.abs(ours.coef_ - peer.coef_).max() / np.abs(peer.coef_).max()),
        "noise precision": abs(ours.noise_precision_ / float(peer.alpha_) - 1),
        "prior precision": abs(ours.prior_precision_ / float(peer.lambda_) - 1),
        "predictive std": float(np.abs(std / peer_std - 1).max()),
    }  # fmt: skip


def _sampled(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """The matrix-free way with several seeds: what it finds against BayesianRidge, beside the error that it states."""
    peer = reference(x, y)
    runs = [_sampled_once(x, y, peer, seed) for seed in range(SEEDS)]
    return {"rows": len(x), "columns": x.shape[1], "runs": runs}


def _sampled_once(x: np.ndarray, y: np.ndarray, peer: BayesianRidge, seed: int) -> dict[str, Any]:
    ours = sampla.BayesianLinearRegression(
        fit_intercept=False, solver="block-cg", num_samples=SAMPLES, random_state=seed, progress=False
    ).fit(x, y)
    report = ours.report_.fit
    assert report is not None
    draws = ours.sample_coef(SAMPLES)[0] - ours.coef_  # (K, D)
    alpha, beta, freedom = ours.prior_precision_, ours.noise_precision_, SAMPLES * x.shape[1]
    values, basis = np.linalg.eigh(x.T @ x)
    exact = (x @ basis) ** 2 @ (1 / (alpha + beta * values.clip(0)))  # (N,) variances of x' theta
    functions = draws @ x.T
    whitened = alpha * np.sum(draws**2) + beta * np.sum(functions**2)  # sum of z'Hz: chi-square if z ~ N(0, H^-1)
    each = (np.mean(functions**2, axis=0) / exact - 1) / np.sqrt(2 / SAMPLES)
    return {
        "settled": bool(ours.report_.settled), "effective dimension": ours.effective_dimension_,
        "mean": float(np.linalg.norm(x @ (ours.coef_ - peer.coef_)) / np.linalg.norm(x @ peer.coef_)),
        "prior precision": ours.prior_precision_ / float(peer.lambda_) - 1,
        "noise precision": ours.noise_precision_ / float(peer.alpha_) - 1,
        "stated prior": report.precision_error, "stated noise": report.noise_error,
        "z of the quadratic form": float((whitened / freedom - 1) / np.sqrt(2 / freedom)),
        "mean square z of variances": float(np.mean(each**2)),
    }  # fmt: skip


def _intercept(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """How far predictive variances are apart when each has its own intercept, in units of 1 / N."""
    peer = reference(x, y + 1.0, intercept=True)
    ours = sampla.BayesianLinearRegression(solver="exact", max_iter=100_000, progress=False).fit(x, y + 1.0)
    std, peer_std = (model.predict(x, return_std=True)[1] for model in (ours, peer))
    apart = (std / peer_std) ** 2 - 1
    return {"rows": len(x), "mean": float(apart.mean() * len(x)), "largest": float(np.abs(apart).max() * len(x))}


def _random(data: DataSet) -> tuple[np.ndarray, np.ndarray]:
    """Random features of the first split's training rows, centred."""
    split = random_features(data.split(0))
    return split.x - split.x.mean(0), split.y - split.y.mean()
