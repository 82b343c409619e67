"""The width of error bars: chosen as a dense float64 recomputation of its score would, kept, shown, and used."""

import json
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

import dense
import sampla
from cases import LIKELIHOODS, Problem, linear_model, randn
from helpers import class_batches, classifier, laplace, regression_batches, regressor
from sampla.core import checkpoint
from sampla.features import NetworkFeatures
from sampla.inference.report import FitReport
from sampla.laplace import training_data
from sampla.posterior.predictive import Predictive
from sampla.posterior.width import FACTORS, Width, leave_one_out_width
from sampla.posterior.width import _chosen as chosen_of
from test_leave_one_out import Exact, averaged

GRID = np.geomspace(FACTORS[1], FACTORS[-1], 35)
STEP = FACTORS[2] / FACTORS[1]


@cache
def overfitted(name: str, count: int = 90, size: int = 10) -> Problem:
    """A linear network with weights far beyond what so few data can tell; noise as its likelihood says."""
    case = LIKELIHOODS[name]
    outputs = 2 if name == "bernoulli" else 3
    inputs, noise = randn(count, size, seed=1), randn(count, outputs, seed=3)
    truth = inputs @ randn(size, outputs, seed=2) / 2
    if name == "categorical":
        targets = (truth + noise).argmax(1)
    elif name == "bernoulli":
        targets = (truth + noise > 0).double()
    else:
        targets = truth + noise / 15**0.5
    model = nn.Linear(size, outputs, dtype=torch.float64).eval()
    names = [name for name, _ in model.named_parameters()]
    problem = Problem(case, model, inputs, targets, inputs[:2], targets[:2], names)
    weak = torch.full((problem.features.shape[-1],), 0.05, dtype=torch.float64)
    found = dense.mode(problem.features, targets, case.loss, weak)
    torch.nn.utils.vector_to_parameters(1.5 * found, model.parameters())
    problem.__dict__.pop("weights", None)
    return problem


@cache
def exact(name: str, at_mode: bool) -> Exact:
    return Exact(name, at_mode, overfitted(name), 0.3)


def chosen(case: Exact) -> Width:
    """What the library chooses, from samples with the right covariance."""
    problem, few = case.problem, case.samples[: 40 * len(case.inverse)]
    features = NetworkFeatures(problem.model, tuple(problem.names))
    return leave_one_out_width(
        linear_model(features, case.likelihood, problem.loader), few, case.theta, case.at_mode, seed=0
    )


def centred(case: Exact, outputs: Tensor) -> Tensor:
    return outputs - outputs.mean(1, keepdim=True) if case.name == "categorical" else outputs


def best(case: Exact, power: float) -> float:
    """The factor on the deviations with the largest dense leave-one-out score, without regard to the cover."""
    _, _, outputs, spread = case.left_out()
    if case.name == "gaussian-scalar":
        residual, variance = (case.labels - outputs)[:, 0], spread[:, 0, 0]
        scores = [float(norm.logpdf(residual, 0, (1 + s**2 * variance).sqrt()).sum()) for s in GRID]
    else:
        at = own_scale(case) * outputs
        scores = [float(averaged(at, spread, case.labels, s, power, 2000).sum()) for s in GRID]
    return float(GRID[int(np.argmax(scores))])


def own_scale(case: Exact) -> float:
    """c of the least-squares fit f = c f* over the training data."""
    network = case.problem.model(case.problem.inputs).detach()
    mine, theirs = centred(case, network), centred(case, case.mode)
    return float((mine * theirs).sum() / theirs.square().sum()) if case.at_mode else 1.0


CHOICES = pytest.mark.parametrize(
    ("name", "at_mode"),
    [
        ("categorical", True),
        ("categorical", False),
        ("bernoulli", True),
        ("bernoulli", False),
        ("gaussian-scalar", False),
    ],
)


@CHOICES
def test_the_factor_is_the_best_one_of_a_dense_recomputation(name, at_mode, monkeypatch):
    """To a step of the grid on which it is looked for; nothing covers it here."""
    monkeypatch.setattr("sampla.posterior.width._COVERS", {False: 1e9, True: 1e9})
    case = exact(name, at_mode)
    width = chosen(case)
    assert 1 / STEP < width.marginal / best(case, 1.0) < STEP
    assert 1 / STEP < width.joint / best(case, 10.0) < STEP or name == "gaussian-scalar"
    assert width.scale == pytest.approx(own_scale(case))
    assert 0.1 < width.marginal < 5


