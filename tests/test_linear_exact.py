"""The closed form of linear regression against a reference that forms every matrix, and against BayesianRidge."""

import numpy as np
import pytest
from sklearn.datasets import load_diabetes
from sklearn.linear_model import BayesianRidge

import sampla
from dense_linear import linear_reference

ROWS, COLUMNS, OUTPUTS = 40, 7, 3
GROUPS = np.array([0, 0, 1, 1, 1, 0, 1])
MIXED = np.array([[1.0, 0.5, 0.0], [0.0, 0.7, 0.4], [0.0, 0.0, 0.5]])


def problem(rows=ROWS, columns=COLUMNS, outputs=OUTPUTS, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, columns)) * np.geomspace(0.3, 3, columns) + 2 * rng.standard_normal(columns)
    coefficients = rng.standard_normal((columns, outputs))
    noise = rng.standard_normal((rows, OUTPUTS)) @ MIXED
    return x, x @ coefficients + noise[:, :outputs] + 3.0


def unfitted(**settings):
    return sampla.BayesianLinearRegression(solver="exact", tol=1e-4, max_iter=20_000, **settings)


CASES = {
    "shared": {},
    "diagonal": {"noise": "diagonal"},
    "full": {"noise": "full"},
    "groups": {"groups": GROUPS},
    "groups-full": {"groups": GROUPS, "noise": "full"},
    "no-intercept": {"intercept": False},
    "weights": {"weights": True},
    "weights-full": {"weights": True, "noise": "full"},
}


