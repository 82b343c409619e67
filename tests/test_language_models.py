"""Batches of language models: labels one place on, padding of decoders, labels that nobody shifted."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from warnings import catch_warnings, simplefilter

import pytest
import torch
from torch import Tensor, nn

import sampla
from sampla.integrations.huggingface import next_tokens

PRIOR = sampla.Isotropic(1.0, learn=False)
WORDS = sampla.Categorical(ignore_index=-100)


class Language(nn.Module):
    """Logits of a token from the mean of those up to it, as a dict beside a hidden state."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(9, 3), nn.Linear(3, 9)
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        there = attention_mask[..., None]
        hidden = (self.embedding(input_ids) * there).cumsum(1) / there.cumsum(1).clamp_min(1)
        return {"hidden": hidden, "logits": self.head(hidden)}


LENGTHS = [2, 4, 3, 5]
TEXTS = [torch.randint(0, 8, (n,), generator=torch.Generator().manual_seed(n)) for n in LENGTHS]


def padded(texts: list[Tensor], left: bool, pad: int) -> dict[str, Tensor]:
    """One batch as Hugging Face's collator for language models makes it."""
    longest = max(map(len, texts))
    ids, mask = torch.full((len(texts), longest), pad), torch.zeros(len(texts), longest, dtype=torch.long)
    for row, text in enumerate(texts):
        place = slice(longest - len(text), None) if left else slice(0, len(text))
        ids[row, place], mask[row, place] = text, 1
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


@dataclass
class Shuffled:
    """Batches of two texts, of others at each pass, padded to the longest of each batch."""

    left: bool
    pad: int
    passes: int = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        order = torch.randperm(4, generator=torch.Generator().manual_seed(self.passes)).tolist()
        self.passes += 1
        yield from (padded([TEXTS[k] for k in order[a : a + 2]], self.left, self.pad) for a in (0, 2))


def laplace(model: nn.Module, **settings: Any) -> sampla.LinearisedLaplace:
    return sampla.LinearisedLaplace(model, WORDS, PRIOR, solver="dense", width="em", progress=False, **settings)


def gamma(loader: Any) -> Tensor:
    return laplace(Language()).fit(loader, unpack=next_tokens).effective_dimension_


@pytest.mark.parametrize("left", [False, True])
def test_targets_are_the_next_tokens(left: bool) -> None:
    batch = padded(TEXTS[:2], left, 8)
    batch["labels"][1, 1] = -100  # of a prompt
    inputs, targets = next_tokens(batch)
    short, (a, b, c, d) = TEXTS[0], TEXTS[1].tolist()
    first = [-100, -100, int(short[1]), -100] if left else [int(short[1]), -100, -100, -100]
    assert targets.tolist() == [first, [-100, c, d, -100]]
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    del batch["labels"], batch["attention_mask"]
    assert next_tokens(batch)[1][1].tolist() == [b, c, d, -100]
    assert a == batch["input_ids"][1, 0]


@pytest.mark.parametrize(("left", "pad"), [(False, 0), (False, 8), (True, 8), (True, 3)])
def test_padding_changes_from_batch_to_batch(left: bool, pad: int) -> None:
    """The same posterior as that of texts of which each is a batch of its own, without padding."""
    alone = [padded([text], False, 0) for text in TEXTS]
    assert torch.allclose(gamma(Shuffled(left, pad)), gamma(alone), rtol=1e-4)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"ids": torch.zeros(2, 3)}, "entry 'input_ids' in each batch, got entries 'ids'"),
        (
            {"input_ids": torch.zeros(2, 3), "labels": torch.zeros(2, 4)},
            r"shape of input_ids.*\(2, 4\).*needs no shift",
        ),
    ],
)
def test_other_batches_are_refused(batch: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        next_tokens(batch)


def test_labels_that_nobody_shifted_are_noticed() -> None:
    loader = [padded(TEXTS[a : a + 2], False, 8) for a in (0, 2)]
    with pytest.warns(UserWarning, match=r"about copying.*next_tokens"):
        laplace(Language()).fit(loader, labels="labels")


def test_labels_that_are_not_the_tokens_pass() -> None:
    loader = [padded(TEXTS[a : a + 2], False, 8) for a in (0, 2)]
    loader[1]["labels"][0, 0] = (loader[1]["labels"][0, 0] + 1) % 8
    with catch_warnings():
        simplefilter("error")
        laplace(Language()).fit(loader, labels="labels")


class Translator(nn.Module):
    """Reads one text, and writes another."""

    def __init__(self) -> None:
        super().__init__()
        self.language = Language()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor) -> Tensor:
        there = attention_mask[..., None]
        read = (self.language.embedding(input_ids) * there).sum(1, keepdim=True) / there.sum(1, keepdim=True)
        written = self.language.embedding(decoder_input_ids).cumsum(1)
        return self.language.head((read + written).tanh())


def translations(order: list[int], written: list[Tensor]) -> dict[str, Tensor]:
    """A batch with what a decoder reads: the labels one place later, padded by 7, and no mask of its own."""
    batch = padded([TEXTS[k] for k in order], False, 8)
    labels = padded([written[k] for k in order], False, 7)["labels"]
    begin = torch.zeros(len(order), 1, dtype=torch.long)
    earlier = torch.cat([begin, labels[:, :-1]], 1)
    return {**batch, "labels": labels, "decoder_input_ids": earlier.masked_fill(earlier == -100, 7)}


@dataclass
class Translations:
    """Batches of two, of others at each pass; what is written is as long as what is read in some batches only."""

    changed: bool = False
    passes: int = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        written = [TEXTS[k] for k in (2, 0, 3, 1)]
        if self.changed and self.passes > 2:
            written[0] = written[0].flip(0)
        orders = [[0, 1, 2, 3], [3, 1, 0, 2], [2, 1, 3, 0]]
        order = orders[self.passes % 3]
        self.passes += 1
        yield from (translations(order[a : a + 2], written) for a in (0, 2))


def test_what_a_decoder_reads_is_padded_by_whatever_number() -> None:
    found = laplace(Translator().eval()).fit(Translations(), labels="labels").effective_dimension_
    alone = [translations([k], [TEXTS[j] for j in (2, 0, 3, 1)]) for k in range(4)]
    expected = laplace(Translator().eval()).fit(alone, labels="labels").effective_dimension_
    assert torch.allclose(found, expected, rtol=1e-4)


def test_other_words_of_a_decoder_are_noticed() -> None:
    with pytest.raises(ValueError, match="different data on a later pass"):
        laplace(Translator().eval()).fit(Translations(changed=True), labels="labels")