@CHOICES
def test_no_factor_exceeds_what_covers_the_way_to_the_network(name, at_mode):
    """Once with B at the network, twice with B at the linear mode: root of sum |f - f*|^2_B over E sum |d|^2_B."""
    case = exact(name, at_mode)
    width = chosen(case)
    if name == "gaussian-scalar":
        assert width.cover == float("inf")
        return
    network = case.problem.model(case.problem.inputs).detach()
    curvature = dense.fast_hessians(case.problem.case.loss, case.mode, case.problem.targets)
    features = case.problem.features
    apart = torch.einsum("nc,ncd,nd->n", network - case.mode, curvature, network - case.mode)
    spread = torch.einsum("ncd,ndc->n", features @ case.inverse @ features.mT, curvature)
    assert width.cover == pytest.approx((2 if at_mode else 1) * float((apart.sum() / spread.sum()).sqrt()), rel=1e-6)
    assert width.joint == pytest.approx(width.cover)
    assert width.marginal <= width.cover
    parts = torch.arange(len(apart)) % 20
    jackknife = [float((apart[parts != part].sum() / spread[parts != part].sum()).sqrt()) for part in range(20)]
    error = (2 if at_mode else 1) * np.std(jackknife) * 19**0.5
    assert width.errors[1] == pytest.approx(error, rel=1e-6)


@CHOICES
def test_the_score_is_that_of_the_chosen_factor(name, at_mode):
    """A mean over the observations with its standard error, at the place of the grid nearest to the factor."""
    case = exact(name, at_mode)
    width = chosen(case)
    _, leverage, outputs, spread = case.left_out()
    factor = min(FACTORS, key=lambda each: abs(each - width.marginal))
    if name == "gaussian-scalar":
        variance = 1 + factor**2 * spread[:, 0, 0]
        each = torch.from_numpy(norm.logpdf((case.labels - outputs)[:, 0], 0, variance.sqrt()))
        each = each + torch.linalg.slogdet(case.whitening).logabsdet / 3
    else:
        each = averaged(own_scale(case) * outputs, spread, case.labels, factor, 1.0)
    assert width.score == pytest.approx(float(each.mean()), abs=0.06)
    assert width.score_error == pytest.approx(float(each.std() / len(each) ** 0.5), rel=0.5)
    assert width.num_observations == len(each)
    assert width.near_one == int((leverage > 0.9).sum())


@pytest.mark.parametrize("count", [1, 3, 7])
def test_few_data_are_left_out_one_by_one(count):
    """Fewer data than parts: the jackknife is over the data; of a single one there is none."""
    x, y = randn(count, 3, seed=1), randn(count, 2, seed=2)
    model = nn.Linear(3, 2, dtype=torch.float64).eval()
    features = NetworkFeatures(model, tuple(name for name, _ in model.named_parameters()))
    samples, mean = 0.2 * randn(9, 8, seed=3), randn(8, seed=4)

    def found(kept: list[int]) -> Width:
        given = linear_model(features, sampla.Gaussian(2.0), [(x[kept], y[kept])])
        return leave_one_out_width(given, samples, mean, at_mode=False, seed=0)

    width = found(list(range(count)))
    if count == 1:
        assert np.isnan(width.errors).all()
        assert "NaN" not in json.dumps(width.to_dict())
        assert np.isnan(Width.from_dict(width.to_dict()).errors).all()
        return
    left = np.asarray([found([n for n in range(count) if n != out]).marginal for out in range(count)])
    assert width.errors[0] == pytest.approx(((count - 1) * left.var()) ** 0.5, rel=1e-6)
    assert width.errors[0] > 0


def scores_that_rise(factor_at: int) -> Tensor:
    """(factors, parts) with the best at the given factor, parts of different weight."""
    return torch.from_numpy(-np.abs(np.arange(len(FACTORS)) - factor_at)[:, None] * np.linspace(1, 2, 20))


@pytest.mark.parametrize(("at", "factor"), [(len(FACTORS) - 1, 12.0), (1, FACTORS[1]), (0, 0.0)])
def test_a_factor_at_the_end_of_those_tried_has_no_error(at, factor, monkeypatch):
    """The jackknife gives zero there, which would pass for certainty."""
    case, found = exact("categorical", False), scores_that_rise(at)
    tallies = torch.ones(4, 20, dtype=torch.float64) * torch.tensor([5.0, 0.0, 1e6, 1.0])[:, None]
    monkeypatch.setattr("sampla.posterior.width._sums", lambda *_: (torch.stack([found, found]), tallies))
    width = chosen(case)
    assert (width.marginal, width.joint) == (factor, factor)
    assert all(np.isnan(width.errors))
    text = str(width)
    assert text.startswith(f"{factor:.2f} (at the limit) times the posterior's deviations")
    assert "+- 0.00" not in text
    assert str(Width.from_dict(json.loads(json.dumps(width.to_dict())))) == text
    older = replace(width, errors=(0.0, 0.0))
    assert str(older) == text


