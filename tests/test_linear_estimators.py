"""The conventions of scikit-learn, by its own checks and in its own company."""

import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris
from sklearn.kernel_approximation import RBFSampler
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.multioutput import MultiOutputRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

import sampla

CHUNKS_OF_NOISE = "posterior samples and EM use noise keyed by the row, so repeated rows are other draws than weights"
NOT_PROMISED = {
    "check_sample_weight_equivalence_on_dense_data": CHUNKS_OF_NOISE,
    "check_sample_weight_equivalence_on_sparse_data": CHUNKS_OF_NOISE,
}
ESTIMATORS = {
    "regression": (sampla.BayesianLinearRegression(), {}),
    "krylov": (sampla.BayesianLinearRegression(solver="block-cg", num_samples=8), NOT_PROMISED),
    "logistic": (sampla.BayesianLogisticRegression(num_samples=8), {}),
}


def checks():
    found = []
    for name, (estimator, expected) in ESTIMATORS.items():
        for number, (each, check) in enumerate(
            estimator_checks_generator(estimator, expected_failed_checks=expected, mark="skip")
        ):
            found.append(pytest.param(each, check, id=f"{name}-{number}-{getattr(check, 'func', check).__name__}"))
    return found


@pytest.mark.parametrize(("estimator", "check"), checks())
def test_scikit_learns_own_checks(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, and that tiny data do not settle EM
        check(estimator)


def test_in_pipelines_and_searches():
    x, y = load_diabetes(return_X_y=True)
    features = RBFSampler(gamma=0.02, random_state=0)
    pipeline = make_pipeline(StandardScaler(), features, sampla.BayesianLinearRegression())
    assert cross_val_score(pipeline, x, y, cv=3).mean() > 0.3
    search = GridSearchCV(sampla.BayesianLinearRegression(), {"prior": ["isotropic", "g-prior"]}, cv=3).fit(x, y)
    assert set(search.cv_results_["param_prior"]) == {"isotropic", "g-prior"}
    several = MultiOutputRegressor(sampla.BayesianLinearRegression()).fit(x, np.stack([y, -y], axis=1))
    np.testing.assert_allclose(several.predict(x)[:, 0], -several.predict(x)[:, 1], rtol=1e-6)


def test_clone_representation_and_parameters():
    reg = sampla.BayesianLinearRegression("g-prior", noise="full", num_samples=8)
    assert clone(reg).get_params() == reg.get_params()
    assert "g-prior" in repr(reg)
    assert "BayesianLinearRegression" in reg._repr_html_()
    x, y = load_iris(return_X_y=True)
    clf = sampla.BayesianLogisticRegression().fit(x, y)
    assert "BayesianLogisticRegression" in clf._repr_html_()


def test_feature_names_and_set_output():
    """Names of columns come from data frames; a stand-in with what scikit-learn asks of one."""
    x, y = load_diabetes(return_X_y=True)
    frame = pytest.importorskip("pandas").DataFrame(x, columns=[f"column {i}" for i in range(10)])
    reg = sampla.BayesianLinearRegression().fit(frame, y)
    assert list(reg.feature_names_in_) == list(frame.columns)
    with pytest.raises(ValueError, match="feature names should match"):
        reg.predict(frame.rename(columns={"column 0": "other"}))
    pipeline = make_pipeline(StandardScaler(), sampla.BayesianLinearRegression()).set_output(transform="pandas")
    assert list(pipeline.fit(frame, y)[-1].feature_names_in_) == list(frame.columns)


@pytest.mark.parametrize("seed", [0, np.random.RandomState(0)])
def test_the_same_seed_gives_the_same_samples(seed):
    x, y = load_diabetes(return_X_y=True)
    if isinstance(seed, int):
        first, second = (
            sampla.BayesianLinearRegression(solver="block-cg", random_state=seed, num_samples=4, progress=False).fit(
                x, y
            )
            for _ in range(2)
        )
        np.testing.assert_array_equal(first.sample_y(x[:3], 2), second.sample_y(x[:3], 2))
    else:
        assert sampla.BayesianLinearRegression(random_state=seed).fit(x, y).coef_.shape == (10,)
