"""Predictions against explicit densities, saving and loading, and going on after an interruption."""

from math import log, pi

import pytest
import torch
from torch.distributions import MultivariateNormal

import sampla
from cases import DIAGONAL_NOISE, FULL_NOISE, LIKELIHOODS, randn
from sampla.inference import checkpointing as resume
from sampla.posterior import averages

NOISE = {"scalar": 3.0, "diagonal": DIAGONAL_NOISE, "full": FULL_NOISE}
NUM_FUNCTIONS, NUM_DATA = 6, 8
GROUP = torch.tensor([0, 1, 0, 2, 2, 2, 1, 0])


def predictive(likelihood, num_outputs=3, **options):
    mean = 0.7 * randn(NUM_DATA, num_outputs, seed=1)
    return sampla.Predictive(mean, 0.8 * randn(NUM_FUNCTIONS, NUM_DATA, num_outputs, seed=2), likelihood, **options)


def noise_covariance(name):
    matrices = {"scalar": 3.0 * torch.eye(3).double(), "diagonal": DIAGONAL_NOISE.diag(), "full": FULL_NOISE}
    return torch.linalg.inv(matrices[name])


def gaussian_density(pred, targets, rows, noise):
    """log N of the chosen data jointly, the covariance of the K samples plus noise written out."""
    deviations = pred.deviations[:, rows].flatten(1)
    covariance = deviations.mT @ deviations / len(deviations) + torch.kron(
        torch.eye(len(rows)).double(), noise.contiguous()
    )
    return MultivariateNormal(pred.mean[rows].flatten(), covariance).log_prob(targets[rows].flatten())


@pytest.mark.parametrize("noise", NOISE)
def test_gaussian_log_prob_is_the_density_of_each_datum(noise):
    pred, targets = predictive(sampla.Gaussian(NOISE[noise])), randn(NUM_DATA, 3, seed=3)
    expected = [gaussian_density(pred, targets, [n], noise_covariance(noise)) for n in range(NUM_DATA)]
    torch.testing.assert_close(pred.log_prob(targets), torch.stack(expected))


@pytest.mark.parametrize("noise", NOISE)
def test_gaussian_joint_log_prob_is_the_density_of_each_group(noise):
    pred, targets = predictive(sampla.Gaussian(NOISE[noise])), randn(NUM_DATA, 3, seed=3)
    rows = [torch.nonzero(g == GROUP).flatten().tolist() for g in range(3)]
    expected = [gaussian_density(pred, targets, r, noise_covariance(noise)) for r in rows]
    torch.testing.assert_close(pred.joint_log_prob(targets, GROUP), torch.stack(expected))


def test_moments_are_those_of_the_samples():
    pred = predictive(sampla.Gaussian(1.0))
    torch.testing.assert_close(pred.variance, (pred.samples - pred.mean).square().mean(0))
    torch.testing.assert_close(pred.std.square(), pred.variance)


def test_probit_probabilities_follow_mackay():
    pred = predictive(sampla.Categorical(), method="probit")
    expected = (pred.mean / (1 + pi / 8 * pred.variance).sqrt()).softmax(-1)
    torch.testing.assert_close(pred.probs, expected)
    targets = torch.arange(NUM_DATA) % 3
    torch.testing.assert_close(pred.log_prob(targets), expected.log()[torch.arange(NUM_DATA), targets])


def test_probit_is_accurate_for_one_logit():
    """E sigmoid(f) by quadrature over f ~ N(mean, variance): MacKay's formula is within 0.02 of it."""
    pred = predictive(sampla.Bernoulli(), 1, method="probit")
    nodes = torch.linspace(-8, 8, 4001).double()
    weights = (-0.5 * nodes.square()).exp()
    exact = ((pred.mean + pred.std * nodes).sigmoid() * weights).sum(-1, keepdim=True) / weights.sum()
    assert float((pred.probs - exact).abs().max()) < 0.02
    labels = (torch.arange(NUM_DATA) % 2).double()[:, None]
    torch.testing.assert_close(pred.log_prob(labels), torch.where(labels == 1, pred.probs, 1 - pred.probs).log()[:, 0])


def naive_draws(pred, count):
    """Independent draws of functions from N(mean, D' D / K), with a generator of our own."""
    mix = randn(count, NUM_FUNCTIONS, seed=9) / NUM_FUNCTIONS**0.5
    return pred.mean + torch.einsum("sk,kno->sno", mix, pred.deviations)


def assert_same_average(found, each):
    """A Monte Carlo average of 20,000 draws against another of the same size: their difference is within 5 errors."""
    spread = each.std(0) * (2 / len(each)) ** 0.5
    assert bool(((found - each.mean(0)).abs() < 5 * spread + 1e-12).all())


