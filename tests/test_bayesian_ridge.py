"""scikit-learn's BayesianRidge is the oracle for scalar regression: the same evidence, maximised by other people."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import BayesianRidge

import sampla
from cases import batches, linear_model

TINY = 1e-12  # hyperpriors switched off
NUM_SAMPLES = 4000


@pytest.fixture(scope="module")
def diabetes():
    x, y = load_diabetes(return_X_y=True, scaled=False)
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    oracle = BayesianRidge(
        alpha_1=TINY, alpha_2=TINY, lambda_1=TINY, lambda_2=TINY, fit_intercept=False, tol=1e-12, max_iter=10_000
    ).fit(x, y)
    return torch.from_numpy(x), torch.from_numpy(y)[:, None], oracle


def learn(diabetes, solver, num_samples, **em):
    x, y, _ = diabetes
    model = linear_model(sampla.DesignMatrix(10), sampla.Gaussian(), batches(x, y, 100))
    return sampla.infer(
        model, sampla.Isotropic(), solver, num_samples=num_samples, seed=0, em=sampla.EM(**em), tolerance=1e-8
    )


def test_hyperparameters_and_mean(diabetes):
    oracle = diabetes[2]
    found = learn(diabetes, sampla.Dense(), 2, tolerance=1e-9, max_steps=1000)
    assert float(found.prior.precision[0]) == pytest.approx(oracle.lambda_, rel=1e-6)
    assert float(found.model.likelihood.noise_precision) == pytest.approx(oracle.alpha_, rel=1e-6)
    np.testing.assert_allclose(found.mean, oracle.coef_, rtol=1e-6)


def test_hyperparameters_from_samples(diabetes):
    """gamma is about 7 of 10; its error with K = 1024, below 2 %, hardly moves the noise and moves lambda alike."""
    oracle = diabetes[2]
    found = learn(diabetes, sampla.BlockCG(), 1024, tolerance=1e-4, solve_tolerance=1e-6, max_steps=200)
    relative = float(found.effective_dimension_error[0] / found.effective_dimension[0])
    assert relative < 0.02
    assert float(found.prior.precision[0]) == pytest.approx(oracle.lambda_, rel=6 * relative)
    assert float(found.model.likelihood.noise_precision) == pytest.approx(oracle.alpha_, rel=1e-3)


def test_predictive_standard_deviation(diabetes):
    """Observation noise included; what K samples leave of error is derived for every point, and 1e-3 on average."""
    x, y, oracle = diabetes
    model = linear_model(sampla.DesignMatrix(10), sampla.Gaussian(oracle.alpha_), batches(x, y, 100))
    found = sampla.infer(
        model, sampla.Isotropic(oracle.lambda_, learn=False), sampla.Dense(),
        num_samples=NUM_SAMPLES, seed=0, em=sampla.EM(),
    )  # fmt: skip
    mean, std = oracle.predict(x.numpy(), return_std=True)
    np.testing.assert_allclose(x @ found.mean, mean, atol=1e-6)
    sampled = ((x @ found.samples.mT).square().mean(1) + 1 / oracle.alpha_).sqrt().numpy()
    relative = sampled / std - 1
    share = 1 - 1 / (oracle.alpha_ * std**2)  # of the variance that comes from the posterior: the sampled part
    assert np.sqrt(np.mean(relative**2)) < 1e-3
    assert np.all(np.abs(relative) < 4.5 * share / np.sqrt(2 * NUM_SAMPLES))
