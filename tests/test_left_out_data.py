"""``LinearisedLaplace.leave_one_out``: every training datum as the posterior predicts it without it."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import norm

import sampla
from cases import randn
from helpers import (
    assert_unchanged,
    class_batches,
    classifier,
    inputs,
    labels,
    laplace,
    regression_batches,
    regressor,
    snapshot,
)
from sampla.inference.leave_one_out import LeaveOneOut
from test_leave_one_out import averaged
from test_width import exact, own_scale


@cache
def fitted(name: str, at_mode: bool) -> sampla.LinearisedLaplace:
    """A fit whose samples have exactly the right second moment, at half the posterior's deviations."""
    case = exact(name, at_mode)
    options = {"curvature_at": "linear-mode" if at_mode else "network", "num_samples": 4, "width": 0.5}
    la = case.problem.fit(sampla.Isotropic(case.alpha, learn=False), **options)
    la._posterior = replace(la._posterior, samples=case.samples[: 40 * len(case.inverse)])
    return la


@pytest.mark.parametrize(
    ("name", "at_mode"),
    [("categorical", True), ("categorical", False), ("bernoulli", False), ("gaussian-scalar", False)],
)
def test_scores_and_leverages_are_those_of_dense_inverses(name, at_mode):
    """In the order of the loader, at the marginal width; the scale of the linear mode is found where there is none."""
    case, loo = exact(name, at_mode), fitted(name, at_mode).leave_one_out(exact(name, at_mode).problem.loader)
    _, leverage, outputs, spread = case.left_out()
    if name == "gaussian-scalar":
        deviation = (1 + 0.25 * spread[:, 0, 0]).sqrt()
        expected = torch.from_numpy(norm.logpdf((case.labels - outputs)[:, 0], 0, deviation))
        expected = expected + torch.linalg.slogdet(case.whitening).logabsdet / 3
    else:
        expected = averaged(own_scale(case) * outputs, spread, case.labels, 0.5, 1.0)
    torch.testing.assert_close(loo.leverage.flatten(), leverage, rtol=1e-2, atol=1e-3)  # what the mode is known to
    off = (loo.log_prob.flatten() - expected).abs()
    assert float(off.median()) < 0.02
    assert float(loo.score) == pytest.approx(float(expected.sum()), rel=0.05)
    by_datum = expected.view(len(case.problem.inputs), -1).sum(1)
    assert loo.score_error == pytest.approx(float(by_datum.std() * len(by_datum) ** 0.5), rel=0.1)
    assert (loo.width, loo.num_observations) == (0.5, len(expected))


def test_the_score_is_that_of_the_report():
    """Where the width was chosen by it: the report's is at the nearest place of a grid of factors."""
    la = laplace(classifier(), width="loo", num_samples=16).fit(class_batches())
    loo, width = la.leave_one_out(class_batches()), la.report_.width
    assert loo.score / loo.num_observations == pytest.approx(width["score"], abs=0.02)
    assert loo.num_observations == width["num_observations"]
    assert (loo.width, int((loo.leverage > 0.9).sum())) == (width["marginal"], width["near_one"])


def test_a_wrong_label_is_the_least_likely_one_and_the_network_is_untouched():
    x, y = inputs(60), labels(60)
    y[17] = (y[17] + 2) % 3
    net = classifier()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(100):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    optimiser.zero_grad()
    before = snapshot(net)
    loader = list(zip(x.split(7), y.split(7), strict=True))
    la = laplace(net, prior="g-prior", width="loo", num_samples=16).fit(loader)
    loo = la.leave_one_out(loader)
    assert_unchanged(net, before)
    assert loo.least_likely(1).tolist() == [17]
    assert loo.log_prob.shape == loo.leverage.shape == (60,)
    words = str(loo)
    assert words.startswith("Leave-one-out of 60 observations, at ")
    assert "least likely  datum 17 (-" in words
    assert f"{loo.score:.1f} +- {loo.score_error:.1f} nats" in words


def small(log_prob: list[list[float]], counted: list[list[bool]] | None = None) -> LeaveOneOut:
    values = torch.tensor(log_prob)
    known = torch.ones(values.shape, dtype=torch.bool) if counted is None else torch.tensor(counted)
    return LeaveOneOut(values.where(known, 0), torch.full(values.shape, 0.5), known, 1.0)


