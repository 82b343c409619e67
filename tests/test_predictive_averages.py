"""Averages over draws against loops over draws, for classes on any axis and own likelihoods; what they cost."""

import pytest
import torch

import sampla
from cases import randn
from sampla.posterior import averages

NUM_FUNCTIONS, NUM_DATA = 5, 4


class Cooled(sampla.Categorical):
    """A subclass that means something else by probabilities: no shortcut stands for it."""

    def probabilities(self, outputs):
        return (2 * outputs).softmax(self.class_axis)


class Smoothed(sampla.Categorical):
    """And one by log p."""

    def observation_log_prob(self, outputs, targets):
        own = super().observation_log_prob(outputs, targets)
        return 0.9 * own + 0.1 * outputs.log_softmax(self.class_axis).mean(self.class_axis)


class Pairs(sampla.Likelihood):
    """Two classes by tanh: all that a likelihood of classes must have."""

    class_axis = -1

    def log_prob(self, outputs, targets):
        return self.probabilities(outputs).log().gather(-1, targets[:, None])[:, 0]

    def probabilities(self, outputs):
        up = (1 + torch.tanh(outputs[..., :1])) / 2
        return torch.cat([up, 1 - up], -1)

    def curvature_product(self, outputs, vectors):
        return 0 * outputs + vectors

    def curvature_root_product(self, outputs, vectors):
        return 0 * outputs + vectors


def classes(probabilities, axis):
    return -(probabilities * probabilities.log()).sum(axis)


def labels(probabilities, _):
    return -(probabilities * probabilities.log() + (1 - probabilities) * (1 - probabilities).log())


CASES = {
    "categorical": (sampla.Categorical(), (3,), lambda f: f.softmax(-1), classes),
    "images": (sampla.Categorical(class_axis=-3), (3, 2, 2), lambda f: f.softmax(-3), classes),
    "sequences": (sampla.Categorical(ignore_index=-100), (4, 3), lambda f: f.softmax(-1), classes),
    "bernoulli": (sampla.Bernoulli(), (3,), torch.sigmoid, labels),
    "bernoulli images": (sampla.Bernoulli(ignore_value=-1), (2, 2), torch.sigmoid, labels),
    "cooled": (Cooled(), (3,), lambda f: (2 * f).softmax(-1), classes),
    "own": (Pairs(), (2,), lambda f: Pairs().probabilities(f), classes),
}


def predictive(likelihood, shape, **options):
    mean, deviations = 2 * randn(NUM_DATA, *shape, seed=1), 1.5 * randn(NUM_FUNCTIONS, NUM_DATA, *shape, seed=2)
    return sampla.Predictive(mean, deviations, likelihood, num_draws=64, **options)


def draws(pred, width):
    """The functions that are averaged over, written out."""
    mix = averages.mixing(0, NUM_FUNCTIONS, pred.num_draws, pred.mean)
    return [pred.mean + width * sum(m * d for m, d in zip(each, pred.deviations, strict=True)) for each in mix.T]


@pytest.mark.parametrize("entries", [2**16, 60])
@pytest.mark.parametrize("name", CASES)
def test_classes_are_averaged_over_draws(name, entries, monkeypatch):
    monkeypatch.setitem(averages._AT_ONCE, "cpu", entries)
    likelihood, shape, probabilities, entropy = CASES[name]
    pred = predictive(likelihood, shape, width=0.5, joint_width=1.3)
    axis = likelihood.class_axis
    narrow, wide = (torch.stack([probabilities(f) for f in draws(pred, width)]) for width in (0.5, 1.3))
    torch.testing.assert_close(pred.probs, narrow.mean(0))
    torch.testing.assert_close(pred.entropy, entropy(narrow.mean(0), axis))
    expected = entropy(wide.mean(0), axis) - torch.stack([entropy(p, axis) for p in wide]).mean(0)
    torch.testing.assert_close(pred.mutual_information, expected)


