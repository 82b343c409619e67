"""Gaussian targets some of which are missing, or each of which has a known noise: against dense normal distributions.

What is missing is left out of a vector of all outputs; a noise of its own is an entry of a diagonal covariance.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

import dense
import sampla
from cases import randn
from sampla.model import LinearModel
from sampla.posterior.leave_one_out import GaussianLeftOut, left_out, mixing
from test_target_distributions import Network

NAN, NUM = float("nan"), 12
BY_OUTPUT = torch.tensor([10.0, 3.0, 30.0], dtype=torch.float64)
KINDS = ["scalar", "by output", "by datum", "by datum, missing"]
every = pytest.mark.parametrize("kind", KINDS)


def problem(kind: str) -> tuple[sampla.Likelihood, Tensor, Tensor, Tensor]:
    """The likelihood, its targets, (n, 3) values with NaN, and (n, 3) noise variances."""
    values, own = randn(NUM, 3, seed=7), 0.05 + torch.rand(NUM, 3, generator=torch.Generator().manual_seed(0)).double()
    if kind != "by datum":
        values[::3, 0] = values[4] = values[5:7, 2] = NAN
    if kind == "scalar":
        return sampla.Gaussian(4.0, ignore_nan=True), values, values, torch.full_like(values, 0.25)
    if kind == "by output":
        likelihood = sampla.Gaussian(BY_OUTPUT, learn=False, ignore_nan=True)
        return likelihood, values, values, BY_OUTPUT.reciprocal().expand(NUM, -1)
    likelihood = sampla.FixedNoiseGaussian(ignore_nan=kind != "by datum")
    return likelihood, torch.stack([values, own], -1), values, own


def log_normal(mean: Tensor, covariance: Tensor, values: Tensor) -> Tensor:
    """() of a vector's entries that are no NaN."""
    known = ~values.isnan()
    if not bool(known.any()):
        return values.new_zeros(())
    return MultivariateNormal(mean[known], covariance[known][:, known]).log_prob(values[known])


def weights(values: Tensor, variance: Tensor) -> Tensor:
    """(n, 3, 3) B."""
    return torch.diag_embed(variance.reciprocal().where(~values.isnan(), 0))


@every
def test_densities(kind: str) -> None:
    likelihood, targets, values, variance = problem(kind)
    outputs = randn(NUM, 3, seed=1)
    likelihood.check_targets(outputs, targets)
    expected = [log_normal(f, v.diag(), y) for f, v, y in zip(outputs, variance, values, strict=True)]
    torch.testing.assert_close(likelihood.log_prob(outputs, targets), torch.stack(expected))


@every
def test_products_and_the_mean_are_dense_ones(kind: str) -> None:
    likelihood, targets, values, variance = problem(kind)
    network, x = Network(3), randn(NUM, 2, seed=3)
    names = tuple(name for name, _ in network.named_parameters())
    model = LinearModel(sampla.NetworkFeatures(network, names), likelihood, [(x, targets)])
    jacobian, curved = dense.jacobian(network, names, x), weights(values, variance)
    exact = dense.curvature(jacobian, curved)
    torch.testing.assert_close(model.curvature_product(torch.eye(len(exact)).double()), exact)
    settings = {"num_samples": 2, "seed": 0, "em": sampla.EM()}
    found = sampla.infer(model, sampla.Isotropic(3.0, learn=False), sampla.Dense(), **settings)
    right = torch.einsum("ncp,ncd,nd->p", jacobian, curved, values.nan_to_num())
    expected = torch.linalg.solve(exact + 3.0 * torch.eye(len(exact)), right)
    torch.testing.assert_close(found.mean, expected, rtol=1e-6, atol=1e-9)


@every
def test_the_predictive_is_a_normal_distribution_of_what_is_known(kind: str) -> None:
    likelihood, targets, values, variance = problem(kind)
    mean, deviations = randn(NUM, 3, seed=1), 0.6 * randn(5, NUM, 3, seed=2)
    pred = sampla.Predictive(mean, deviations, likelihood)
    each = [
        log_normal(mean[n], deviations[:, n].mT @ deviations[:, n] / 5 + variance[n].diag(), values[n])
        for n in range(NUM)
    ]
    torch.testing.assert_close(pred.log_prob(targets), torch.stack(each))
    group = torch.arange(NUM) // 6
    flat = deviations[:, :6].flatten(1)
    whole = log_normal(mean[:6].flatten(), flat.mT @ flat / 5 + variance[:6].flatten().diag(), values[:6].flatten())
    torch.testing.assert_close(pred.joint_log_prob(targets, group)[0], whole)
    if isinstance(likelihood, sampla.FixedNoiseGaussian):
        with pytest.raises(TypeError, match="does not know the noise of new targets"):
            _ = pred.std_total
        assert set(pred.numpy()) == {"mean", "std", "samples"}
    else:
        torch.testing.assert_close(pred.variance_total, pred.variance + variance)


