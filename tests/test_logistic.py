"""Logistic regression against a dense reference that shares no code, scikit-learn's own, and its two ways."""

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression

import sampla
from dense_linear import logistic_reference
from sampla.linear.logits import logit_deviations


def problem(classes, rows=120, columns=4, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, columns)) * np.geomspace(0.5, 2, columns)
    logits = x @ rng.standard_normal((columns, classes))
    return x, (logits + rng.gumbel(size=logits.shape)).argmax(1)


def flattened(clf):
    """(D C,) as the reference has it."""
    return clf.coef_.T.ravel()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [2, 3])
def test_mode_evidence_and_covariance_at_a_given_precision(classes, weighted):
    x, y = problem(classes)
    weights = np.random.default_rng(1).gamma(2.0, size=len(x)) if weighted else None
    mode, covariance, gamma, evidence = logistic_reference(x, y, 0.7, weights=weights)
    clf = sampla.BayesianLogisticRegression(fit_intercept=False, prior_precision=0.7, num_samples=4000, random_state=0)
    clf.fit(x, y, weights)
    np.testing.assert_allclose(flattened(clf), mode.ravel(), atol=1e-6)
    assert clf.effective_dimension_ == pytest.approx(gamma, rel=1e-6)
    assert clf.log_marginal_likelihood_ == pytest.approx(evidence, rel=1e-8)
    draws = clf.sample_coef(4000)[0].transpose(0, 2, 1).reshape(4000, -1) - flattened(clf)
    error = np.sqrt((covariance**2 + np.outer(np.diag(covariance), np.diag(covariance))) / 4000)
    assert np.abs((draws.T @ draws / 4000 - covariance) / error).max() < 4.5


@pytest.mark.parametrize("classes", [2, 3])
def test_products_alone_give_the_same(classes):
    x, y = problem(classes)
    weights = np.random.default_rng(1).gamma(2.0, size=len(x))
    settings = {"prior_precision": 0.7, "num_samples": 800, "random_state": 0, "progress": False}
    exact = sampla.BayesianLogisticRegression(**settings).fit(x, y, weights)
    products = sampla.BayesianLogisticRegression(solver="block-cg", tol=1e-4, **settings).fit(x, y, weights)
    np.testing.assert_allclose(products.coef_, exact.coef_, atol=1e-3)
    # The covariance itself, entry by entry, between two sets of 800 samples.
    one, other = (clf._samples.double().numpy() for clf in (exact, products))
    first, second = one.T @ one / 800, other.T @ other / 800
    error = np.sqrt(2 * (first**2 + np.outer(np.diag(first), np.diag(first))) / 800)
    assert np.abs((first - second) / error).max() < 4.5


@pytest.mark.parametrize("classes", [2, 3])
def test_the_learnt_precision_is_mackays_fixed_point(classes):
    x, y = problem(classes)
    clf = sampla.BayesianLogisticRegression(fit_intercept=False, tol=1e-4).fit(x, y)
    mode, _, gamma, _ = logistic_reference(x, y, clf.prior_precision_)
    assert gamma / (mode**2).sum() == pytest.approx(clf.prior_precision_, rel=1e-5)
    products = sampla.BayesianLogisticRegression(
        fit_intercept=False, solver="block-cg", num_samples=64, random_state=0, progress=False
    ).fit(x, y)
    spread = products.report_.fit.precision_error[0]
    assert abs(np.log(products.prior_precision_ / clf.prior_precision_)) < 4 * spread + 0.02


