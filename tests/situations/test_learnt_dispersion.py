"""Likelihoods of the user's own with a dispersion that EM learns, against fixed points found densely in float64."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sampla
from helpers import refused, regression_batches, regressor

COUNTS, INPUTS = 150, 6
Fixed = tuple[float, float, float, float]
"""alpha, the inverse dispersion, gamma and the log evidence."""


class QuasiPoisson(sampla.Likelihood):
    """Counts of mean exp(f) and variance phi exp(f); noise_precision is 1 / phi."""

    learns_noise = True

    def __init__(self, noise_precision: Tensor | None = None) -> None:
        self.noise_precision = noise_precision

    def with_noise(self, noise_precision: Tensor) -> "QuasiPoisson":
        return QuasiPoisson(noise_precision)

    def residuals(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (targets - outputs.exp()) / (outputs / 2).exp()

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.noise_precision * (targets * outputs - outputs.exp()).sum(1)

    def curvature_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        return self.noise_precision * outputs.exp() * vectors

    def curvature_root_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        return self.noise_precision.sqrt() * (outputs / 2).exp() * vectors


class OwnNoise(sampla.Likelihood):
    """Noise of a Gaussian by the methods alone, with a log_prob that lacks its constants."""

    is_quadratic = True
    learns_noise = True

    def __init__(self, noise_precision: Tensor | None = None) -> None:
        self.noise_precision = noise_precision

    def with_noise(self, noise_precision: Tensor) -> "OwnNoise":
        return type(self)(noise_precision)

    def residuals(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return targets - outputs

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return -0.5 * self.noise_precision * (targets - outputs).square().sum(1)

    def curvature_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:  # noqa: ARG002
        return self.noise_precision * vectors

    def curvature_root_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:  # noqa: ARG002
        return self.noise_precision.sqrt() * vectors


def counts(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear network of counts whose variance is about three times their mean, its inputs and targets."""
    random = np.random.default_rng(3)
    x = random.standard_normal((COUNTS, INPUTS)) * 0.5
    weight = random.standard_normal(INPUTS) * 0.7
    rate = np.exp(1.5 + x @ weight)
    y = random.poisson(rate * random.gamma(1 / 0.25, 0.25, COUNTS)).astype(float)
    x = np.concatenate([x, np.ones((COUNTS, 1))], axis=1)
    net = nn.Linear(INPUTS + 1, 1, bias=False).to(dtype)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[*weight, 1.5]]))
    return net.eval(), torch.tensor(x).to(dtype), torch.tensor(y[:, None]).to(dtype)


@cache
def dense_fixed_point(curvature_at: str) -> Fixed:
    """MacKay's updates with all matrices formed: log link, Pearson's residuals over N - gamma."""
    net, x, y = counts()
    phi, targets = x.detach().double().numpy(), y[:, 0].double().numpy()
    at_network = np.exp(net(x)[:, 0].detach().double().numpy())
    alpha, noise, theta, gamma = 1.0, 1.0, np.zeros(phi.shape[1]), 0.0
    for _ in range(500):
        for _ in range(200):  # Newton's method for the mode, with halved steps
            mean = np.exp(phi @ theta)
            gradient = noise * phi.T @ (mean - targets) + alpha * theta
            hessian = noise * phi.T * mean @ phi + alpha * np.eye(len(theta))
            step = np.linalg.solve(hessian, gradient)
            theta = theta - step / max(1.0, np.abs(phi @ step).max())
            if np.abs(step).max() < 1e-11:
                break
        mean = np.exp(phi @ theta)
        matrix = noise * phi.T * (at_network if curvature_at == "network" else mean) @ phi
        gamma = np.trace(np.linalg.solve(matrix + alpha * np.eye(len(theta)), matrix))
        before = alpha, noise
        alpha = gamma / (theta @ theta)
        noise = (len(targets) - gamma) / ((targets - mean) ** 2 / mean).sum()
        if max(abs(np.log(alpha / before[0])), abs(np.log(noise / before[1]))) < 1e-9:
            break
    loss = -noise * (targets * (phi @ theta) - mean).sum() + alpha * (theta @ theta) / 2
    return alpha, noise, gamma, -loss - np.linalg.slogdet(np.eye(len(theta)) + matrix / alpha)[1] / 2


def fitted(net: nn.Module, x: Tensor, y: Tensor, likelihood: sampla.Likelihood, **settings: Any) -> Any:
    prior = settings.pop("prior", sampla.Isotropic())
    loader = list(zip(x.split(40), y.split(40), strict=True))
    return sampla.LinearisedLaplace(net, likelihood, prior, progress=False, width="em", **settings).fit(loader)


@pytest.mark.parametrize("curvature_at", ["network", "linear-mode"])
@pytest.mark.parametrize("solver", ["dense", "block-cg"])
@pytest.mark.parametrize("start", [None, torch.tensor(30.0).double()])
def test_the_dispersion_of_counts_is_that_of_the_dense_fixed_point(
    curvature_at: Any, solver: str, start: Tensor | None
) -> None:
    net, x, y = counts()
    alpha, noise, gamma, evidence = dense_fixed_point(curvature_at)
    assert 1 / noise > 1.5, "the counts are meant to be overdispersed"
    em = sampla.EM(tolerance=1e-3, mode_tolerance=1e-5)
    la = fitted(net, x, y, QuasiPoisson(start), solver=solver, curvature_at=curvature_at, em=em)
    assert la.report_.settled
    assert float(la.noise_precision_) == pytest.approx(noise, rel=3e-3)
    assert float(la.prior_precision_) == pytest.approx(alpha, rel=3e-3)
    assert float(la.effective_dimension_) == pytest.approx(gamma, rel=3e-3)
    assert la.log_evidence_ == pytest.approx(evidence, rel=1e-3)
    assert type(la._posterior.likelihood) is QuasiPoisson


