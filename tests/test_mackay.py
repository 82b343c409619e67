"""MacKay's updates and the rule for stopping, on numbers alone."""

from math import inf

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import BayesianRidge

from sampla.inference.mackay import (
    degrees_left,
    has_settled,
    is_rounding,
    settled_error,
    still_ahead,
    tolerance_factor,
    trace_error,
    updated_alpha,
    updated_alphas,
    updated_noise,
    updated_variance,
    why_noise_is_unknown,
)

TINY = 1e-12  # hyperpriors switched off


def test_the_fixed_point_of_both_updates_is_that_of_bayesian_ridge():
    """Its lambda_ is our alpha, its alpha_ our noise precision: each update gives back what it was given."""
    x, y = load_diabetes(return_X_y=True)
    x, y = x * 20, (y - y.mean()) / y.std()
    ridge = BayesianRidge(
        alpha_1=TINY, alpha_2=TINY, lambda_1=TINY, lambda_2=TINY, fit_intercept=False, tol=1e-12, max_iter=10_000
    ).fit(x, y)
    eigenvalues = ridge.alpha_ * np.linalg.svd(x, compute_uv=False) ** 2
    gamma = float((eigenvalues / (eigenvalues + ridge.lambda_)).sum())
    residual = float(((y - x @ ridge.coef_) ** 2).sum())
    assert updated_alpha(gamma, float((ridge.coef_**2).sum())) == pytest.approx(ridge.lambda_, rel=1e-6)
    assert updated_noise(len(y), gamma, residual) == pytest.approx(ridge.alpha_, rel=1e-6)
    variance = updated_variance(len(y), torch.tensor(gamma), torch.tensor(residual))
    assert float(variance) == pytest.approx(1 / ridge.alpha_, rel=1e-6)


def test_groups_with_nothing_to_go_by_keep_their_alpha_and_the_others_stay_within_bounds():
    alpha = torch.tensor([3.0, 3.0, 3.0, 3.0])
    gamma, size = torch.tensor([6.0, 0.0, 2.0, 5.0]), torch.tensor([2.0, 1.0, 0.0, 1e-40], dtype=torch.float64)
    assert updated_alphas(alpha, gamma, size).tolist() == [3.0, 3.0, 3.0, pytest.approx(1e30)]


def test_parameters_that_use_up_all_data_leave_a_thousandth():
    assert degrees_left(200.0, 150.0) == 50.0
    assert degrees_left(200.0, 200.0) == pytest.approx(0.2)
    assert degrees_left(200.0, torch.tensor([150.0, 300.0])).tolist() == pytest.approx([50.0, 0.2])
    assert updated_noise(200.0, 200.0, 0.0) < inf
    assert why_noise_is_unknown(200.0, 150.0, 10.0) == ""
    assert "less the 150.0 +- 20.0 parameters" in why_noise_is_unknown(200.0, 150.0, 20.0)
    assert "less the 199.9 parameters" in why_noise_is_unknown(200.0, 199.9, 0.0)


def test_settled_is_near_the_fixed_point_and_known_to_half_of_the_tolerance():
    assert has_settled(0.02, 0.02, 0.01)
    assert not has_settled(0.02, 0.021)
    assert not has_settled(0.02, 0.0, 0.011)
    assert not has_settled(0.02, inf)
    assert [tolerance_factor(change, 0.02) for change in (0.01, 0.2, 5.0)] == [1.0, 2.0, 4.0]


def test_aitken_gives_the_distance_of_a_geometric_sequence_from_its_limit():
    steps = [8.0, 4.0, 2.0, 1.0]  # of 1/2 each: one more is to come
    assert still_ahead(steps[-2], steps[-1]) == pytest.approx(1.0)
    assert still_ahead(1.0, 1.0) == inf
    assert still_ahead(0.0, 1.0) == 0.0
    sums = [0.0, 2.0, 3.0]
    assert settled_error(sums, bracket=2.0) == pytest.approx(1.0)
    assert settled_error(sums, bracket=0.5) == 0.5, "no more than is proved"
    assert settled_error(sums, bracket=8.0) == 2.0, "no less than a quarter of what is proved"
    assert settled_error(sums[:2], bracket=2.0) == 2.0


def test_residuals_within_the_rounding_of_their_targets_are_told_from_others():
    target, eps = torch.tensor([4.0, 1.0]).double(), torch.finfo(torch.float64).eps
    residual = torch.tensor([(2 * eps) ** 2, 1e-6]).double()
    assert is_rounding(residual, target, torch.float64).tolist() == [True, False]
    assert is_rounding(residual.diag(), target.diag(), torch.float64).tolist() == [True, False]


def test_the_error_of_a_trace_makes_z_as_large_as_it_should_be():
    """Means of 8 quadratic forms with 1, 3 and 20 equal eigenvalues: the mean square of 20,000 z is near 1.

    Without the correction it is 1.33 for one eigenvalue, and 0.82 with it, since nu is estimated as well.
    """
    draw = torch.Generator().manual_seed(0)
    for rank in (1, 3, 20):
        forms = torch.randn(20_000, 8, rank, generator=draw, dtype=torch.float64).square().sum(-1)
        value = forms.mean(1)
        z = (value - rank) / trace_error(value, 2 * value / 8)  # with the trace of the square estimated as well
        assert float(z.square().mean()) == pytest.approx(1, abs=0.2 if rank == 1 else 0.07)
    value = torch.tensor(1.0)
    assert float(trace_error(value, torch.tensor(1.0))) == pytest.approx(2**0.5), "at least four degrees of freedom"
    assert float(trace_error(value, torch.tensor(1e-6))) == pytest.approx(1e-3, rel=1e-4)
