"""Leave-one-out from samples, against dense float64 and against refits of the linear model without an observation.

An observation is what one label says: a datum of a categorical likelihood, one output of a Bernoulli or Gaussian one.
All samples here have exactly the second moment H^-1: what is left of a difference is the method's, not the samples'.
"""

from dataclasses import dataclass, replace
from functools import cache, cached_property
from math import log

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from scipy.stats import chi2, multivariate_normal, norm
from torch import Tensor

import dense
import sampla
from cases import GAUSSIANS, Problem, build_tiny, linear_model, randn
from helpers import class_batches, classifier, laplace, refused, regressor
from sampla.features import NetworkFeatures
from sampla.posterior.leave_one_out import (
    GaussianLeftOut,
    LeftOut,
    Linear,
    inverse_remainder,
    left_out,
    linear_batches,
)

COPIES = 100


@dataclass(frozen=True)
class Exact:
    """The linear model of a tiny network in float64, cut into its observations of c outputs each."""

    name: str
    at_mode: bool
    problem: Problem
    alpha: float = 2.0

    @cached_property
    def likelihood(self) -> sampla.Likelihood:
        return self.problem.case.make()

    @cached_property
    def precision(self) -> Tensor:
        """Diagonal of A."""
        return torch.full((self.problem.features.shape[-1],), self.alpha, dtype=torch.float64)

    @cached_property
    def theta(self) -> Tensor:
        """The linear mode."""
        problem = self.problem
        return dense.mode(problem.features, problem.targets, problem.case.loss, self.precision)

    @cached_property
    def mode(self) -> Tensor:
        """(N, C) f*."""
        return self.problem.features @ self.theta

    @cached_property
    def at(self) -> Tensor:
        """(N, C) outputs at which B is."""
        return self.mode if self.at_mode else self.problem.model(self.problem.inputs).detach()

    @cached_property
    def inverse(self) -> Tensor:
        """H^-1."""
        weights = dense.fast_hessians(self.problem.case.loss, self.at, self.problem.targets)
        return torch.linalg.inv(dense.curvature(self.problem.features, weights) + self.precision.diag())

    @cached_property
    def samples(self) -> Tensor:
        """(K, P) whose second moment is H^-1 to rounding."""
        root = torch.linalg.cholesky(self.inverse)
        return (len(root) ** 0.5 * root.mT).repeat(COPIES, 1)

    @cached_property
    def whitening(self) -> Tensor:
        """S of Gaussian noise, (C, C)."""
        return torch.linalg.cholesky(dense.hessians(self.problem.case.loss, self.at[:1], self.problem.targets[:1])[0])

    @cached_property
    def rows(self) -> Tensor:
        """(M, c, P) features of each observation; of Gaussian noise in coordinates in which it is white."""
        features = self.problem.features
        if self.name == "categorical":
            return features
        turned = self.whitening.mT @ features if self.name in GAUSSIANS else features
        return turned.flatten(0, 1).unsqueeze(1)

    @cached_property
    def labels(self) -> Tensor:
        """(M,) or (M, c) what is observed."""
        targets = self.problem.targets
        if self.name == "categorical":
            return targets
        return (targets @ self.whitening if self.name in GAUSSIANS else targets).reshape(-1, 1)

    @property
    def loss(self) -> dense.Loss:
        """Of one observation."""
        return dense.gaussian_loss(torch.eye(1).double()) if self.name in GAUSSIANS else self.problem.case.loss

    def left_out(self, times: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """V (M, c, c), h (M,), f_-n (M, c) and V_-n by explicit inverses."""
        outputs, at = self.rows @ self.theta, self.at.reshape(-1, self.rows.shape[1])
        curvature = times * dense.hessians(self.loss, at, self.labels)
        leaf = outputs.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(torch.vmap(self.loss)(leaf, self.labels).sum(), leaf)
        spread = self.rows @ self.inverse @ self.rows.mT
        without = spread @ torch.linalg.inv(torch.eye(spread.shape[-1]) - curvature @ spread)
        step = (spread @ gradient[..., None])[..., 0]
        leverage = torch.einsum("nc,ncd,nd->n", step, curvature, step) / (gradient * step).sum(1)
        return spread, leverage, outputs + times * (without @ gradient[..., None])[..., 0], without

    def refit(self, index: int) -> Tensor:
        """(c,) what the linear model says of an observation after a fit to all the others, with the same prior."""
        others = torch.arange(len(self.rows)) != index
        found = dense.mode(self.rows[others], self.labels[others], self.loss, self.precision, self.theta)
        return self.rows[index] @ found

    def found(self, weights: Tensor | None = None) -> LeftOut | GaussianLeftOut:
        """What the library says."""
        deviations = torch.einsum("kp,ncp->knc", self.samples, self.problem.features)
        return left_out(self.likelihood, self.mode, self.at, deviations, self.problem.targets, self.mix, weights)

    @cached_property
    def mix(self) -> Tensor:
        return randn(64, len(self.samples)) / len(self.samples) ** 0.5


@cache
def _problem(name: str) -> Problem:
    return build_tiny(name)


@cache
def exact(name: str, at_mode: bool = True) -> Exact:
    return Exact(name, at_mode, _problem(name))


CASES = pytest.mark.parametrize("at_mode", [True, False], ids=["B at the mode", "B at the network"])


@CASES
@pytest.mark.parametrize("name", GAUSSIANS)
def test_gaussian_outputs_left_out_are_those_of_refits(name, at_mode):
    """Each output in turn, in coordinates in which noise is white: dense inverses, and ridge fits to all others."""
    case = exact(name, at_mode)
    _, leverage, outputs, spread = case.left_out()
    found = case.found()
    torch.testing.assert_close(found.leverage.flatten(), leverage, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.residual.flatten(), (case.labels - outputs)[:, 0], rtol=5e-4, atol=1e-9)
    torch.testing.assert_close(found.variance.flatten(), spread.flatten(), rtol=1e-3, atol=0)
    assert found.log_root == pytest.approx(float(torch.linalg.slogdet(case.whitening).logabsdet) / 3)
    for index in leverage.argsort(descending=True)[:3].tolist():
        assert float(case.labels[index] - found.residual.flatten()[index]) == pytest.approx(
            float(case.refit(index)), abs=2e-3
        )


@CASES
@pytest.mark.parametrize("name", ["categorical", "bernoulli"])
def test_observations_left_out_are_those_of_dense_inverses(name, at_mode):
    """Bernoulli: to rounding and what K leaves of the correction. Three classes: I - B V acts as 1 - h on V g only."""
    case = exact(name, at_mode)
    _, leverage, outputs, spread = case.left_out()
    found, before = case.found(), case.mode.reshape(outputs.shape)
    torch.testing.assert_close(found.leverage.flatten(), leverage, rtol=1e-9, atol=1e-12)
    off = (found.outputs.reshape(outputs.shape) - outputs).norm(dim=1) / (outputs - before).norm(dim=1)
    drawn = found.deviations.reshape(len(case.samples), *outputs.shape)
    covariance = torch.einsum("knc,knd->ncd", drawn, drawn) / len(drawn)
    wide = (covariance - spread).flatten(1).norm(dim=1) / spread.flatten(1).norm(dim=1)
    if name == "bernoulli":
        assert float(off.max()) < 1e-3
        assert float(wide.max()) < 1e-3
    else:
        assert float(off.max()) < 0.2
        assert float(off.median()) < 0.01
        assert float(wide.median()) < 0.1
    assert 0.3 < float(leverage.max()) < 0.9


@CASES
@pytest.mark.parametrize("name", ["categorical", "bernoulli"])
def test_an_observation_left_out_is_near_a_refit_to_all_the_others(name, at_mode):
    """One Newton step: of the change from f* to the refit at most half is missed, in the median a quarter."""
    case = exact(name, at_mode)
    leverage = case.left_out()[1]
    chosen = leverage.argsort(descending=True)[[0, 1, 2, 3, 10, 40]].tolist()
    found, before = (values.reshape(len(case.rows), -1) for values in (case.found().outputs, case.mode))
    refits = [case.refit(index) for index in chosen]
    missed = [
        float((found[index] - refit).norm() / (refit - before[index]).norm())
        for index, refit in zip(chosen, refits, strict=True)
    ]
    assert max(missed) < 0.5
    assert np.median(missed) < 0.25


@pytest.mark.parametrize("name", ["bernoulli", "gaussian-scalar"])
def test_a_datum_that_counts_more_than_once_is_left_out_as_often(name):
    case = exact(name)
    _, leverage, outputs, spread = case.left_out(1.5)
    found = case.found(torch.full((150,), 1.5, dtype=torch.float64))
    torch.testing.assert_close(found.leverage.flatten(), leverage, rtol=1e-9, atol=1e-12)
    if isinstance(found, LeftOut):
        torch.testing.assert_close(found.outputs.reshape(outputs.shape), outputs, rtol=5e-3, atol=4e-3)
        variance = found.deviations.square().mean(0).flatten()
    else:
        torch.testing.assert_close(found.residual.flatten(), (case.labels - outputs)[:, 0], rtol=4e-3, atol=1e-9)
        variance = found.variance.flatten()
    torch.testing.assert_close(variance, spread.flatten(), rtol=2e-2, atol=0)


@pytest.mark.parametrize("h", [0.02, 0.1, 0.3, 0.45, 0.6])
def test_the_inverse_of_one_less_the_leverage_is_unbiased(h):
    """Over h chi^2_16 / 16: by quadrature of the density, and as a mean of draws where that has a variance."""
    places = np.linspace(1e-6, 120, 200_001)
    leverages = torch.from_numpy(h * places / 16)
    products = (leverages * inverse_remainder(leverages, 16)).numpy()
    assert trapezoid(products * chi2.pdf(places, 16), places) == pytest.approx(h / (1 - h), rel=2e-3)
    draws = torch.from_numpy(h * np.random.default_rng(0).chisquare(16, 100_000) / 16)
    means = (draws * inverse_remainder(draws, 16)).numpy()
    if h <= 0.3:
        assert abs(means.mean() - h / (1 - h)) < 3.5 * means.std() / len(means) ** 0.5
    plain = (draws / (1 - draws.clamp_max(0.99))).numpy()
    assert h < 0.3 or plain.mean() > 1.05 * h / (1 - h)


@pytest.mark.parametrize("name", GAUSSIANS)
def test_gaussian_scores_are_normal_densities(name):
    """Of each output where noise is diagonal; of a datum, all its outputs together, with noise in full."""
    case, factors = exact(name), [0.0, 0.5, 2.0]
    found = case.found()
    density = found.log_prob(factors, (1.0,))[0]
    noise = torch.linalg.inv(dense.hessians(case.problem.case.loss, case.at[:1], case.problem.targets[:1])[0])
    back = torch.linalg.inv(case.whitening.mT)  # from white coordinates to outputs
    centre = case.problem.targets - found.residual @ back.mT
    for factor, each in zip(factors, density, strict=True):
        if name == "gaussian-full":
            for n in (0, 7):
                covariance = noise + factor**2 * back @ found.variance[n].diag() @ back.mT
                expected = multivariate_normal.logpdf(case.problem.targets[n], centre[n], covariance)
                assert float(each[n].sum()) == pytest.approx(expected, rel=1e-9)
            continue
        scale = noise.diagonal()
        deviation = (scale * (1 + factor**2 * found.variance)).sqrt()
        expected = norm.logpdf(case.problem.targets, centre, deviation)
        summed = torch.from_numpy(expected).sum(1)  # outputs share log det B, which matters to their sum only
        torch.testing.assert_close(each.sum(1), summed, rtol=1e-9, atol=1e-9)


def few(name: str) -> LeftOut:
    """The first 30 data of a case, with many draws of the function and as few deviations as have their covariance."""
    case = exact(name)
    found, size = case.found(), len(case.inverse)
    mix = randn(20_000, size, seed=3) / size**0.5
    return LeftOut(
        found.likelihood, found.targets[:30], found.outputs[:30], found.deviations[:size, :30], found.leverage[:30], mix
    )


@pytest.mark.parametrize("power", [1.0, 10.0])
def test_bernoulli_scores_are_gauss_hermite_quadrature(power):
    found = few("bernoulli")
    each = found.log_prob([0.7], (power,)).flatten()
    places, weights = np.polynomial.hermite_e.hermegauss(80)
    deviation = 0.7 * found.deviations.square().mean(0).flatten().sqrt()
    at = found.outputs.flatten()[:, None] + deviation[:, None] * torch.from_numpy(places)
    likelihood = -torch.log1p(torch.exp(torch.where(found.targets.reshape(-1, 1) == 1, -at, at)))
    logs = torch.from_numpy(weights / weights.sum()).log()
    expected = (power * likelihood + logs).logsumexp(1) / power
    assert float((each - expected).abs().max()) < 0.1
    assert float((each - expected).mean().abs()) < 0.005


@pytest.mark.parametrize("power", [1.0, 10.0])
def test_categorical_scores_are_averages_over_the_function(power):
    found = few("categorical")
    covariance = torch.einsum("knc,knd->ncd", found.deviations, found.deviations) / len(found.deviations)
    for factor, each in zip([0.2, 0.6], found.log_prob([0.2, 0.6], (power,))[0], strict=True):
        expected = averaged(found.outputs, covariance, found.targets, factor, power)
        off = (each - expected).abs()
        assert float(off.quantile(0.9)) < 0.03  # powers of what is unlikely come from few draws
        assert float(off.median()) < 0.003


def averaged(
    outputs: Tensor, covariance: Tensor, labels: Tensor, factor: float, power: float, draws: int = 6000
) -> Tensor:
    """(M,) log E[p(y | f)^k] / k over f ~ N(outputs, s^2 covariance), of classes or of one output's yes and no."""
    values, turn = torch.linalg.eigh((covariance + covariance.mT) / 2)
    root = turn * values.clamp_min(0).sqrt()[:, None]
    drawn = outputs + factor * torch.einsum("ncd,sd->snc", root, randn(draws, outputs.shape[1], seed=5))
    if outputs.shape[1] > 1:
        each = drawn.log_softmax(-1)[:, torch.arange(len(outputs)), labels]
    else:
        each = -torch.log1p(torch.exp(torch.where(labels == 1, -drawn, drawn)))[..., 0]
    return ((power * each).logsumexp(0) - log(draws)) / power


# Every likelihood


def test_each_pixel_is_left_out_on_its_own_and_ignored_ones_count_nothing():
    """Images (n, C, H, W) say what their pixels say as data (n H W, C)."""
    outputs, deviations = randn(4, 3, 2, 5), randn(9, 4, 3, 2, 5, seed=1) / 2
    labels = torch.arange(40).view(4, 2, 5) % 3
    labels[0, 0, :3] = 255
    known = labels.flatten() != 255
    mix = randn(64, 9, seed=2) / 3
    images = sampla.Categorical(class_axis=-3, ignore_index=255)
    found = left_out(images, outputs, outputs + 1, deviations, labels, mix)

    def rows(values: Tensor) -> Tensor:
        return values.movedim(-3, -1).flatten(-4, -2)[..., known, :]

    expected = left_out(
        sampla.Categorical(), rows(outputs), rows(outputs + 1), rows(deviations), labels.flatten()[known], mix
    )
    torch.testing.assert_close(rows(found.outputs), expected.outputs)
    torch.testing.assert_close(rows(found.deviations), expected.deviations)
    assert found.leverage.shape == labels.shape
    torch.testing.assert_close(found.leverage.flatten()[known], expected.leverage)
    scores = found.log_prob([0.0, 0.5], (1.0, 10.0))
    assert scores.shape == (2, 2, 4, 2, 5)
    torch.testing.assert_close(scores.flatten(2)[..., known], expected.log_prob([0.0, 0.5], (1.0, 10.0)))
    model = linear_model(sampla.DesignMatrix(1), sampla.Gaussian(1.0), [(torch.ones(1, 1), torch.ones(1, 1))])
    batch = replace(next(model.batches()), likelihood=images, targets=labels)
    counted = Linear(batch, outputs, outputs, deviations, True).counted(found.leverage)
    assert torch.equal(counted.flatten() > 0, known)


def test_labels_that_nobody_gave_count_nothing():
    outputs, deviations, mix = randn(6, 3), randn(9, 6, 3, seed=1) / 2, randn(64, 9, seed=2) / 3
    labels = (randn(6, 3, seed=3) > 0).float()
    known = torch.ones(6, 3, dtype=torch.bool)
    known[1, 0] = known[4, 2] = False
    found = left_out(sampla.Bernoulli(ignore_value=-1), outputs, outputs, deviations, labels.where(known, -1), mix)
    expected = left_out(
        sampla.Bernoulli(), outputs[known][:, None], outputs[known][:, None], deviations[:, known][..., None],
        labels[known][:, None], mix,
    )  # fmt: skip
    torch.testing.assert_close(found.leverage[known], expected.leverage[:, 0])
    torch.testing.assert_close(found.outputs[known], expected.outputs[:, 0])
    torch.testing.assert_close(found.log_prob([0.5], (1.0,))[0, 0][known], expected.log_prob([0.5], (1.0,))[0, 0, :, 0])
    torch.testing.assert_close(found.outputs[~known], outputs[~known])


class Poisson(sampla.Likelihood):
    """Counts of rate exp(f): the outputs of a datum are one observation, because nothing says otherwise."""

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (targets * outputs - outputs.exp() - torch.lgamma(targets + 1)).sum(1)

    def curvature_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        return outputs.exp() * vectors

    def curvature_root_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        return (outputs / 2).exp() * vectors


def test_a_likelihood_of_the_users_own():
    """Counts with the three methods alone, by explicit 2 x 2 matrices."""
    outputs, deviations, mix = randn(6, 2) / 2, randn(4000, 6, 2, seed=1) / 2, randn(64, 4000, seed=2) / 4000**0.5
    counts = torch.tensor([[0.0, 1], [2, 0], [1, 1], [3, 0], [0, 0], [1, 4]], dtype=torch.float64)
    found = left_out(Poisson(), outputs, outputs, deviations, counts, mix)
    gradient, curvature = outputs.exp() - counts, torch.diag_embed(outputs.exp())
    spread = torch.einsum("knc,knd->ncd", deviations, deviations) / len(deviations)
    step = (spread @ gradient[..., None])[..., 0]
    leverage = torch.einsum("nc,ncd,nd->n", step, curvature, step) / (gradient * step).sum(1)
    torch.testing.assert_close(found.leverage, leverage)
    torch.testing.assert_close(found.outputs, outputs + step / (1 - leverage)[:, None], rtol=2e-2, atol=1e-6)
    assert found.log_prob([0.0], (1.0,)).shape == (1, 1, 6)
    x, y = randn(30, 2, dtype=torch.float32), torch.arange(30.0)[:, None] % 3
    la = laplace(regressor(), Poisson(), width="loo", num_samples=16).fit([(x, y)])
    assert la.report_.width["num_observations"] == 30
    assert bool(la.predict(x).log_prob(y).isfinite().all())


@pytest.mark.parametrize("tangent", [False, True])
def test_a_pass_gives_the_linear_model_where_it_lies(tangent):
    """f* = J theta*, or of the tangent f + J (theta* - w); B of H is taken where the fit took it."""
    case = exact("categorical")
    problem, count = case.problem, 30
    features = NetworkFeatures(problem.model, tuple(problem.names), tangent=tangent)
    model = linear_model(features, case.likelihood, problem.loader)
    found = list(linear_batches(model, case.samples[:count], case.theta, at_mode=False))
    network = problem.model(problem.inputs).detach()
    weights = torch.nn.utils.parameters_to_vector(problem.model.parameters()).detach()
    expected = network + problem.features @ (case.theta - weights) if tangent else case.mode
    torch.testing.assert_close(torch.cat([each.mode for each in found]), expected)
    torch.testing.assert_close(torch.cat([each.network for each in found]), network)
    pushed = torch.einsum("kp,ncp->knc", case.samples[:count], problem.features)
    torch.testing.assert_close(torch.cat([each.deviations for each in found], 1), pushed)
    mix = randn(64, count) / count**0.5
    at_network, at_mode = (
        torch.cat([replace(each, at_mode=where).left_out(mix, 2.0).outputs for each in found])
        for where in (False, True)
    )
    for at, outputs in ((network, at_network), (expected, at_mode)):
        wanted = left_out(case.likelihood, expected, at, pushed, problem.targets, mix)
        torch.testing.assert_close(outputs, 2.0 * wanted.outputs)
    assert not torch.allclose(at_network, at_mode)


# observation_log_prob and log_prob


class Smoothed(sampla.Categorical):
    """Labels that are right with a probability of .9."""

    def observation_log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.9 * super().observation_log_prob(outputs, targets) + 0.1 * outputs.log_softmax(-1).mean(-1)


class Inconsistent(sampla.Categorical):
    """The same in log_prob alone."""

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.9 * super().log_prob(outputs, targets) + 0.1 * outputs.log_softmax(-1).mean(-1)


class Misshapen(sampla.Bernoulli):
    def observation_log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().observation_log_prob(outputs, targets).sum(1)


def test_observations_that_do_not_sum_to_a_datum_are_refused():
    match = r"Inconsistent.observation_log_prob that sums to Inconsistent.log_prob.*got sums that are off by .* alone"
    refused(laplace(classifier(), Inconsistent()), class_batches(), ValueError, match)
    match = r"Misshapen.observation_log_prob of shape \(8, 3\), one for each observation, got \(8,\)"
    refused(laplace(classifier(), Misshapen()), class_batches(change_y=lambda y: torch.eye(3)[y]), ValueError, match)
    assert laplace(classifier(), Smoothed(), width="loo").fit(class_batches()).report_.width["num_observations"] == 24
