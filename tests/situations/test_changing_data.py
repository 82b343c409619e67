"""Data that change between passes, or with their place in the batch, are noticed; what only looks so is let pass."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sampla
from helpers import class_batches, classifier, inputs, labels, laplace, regressor
from sampla.core.hashes import Tally

FIXED = sampla.Isotropic(1.0, learn=False)
"""The order of the data does not enter: the g-prior's scales come from noise that is keyed by it."""
NOTICED = "different data on a later pass.*inputs and target together, is none of the 24 of the first"


class Passes:
    """A loader whose pass k (from 0) is ``make(k)``."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self._make, self.count, self.short = make, 0, set()

    def __iter__(self) -> Iterator[Any]:
        number, batches, given = self.count, self._make(self.count), 0
        self.count += 1
        try:
            for batch in batches:
                given += 1
                yield batch
        finally:
            if given < len(batches):
                self.short.add(number)


def _batches(likelihood: str, mixed: bool) -> Any:
    x, y = inputs(), labels() if likelihood == "categorical" else torch.sin(inputs().sum(1, keepdim=True))
    y = y[torch.randperm(24, generator=torch.Generator().manual_seed(0))] if mixed else y
    return list(zip(x.split(8), y.split(8), strict=True))


@pytest.mark.parametrize("solver", ["dense", "block-cg", "minibatch"])
@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_targets_in_another_order_are_noticed_on_every_pass(likelihood: str, solver: str) -> None:
    """Also on the first one of all, which reads one batch ahead, and on those that stop early."""

    def fit(make: Callable[[int], Any]) -> Passes:
        loader = Passes(make)
        model = classifier() if likelihood == "categorical" else regressor()
        laplace(model, likelihood, solver=solver, prior=FIXED, tolerance=0.1).fit(loader)
        return loader

    good = fit(lambda _: _batches(likelihood, False))
    assert good.count > 3
    assert solver != "minibatch" or good.short - {0}  # pass 0 is the look at the first batch; others stop early
    for at in sorted({1, 2, 4 if good.count > 4 else 3, *sorted(good.short - {0})[:2]}):
        with pytest.raises(ValueError, match=NOTICED):
            fit(lambda k, at=at: _batches(likelihood, k == at))
        with pytest.raises(ValueError, match=NOTICED):
            fit(lambda k, at=at: _batches(likelihood, k >= at))


@pytest.mark.parametrize("at", [1, 2, 5])
def test_nothing_is_made_of_data_that_changed(at: int) -> None:
    """The pass is refused at its first strange batch, not at its end."""
    loader = Passes(lambda k: _batches("categorical", k == at))
    with pytest.raises(ValueError, match=NOTICED):
        laplace(classifier(), solver="block-cg").fit(loader)
    assert loader.count == at + 1
    assert (at in loader.short) == (at > 1)  # pass 1 is the first to be read in full: it is held against the look ahead


def test_a_shuffled_loader_passes() -> None:
    def make(k: int) -> Any:
        order = torch.randperm(24, generator=torch.Generator().manual_seed(k))
        return list(zip(inputs()[order].split(8), labels()[order].split(8), strict=True))

    plain = laplace(classifier(), solver="dense", prior=FIXED).fit(class_batches())
    shuffled = laplace(classifier(), solver="dense", prior=FIXED).fit(Passes(make))
    assert torch.allclose(shuffled.effective_dimension_, plain.effective_dimension_, rtol=1e-4)


@pytest.mark.parametrize("size", [7, 3000, 20000])
def test_the_sums_over_a_pass_are_of_data_not_of_batches(size: int) -> None:
    """And they are those written out, with Python's integers: of SplitMix64 of each hash, and of it with its place."""

    def mixed(x: int) -> int:
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            x = ((x ^ (x >> shift)) * factor + 2**63) % 2**64 - 2**63
        return x

    def wrapped(x: int) -> int:
        return (x + 2**63) % 2**64 - 2**63

    numbers = torch.randint(-(2**62), 2**62, (20000,), generator=torch.Generator().manual_seed(0))
    tally = Tally()
    for part in numbers.split(size):
        tally.add(part)
    content = sum(mixed(x) for x in numbers.tolist())
    order = sum(mixed(wrapped(x + mixed(place))) for place, x in enumerate(numbers.tolist()))
    assert tally.sums() == (content % 2**64, order % 2**64)
    assert tally.sums() == tally.sums()