@pytest.mark.parametrize("name", ["categorical", "bernoulli"])
def test_monte_carlo_averages_are_those_of_the_posterior(name):
    likelihood, count = LIKELIHOODS[name].make(), 20_000
    pred = predictive(likelihood, num_draws=count)
    targets = torch.arange(NUM_DATA) % 3 if name == "categorical" else (randn(NUM_DATA, 3, seed=4) > 0).double()
    draws = naive_draws(pred, count)
    each = torch.stack([likelihood.log_prob(f, targets) for f in draws])  # (S, n)
    assert_same_average(pred.probs, likelihood.probabilities(draws))
    assert_same_average(pred.log_prob(targets).exp(), each.exp())
    joint = torch.stack([each[:, g == GROUP].sum(1) for g in range(3)], 1)
    assert_same_average(pred.joint_log_prob(targets, GROUP).exp(), joint.exp())


def entropy_of(probs, name):
    if name == "categorical":
        return -(probs * probs.log()).sum(-1)
    return -(probs * probs.log() + (1 - probs) * (1 - probs).log())


@pytest.mark.parametrize("name", ["categorical", "bernoulli"])
def test_entropy_splits_into_noise_and_what_parameters_would_tell(name):
    likelihood = LIKELIHOODS[name].make()
    pred = predictive(likelihood, num_draws=20_000)
    probs = likelihood.probabilities(naive_draws(pred, 20_000))
    total, expected = entropy_of(probs.mean(0), name), entropy_of(probs, name).mean(0)
    torch.testing.assert_close(pred.entropy, total, rtol=0, atol=0.02)
    torch.testing.assert_close(pred.mutual_information, total - expected, rtol=0, atol=0.03)
    assert bool((pred.mutual_information >= 0).all())


def test_without_posterior_variance_nothing_is_to_be_learnt_and_all_averages_are_the_network():
    certain = sampla.Predictive(randn(5, 3), torch.zeros(4, 5, 3).double(), sampla.Categorical())
    torch.testing.assert_close(certain.probs, certain.mean.softmax(-1))
    torch.testing.assert_close(certain.mutual_information, torch.zeros(5).double(), rtol=0, atol=1e-12)


def test_large_monte_carlo_averages_are_cut_into_pieces_of_the_same_functions(monkeypatch):
    pred, targets = predictive(sampla.Categorical()), torch.arange(NUM_DATA) % 3
    whole = pred.probs, pred.joint_log_prob(targets, GROUP)
    for entries in (512 * 3 * 2, 100):  # two data at a time; one, and 33 draws
        monkeypatch.setitem(averages._AT_ONCE, "cpu", entries)
        again = predictive(sampla.Categorical())
        torch.testing.assert_close(again.probs, whole[0])
        torch.testing.assert_close(again.joint_log_prob(targets, GROUP), whole[1])


def test_one_sided_logits_far_out_stay_finite():
    pred = sampla.Predictive(torch.tensor([[80.0, -80.0, 0.0]]), torch.zeros(2, 1, 3), sampla.Categorical())
    assert float(pred.log_prob(torch.tensor([1]))) == pytest.approx(-160, rel=1e-4)
    assert bool(pred.entropy.isfinite().all())


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_saved_posterior_predicts_the_same(problems, likelihood, tmp_path):
    problem = problems[likelihood]
    la = problem.fit(sampla.GPrior(1.0, learn=False), num_samples=4)
    la.save(tmp_path / "posterior.safetensors")
    loaded = sampla.LinearisedLaplace.load(tmp_path / "posterior.safetensors", problem.model)
    one, other = (each.predict(problem.test_inputs) for each in (la, loaded))
    assert torch.equal(one.mean, other.mean)
    assert torch.equal(one.deviations, other.deviations)
    assert torch.equal(one.log_prob(problem.test_targets), other.log_prob(problem.test_targets))
    assert torch.equal(la.prior_precision_, loaded.prior_precision_)
    assert str(la.report_) == str(loaded.report_)
    with pytest.raises(
        ValueError, match=r"expected likelihood \w+, that of the fit, got StudentT. Leave likelihood out"
    ):
        sampla.LinearisedLaplace.load(
            tmp_path / "posterior.safetensors", problem.model, likelihood=sampla.StudentT(3.0)
        )


class InterruptedFitError(Exception):
    """Stands for Ctrl-C or a power cut."""