def test_data_have_the_place_of_their_least_likely_observation():
    loo = small([[-1, -2], [-5, 0], [-3, -3], [0, 0]], [[True, True], [False, True], [True, False], [False, False]])
    assert loo.least_likely(2).tolist() == [2, 0]
    assert loo.least_likely(10).tolist() == [2, 0, 1]
    assert (loo.num_observations, loo.score) == (4, -6.0)
    with pytest.raises(ValueError, match="count"):
        loo.least_likely(0)


def test_two_models_are_compared_datum_by_datum():
    hard = randn(200, 1, seed=1) * 5
    one, other = (small((hard + shift + randn(200, 1, seed=seed) / 10).tolist()) for shift, seed in ((0.05, 2), (0, 3)))
    difference, error = one.minus(other)
    assert difference == pytest.approx(one.score - other.score, abs=1e-3)
    assert error == pytest.approx(200**0.5 * np.hypot(0.1, 0.1), rel=0.2)
    assert error < 0.1 * one.score_error
    with pytest.raises(ValueError, match=r"a score of the same 200 data, got 4\. Give both one loader"):
        one.minus(small([[0.0]] * 4))


def test_pixels_without_a_label_are_no_observations():
    images, target = randn(5, 1, 4, 4, dtype=torch.float32), torch.arange(80).view(5, 4, 4) % 3
    target[:, 0] = 255
    net = torch.nn.Conv2d(1, 3, 3, padding=1).eval()
    la = laplace(net, sampla.Categorical(class_axis=-3, ignore_index=255)).fit([(images, target)])
    loo = la.leave_one_out([(images, target)])
    assert loo.log_prob.shape == (5, 4, 4)
    assert torch.equal(loo.counted, target != 255)
    assert bool((loo.log_prob[:, 0] == 0).all())
    assert loo.num_observations == 60


def test_the_mode_is_looked_for_where_the_fit_had_no_need_of_it():
    """A fixed prior and the width of EM: the same answer as after a fit that had found it."""
    em, found = (laplace(classifier(), width=width).fit(class_batches()) for width in ("em", "loo"))
    expected = found.leave_one_out(class_batches())
    torch.testing.assert_close(em.leave_one_out(class_batches()).leverage, expected.leverage)
    assert em.leave_one_out(class_batches()).width == 1.0


# What is refused


@pytest.fixture(scope="module")
def la() -> sampla.LinearisedLaplace:
    return laplace(classifier(), width="loo").fit(class_batches())


def test_before_a_fit():
    with pytest.raises(RuntimeError, match="not fitted yet"):
        laplace(classifier()).leave_one_out(class_batches())


def test_a_posterior_from_a_file(la, tmp_path):
    la.save(tmp_path / "posterior.safetensors")
    loaded = sampla.LinearisedLaplace.load(tmp_path / "posterior.safetensors", la.model)
    match = "a posterior that was fitted in this process, got one from a file, or moved by to"
    with pytest.raises(ValueError, match=match):
        loaded.leave_one_out(class_batches())


def test_other_data_than_those_of_the_fit(la):
    match = r"the 24 data of the fit, inputs and targets, got as many, but not the same ones. Only .*la.predict\(x\)"
    with pytest.raises(ValueError, match=match):
        la.leave_one_out(class_batches(change_y=lambda y: 2 - y))
    with pytest.raises(ValueError, match="the 24 data of the fit, inputs and targets, got 16 data"):
        la.leave_one_out(class_batches()[:2])


def test_a_loader_that_shuffles(la):
    data = torch.utils.data.TensorDataset(inputs(), labels())
    torch.manual_seed(0)
    match = "the same order every time, got another order the second time. Answers are told by the place"
    with pytest.raises(ValueError, match=match):
        la.leave_one_out(torch.utils.data.DataLoader(data, batch_size=8, shuffle=True))


def test_another_order_than_that_of_the_fit(la):
    """Is that of the answer."""
    backwards = [(x.flip(0), y.flip(0)) for x, y in reversed(class_batches())]
    torch.testing.assert_close(la.leave_one_out(backwards).log_prob.flip(0), la.leave_one_out(class_batches()).log_prob)


def test_regression_has_a_score_for_each_output():
    la = laplace(regressor(), "gaussian", prior="g-prior").fit(noisy())
    assert la.leave_one_out(noisy()).log_prob.shape == (24, 1)


def noisy() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return regression_batches(lambda y: y + 0.1 * y.roll(1, 0))