def test_only_the_factor_at_the_limit_is_said_to_be():
    width = Width(0.5, 12.0, "loo", (0.04, 0.0), scale=10.0)
    assert str(width).startswith(
        "0.50 +- 0.04 times the posterior's deviations for probabilities, 12.00 (at the limit) for joint predictions"
    )
    assert str(width).endswith(
        "; the linear mode's outputs, multiplied by 10, at the limit, still are not the network's"
    )
    assert "mode" not in str(replace(width, scale=9.9))
    assert "multiplied by 0.1, at the limit" in str(replace(width, scale=0.1))
    assert width.shown(joint=False, sign="±") == "0.50 ± 0.04"


# The whole fit


def test_a_fit_finds_the_width_of_its_own_samples():
    """With few samples nearly that of the right covariance; and the predictive takes the deviations so many times."""
    case = exact("categorical", True)
    options: dict[str, Any] = {"curvature_at": "linear-mode", "num_samples": 64, "width": "loo"}
    la = case.problem.fit(sampla.Isotropic(case.alpha, learn=False), **options)
    reference, found = chosen(case), Width.from_dict(la.report_.width)
    assert found.cover == pytest.approx(reference.cover, rel=0.1)
    assert found.score == pytest.approx(reference.score, abs=0.05)
    assert found.scale == pytest.approx(reference.scale, rel=0.01)
    assert 1 / STEP < found.marginal / reference.marginal < STEP
    la._posterior = replace(la._posterior, width=replace(found, marginal=0.3, joint=0.8))
    pred = la.predict(case.problem.inputs[:4])
    assert (pred.width, pred.joint_width) == (0.3, 0.8)


@pytest.mark.parametrize(
    ("width", "factors", "rule"), [("em", (1.0, 1.0), "em"), (0.5, (0.5, 0.5), "given"), (0, (0, 0), "given")]
)
def test_a_width_that_is_given(width, factors, rule):
    la = laplace(classifier(), width=width).fit(class_batches())
    pred = la.predict(torch.zeros(2, 2))
    assert (pred.width, pred.joint_width) == factors
    assert la.report_.width == {
        "marginal": factors[0],
        "joint": factors[1],
        "rule": rule,
        "errors": [0.0, 0.0],
        "scale": 1.0,
    }
    assert ("as given" in str(la.report_)) == (rule == "given")


@pytest.mark.parametrize("width", [-1, float("nan"), float("inf"), True, None, "wide", [0.5], 1j])
def test_a_width_that_is_none_is_refused(width):
    with pytest.raises(
        ValueError, match=r"expected width as 'loo', 'em' or a number of at least 0, got .*'loo' finds it"
    ):
        laplace(classifier(), width=width)


def test_numbers_of_other_libraries_are_widths():
    for width in (np.float32(0.5), np.int64(1), np.float64(0.5)):
        la = laplace(classifier(), width=width).fit(class_batches())
        assert la.predict(torch.zeros(2, 2)).width == float(width)


@pytest.mark.parametrize("width", ["loo", "em", 0.3])
def test_the_report_is_plain_json_and_comes_back(width):
    report = laplace(classifier(), width=width).fit(class_batches()).report_
    written = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    again = FitReport.from_dict(written)
    assert str(again) == str(report)
    assert Width.from_dict(again.width).to_dict() == report.width
    assert "\nwidth        " in str(report)
    assert ("for an observation that is left out" in str(report)) == (width == "loo")


def test_a_file_keeps_the_width_and_an_older_one_has_that_of_em(tmp_path):
    path, net = tmp_path / "posterior.safetensors", classifier()
    la = laplace(net, width="loo", num_samples=16).fit(class_batches())
    la.save(path)
    loaded = sampla.LinearisedLaplace.load(path, net)
    x = torch.linspace(-1, 1, 6).view(3, 2)
    assert loaded.report_.width == json.loads(json.dumps(la.report_.width))
    assert torch.equal(loaded.predict(x).probs, la.predict(x).probs)
    assert torch.equal(loaded.predict(x).std, la.predict(x).std)
    tensors, facts = checkpoint.load(path)
    del facts["fit"]["width"]
    checkpoint.save(path, tensors, facts)
    older = sampla.LinearisedLaplace.load(path, net)
    pred = older.predict(x)
    assert (pred.width, pred.joint_width, older.report_.width) == (1.0, 1.0, None)
    assert "\nwidth" not in str(older.report_)


@pytest.mark.parametrize("solver", ["dense", "block-cg"])
def test_a_fit_that_goes_on_has_the_same_width_to_the_bit(solver, tmp_path, monkeypatch):
    def fit(folder):
        la = laplace(regressor(), "gaussian", prior="g-prior", solver=solver, width="loo")
        return la.fit(regression_batches(lambda y: y + 0.1 * y.roll(1, 0)), checkpoint=folder)

    def killed(*_args, **_settings):
        raise KeyboardInterrupt

    whole = fit(None).report_.width
    with monkeypatch.context() as patch:
        patch.setattr("sampla.laplace.training_data.leave_one_out_width", killed)
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path)
    assert fit(tmp_path).report_.width == whole
    assert fit(tmp_path).report_.width == whole


