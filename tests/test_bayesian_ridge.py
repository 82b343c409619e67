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
CHUNKS = 442 * NUM_SAMPLES, NUM_SAMPLES  # everything at once: the preset is for networks


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
    model = linear_model(sampla.DesignMatrix(10), sampla.Gaussian(), batches(x, y, 100), CHUNKS)
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
    settings = {"tolerance": 1e-4, "solve_tolerance": 1e-6, "max_steps": 200, "exact_up_to": 0}
    found = learn(diabetes, sampla.BlockCG(), 1024, **settings)
    relative = float(found.effective_dimension_error[0] / found.effective_dimension[0])
    assert relative < 0.02
    assert float(found.prior.precision[0]) == pytest.approx(oracle.lambda_, rel=6 * relative)
    assert float(found.model.likelihood.noise_precision) == pytest.approx(oracle.alpha_, rel=1e-3)


def test_predictive_standard_deviation(diabetes):
    """Observation noise included; what K samples leave of error is derived for every point, and 1e-3 on average."""
    x, y, oracle = diabetes
    model = linear_model(sampla.DesignMatrix(10), sampla.Gaussian(oracle.alpha_), batches(x, y, 100), CHUNKS)
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


def test_the_mean_is_solved_far_enough_for_the_alpha_that_em_states():
    """Steep spectrum, little noise: a mean that is 5 % off as a function is off by much more as a vector."""
    random = np.random.default_rng(0)
    rotation = np.linalg.qr(random.standard_normal((300, 300)))[0]
    x = random.standard_normal((1200, 300)) / np.arange(1, 301) ** 2 @ rotation
    function = x @ random.standard_normal(300)
    y = function / function.std() + 0.01 * random.standard_normal(1200)
    oracle = BayesianRidge(alpha_1=0, alpha_2=0, lambda_1=0, lambda_2=0, fit_intercept=False, tol=1e-6).fit(x, y)
    assert oracle.n_iter_ < 100, "rounding would not let it settle within 1e-9"
    model = linear_model(
        sampla.DesignMatrix(300),
        sampla.Gaussian(),
        batches(torch.from_numpy(x), torch.from_numpy(y)[:, None], 400),
        CHUNKS,
    )
    em = sampla.EM(method="samples", num_samples=64)
    found = sampla.infer(model, sampla.Isotropic(), sampla.BlockCG(), num_samples=64, seed=0, em=em)
    assert found.settled
    assert found.precision_error.standard_error < 0.03
    miss = np.log(float(found.prior.precision[0]) / oracle.lambda_)
    assert abs(miss) < 3 * found.precision_error.standard_error
