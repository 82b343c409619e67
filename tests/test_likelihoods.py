"""Likelihoods: log_prob against torch.distributions, curvature and its root against explicit matrices."""

import pytest
import torch
from torch import distributions

import sampla
from cases import DIAGONAL_NOISE, FULL_NOISE, GAUSSIANS, LIKELIHOODS, batches, randn
from dense import assert_covariance, fast_hessians, fast_losses, hessians

NUM_DATA = 5
COVARIANCE = {
    "gaussian-scalar": torch.eye(3, dtype=torch.float64) / 15,
    "gaussian-diagonal": DIAGONAL_NOISE.reciprocal().diag(),
    "gaussian-full": torch.linalg.inv(FULL_NOISE),
}


class Poisson(sampla.Likelihood):
    """Counts with rate exp(f): what a user writes, and no more."""

    def log_prob(self, outputs, targets):
        return (targets * outputs - outputs.exp() - (targets + 1).lgamma()).sum(-1)

    def curvature_product(self, outputs, vectors):
        return outputs.exp() * vectors

    def curvature_root_product(self, outputs, vectors):
        return (outputs / 2).exp() * vectors


def outputs_and_targets(name):
    outputs = 1.5 * randn(NUM_DATA, 3, seed=2)
    if name == "categorical":
        return outputs, torch.tensor([0, 1, 2, 2, 0])
    if name == "bernoulli":
        return outputs, (randn(NUM_DATA, 3, seed=3) > 0).double()
    return outputs, randn(NUM_DATA, 3, seed=3)


def make(name):
    return Poisson() if name == "poisson" else LIKELIHOODS[name].make()


def loss_of(name):
    if name == "poisson":
        return lambda f, y: (f.exp() - y * f).sum()
    return LIKELIHOODS[name].loss


def distribution(name, outputs):
    if name == "categorical":
        return distributions.Categorical(logits=outputs)
    if name == "bernoulli":
        return distributions.Independent(distributions.Bernoulli(logits=outputs), 1)
    return distributions.MultivariateNormal(outputs, COVARIANCE[name])


def as_matrices(product, outputs):
    """(n, C, C): a product with a block-diagonal matrix, applied to every unit vector."""
    units = torch.eye(outputs.shape[1]).to(outputs)[:, None].expand(-1, len(outputs), -1)
    return product(outputs, units).movedim(0, -1)


every_likelihood = pytest.mark.parametrize("name", [*LIKELIHOODS, "poisson"])


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_log_prob_is_the_log_density(name):
    outputs, targets = outputs_and_targets(name)
    expected = distribution(name, outputs).log_prob(targets)
    torch.testing.assert_close(make(name).log_prob(outputs, targets), expected)


@every_likelihood
def test_curvature_is_the_second_derivative_of_the_loss(name):
    outputs, targets = outputs_and_targets(name)
    expected = hessians(loss_of(name), outputs, targets)
    torch.testing.assert_close(as_matrices(make(name).curvature_product, outputs), expected)


@every_likelihood
def test_curvature_is_the_second_derivative_of_its_own_log_prob(name):
    outputs, targets = outputs_and_targets(name)
    likelihood = make(name)
    expected = hessians(lambda f, y: -likelihood.log_prob(f[None], y[None]).sum(), outputs, targets)
    torch.testing.assert_close(as_matrices(likelihood.curvature_product, outputs), expected)


@every_likelihood
def test_the_root_is_a_root_of_the_curvature(name):
    outputs, _ = outputs_and_targets(name)
    root = as_matrices(make(name).curvature_root_product, outputs)
    torch.testing.assert_close(root @ root.mT, as_matrices(make(name).curvature_product, outputs))


@pytest.mark.parametrize("name", ["categorical", "bernoulli", "gaussian-full"])
def test_the_references_fast_losses_and_hessians_are_right(name):
    """dense.py uses formulas inside its Newton loop; they must not be wrong."""
    outputs, targets = outputs_and_targets(name)
    loss = LIKELIHOODS[name].loss
    each = [loss(f, y) for f, y in zip(outputs, targets, strict=True)]
    torch.testing.assert_close(fast_losses(loss, outputs, targets), torch.stack(each))
    torch.testing.assert_close(fast_hessians(loss, outputs, targets), hessians(loss, outputs, targets))