@pytest.mark.parametrize(("data", "classes"), [(load_iris, 3), (load_breast_cancer, 2)])
def test_the_mode_is_scikit_learns_ridge_solution(data, classes):
    """LogisticRegression with C = 1 / alpha has the same optimum; its intercept is free, ours next to it."""
    x, y = data(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    clf = sampla.BayesianLogisticRegression().fit(x, y)
    ridge = LogisticRegression(C=1 / clf.prior_precision_, tol=1e-10, max_iter=10_000).fit(x, y)
    np.testing.assert_allclose(clf.coef_, ridge.coef_, atol=2e-4)
    assert clf.coef_.shape == (classes if classes > 2 else 1, x.shape[1])
    assert clf.score(x, y) > 0.96


def test_averaging_makes_distant_points_less_certain():
    x, y = problem(2)
    clf = sampla.BayesianLogisticRegression(random_state=0).fit(x, y)
    far = 50 * x[:20]
    at_mode = 1 / (1 + np.exp(-(far @ clf.coef_.T + clf.intercept_)[:, 0]))
    averaged = clf.predict_proba(far)[:, 1]
    assert np.abs(averaged - 0.5).mean() < np.abs(at_mode - 0.5).mean() - 0.01
    probit = sampla.BayesianLogisticRegression(predictive="probit", random_state=0).fit(x, y).predict_proba(far)[:, 1]
    np.testing.assert_allclose(probit, averaged, atol=0.1)
    np.testing.assert_allclose(clf.predict_proba(far).sum(1), 1)


@pytest.mark.parametrize("classes", [2, 3])
def test_all_kinds_of_input(classes):
    x, y = problem(classes)
    plain = sampla.BayesianLogisticRegression(prior_precision=1.0, random_state=0).fit(x, y)
    chunks = [(x[:50], y[:50]), (x[50:], y[50:])]
    for given in ((sparse.csr_matrix(x), y), (torch.from_numpy(x), torch.from_numpy(y)), (chunks, None)):
        clf = sampla.BayesianLogisticRegression(prior_precision=1.0, random_state=0).fit(*given)
        np.testing.assert_allclose(clf.coef_, plain.coef_, rtol=1e-6)
        assert clf.classes_.tolist() == list(range(classes))
    named = sampla.BayesianLogisticRegression(prior_precision=1.0, random_state=0).fit(x, np.array(["a", "b", "c"])[y])
    assert set(named.predict(x)) <= {"a", "b", "c"}
    assert (named.predict(x) == np.array(["a", "b", "c"])[plain.predict(x)]).all()


def test_standardised_columns_do_not_depend_on_units():
    x, y = problem(2)
    units = np.array([1e-3, 1.0, 1e3, 10.0])
    one = sampla.BayesianLogisticRegression("g-prior", random_state=0).fit(x, y)
    other = sampla.BayesianLogisticRegression("g-prior", random_state=0).fit(x * units, y)
    np.testing.assert_allclose(other.predict_proba(x * units), one.predict_proba(x), rtol=1e-6)


def test_groups_of_columns():
    x, y = problem(2, rows=600, columns=8)
    x[:, 4:] = np.random.default_rng(3).standard_normal((600, 4))  # these say nothing
    clf = sampla.BayesianLogisticRegression(groups=[0] * 4 + [1] * 4).fit(x, y)
    assert clf.prior_precision_[1] > 5 * clf.prior_precision_[0]
    products = sampla.BayesianLogisticRegression(
        groups=[0] * 4 + [1] * 4, solver="block-cg", num_samples=64, random_state=0, progress=False
    ).fit(x, y)
    assert products.prior_precision_[0] == pytest.approx(clf.prior_precision_[0], rel=0.2)


BAD = {
    "one class": (lambda x, y: (x, y * 0), "one class"),
    "numbers": (lambda x, _: (x, x[:, 0]), "Unknown label type"),
    "no y": (lambda x, _: (x, None), "requires y"),
    "two columns": (lambda x, y: ([(x, np.stack([y, y], 1))], None), r"labels \(n,\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_are_refused(name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        sampla.BayesianLogisticRegression().fit(*make(*problem(2)))


def test_bad_settings_are_refused():
    x, y = problem(2)
    for settings, message in (
        ({"solver": "lbfgs"}, "unknown solver"),
        ({"predictive": "map"}, "unknown predictive"),
        ({"num_samples": 0}, "num_samples as an integer"),
    ):
        with pytest.raises(ValueError, match=message):
            sampla.BayesianLogisticRegression(**settings).fit(x, y)
    with pytest.raises(NotFittedError):
        sampla.BayesianLogisticRegression().predict_proba(x)
    with pytest.raises(ValueError, match="at most num_samples = 64 draws, got 65"):
        sampla.BayesianLogisticRegression().fit(x, y).sample_coef(65)


@pytest.mark.parametrize("classes", [2, 3])
def test_probabilities_in_closed_form_depend_on_no_samples(classes):
    """Averaged over N(mode, H^-1) as the dense reference has it, by draws of its own that are many."""
    x, y = problem(classes)
    mode, covariance, _, _ = logistic_reference(x, y, 0.7)
    new = np.random.default_rng(5).standard_normal((6, 4))
    settings = {"fit_intercept": False, "prior_precision": 0.7, "random_state": 0}
    few, many = (sampla.BayesianLogisticRegression(num_samples=k, **settings).fit(x, y) for k in (2, 50))
    np.testing.assert_array_equal(few.predict_proba(new), many.predict_proba(new))
    rng = np.random.default_rng(6)
    draws = rng.multivariate_normal(mode.ravel(), covariance, 200_000).reshape(200_000, 4, -1)
    logits = np.einsum("nd,sdc->snc", new, draws)
    if classes == 2:
        expected = (1 / (1 + np.exp(-logits[..., 0]))).mean(0)
        np.testing.assert_allclose(few.predict_proba(new)[:, 1], expected, atol=2e-3)
    else:
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        expected = (shares / shares.sum(-1, keepdims=True)).mean(0)
        np.testing.assert_allclose(few.predict_proba(new), expected, atol=0.02)


def test_the_root_of_a_covariance_is_continuous():
    """Averages over the same draws are alike for inputs that are: eigenvectors of equal variances turn at random."""
    root = torch.zeros(9, 2, 3, dtype=torch.float64)
    root[:3] = torch.eye(3).double()[:, None]  # variances of one for all classes
    root[3] = 1e-6 * torch.tensor([[1.0, -2.0, 0.5], [-1.0, 0.3, 2.0]])
    deviations = logit_deviations(root)
    covariance = torch.einsum("knc,knd->ncd", root, root)
    torch.testing.assert_close(torch.einsum("knc,knd->ncd", deviations, deviations) / 3, covariance)
    assert float((deviations[:, 0] - deviations[:, 1]).abs().max()) < 1e-9
