"""The matrix-free way of linear regression against the closed form: the same model, within what it states."""

import numpy as np
import pytest
import torch
from scipy import sparse

import sampla
from dense_linear import linear_reference
from sampla.core.progress import Progress
from sampla.linear.columns import RowData, centred, columns_of, measure
from sampla.linear.iterative import uneven
from sampla.linear.sources import ArraySource
from sampla.model import LinearModel

ROWS, COLUMNS = 400, 30


def problem(outputs=1, seed=0, rows=ROWS, columns=COLUMNS, scales=(0.5, 2)):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, columns)) * np.geomspace(*scales, columns) + 1.0
    y = x @ rng.standard_normal((columns, outputs)) + rng.standard_normal((rows, outputs)) * np.arange(1, outputs + 1)
    return x, y + 2.0


def both(x, y, weights=None, **settings):
    exact = sampla.BayesianLinearRegression(solver="exact", **settings).fit(x, y, weights)
    krylov = sampla.BayesianLinearRegression(solver="block-cg", random_state=0, progress=False, **settings)
    return exact, krylov.fit(x, y, weights)


FIXED = {"prior_precision": 0.5, "noise_precision": 0.8}
CASES = {
    "one": {},
    "three": {"outputs": 3},
    "no-intercept": {"fit_intercept": False},
    "standardised": {"prior": "g-prior"},
    "weights": {"weights": True},
    "sparse": {"sparse": True},
    "sparse-standardised": {"sparse": True, "standardize": True, "weights": True},
    "torch": {"torch": True},
}