def test_one_datum_for_another_is_noticed_at_the_end() -> None:
    """Every datum is a known one, but one comes twice."""

    def make(k: int) -> Any:
        order = torch.arange(24) if k < 3 else torch.arange(24).clamp_max(22)
        return list(zip(inputs()[order].split(8), labels()[order].split(8), strict=True))

    with pytest.raises(ValueError, match="24 data both times, but not the same ones"):
        laplace(classifier()).fit(Passes(make))


# Padding


class Reader(nn.Module):
    """Embeds tokens and averages those that are there; or answers for each of them."""

    def __init__(self, name: str = "attention_mask", inverted: bool = False, each: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(12, 4), nn.Linear(4, 3)
        self.name, self.inverted, self.each = name, inverted, each
        self.eval()

    def forward(self, input_ids: Tensor, **masks: Tensor) -> Tensor:
        here = masks[self.name].bool() ^ self.inverted
        hidden = self.embedding(input_ids) * here[..., None]
        if self.each:
            return self.head(hidden.cumsum(1).tanh())
        return self.head(hidden.sum(1) / here.sum(1, keepdim=True))


LENGTHS = torch.arange(24) % 5 + 1
TOKENS = [torch.randint(1, 12, (int(n),), generator=torch.Generator().manual_seed(k)) for k, n in enumerate(LENGTHS)]


def _padded(order: Tensor, pad: int, left: bool, name: str, inverted: bool, junk: bool = False) -> Any:
    """Batches of 8, each padded to its own longest."""
    batches = []
    for rows in order.split(8):
        longest = int(LENGTHS[rows].max())
        ids, here = torch.full((len(rows), longest), pad), torch.zeros(len(rows), longest, dtype=torch.bool)
        if junk:
            ids = torch.randint(0, 12, ids.shape)
        for k, row in enumerate(rows):
            place = slice(longest - len(TOKENS[row]), None) if left else slice(0, len(TOKENS[row]))
            ids[k, place], here[k, place] = TOKENS[row], True
        batches.append({"input_ids": ids, name: (here ^ inverted).long(), "labels": labels()[rows]})
    return batches


@pytest.mark.parametrize(
    ("pad", "left", "name", "inverted", "junk"),
    [
        (0, False, "attention_mask", False, False),
        (7, False, "attention_mask", False, False),
        (7, True, "attention_mask", False, False),
        (7, False, "attention_mask", False, True),
        (7, False, "key_padding_mask", True, True),
        (7, True, "src_key_padding_mask", True, False),
        (7, False, "mask", False, False),
        (7, True, "mask", False, False),
        (7, False, "mask", True, False),
        (7, True, "mask", True, False),
        (7, False, "input_mask", True, False),
    ],
)
def test_padding_to_the_longest_of_each_batch_is_no_augmentation(
    pad: int, left: bool, name: str, inverted: bool, junk: bool
) -> None:
    def shuffled(k: int) -> Any:
        order = torch.randperm(24, generator=torch.Generator().manual_seed(k))
        return _padded(order, pad, left, name, inverted, junk)

    def fit(make: Callable[[int], Any]) -> sampla.LinearisedLaplace:
        return laplace(Reader(name, inverted), solver="dense", prior=FIXED).fit(Passes(make), labels="labels")

    plain = fit(lambda _: _padded(torch.arange(24), pad, left, name, inverted))
    assert torch.allclose(fit(shuffled).effective_dimension_, plain.effective_dimension_, rtol=1e-4)


def test_what_a_mask_of_unknown_meaning_leaves_out_is_looked_at_where_it_varies() -> None:
    """The first batch only suggests that it is padding."""

    def make(k: int) -> Any:
        batches = _padded(torch.arange(24), 7, False, "mask", False)
        if k >= 3:
            batches[1]["input_ids"][2, 1:] = torch.tensor([3, 9, 4, 1])[: batches[1]["input_ids"].shape[1] - 1]
        return batches

    assert int(LENGTHS[10]) == 1
    with pytest.raises(ValueError, match=NOTICED):
        laplace(Reader("mask")).fit(Passes(make), labels="labels")


@pytest.mark.parametrize(("name", "inverted"), [("attention_mask", False), ("mask", False), ("mask", True)])
@pytest.mark.parametrize("what", ["token", "order", "mask"])
def test_what_is_not_padding_is_still_looked_at(name: str, inverted: bool, what: str) -> None:
    def make(k: int) -> Any:
        batches = _padded(torch.arange(24), 7, False, name, inverted)
        ids, mask = batches[1]["input_ids"], batches[1][name]
        if k >= 3 and what == "token":
            ids[2, 0] = (ids[2, 0] + 1) % 12
        if k >= 3 and what == "order":
            ids[1, :2] = torch.tensor([3, 5])
        if k >= 3 and what == "mask":
            mask[1, 0] = 1 - mask[1, 0]
        return batches

    with pytest.raises(ValueError, match=NOTICED):
        laplace(Reader(name, inverted)).fit(Passes(make), labels="labels")


def _tagged(order: Tensor, ignored: int) -> Any:
    batches = _padded(order, 7, False, "attention_mask", False)
    for batch in batches:
        batch["labels"] = (batch["input_ids"] % 3).where(batch["attention_mask"] > 0, ignored)
    return batches


def test_ignored_targets_may_be_of_any_number() -> None:
    def make(k: int) -> Any:
        return _tagged(torch.randperm(24, generator=torch.Generator().manual_seed(k)), -100)

    la = laplace(Reader(each=True), sampla.Categorical(ignore_index=-100), solver="dense", prior=FIXED)
    found = la.fit(Passes(make), labels="labels").effective_dimension_
    expected = la.fit(_tagged(torch.arange(24), -100), labels="labels").effective_dimension_
    assert torch.allclose(found, expected, rtol=1e-4)


def test_padding_without_a_mask_is_explained() -> None:
    model = nn.Sequential(nn.Embedding(12, 4), nn.AdaptiveAvgPool2d((1, 4)), nn.Flatten(), nn.Linear(4, 3)).eval()

    def make(k: int) -> Any:
        order = torch.randperm(24, generator=torch.Generator().manual_seed(k))
        return [(b["input_ids"], b["labels"]) for b in _padded(order, 7, False, "mask", False)]

    with pytest.raises(ValueError, match=r"shapes of the batches differ: if that is padding .* dict with their mask"):
        laplace(model).fit(Passes(make))


# The place in the batch


class Placed(nn.Module):
    """A linear layer and something that depends on the rows before."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self._function = nn.Linear(2, 3), function
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self._function(self.layer(x))


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (lambda f: f + 0.1 * torch.arange(len(f))[:, None], "wherever it stands in its batch.*turned round"),
        (lambda f: f.cumsum(0), "wherever it stands in its batch"),
        (lambda f: f + 0.1 * torch.eye(len(f), 3), "wherever it stands in its batch"),
        (lambda f: f + f.roll(1, 0), "whatever else is in its batch|wherever it stands in its batch"),
        (lambda f: f + 0.1 * (f[:1] - f), "wherever it stands in its batch"),
        (lambda f: f + 0.1 * (torch.arange(len(f)) - 3.5).abs()[:, None], "in its batch.*without the first datum"),
    ],
)
def test_a_term_by_position_in_the_batch_is_refused(function: Callable[[Tensor], Tensor], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        laplace(Placed(function)).fit(class_batches())
    laplace(Placed(lambda f: f * 2)).fit(class_batches())