@pytest.mark.parametrize("name", [n for n in LIKELIHOODS if n != "categorical"])
def test_inner_axes_before_the_last_are_rows_of_one_datum(name):
    """(n, L, C) is L independent rows: the same numbers as (n L, C), summed within a datum."""
    likelihood = make(name)
    outputs, targets = randn(4, 2, 3), (randn(4, 2, 3, seed=1) > 0).double()
    vectors = randn(7, 4, 2, 3, seed=2)
    flat_outputs, flat_vectors = outputs.flatten(0, 1), vectors.flatten(1, 2)
    for product in (likelihood.curvature_product, likelihood.curvature_root_product):
        torch.testing.assert_close(product(outputs, vectors).flatten(1, 2), product(flat_outputs, flat_vectors))
    rows = likelihood.log_prob(flat_outputs, targets.flatten(0, 1)).view(4, 2)
    torch.testing.assert_close(likelihood.log_prob(outputs, targets), rows.sum(1))


def test_categorical_log_prob_of_sequences_sums_over_the_sequence():
    outputs, targets = randn(4, 2, 3), torch.arange(8).view(4, 2) % 3
    expected = distributions.Categorical(logits=outputs).log_prob(targets).sum(1)
    torch.testing.assert_close(sampla.Categorical().log_prob(outputs, targets), expected)


@pytest.mark.parametrize("name", ["categorical", "bernoulli"])
def test_a_saturated_output_has_no_curvature_and_no_nan(name):
    outputs = torch.tensor([[800.0, -800.0, 0.0]]).double()
    vectors = randn(2, 1, 3)
    for product in (make(name).curvature_product, make(name).curvature_root_product):
        assert bool(product(outputs, vectors).isfinite().all())


@pytest.mark.parametrize("name", GAUSSIANS)
@pytest.mark.parametrize("learn", [False, True])
def test_gaussian_moments_have_the_structure_of_the_noise(name, learn):
    likelihood = sampla.Gaussian(LIKELIHOODS[name].make().noise_precision, learn=learn)
    residuals = randn(2, 6, 3)
    moment = likelihood.second_moment(residuals)
    full = torch.einsum("knc,knd->cd", residuals, residuals)
    structure = name.removeprefix("gaussian-")
    expected = {"scalar": full.trace(), "diagonal": full.diagonal(), "full": full}[structure]
    torch.testing.assert_close(moment, expected)
    assert likelihood.learns_noise is learn


@pytest.mark.parametrize("prior", ["g-prior", "isotropic"])
def test_a_likelihood_of_ones_own_works_end_to_end(problems, prior):
    """Poisson regression on the counts of bright pixels per third of an image, exact covariance included."""
    problem = problems["gaussian-scalar"]
    counts = (problem.inputs > 0.5).flatten(1)[:, :63].view(-1, 3, 21).sum(2).double()
    prior = sampla.GPrior(2.0, learn=False) if prior == "g-prior" else sampla.Isotropic(2.0, learn=False)
    la = problem.fit(
        prior, likelihood=Poisson(), num_samples=2000, loader=batches(problem.inputs, counts, 50)
    )  # fmt: skip
    weights = hessians(lambda f, y: (f.exp() - y * f).sum(), problem.model(problem.inputs).detach(), counts)
    bound = la._inference.prior
    precision = bound.precision[bound.group] / bound.scale.square()
    information = (problem.features.mT @ weights @ problem.features).sum(0) + precision.diag()
    pred = la.predict(problem.test_inputs)
    rows = problem.test_features.flatten(0, 1)
    assert_covariance(pred.deviations.flatten(1), rows @ torch.linalg.inv(information) @ rows.mT)
    assert pred.log_prob(counts[:12]).shape == (12,)
    with pytest.raises(TypeError, match=r"Poisson has no class probabilities: use pred.mean and pred.variance"):
        _ = pred.probs


def test_em_with_a_likelihood_of_ones_own_settles(problems):
    problem = problems["gaussian-scalar"]
    counts = (problem.inputs > 0.5).flatten(1)[:, :63].view(-1, 3, 21).sum(2).double()
    la = problem.fit("g-prior", likelihood=Poisson(), num_samples=8, loader=batches(problem.inputs, counts, 50))
    assert la.report_.settled
