"""Simulated data sets from the model's own prior and noise, and the ranks of the truth among posterior draws."""

import warnings
from dataclasses import dataclass

import numpy as np

import sampla

DRAWS = 63
"""Posterior draws of each data set: ranks from 0 to 63."""
PRIOR_PRECISION, NOISE_PRECISION = 1.0, 4.0
QUANTITIES = ("mean function", "noise", "prediction")


@dataclass(frozen=True)
class Way:
    """One way of solving, on data of one size."""

    name: str
    solver: str
    rows: int
    columns: int
    learnt: bool = False
    """Whether the precisions are learnt; otherwise the true ones are given."""


SIZES = (("exact, primal", "exact", 40, 10), ("exact, dual", "exact", 12, 30), ("krylov", "block-cg", 40, 10))
WAYS = tuple(Way(*size, learnt) for learnt in (False, True) for size in SIZES)


def simulate(way: Way, seed: tuple[int, ...]) -> tuple[dict[str, int], int]:
    """One data set: the rank of the truth among ``DRAWS`` draws for each quantity, and how many warnings there were.

    The mean function is x' theta at a new row; the noise is y - x' theta at a training row, among y - x' theta_k; the
    prediction is a new target at another new row, among draws of ``sample_y``.
    """
    rng = np.random.default_rng(seed)
    x, new = rng.standard_normal((way.rows, way.columns)), rng.standard_normal((2, way.columns))
    theta = rng.standard_normal(way.columns) / PRIOR_PRECISION**0.5
    noise, later = rng.standard_normal(way.rows) / NOISE_PRECISION**0.5, rng.standard_normal() / NOISE_PRECISION**0.5
    precisions = {} if way.learnt else {"prior_precision": PRIOR_PRECISION, "noise_precision": NOISE_PRECISION}
    seeds = rng.integers(2**31 - 1, size=3).tolist()
    model = sampla.BayesianLinearRegression(
        solver=way.solver, num_samples=DRAWS, fit_intercept=False, random_state=seeds[0], progress=False, **precisions
    )
    y = x @ theta + noise
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, y)
    draws = model.sample_coef(DRAWS, random_state=seeds[1])[0]  # (S, D)
    predicted = model.sample_y(new[1:], DRAWS, random_state=seeds[2])[0]
    ranks = {
        "mean function": _rank(new[0] @ theta, draws @ new[0]),
        "noise": _rank(noise[0], y[0] - draws @ x[0]),
        "prediction": _rank(new[1] @ theta + later, predicted),
    }
    return ranks, len(caught)


def _rank(truth: float, draws: np.ndarray) -> int:
    return int(np.sum(draws < truth))
