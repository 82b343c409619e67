"""Likelihoods of numbers that are no sum of outputs and Gaussian noise: against SciPy, torch's losses and quadrature.

References: log densities by scipy.stats; B as the exact expectation over y of the Hessian of torch's own loss; the
predictive by Gauss-Hermite quadrature over the function, or by SciPy's densities averaged over the same draws.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, distributions, nn
from torch.nn import functional

import dense
import sampla
from cases import randn

NAN = float("nan")
COUNTS = torch.arange(150.0, dtype=torch.float64)
NODES, WEIGHTS = (torch.from_numpy(each) for each in np.polynomial.hermite_e.hermegauss(80))
WEIGHTS = WEIGHTS / WEIGHTS.sum()
RS = torch.tensor([0.7, 3.0, 20.0], dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """A likelihood, torch's loss of one target, SciPy's distribution, and weighted targets for an exact expectation."""

    make: Callable[..., sampla.Likelihood]
    loss: Callable[[Tensor, Tensor], Tensor]
    """Of the outputs of one datum and its targets."""
    scipy: Callable[[Any], Any]
    """Outputs (..., *out) -> a frozen distribution of targets."""
    grid: Callable[[Tensor], tuple[Tensor, Tensor]]
    """The outputs of one datum -> targets (m, *target) on which to average, and weights (m, *target)."""
    per: int = 1
    """Outputs for each target."""


def _every_count(scipy: Callable[[Any], Any]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    return lambda f: (COUNTS[:, None].expand(-1, len(f)), torch.from_numpy(scipy(f).pmf(COUNTS[:, None].numpy())))


def _quantile_grid(scipy: Callable[[Any], Any]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Gauss-Legendre in the probability p of y: exact for what is smooth in p."""
    nodes, weights = np.polynomial.legendre.leggauss(200)

    def grid(f: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.from_numpy(scipy(f).ppf((nodes[:, None] + 1) / 2))
        return y, torch.from_numpy(weights / 2)[:, None].expand_as(y)

    return grid


def _poisson(f: Any) -> Any:
    return stats.poisson(np.exp(np.asarray(f)))


def _negative_binomial(f: Any) -> Any:
    return stats.nbinom(RS.numpy(), RS.numpy() / (RS.numpy() + np.exp(np.asarray(f))))


def _student_t(f: Any) -> Any:
    return stats.t(4.0, np.asarray(f), 0.7)


def _heteroscedastic(f: Any) -> Any:
    mean, log_variance = np.split(np.asarray(f), 2, -1)
    return stats.norm(mean, np.exp(log_variance / 2))


def _poisson_loss(f: Tensor, y: Tensor) -> Tensor:
    return functional.poisson_nll_loss(f, y, log_input=True, reduction="sum")


def _negative_binomial_loss(f: Tensor, y: Tensor) -> Tensor:
    return -distributions.NegativeBinomial(RS, probs=f.exp() / (f.exp() + RS), validate_args=False).log_prob(y).sum()


def _student_t_loss(f: Tensor, y: Tensor) -> Tensor:
    return -distributions.StudentT(4.0, f, 0.7, validate_args=False).log_prob(y).sum()


def _heteroscedastic_loss(f: Tensor, y: Tensor) -> Tensor:
    return -distributions.Normal(f[:3], f[3:].exp().sqrt(), validate_args=False).log_prob(y).sum()


CASES = {
    "poisson": Case(sampla.Poisson, _poisson_loss, _poisson, _every_count(_poisson)),
    "negative-binomial": Case(
        lambda **kw: sampla.NegativeBinomial(RS, **kw), _negative_binomial_loss, _negative_binomial,
        _every_count(_negative_binomial),
    ),
    "student-t": Case(
        lambda **kw: sampla.StudentT(4.0, 0.7, **kw), _student_t_loss, _student_t, _quantile_grid(_student_t)
    ),
    "heteroscedastic": Case(
        sampla.HeteroscedasticGaussian, _heteroscedastic_loss, _heteroscedastic, _quantile_grid(_heteroscedastic), per=2
    ),
}  # fmt: skip
every = pytest.mark.parametrize("name", CASES)
IS_COUNT = ("poisson", "negative-binomial")


def outputs_of(name: str, count: int = 4, seed: int = 1) -> Tensor:
    return 0.8 * randn(count, 3 * CASES[name].per, seed=seed)


def targets_of(name: str, outputs: Tensor, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.asarray(CASES[name].scipy(outputs).rvs(random_state=seed), dtype=np.float64))


def fisher(name: str, outputs: Tensor) -> Tensor:
    """(n, C, C) E_y of the Hessian of the loss: the targets of a datum are independent, so one grid serves all."""
    case, found = CASES[name], []
    hessians = torch.vmap(torch.func.hessian(case.loss), in_dims=(None, 0))
    for f in outputs:
        targets, weights = case.grid(f)
        found.append((hessians(f, targets) * torch.cat([weights] * case.per, 1)[:, :, None]).sum(0))
    return torch.stack(found)


def log_densities(name: str, outputs: Tensor, targets: Tensor) -> Tensor:
    frozen = CASES[name].scipy(outputs)
    return torch.from_numpy((frozen.logpmf if name in IS_COUNT else frozen.logpdf)(targets.numpy()))


def predictive(name: str, num_draws: int = 512, **options: Any) -> sampla.Predictive:
    mean, deviations = outputs_of(name), 0.5 * randn(6, 4, 3 * CASES[name].per, seed=2)
    return sampla.Predictive(mean, deviations, CASES[name].make(), num_draws=num_draws, width=0.9, **options)


@every
def test_log_prob_is_scipys_and_leaves_out_nan(name: str) -> None:
    outputs = outputs_of(name)
    targets = targets_of(name, outputs)
    expected = log_densities(name, outputs, targets)
    torch.testing.assert_close(CASES[name].make().log_prob(outputs, targets), expected.sum(1))
    targets[1, 0] = targets[2] = NAN
    leaf = outputs.clone().requires_grad_()
    found = CASES[name].make(ignore_nan=True).log_prob(leaf, targets)
    torch.testing.assert_close(found, expected.where(~targets.isnan(), 0).sum(1))
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    assert bool(gradient.isfinite().all())
    assert float(gradient[2].abs().max()) == 0.0


@every
def test_b_is_the_expected_hessian_of_torchs_loss(name: str) -> None:
    likelihood, outputs = CASES[name].make(), outputs_of(name)
    expected = fisher(name, outputs)
    units = torch.eye(outputs.shape[1]).to(outputs)[:, None].expand(-1, len(outputs), -1)
    found = likelihood.curvature_product(outputs, units).movedim(0, -1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    root = likelihood.curvature_root_product(outputs, units).movedim(0, -1)
    torch.testing.assert_close(root @ root.mT, found)


@every
def test_moments_are_those_of_quadrature_over_the_function(name: str) -> None:
    """Over all outputs by their marginals: no moment depends on their covariance, except through y's own mean."""
    pred = predictive(name)
    spread = 0.9 * pred.deviations.square().mean(0).sqrt()
    shape = (-1, *[1] * pred.mean.ndim)
    mean = square = torch.zeros(())
    for first in range(CASES[name].per):  # the mean and, of two outputs for each target, the log variance in turn
        moved = torch.zeros_like(pred.mean)
        moved[:, 3 * first : 3 * first + 3] = spread[:, 3 * first : 3 * first + 3]
        f = pred.mean + NODES.view(shape) * moved
        frozen = CASES[name].scipy(f)
        weights = WEIGHTS.view(shape)
        mean = (weights * torch.from_numpy(frozen.mean())).sum(0) if first == 0 else mean
        noise = (weights * torch.from_numpy(np.broadcast_to(frozen.var(), frozen.mean().shape).copy())).sum(0)
        moved_mean = (weights * (torch.from_numpy(frozen.mean()) - mean).square()).sum(0)
        square = moved_mean if first == 0 else square
    torch.testing.assert_close(pred.mean_total, mean)
    torch.testing.assert_close(pred.variance_total, noise + square)
    torch.testing.assert_close(pred.std_total.square(), pred.variance_total)


@every
def test_densities_quantiles_and_mixtures_average_over_the_draws(name: str) -> None:
    pred = predictive(name, num_draws=40)
    draws = sampla.Predictive(pred.mean, 0.9 * pred.deviations, pred.likelihood).sample(40)
    targets = targets_of(name, pred.mean)
    each = torch.stack([log_densities(name, f, targets) for f in draws])
    torch.testing.assert_close(pred.log_prob(targets), each.sum(-1).exp().mean(0).log())
    torch.testing.assert_close(pred.distribution().log_prob(targets), pred.log_prob(targets))
    frozen = CASES[name].scipy(draws)
    for q, found in zip((0.05, 0.8), pred.quantile([0.05, 0.8], total=True), strict=True):
        assert found.shape == targets.shape
        if name in IS_COUNT:
            assert bool((torch.from_numpy(frozen.cdf(found.numpy())).mean(0) >= q).all())
            assert bool((torch.from_numpy(frozen.cdf(found.numpy() - 1)).mean(0) < q).all())
        else:
            torch.testing.assert_close(torch.from_numpy(frozen.cdf(found.numpy())).mean(0), torch.full_like(found, q))
    torch.testing.assert_close(pred.quantile(0.8, total=True), pred.quantile([0.05, 0.8], total=True)[1])
    torch.manual_seed(0)
    drawn = pred.distribution().sample((4000,))
    assert drawn.shape == (4000, *targets.shape)
    share = (drawn <= targets).double().mean(0)
    truth = torch.from_numpy(frozen.cdf(targets.numpy())).mean(0)
    assert float((share - truth).abs().max()) < 5 * 0.5 / 4000**0.5
    assert set(pred.numpy()) == {"mean", "std", "samples", "mean_total", "std_total"}


class Network(nn.Module):
    """(n, 2) -> (n, C) in float64."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, outputs)).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@every
def test_a_fit_has_the_dense_covariance_and_comes_back_from_its_file(name: str, tmp_path: Any) -> None:
    """Samples whiten with the root of the dense posterior covariance; some targets are missing."""
    case, network, x = CASES[name], Network(3 * CASES[name].per).eval(), randn(12, 2, seed=5)
    outputs = network(x).detach()
    targets = targets_of(name, outputs)
    targets[::4, 1] = NAN
    names = [each for each, _ in network.named_parameters()]
    jacobian, curved = dense.jacobian(network, names, x), fisher(name, outputs)
    known = torch.cat([~targets.isnan()] * case.per, 1)
    exact = dense.curvature(jacobian, curved * known[:, :, None]) + 3.0 * torch.eye(jacobian.shape[-1]).double()
    options = {"prior": sampla.Isotropic(3.0, learn=False), "progress": False, "width": "em", "num_samples": 2000}
    la = sampla.LinearisedLaplace(network, case.make(ignore_nan=True), **options).fit([(x, targets)])
    samples = torch.cat([la.samples_[each].flatten(1) for each in names], 1)
    dense.assert_covariance(samples, torch.linalg.inv(exact))
    la.save(tmp_path / "posterior.safetensors")
    again = sampla.LinearisedLaplace.load(tmp_path / "posterior.safetensors", network)
    assert again.likelihood.config() == la.likelihood.config()
    complete = targets_of(name, outputs)
    torch.testing.assert_close(again.predict(x).log_prob(complete), la.predict(x).log_prob(complete))


@pytest.mark.parametrize("name", ["poisson", "heteroscedastic-gaussian"])
def test_names(name: str) -> None:
    network = Network(1 if name == "poisson" else 2)
    x = randn(40, 2, seed=5)
    y = torch.poisson(network(x).detach()[:, :1].exp(), generator=torch.Generator().manual_seed(0))
    la = sampla.LinearisedLaplace(network.eval(), name, progress=False).fit([(x, y)])
    assert la.report_.settled
    pred = la.predict(x)
    assert pred.mean_total.shape == pred.std_total.shape == (40, 1)
    assert bool((pred.quantile(0.9, total=True) >= pred.quantile(0.1, total=True)).all())
    assert la.leave_one_out([(x, y)]).num_observations == 40


@every
def test_targets_that_do_not_fit(name: str) -> None:
    likelihood, outputs = CASES[name].make(), outputs_of(name)
    targets = targets_of(name, outputs)
    likelihood.check_targets(outputs, targets)
    with pytest.raises(ValueError, match=r"targets of shape \(4, 3\), one for each output, got \(4,\)"):
        likelihood.check_targets(outputs, targets[:, 0])
    with pytest.raises(ValueError, match=r"finite targets, got 1 NaN.* leave them out by ignore_nan=True"):
        likelihood.check_targets(outputs, targets.where(torch.arange(12).view(4, 3) != 5, NAN))
    if name in IS_COUNT:
        with pytest.raises(ValueError, match=r"targets of at least 0 for .*, got -1"):
            likelihood.check_targets(outputs, torch.full_like(targets, -1))


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="total_count as a positive number"):
        sampla.NegativeBinomial(0.0)
    with pytest.raises(ValueError, match="a positive scale, got -1"):
        sampla.StudentT(4.0, -1.0)
    with pytest.raises(ValueError, match=r"outputs \(n, ..., 2 C\): means, then log variances, got \(4, 3\)"):
        sampla.HeteroscedasticGaussian().check_targets(randn(4, 3), randn(4, 3))
    with pytest.raises(TypeError, match="Categorical has no distribution of numbers"):
        sampla.Categorical().cdf(randn(4, 3), randn(4))


@pytest.mark.parametrize("rate", [7.0, 1e4, 1e6, 1e7])
@pytest.mark.parametrize(
    ("likelihood", "scipy"),
    [
        (sampla.Poisson(), stats.poisson),
        (sampla.NegativeBinomial(10.0), lambda mu: stats.nbinom(10.0, 10.0 / (10.0 + mu))),
        (sampla.NegativeBinomial(1e6), lambda mu: stats.nbinom(1e6, 1e6 / (1e6 + mu))),
    ],
)
def test_densities_of_large_counts_in_float32(
    likelihood: sampla.Likelihood, scipy: Callable[..., Any], rate: float
) -> None:
    """Their terms are as large as y log y, and they themselves about ten."""
    outputs = torch.tensor([[rate]]).log()
    counts = torch.tensor([[rate * 1.001]]).round()
    expected = scipy(outputs.double().exp().numpy()).logpmf(counts.double().numpy()).sum()
    found = likelihood.log_prob(outputs, counts)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(expected, abs=1e-4)
    pred = sampla.Predictive(outputs, 1e-3 * torch.ones(2, 1, 1), likelihood, num_draws=64)
    torch.testing.assert_close(
        pred.log_prob(counts).double(), pred.to(torch.float64).log_prob(counts.double()), rtol=1e-3, atol=1e-3
    )


def test_the_spread_of_student_targets_is_that_of_their_distribution() -> None:
    """At the width of single labels, whatever the width of functions is."""
    deviations = randn(6, 5, 2, seed=3)
    for width in (0.0, 1.5):
        pred = sampla.Predictive(
            randn(5, 2, seed=4), deviations, sampla.StudentT(5.0, 0.3), width=width, joint_width=3.0, num_draws=20_000
        )
        expected = width**2 * deviations.square().mean(0) + 0.3**2 * 5 / 3
        torch.testing.assert_close(pred.variance_total, expected)
        torch.testing.assert_close(pred.distribution().variance, expected, rtol=0.05, atol=0)