# What each of the two is for


@pytest.fixture
def predictive() -> Predictive:
    deviations = randn(12, 5, 3, seed=2)
    return Predictive(randn(5, 3, seed=1), deviations, sampla.Categorical(), num_draws=64, width=0.3, joint_width=0.8)


TARGETS, GROUP = torch.tensor([0, 1, 2, 1, 0]), torch.tensor([0, 0, 1, 1, 1])
SINGLE = {
    "probs": lambda pred: pred.probs, "entropy": lambda pred: pred.entropy,
    "log_prob": lambda pred: pred.log_prob(TARGETS),
    "probit": lambda pred: replace(pred, method="probit").probs,
    "probit log_prob": lambda pred: replace(pred, method="probit").log_prob(TARGETS),
    "gaussian": lambda pred: replace(pred, likelihood=sampla.Gaussian(2.0)).log_prob(randn(5, 3)),
}  # fmt: skip
SEVERAL = {
    "samples": lambda pred: pred.samples, "std": lambda pred: pred.std, "variance": lambda pred: pred.variance,
    "mutual_information": lambda pred: pred.mutual_information,
    "joint_log_prob": lambda pred: pred.joint_log_prob(TARGETS, GROUP),
    "sample_log_prob": lambda pred: pred.sample_log_prob(TARGETS),
    "gaussian": lambda pred: replace(pred, likelihood=sampla.Gaussian(2.0)).joint_log_prob(randn(5, 3), GROUP),
}  # fmt: skip


def by_hand(pred: Predictive, factor: float) -> Predictive:
    """Deviations multiplied before, and both widths 1."""
    return Predictive(pred.mean, factor * pred.deviations, pred.likelihood, num_draws=64)


@pytest.mark.parametrize("name", SINGLE)
def test_what_is_said_of_one_label_has_the_marginal_width(name, predictive):
    torch.testing.assert_close(SINGLE[name](predictive), SINGLE[name](by_hand(predictive, 0.3)))
    assert not torch.allclose(SINGLE[name](predictive), SINGLE[name](by_hand(predictive, 0.8)))


@pytest.mark.parametrize("name", SEVERAL)
def test_what_is_said_of_functions_has_the_joint_width(name, predictive):
    torch.testing.assert_close(SEVERAL[name](predictive), SEVERAL[name](by_hand(predictive, 0.8)))
    assert not torch.allclose(SEVERAL[name](predictive), SEVERAL[name](by_hand(predictive, 0.3)))


@pytest.mark.parametrize("table", [SINGLE, SEVERAL])
def test_scaled_sets_both(table, predictive):
    for look in table.values():
        torch.testing.assert_close(look(predictive.scaled(0.5)), look(by_hand(predictive, 0.5)))


def gaussian_scores(best: float, noise: float) -> torch.Tensor:
    """(factors, parts) scores that fall off from a best factor, with differences between parts."""
    factors = torch.tensor(FACTORS)
    curve = -((factors.clamp_min(0.01).log() - torch.tensor(best).log()) ** 2)
    slopes = torch.randn(20, generator=torch.Generator().manual_seed(0))
    slopes -= slopes.mean()
    return curve[:, None] + noise * (factors.clamp_min(0.01).log())[:, None] * slopes


@pytest.mark.parametrize(
    ("best", "noise", "least", "most"),
    [(0.05, 20.0, 1, 1), (6.0, 20.0, 1, 1), (0.3, 1e-3, 0.2, 0.45), (4.0, 1e-3, 3, 5)],
)
def test_a_quadratic_likelihood_keeps_ems_width_unless_the_data_tell_another(best, noise, least, most):
    assert least <= chosen_of(gaussian_scores(best, noise), float("inf")) <= most
    assert chosen_of(gaussian_scores(best, 1e-3), 0.1) == pytest.approx(
        min(best, 0.1), rel=0.01
    )  # others have a cover, and take the best


@pytest.mark.parametrize("error", [20.0, float("inf"), float("nan")])
def test_a_mode_that_was_not_found_decides_no_width(error, monkeypatch):
    found = training_data.mode_of
    monkeypatch.setattr(training_data, "mode_of", lambda *args: (1e3 * found(*args)[0], error))
    la = laplace(classifier(), width="loo")
    with pytest.warns(sampla.ConvergenceWarning, match=r"leave-one-out needs the linear model's mode.*width 1"):
        la.fit(class_batches())
    assert la.report_.width == Width().to_dict()
    assert la.predict(class_batches()[0][0]).width == 1
