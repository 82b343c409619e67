"""The claim of the library: samples have exactly the posterior's covariance, for every likelihood and prior."""

import pytest
import torch

import sampla
from cases import FIXED_PRIORS, LIKELIHOODS
from dense import assert_covariance, curvature, hessians, mode, predictive_covariance

NUM_SAMPLES = 4000


def expected_covariance(problem, la):
    """J H^-1 J' from the dense M, with the prior's scale as the fit estimated it (test_priors.py checks that)."""
    prior = la._inference.prior
    precision = prior.precision[prior.group] / prior.scale.square()
    return predictive_covariance(problem.test_features, torch.linalg.inv(problem.curvature + precision.diag()))


@pytest.mark.parametrize("prior", FIXED_PRIORS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_samples_have_the_posterior_covariance(problems, likelihood, prior):
    problem = problems[likelihood]
    la = problem.fit(FIXED_PRIORS[prior](2.0, learn=False), num_samples=NUM_SAMPLES)
    draws = la.predict(problem.test_inputs).deviations.flatten(1)
    assert_covariance(draws, expected_covariance(problem, la))


@pytest.mark.parametrize(
    ("likelihood", "prior"), [("categorical", "layerwise"), ("bernoulli", "isotropic"), ("gaussian-full", "layerwise")]
)
def test_block_cg_samples_have_the_posterior_covariance(problems, likelihood, prior):
    """Blocks of K = 100 < P, where CG has to iterate; their seeds must give independent samples."""
    problem, draws = problems[likelihood], []
    for seed in range(10):
        la = problem.fit(
            FIXED_PRIORS[prior](2.0, learn=False),
            num_samples=100, seed=seed, solver=sampla.BlockCG(), tolerance=1e-4,
        )  # fmt: skip
        draws.append(la.predict(problem.test_inputs).deviations.flatten(1))
    assert_covariance(torch.cat(draws), expected_covariance(problem, la))


def test_curvature_at_the_linear_mode(problems):
    """B taken at J theta*, theta* the optimum of the linear model, in place of the network's outputs."""
    problem = problems["bernoulli"]
    la = problem.fit(
        sampla.Isotropic(2.0, learn=False), num_samples=NUM_SAMPLES, curvature_at="linear-mode",
        em=sampla.EM(mode_tolerance=1e-4),
    )  # fmt: skip
    precision = torch.full((problem.features.shape[-1],), 2.0).double()
    theta = mode(problem.features, problem.targets, problem.case.loss, precision)
    weights = hessians(problem.case.loss, problem.features @ theta, problem.targets)
    inverse = torch.linalg.inv(curvature(problem.features, weights) + precision.diag())
    draws = la.predict(problem.test_inputs).deviations.flatten(1)
    assert_covariance(draws, predictive_covariance(problem.test_features, inverse))