def loops(likelihood, shape):
    """Targets, some left out, and log p of a datum as a sum of what one label at a time says."""
    if isinstance(likelihood, sampla.Bernoulli):
        targets = (randn(NUM_DATA, *shape, seed=3) > 0).double()
        targets[1].view(-1)[0] = -1 if likelihood.ignore_value is not None else 1
        known = targets >= 0
        return targets, lambda f: (torch.where(targets == 1, f.sigmoid(), 1 - f.sigmoid()).log() * known).flatten(1)
    axis = likelihood.class_axis
    inner = randn(NUM_DATA, *shape, seed=3).argmax(axis)
    if likelihood.ignore_index is not None:
        inner[1, 0] = likelihood.ignore_index
    known = inner >= 0

    def each(f):
        log_p = f.log_softmax(axis)
        chosen = log_p.gather(axis, inner.clamp_min(0).unsqueeze(axis)).squeeze(axis)
        if isinstance(likelihood, Smoothed):
            chosen = 0.9 * chosen + 0.1 * log_p.mean(axis)
        return (chosen * known).reshape(NUM_DATA, -1)

    return inner, each


@pytest.mark.parametrize("entries", [2**16, 60])
@pytest.mark.parametrize("name", ["categorical", "images", "sequences", "bernoulli", "bernoulli images", "smoothed"])
def test_likelihoods_are_averaged_over_draws(name, entries, monkeypatch):
    monkeypatch.setitem(averages._AT_ONCE, "cpu", entries)
    likelihood, shape = CASES[name][:2] if name in CASES else (Smoothed(), (3,))
    pred = predictive(likelihood, shape, width=0.5, joint_width=1.3)
    targets, each = loops(likelihood, shape)
    narrow, wide = (torch.stack([each(f).sum(1) for f in draws(pred, width)]) for width in (0.5, 1.3))
    torch.testing.assert_close(pred.log_prob(targets), narrow.exp().mean(0).log())
    torch.testing.assert_close(pred.sample_log_prob(targets), wide)
    group = torch.tensor([0, 1, 1, 0])
    joint = torch.stack([wide[:, [0, 3]].sum(1), wide[:, [1, 2]].sum(1)], 1).exp().mean(0).log()
    torch.testing.assert_close(pred.joint_log_prob(targets, group), joint)


def test_averages_are_made_once_and_shared_where_the_widths_are_one(monkeypatch):
    made = []
    once = averages.class_averages
    monkeypatch.setattr(
        "sampla.posterior.predictive.class_averages", lambda *given: made.append(given[3].shape) or once(*given)
    )
    pred = predictive(sampla.Categorical(), (3,))
    for _ in range(2):
        _ = pred.probs, pred.entropy, pred.mutual_information
    assert made == [(NUM_FUNCTIONS, 64)]
    assert pred.probs is pred.probs
    other = predictive(sampla.Categorical(), (3,), width=0.0)  # the network's own probabilities take no draws
    _ = other.probs, other.entropy
    assert made[1:] == [(NUM_FUNCTIONS, 1)]
    assert not torch.equal(pred.scaled(0.5).probs, pred.probs)


@pytest.mark.parametrize("shape", [(5, 10), (5, 3000)])
def test_no_more_is_in_flight_for_more_data_or_outputs(shape):
    seen = []

    class Watched(sampla.Categorical):
        def class_sums(self, drawn):
            seen.append(drawn.numel())
            return super().class_sums(drawn)

    deviations = torch.zeros(4, 600, *shape[1:]) if shape[1] == 10 else torch.zeros(4, *shape)
    _ = sampla.Predictive(deviations[0], deviations, Watched()).probs
    assert max(seen) <= 2**16
    assert len(seen) > 2


def test_the_graph_of_the_outputs_is_kept():
    """d probs / d mean by autograd against differences."""
    pred = predictive(sampla.Categorical(), (3,))
    mean = pred.mean.clone().requires_grad_()
    traced = sampla.Predictive(mean, pred.deviations, pred.likelihood, num_draws=64)
    for what in ("probs", "entropy", "mutual_information"):
        (gradient,) = torch.autograd.grad(getattr(traced, what)[1].sum(0).flatten()[0], mean, retain_graph=True)
        shift = torch.zeros_like(pred.mean)
        shift[1] = 1e-6 * randn(3, seed=8)
        ends = [
            getattr(sampla.Predictive(pred.mean + s * shift, pred.deviations, pred.likelihood, num_draws=64), what)
            for s in (1, -1)
        ]
        difference = (ends[0][1].sum(0) - ends[1][1].sum(0)).flatten()[0] / 2
        torch.testing.assert_close((gradient * shift).sum(), difference, rtol=1e-5, atol=1e-13)


def test_of_no_data_there_is_nothing():
    pred = sampla.Predictive(torch.zeros(0, 3), torch.zeros(4, 0, 3), sampla.Categorical())
    assert pred.probs.shape == (0, 3)
    assert pred.entropy.shape == pred.mutual_information.shape == (0,)