@pytest.mark.parametrize("name", CASES)
def test_everything_equals_the_reference(name):
    case = dict(CASES[name])
    x, y = problem()
    intercept = case.pop("intercept", True)
    weights = np.random.default_rng(1).gamma(2.0, size=len(x)) if case.pop("weights", False) else None
    reference = linear_reference(x, y, intercept=intercept, weights=weights, **case)
    reg = unfitted(fit_intercept=intercept, **case).fit(x, y, weights)
    np.testing.assert_allclose(np.atleast_1d(reg.prior_precision_), reference.alpha, rtol=1e-6)
    covariance = np.linalg.inv(np.diag(np.broadcast_to(reg.noise_precision_, 3)) if np.ndim(reg.noise_precision_) < 2
                               else reg.noise_precision_)  # fmt: skip
    np.testing.assert_allclose(covariance, reference.noise, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(np.atleast_1d(reg.effective_dimension_), reference.gamma, rtol=1e-6)
    np.testing.assert_allclose(reg.coef_, reference.mean[:, :COLUMNS], rtol=1e-6, atol=1e-8)
    assert reg.log_marginal_likelihood_ == pytest.approx(reference.evidence, rel=1e-8)
    new = problem(seed=5)[0][:6]
    mean, spread = reference.predictive(new, intercept)
    found, std = reg.predict(new, return_std=True)
    np.testing.assert_allclose(found, mean, rtol=1e-6)
    np.testing.assert_allclose(std, np.sqrt(np.diagonal(spread, axis1=1, axis2=2)), rtol=1e-6)


def test_joint_covariance_between_rows_equals_the_reference():
    x, y = problem(outputs=1)
    reg, reference = unfitted().fit(x, y), linear_reference(x, y)
    new = np.hstack([x[:5], np.ones((5, 1))])
    expected = new @ reference.covariance @ new.T + reference.noise * np.eye(5)
    _, covariance = reg.predict(x[:5], return_cov=True)
    np.testing.assert_allclose(covariance[:, :, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("noise", ["shared", "full"])
def test_primal_and_dual_give_the_same_answer(noise):
    x, y = problem(rows=15, columns=40)
    reference = linear_reference(x, y, noise=noise, fixed=(2.0, np.diag([0.3, 0.5, 0.2])))
    precision = np.diag([1 / 0.3, 1 / 0.5, 1 / 0.2])
    reg = unfitted(noise=noise, prior_precision=2.0, noise_precision=precision).fit(x, y)
    assert reg.report_.world == "dual"
    np.testing.assert_allclose(reg.coef_, reference.mean[:, :-1], rtol=1e-7, atol=1e-9)
    assert reg.log_marginal_likelihood_ == pytest.approx(reference.evidence, rel=1e-9)
    tall = np.vstack([x, np.zeros((30, 40))])  # rows of weight zero make it primal by shape alone
    weights = np.concatenate([np.ones(15), np.zeros(30)])
    primal = unfitted(noise=noise, prior_precision=2.0, noise_precision=precision)
    wide = primal.fit(tall, np.vstack([y, np.zeros((30, 3))]), weights)
    assert wide.report_.world == "dual"
    new = problem(rows=6, columns=40, seed=5)[0]
    mean, spread = reference.predictive(new, intercept=True)
    for each in (reg, wide):
        found, std = each.predict(new, return_std=True)
        np.testing.assert_allclose(found, mean, rtol=1e-7)
        np.testing.assert_allclose(std, np.sqrt(np.diagonal(spread, axis1=1, axis2=2)), rtol=1e-7)


def test_the_two_decompositions_agree():
    """The same matrix by QR of its rows and by products of pairs of them: singular values, basis and coordinates."""
    import torch

    from sampla.core.progress import Progress
    from sampla.linear.closed_form import dual_spectrum, primal_spectrum
    from sampla.linear.columns import columns_of, measure
    from sampla.linear.sources import ArraySource

    x, y = problem(rows=30, columns=12)
    source = ArraySource(x, torch.from_numpy(y))
    columns = columns_of(measure(source), fit_intercept=True, standardize=True)
    one, other = (f(source, columns, True, Progress(False)) for f in (primal_spectrum, dual_spectrum))
    order = other.values.argsort(descending=True)
    torch.testing.assert_close(one.values, other.values[order])
    torch.testing.assert_close((one.basis @ other.basis[order].mT).abs(), torch.eye(12).double())
    torch.testing.assert_close(one.targets.abs(), other.targets[order].abs())
    torch.testing.assert_close(one.rest, other.rest)


@pytest.mark.parametrize("case", ["groups-full", "wide", "centred"])
def test_draws_have_the_posterior_covariance(case):
    """5,000 draws of a few coefficients: every entry of their covariance within 4.5 standard errors."""
    if case == "wide":
        x, y = problem(rows=6, columns=9, outputs=1)
        given = {"prior_precision": 2.0, "noise_precision": 4.0}
        reference = linear_reference(x, y, fixed=(2.0, [[0.25]]))
    elif case == "centred":  # where nothing but its own uncertainty is in the intercept
        x, y = problem()
        x, given = x - x.mean(0), {"noise": "full"}
        reference = linear_reference(x, y, **given)
    else:
        x, y = problem()
        given = {"noise": "full", "groups": GROUPS}
        reference = linear_reference(x, y, **given)
    reg = unfitted(**given).fit(x, y)
    coefficients, intercepts = reg.sample_coef(5000, random_state=0)
    whole = np.concatenate([coefficients, intercepts[..., None]], axis=-1).reshape(5000, -1)
    exact = reference.covariance
    found = np.cov(whole.T, bias=True)
    error = np.sqrt((exact**2 + np.outer(np.diag(exact), np.diag(exact))) / 5000)
    assert np.abs((found - exact) / error).max() < 4.5
    assert np.abs((whole.mean(0) - reference.mean.ravel()) / np.sqrt(np.diag(exact) / 5000)).max() < 4.5


def test_sampled_targets_have_the_predictive_covariance():
    x, y = problem()
    reg, reference = unfitted(noise="full").fit(x, y), linear_reference(x, y, noise="full")
    drawn = reg.sample_y(x[:1], 5000, random_state=1)[0]  # (C, S)
    _, exact = reference.predictive(x[:1], intercept=True)
    error = np.sqrt((exact[0] ** 2 + np.outer(np.diag(exact[0]), np.diag(exact[0]))) / 5000)
    assert np.abs((np.cov(drawn, bias=True) - exact[0]) / error).max() < 4.5


@pytest.mark.parametrize("standardize", [False, True])
def test_bayesian_ridge_on_diabetes(standardize):
    """The oracle, on centred data without an intercept: there the two models are the same."""
    x, y = load_diabetes(return_X_y=True, scaled=False)
    x, y = x - x.mean(0), y - y.mean()
    oracle = BayesianRidge(
        fit_intercept=False, tol=1e-12, max_iter=100_000, alpha_1=0, alpha_2=0, lambda_1=0, lambda_2=0,
        compute_score=True,
    )  # fmt: skip
    scale = np.sqrt((x**2).mean(0)) if standardize else 1.0
    oracle.fit(x / scale, y)
    reg = unfitted(fit_intercept=False, standardize=standardize).fit(x, y)
    np.testing.assert_allclose(reg.coef_ * scale, oracle.coef_, rtol=1e-5)
    assert reg.noise_precision_ == pytest.approx(oracle.alpha_, rel=1e-7)
    assert reg.prior_precision_ == pytest.approx(oracle.lambda_, rel=1e-5)
    assert reg.log_marginal_likelihood_ == pytest.approx(oracle.scores_[-1], rel=1e-9)
    mean, std = reg.predict(x, return_std=True)
    expected = oracle.predict(x / scale, return_std=True)
    np.testing.assert_allclose(mean, expected[0], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(std, expected[1], rtol=1e-6)
    prior = sampla.BayesianLinearRegression("g-prior", fit_intercept=False).fit(x, y)
    if standardize:
        np.testing.assert_allclose(prior.coef_, reg.coef_, rtol=1e-4)


def test_what_the_intercept_changes_beside_bayesian_ridge():
    """One degree of freedom: the noise precision falls by about 1 / N, and predictions add its own uncertainty."""
    x, y = load_diabetes(return_X_y=True)
    oracle = BayesianRidge(tol=1e-12, max_iter=100_000).fit(x, y)
    reg = unfitted().fit(x, y)
    assert oracle.alpha_ / reg.noise_precision_ - 1 == pytest.approx(1 / len(x), rel=0.1)
    np.testing.assert_allclose(reg.coef_, oracle.coef_, rtol=0.02, atol=1)
    ratio = reg.predict(x, return_std=True)[1] / oracle.predict(x, return_std=True)[1] - 1
    assert np.abs(ratio - 1 / len(x)).max() < 1 / len(x)


def test_evidence_prefers_the_noise_structure_that_made_the_data():
    x, y = problem(rows=200)
    evidence = {noise: unfitted(noise=noise).fit(x, y).log_marginal_likelihood_ for noise in ("shared", "full")}
    assert evidence["full"] > evidence["shared"] + 10