@pytest.mark.parametrize("solver", [sampla.Dense(), sampla.BlockCG()])
@pytest.mark.parametrize(
    ("name", "likelihood", "prior"),
    [
        ("categorical", "categorical", "g-prior"),
        ("bernoulli", "bernoulli", "layerwise"),
        ("gaussian-scalar", "gaussian", "isotropic"),
    ],
)
def test_an_interrupted_fit_goes_on_to_the_same_samples(
    problems, name, likelihood, prior, solver, tmp_path, monkeypatch
):
    """Stopped after the second EM step; what an uninterrupted fit gives, to the tolerance of the mode.

    The search for the mode goes on without what it had learnt (its secant pairs are not kept); with a Gaussian
    likelihood there is no such search, and the results are the same to rounding.
    """
    problem, count = problems[name], 0
    options = {
        "likelihood": likelihood,
        "num_samples": 6,
        "solver": solver,
        "em": sampla.EM(tolerance=0.05, max_steps=60, exact_up_to=0),
    }
    whole = problem.fit(prior, **options)
    assert len(whole.report_.trace) > 2, "nothing would be left to do after the interruption"

    def keep_then_stop(*arguments):
        nonlocal count
        resume.save_state(*arguments)
        count += 1
        if count == 2:
            raise InterruptedFitError

    with monkeypatch.context() as patch:
        patch.setattr("sampla.laplace.linearised.save_state", keep_then_stop)
        with pytest.raises(InterruptedFitError):
            problem.fit(prior, checkpoint=tmp_path, **options)
    resumed = problem.fit(prior, checkpoint=tmp_path, **options)
    near = 1e-6 if problem.case.make().is_quadratic else 0.05
    if len(whole.prior_precision_) == 1:  # of several, one may be on its way to infinity
        torch.testing.assert_close(resumed.prior_precision_, whole.prior_precision_, rtol=near, atol=0)
    expected, found = (la.predict(problem.test_inputs).samples for la in (whole, resumed))
    assert float((found - expected).norm()) <= near * float(expected.norm())


def test_log_prob_of_a_coin_is_log_one_half():
    pred = sampla.Predictive(torch.zeros(3, 2).double(), torch.zeros(2, 3, 2).double(), sampla.Categorical())
    torch.testing.assert_close(pred.log_prob(torch.tensor([0, 1, 0])), torch.full((3,), -log(2)).double())


@pytest.mark.parametrize("noise", NOISE)
def test_scaled_error_bars_are_those_of_the_scaled_covariance(noise):
    pred, targets = predictive(sampla.Gaussian(NOISE[noise])), randn(NUM_DATA, 3, seed=3)
    torch.testing.assert_close(pred.scaled(0.3).variance, 0.09 * pred.variance)
    expected = sampla.Predictive(pred.mean, 0.3 * pred.deviations, pred.likelihood).joint_log_prob(targets, GROUP)
    torch.testing.assert_close(pred.scaled(0.3).joint_log_prob(targets, GROUP), expected)
    assert pred.scaled(1.0).std.equal(pred.std)


@pytest.mark.parametrize("truth", [0.2, 1.0, 3.0])
def test_the_best_scale_is_found(truth):
    """Targets of another width than the functions': 3,000 data tell the factor to a few per cent."""
    deviations = randn(50, 3000, 1, seed=2)
    targets = truth * randn(3000, 1, seed=4) + 0.05 * randn(3000, 1, seed=5)
    pred = sampla.Predictive(torch.zeros(3000, 1).double(), deviations, sampla.Gaussian(400.0))
    found = pred.best_scale(targets)
    assert abs(found / truth - 1) < 0.06
    worse = [float(pred.scaled(found * shift).log_prob(targets).mean()) for shift in (0.9, 1.1)]
    assert float(pred.scaled(found).log_prob(targets).mean()) > max(worse)


def test_overconfident_classes_get_wider_functions():
    """Half of the confident labels are wrong."""
    mean, labels = torch.tensor([[3.0, 0.0]]).repeat(200, 1), torch.arange(200) % 2
    pred = sampla.Predictive(mean, 0.5 * randn(20, 200, 2).float(), sampla.Categorical())
    assert pred.best_scale(labels) > 2
    assert pred.best_scale(torch.zeros(200, dtype=torch.long)) < 0.1


@pytest.mark.parametrize("factor", [-1.0, float("nan"), float("inf")])
def test_factors_that_make_no_sense(factor):
    with pytest.raises(ValueError, match="expected a factor of at least 0, got"):
        predictive(sampla.Gaussian(1.0)).scaled(factor)


def test_a_gaussian_density_far_wider_than_the_noise_is_right_in_float32():
    """Its Cholesky factor failed: the identity beside 1e9 is lost in float32."""
    deviations = 3e4 * torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(0))
    pred = sampla.Predictive(torch.zeros(5, 2), deviations, sampla.Gaussian(100.0))
    targets = torch.ones(5, 2)
    found = pred.log_prob(targets)
    for n in range(5):
        covariance = torch.eye(2).double() / 100 + torch.einsum("kc,kd->cd", *[deviations[:, n].double()] * 2) / 4
        normal = torch.distributions.MultivariateNormal(torch.zeros(2).double(), covariance)
        assert float(found[n]) == pytest.approx(float(normal.log_prob(targets[n].double())), rel=1e-5)