@pytest.mark.parametrize("name", CASES)
def test_the_mean_at_given_precisions_is_exact(name):
    """At fixed hyperparameters nothing is random: mean and variances to the tolerance of the solve."""
    case = dict(CASES[name])
    x, y = problem(case.pop("outputs", 1))
    weights = np.random.default_rng(1).gamma(2.0, size=len(x)) if case.pop("weights", False) else None
    given = x
    if case.pop("sparse", False):
        x = np.where(np.abs(x) > 1, x, 0.0)
        given = sparse.csr_matrix(x)
    if case.pop("torch", False):
        given = torch.from_numpy(x)
    exact = sampla.BayesianLinearRegression(solver="exact", **FIXED, **case).fit(x, y, weights)
    krylov = sampla.BayesianLinearRegression(
        solver="block-cg", random_state=0, tol=1e-6, num_samples=400, progress=False, **FIXED, **case
    ).fit(given, y, weights)
    np.testing.assert_allclose(krylov.coef_, exact.coef_, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(krylov.intercept_, exact.intercept_, rtol=1e-5, atol=1e-4)
    ratio = krylov.predict(given[:50], return_std=True)[1] ** 2 - 1 / FIXED["noise_precision"]
    ratio = ratio / (exact.predict(x[:50], return_std=True)[1] ** 2 - 1 / FIXED["noise_precision"])
    # Each variance is a mean of 400 squares, next to the intercept's own part, which is exact.
    assert np.abs(ratio - 1).max() < 4.5 * (2 / 400) ** 0.5
    assert krylov.report_.fit.solve_error <= 1e-7


@pytest.mark.parametrize("name", ["one", "weights"])
def test_samples_have_the_posterior_covariance(name):
    """800 samples of every coefficient: the covariance within 4.5 standard errors of the reference's."""
    x, y = problem(columns=6, rows=60)
    weights = np.random.default_rng(1).gamma(2.0, size=len(x)) if name == "weights" else None
    reg = sampla.BayesianLinearRegression(
        solver="block-cg", num_samples=800, random_state=0, tol=1e-4, progress=False, **FIXED
    ).fit(x, y, weights)
    reference = linear_reference(x, y, weights=weights, fixed=(0.5, [[1 / 0.8]]))
    coefficients, intercepts = reg.sample_coef(800)
    whole, exact = np.hstack([coefficients[:, 0], intercepts]), reference.covariance
    error = np.sqrt((exact**2 + np.outer(np.diag(exact), np.diag(exact))) / 800)
    assert np.abs((np.cov(whole.T, bias=True) - exact) / error).max() < 4.5


@pytest.mark.parametrize("settings", [{}, {"noise": "diagonal"}, {"noise": "full"}])
def test_learnt_hyperparameters_agree_within_their_stated_errors(settings):
    x, y = problem(outputs=3 if settings else 1)
    exact, krylov = both(x, y, num_samples=64, tol=3e-3, **settings)
    alpha_error, open_error = krylov.report_.fit.precision_error
    drift = 0.05 if settings else 0.0  # EM in noise by output ends where a step has become small, not at the end
    assert abs(np.log(krylov.prior_precision_ / exact.prior_precision_)) < 4 * alpha_error + open_error + drift + 1e-9
    np.testing.assert_allclose(krylov.noise_precision_, exact.noise_precision_, rtol=0.03, atol=0.01)
    np.testing.assert_allclose(krylov.coef_, exact.coef_, atol=0.02)
    gamma_error = krylov.report_.fit.effective_dimension_error[0]
    assert abs(krylov.effective_dimension_ - exact.effective_dimension_) < 4 * gamma_error + 0.5
    if not settings:
        spread, truncation = krylov.report_.fit.log_evidence_error
        assert abs(krylov.log_marginal_likelihood_ - exact.log_marginal_likelihood_) < 4 * spread + truncation + 1e-6


def test_groups_of_columns():
    x, y = problem()
    y = x[:, :15] @ np.full((15, 1), 3.0) + 0.01 * x[:, 15:].sum(1, keepdims=True) + y * 0.1
    groups = np.array(["left"] * 15 + ["right"] * 15)
    exact, krylov = both(x, y, groups=groups, num_samples=64)
    assert exact.prior_precision_[1] > 10 * exact.prior_precision_[0]
    np.testing.assert_allclose(np.log(krylov.prior_precision_), np.log(exact.prior_precision_), atol=0.3)
    np.testing.assert_allclose(krylov.coef_, exact.coef_, atol=0.05)


def test_float32_stays_float32_and_agrees():
    x, y = problem()
    exact = sampla.BayesianLinearRegression(solver="exact", **FIXED).fit(x, y)
    single = sampla.BayesianLinearRegression(solver="block-cg", tol=1e-3, random_state=0, progress=False, **FIXED)
    single.fit(x.astype(np.float32), y.astype(np.float32))
    assert single._posterior.samples.dtype == torch.float32
    np.testing.assert_allclose(single.coef_, exact.coef_, atol=2e-3)


def test_uneven_columns_go_to_em_with_samples():
    x, y = problem(scales=(0.01, 100))
    exact, krylov = both(x, y, num_samples=32)
    assert krylov.report_.fit.method == "samples"
    assert abs(np.log(krylov.prior_precision_ / exact.prior_precision_)) < 0.2
    assert not uneven(torch.ones(5))
    assert uneven(torch.tensor([0.0, 1, 1, 1, 200]))
    assert not uneven(torch.zeros(3))


def test_a_full_krylov_space_is_left_for_samples(monkeypatch):
    """Where the space may not grow, EM goes on with samples from where it stands, and says nothing is amiss."""
    from sampla.linear import regression

    x, y = problem(columns=120, rows=600, scales=(0.1, 5))
    monkeypatch.setattr(regression, "EM", lambda **settings: sampla.EM(max_rows=40, **settings))
    exact, krylov = both(x, y, num_samples=32)
    assert krylov.report_.fit.method == "samples"
    assert krylov.report_.settled
    assert abs(np.log(krylov.prior_precision_ / exact.prior_precision_)) < 0.2


def test_steps_that_are_used_up_are_left_for_samples():
    """Nothing is said twice, nothing is dropped: EM with samples speaks for itself."""
    x, y = problem(columns=300, rows=600, scales=(0.1, 5))
    reg = sampla.BayesianLinearRegression(
        solver="block-cg", random_state=0, progress=False, num_samples=32, max_iter=1, tol=1e-4
    )
    with pytest.warns(sampla.ConvergenceWarning, match="EM was asked to settle"):
        reg.fit(x, y)
    assert reg.report_.fit.method == "samples"
    assert not reg.report_.settled


def test_the_solver_has_one_name():
    x, y = problem()
    settings = {"num_samples": 4, "random_state": 0, "progress": False, **FIXED}
    new = sampla.BayesianLinearRegression(solver="block-cg", **settings).fit(x, y)
    with pytest.warns(DeprecationWarning, match="'krylov' is called 'block-cg' now"):
        old = sampla.BayesianLinearRegression(solver="krylov", **settings).fit(x, y)
    np.testing.assert_array_equal(old.coef_, new.coef_)
    assert old.report_.solver == new.report_.solver == "block-cg"
    assert old.get_params()["solver"] == "krylov"


def test_no_more_draws_than_samples():
    x, y = problem()
    reg = sampla.BayesianLinearRegression(solver="block-cg", num_samples=8, progress=False, **FIXED).fit(x, y)
    assert reg.sample_y(x[:3], 8).shape == (3, 1, 8)
    with pytest.raises(ValueError, match=r"at most num_samples = 8 joint draws .* got 9"):
        reg.sample_y(x[:3], 9)


def test_the_report_says_what_was_done():
    x, y = problem()
    exact, krylov = both(x, y, num_samples=8)
    assert "exact, primal: asked for; N = 400, P = D C = 30 x 1" in str(exact.report_)
    assert "block-cg, primal: asked for" in str(krylov.report_)
    assert krylov.report_.fit.adjoint_error is None, "no check was made"
    assert "a standard deviation is known to about 25% with K = 8" in str(krylov.report_)
    auto = sampla.BayesianLinearRegression().fit(x, y)
    assert "min(N, D) = 30 is at most 2,500" in str(auto.report_)


def test_weights_and_an_intercept_count_in_the_degrees_of_freedom():
    """N C is the sum of the weights for each output; an intercept that is taken out absorbs one of them an output."""
    x, y = problem(outputs=3)
    weights = np.random.default_rng(1).gamma(2.0, size=len(x))
    for fit_intercept in (True, False):
        source = ArraySource(x, torch.from_numpy(y), torch.from_numpy(weights))
        columns = columns_of(measure(source), fit_intercept, standardize=False)
        data = RowData(source, centred(columns), Progress(False))
        survey = LinearModel(columns.design(source, 3), sampla.Gaussian(1.0), data).survey()
        assert survey.outputs == pytest.approx(3 * weights.sum())
        assert survey.entries == pytest.approx(3 * (weights.sum() - fit_intercept))
        level = np.average(y, axis=0, weights=weights) if fit_intercept else 0.0
        assert float(survey.residual) == pytest.approx((weights[:, None] * (y - level) ** 2).sum())
