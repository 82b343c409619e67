"""Predictions of loaders: the same as of their inputs at once, whatever form batches have, and nothing else kept."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import sampla
from helpers import class_batches, classifier, inputs, labels, laplace
from sampla.core import operations


@pytest.fixture(scope="module")
def la() -> sampla.LinearisedLaplace:
    return laplace(classifier()).fit(class_batches())


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        return iter(inputs())


FORMS = {
    "DataLoader of pairs": lambda: DataLoader(TensorDataset(inputs(), labels()), batch_size=7),
    "DataLoader of inputs": lambda: DataLoader(TensorDataset(inputs()), batch_size=7),
    "DataLoader of a stream": lambda: DataLoader(Stream(), batch_size=7),
    "list of pairs": lambda: list(zip(inputs().split(7), labels().split(7), strict=True)),
    "generator of inputs": lambda: iter(inputs().split(7)),
    "generator of arrays": lambda: (each.numpy() for each in inputs().split(7)),
    "generator of pairs with arrays": lambda: (
        (x, y.numpy()) for x, y in zip(inputs().split(7), labels().split(7), strict=True)
    ),
    "generator of pairs without targets": lambda: ((x, None) for x in inputs().split(7)),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_loader_is_predicted_as_its_inputs_are(la: sampla.LinearisedLaplace, form: str) -> None:
    found, expected = la.predict(FORMS[form]()), la.predict(inputs())
    for name in ("mean", "deviations", "probs"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    assert (found.targets is not None) == ("pairs" in form and "without" not in form)
    if found.targets is not None:
        assert torch.equal(found.targets, labels())
        torch.testing.assert_close(found.log_prob(found.targets), expected.log_prob(labels()))


def test_a_shuffled_loader_brings_its_targets(la: sampla.LinearisedLaplace) -> None:
    data = TensorDataset(inputs(), labels())
    loader = DataLoader(data, batch_size=5, shuffle=True, generator=torch.Generator().manual_seed(3))
    found = la.predict(loader)
    assert found.targets is not None
    assert not torch.equal(found.targets, labels())
    expected = la.predict(inputs()).log_prob(labels()).sort().values
    torch.testing.assert_close(found.log_prob(found.targets).sort().values, expected)


def test_batches_come_one_by_one_with_their_options(la: sampla.LinearisedLaplace) -> None:
    asked: list[int] = []

    def watched() -> Any:
        for index, batch in enumerate(class_batches()):
            asked.append(index)
            yield batch

    each = la.predict_batches(watched(), "probit", 20)
    first = next(each)
    assert asked == [0]
    assert (len(first), first.method, first.num_draws) == (8, "probit", 20)
    assert torch.equal(first.targets, labels()[:8])
    torch.testing.assert_close(sampla.Predictive.cat([first, *each]).probs, la.predict(inputs(), "probit").probs)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = classifier()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.inner(tokens)


def test_batches_are_taken_apart_as_the_fit_was_told() -> None:
    given = [{"tokens": x, "labels": y} for x, y in class_batches()]
    la = laplace(Named().eval()).fit(given, labels="labels")
    expected = la.predict({"tokens": inputs()})
    found = la.predict(iter(given))
    torch.testing.assert_close(found.probs, expected.probs)
    assert torch.equal(found.targets, labels())
    without = la.predict({"tokens": x} for x, _ in class_batches())
    assert without.targets is None
    torch.testing.assert_close(without.probs, expected.probs)
    one, other = la.leave_one_out(given), la.leave_one_out(given, labels="labels")
    assert torch.equal(one.leverage, other.leverage)
    pair = {"tokens": given[0]["tokens"]}, given[0]["labels"]
    expected_change = la.influence(given, given[0], labels="labels").change
    for test in (given[0], pair):
        assert torch.equal(la.influence(given, test).change, expected_change)
    assert la.influence(given, (pair[0], None)).change.shape == (*expected_change.shape[:1], 3, len(labels()))
    triples = [(y, 0, x) for x, y in class_batches()]
    plain = laplace(classifier()).fit(triples, unpack=lambda batch: (batch[2], batch[0]))
    torch.testing.assert_close(plain.predict(iter(triples)).probs, expected.probs)
    other = plain.predict(iter(inputs().split(9)), unpack=lambda batch: (batch, None))
    torch.testing.assert_close(other.probs, expected.probs)


class OfLists(nn.Module):
    """Takes a list with one pair of tensors for each datum."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = classifier()

    def forward(self, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        return self.inner(torch.stack([a.sum(0) for a, _ in pairs]))


def test_a_network_that_takes_lists_is_given_a_list() -> None:
    """A list of pairs that would pass for batches is one batch to a network that was fitted with lists."""

    def pairs(x: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(torch.stack([row, row]) / 2, torch.zeros(2)) for row in x]

    la = laplace(OfLists().eval()).fit([(pairs(x), y) for x, y in class_batches()])
    expected = laplace(classifier()).fit(class_batches()).predict(inputs())
    torch.testing.assert_close(la.predict(pairs(inputs())).mean, expected.mean)
    torch.testing.assert_close(la.predict(pairs(x) for x, _ in class_batches()).mean, expected.mean)
    torch.testing.assert_close(la.predict(iter([(pairs(x), y) for x, y in class_batches()])).mean, expected.mean)


def test_what_cannot_be_read_is_said(la: sampla.LinearisedLaplace) -> None:
    with pytest.raises(TypeError, match=r"batch 0 of the loader: expected inputs, or a pair .* got tuple of length 3"):
        la.predict(iter([(inputs(), labels(), labels())]))
    with pytest.raises(ValueError, match="expected a loader with at least one batch, got an empty one"):
        la.predict(iter([]))
    with pytest.raises(ValueError, match="expected finite inputs, got 1 NaN"):
        la.predict(iter([inputs(4), torch.tensor([[0.0, np.nan]])]))
    with pytest.raises(RuntimeError, match="not fitted yet"):
        laplace(classifier()).predict(iter([inputs()]))


def test_lengths_that_differ_stay_apart() -> None:
    """(n, length, classes) cannot be put together; one by one they can be asked for."""
    network = nn.Sequential(nn.Linear(2, 3)).eval()
    batches = [(inputs(8).view(2, 4, 2), torch.zeros(2, 4).long()), (inputs(6).view(2, 3, 2), torch.ones(2, 3).long())]
    la = laplace(network).fit(batches)
    with pytest.raises(ValueError, match=r"padded to lengths that differ, keep them apart"):
        la.predict(batches)
    assert [each.probs.shape for each in la.predict_batches(batches)] == [(2, 4, 3), (2, 3, 3)]


def test_a_batch_costs_a_forward_and_the_products(
    la: sampla.LinearisedLaplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    own = sampla.NetworkFeatures.own_outputs
    monkeypatch.setattr(
        sampla.NetworkFeatures, "own_outputs", lambda self, given: rows.append(len(given)) or own(self, given)
    )
    la.predict(iter(inputs().split(8)))
    assert rows == [8, 8, 8]


@pytest.mark.parametrize(("width", "largest"), [(4, 2048), (300, 486), (1_000, 128)])
def test_inputs_go_together_the_more_the_smaller_the_network(
    width: int, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 4 samples and a network of w^2 weights: 512 entries first, then 8,192, or 3.5e8 operations, at most."""
    monkeypatch.setattr(operations, "has_compiled", lambda: False)  # other tests may have
    torch.manual_seed(0)
    network, x = nn.Linear(width, width, bias=False), torch.rand(2_500, width)
    prior = sampla.Isotropic(1.0, learn=False)
    la = sampla.LinearisedLaplace(
        network.eval(), sampla.Gaussian(1.0), prior, num_samples=4, progress=False, width="em"
    )
    la.fit([(x[:4], torch.zeros(4, width))])
    rows: list[int] = []
    network.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    found = la.predict(x)
    assert (rows[0], max(rows)) == (128, largest)
    drawn = torch.einsum("kij,nj->kni", la.samples_["weight"], x)
    torch.testing.assert_close(found.mean, network(x))
    torch.testing.assert_close(found.std, drawn.square().mean(0).sqrt(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("progress", [True, False])
def test_a_bar_counts_the_batches(monkeypatch: pytest.MonkeyPatch, progress: bool) -> None:
    shown: list[tuple[Any, Any, Any]] = []
    la = sampla.LinearisedLaplace(classifier(), prior=sampla.GPrior(1.0, learn=False), width="em", progress=progress)
    la.fit(class_batches())
    from sampla.core import progress as bars

    class Bar(bars._Bar):
        def __init__(self, *given: Any, **options: Any) -> None:
            shown.append((options["desc"], options["total"], options["delay"]))
            super().__init__(*given, **{**options, "disable": True})

    monkeypatch.setattr(bars, "_Bar", Bar)
    la.predict(class_batches())
    assert shown == [("predicting", 3, 2)]