@every
def test_what_is_left_out_of_itself(kind: str) -> None:
    """y ~ N(f, v): without y_i, f_i has the mean f_i - h / (1 - h) (y_i - f_i); here of outputs without correlation."""
    likelihood, targets, values, variance = problem(kind)
    mean, deviations = randn(NUM, 3, seed=1), 0.1 * randn(4000, NUM, 3, seed=2)
    found = left_out(likelihood, mean, mean, deviations, targets, mixing(0, 4000, mean))
    assert isinstance(found, GaussianLeftOut)
    known, size = ~values.isnan(), deviations.square().mean(0)
    leverage = (size / variance).where(known, 0)
    torch.testing.assert_close(found.leverage, leverage)
    far = (values.where(known, 0) - mean).where(known, 0) / (1 - leverage)
    density = torch.distributions.Normal(0.0, (variance + size / (1 - leverage)).sqrt()).log_prob(far)
    ours = found.log_prob([1.0], (1.0,))[0, 0]
    torch.testing.assert_close(ours.where(known, 0), density.where(known, 0), rtol=1e-2, atol=1e-2)


def test_noise_is_learnt_from_what_is_known() -> None:
    """With a weak prior fixed: MacKay's fixed point, by dense matrices over the entries that are known."""
    network, x = Network(3).eval(), randn(40, 2, seed=3)
    values = network(x).detach() + 0.3 * randn(40, 3, seed=4)
    values[::2, 1] = NAN
    names = [name for name, _ in network.named_parameters()]
    prior = sampla.Isotropic(2.0, learn=False)
    la = sampla.LinearisedLaplace(network, sampla.Gaussian(ignore_nan=True), prior, progress=False, em=sampla.EM(1e-4))
    la.fit([(x, values)])
    jacobian, known = dense.jacobian(network, names, x).flatten(0, 1), ~values.isnan().flatten()
    rows, y = jacobian[known], values.flatten()[known]
    precision = 1.0
    for _ in range(200):
        curved = precision * rows.mT @ rows
        hessian = curved + 2.0 * torch.eye(rows.shape[1])
        gamma = torch.linalg.solve(hessian, curved).trace()
        left = y - rows @ torch.linalg.solve(hessian, precision * rows.mT @ y)
        precision = float((len(y) - gamma) / left.square().sum())
    assert float(la.noise_precision_) == pytest.approx(precision, rel=0.01)


@every
def test_a_fit_comes_back_from_its_file(kind: str, tmp_path: Any) -> None:
    likelihood, targets, _, _ = problem(kind)
    network, x = Network(3).eval(), randn(NUM, 2, seed=3)
    la = sampla.LinearisedLaplace(network, likelihood, progress=False).fit([(x[:5], targets[:5]), (x[5:], targets[5:])])
    la.save(tmp_path / "posterior.safetensors")
    again = sampla.LinearisedLaplace.load(tmp_path / "posterior.safetensors", network)
    assert again.likelihood.config() == la.likelihood.config()
    torch.testing.assert_close(again.predict(x).log_prob(targets), la.predict(x).log_prob(targets))


def test_bad_settings_and_targets() -> None:
    with pytest.raises(ValueError, match="with ignore_nan=True, got full noise"):
        sampla.Gaussian(torch.eye(3), ignore_nan=True)
    with pytest.raises(ValueError, match="got diagonal noise to be learnt"):
        sampla.Gaussian(structure="diagonal", ignore_nan=True)
    with pytest.raises(ValueError, match=r"targets \(4, 3, 2\): values, and variances of their noise, got \(4, 3\)"):
        sampla.FixedNoiseGaussian().check_targets(randn(4, 3), randn(4, 3))
    with pytest.raises(ValueError, match="positive variances of the noise, got -1"):
        sampla.FixedNoiseGaussian().check_targets(randn(4, 3), -torch.ones(4, 3, 2))
    with pytest.raises(ValueError, match=r"finite targets, got 1 NaN .*by ignore_nan=True"):
        sampla.Gaussian(1.0).check_targets(randn(2, 1), torch.tensor([[1.0], [NAN]]))