def test_with_sampled_traces_the_dispersion_is_known_to_their_error() -> None:
    net, x, y = counts(torch.float32)
    _, noise, gamma, _ = dense_fixed_point("network")
    em = sampla.EM(exact_up_to=0, num_samples=32)
    la = fitted(net, x, y, QuasiPoisson(), solver="block-cg", num_samples=32, em=em)
    error = float(la.report_.effective_dimension_error[0])
    assert abs(float(la.effective_dimension_) - gamma) < 4 * error
    assert float(la.noise_precision_) == pytest.approx(noise, rel=0.02 + 4 * error / COUNTS)


def test_a_learnt_dispersion_widens_the_posterior() -> None:
    """M is noise_precision times that of Poisson counts, so with next to no prior variances are phi times as large."""
    net, x, y = counts()
    weak = sampla.Isotropic(1e-6, learn=False)
    settings: dict[str, Any] = {"prior": weak, "solver": "dense", "num_samples": 64}
    learnt = fitted(net, x, y, QuasiPoisson(), **settings)
    plain = QuasiPoisson(torch.ones(()).double())
    plain.learns_noise = False
    fixed = fitted(net, x, y, plain, **settings)
    ratio = learnt.predict(x).variance / fixed.predict(x).variance
    torch.testing.assert_close(ratio, torch.full_like(ratio, 1 / float(learnt.noise_precision_)), rtol=1e-4, atol=0)


def test_scalar_noise_of_ones_own_is_learnt_as_that_of_a_gaussian() -> None:
    """In one Krylov space, and, with the evidence, without the constants of log p."""
    x = torch.linspace(-1, 1, 60)[:, None].double()
    y = torch.sin(3 * x) + 0.1 * torch.randn(60, 1, generator=torch.Generator().manual_seed(0)).double()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double().eval()
    settings: dict[str, Any] = {"solver": "block-cg", "prior": "g-prior"}
    ours, own = (fitted(net, x, y, kind, **settings) for kind in (sampla.Gaussian(), OwnNoise()))
    assert own.report_.method == "krylov"
    assert float(own.noise_precision_) == pytest.approx(float(ours.noise_precision_), rel=1e-6)
    assert float(own.prior_precision_) == pytest.approx(float(ours.prior_precision_), rel=1e-6)
    torch.testing.assert_close(own.predict(x).variance, ours.predict(x).variance)


def test_a_learnt_dispersion_survives_its_file_and_an_interrupted_fit(tmp_path: Path) -> None:
    net, x, y = counts()
    loader = [(x, y)]

    def new(steps: int) -> sampla.LinearisedLaplace:
        em = sampla.EM(max_steps=steps)
        return sampla.LinearisedLaplace(
            net, QuasiPoisson(), sampla.Isotropic(), num_samples=4, em=em, progress=False
        )  # fmt: skip

    whole = new(30).fit(loader)
    with pytest.warns(sampla.ConvergenceWarning):
        new(2).fit(loader, checkpoint=tmp_path / "state")
    resumed = new(30).fit(loader, checkpoint=tmp_path / "state")
    assert torch.equal(whole.samples_["weight"], resumed.samples_["weight"])
    whole.save(tmp_path / "posterior.safetensors")
    loaded = sampla.LinearisedLaplace.load(tmp_path / "posterior.safetensors", net, QuasiPoisson())
    assert torch.equal(loaded.noise_precision_, whole.noise_precision_)
    assert torch.equal(loaded.predict(x).log_prob(y), whole.predict(x).log_prob(y))


class Stuck(QuasiPoisson):
    """B and log_prob as if the dispersion were one."""

    def curvature_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        return outputs.exp() * vectors

    def curvature_root_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        return (outputs / 2).exp() * vectors

    def with_noise(self, noise_precision: Tensor) -> "Stuck":
        return Stuck(noise_precision)


class Forgetful(QuasiPoisson):
    def with_noise(self, noise_precision: Tensor) -> "Forgetful":  # noqa: ARG002
        return self


class Summed(QuasiPoisson):
    def residuals(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().residuals(outputs, targets).sum(1)

    def with_noise(self, noise_precision: Tensor) -> "Summed":
        return Summed(noise_precision)


class Doubled(OwnNoise):
    """Residuals that are not those of its log_prob."""

    def residuals(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 2 * super().residuals(outputs, targets)


ONE = torch.ones(()).double()
REFUSED: dict[str, tuple[Callable[[], sampla.Likelihood], str]] = {
    "B without it": (lambda: Stuck(ONE), "Stuck.curvature_product and the gradient of .* proportional to noise_prec"),
    "the old one": (lambda: Forgetful(ONE), "noise_precision given from Forgetful.with_noise, got a Forgetful with"),
    "another class": (lambda: type("Sub", (QuasiPoisson,), {})(ONE), "a Sub with .*, got a QuasiPoisson with"),
    "another shape": (lambda: Summed(ONE), r"Summed.residuals of shape \(8, 1\), got \(8,\)"),
    "other residuals": (Doubled, r"log_prob of -noise_precision \|r\|\^2 / 2 with r from Doubled.residuals"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_learnt_is_refused_with_the_reason(name: str) -> None:
    make, match = REFUSED[name]
    la = sampla.LinearisedLaplace(regressor(), make(), num_samples=4, progress=False)
    refused(la, regression_batches(lambda y: (y.abs() * 4).round()), ValueError, match)
