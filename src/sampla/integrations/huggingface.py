"""Hugging Face: batches of causal language models, whose labels are those of the place itself."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sampla.core.checks import require

IGNORED = -100
"""The label of a place that no loss counts, in Hugging Face and by default in torch's cross entropy."""


def next_tokens(batch: Mapping[str, Any]) -> tuple[dict[str, Any], Tensor]:
    """Inputs and targets of a causal language model: at each place the label of the next one.

    Give it as ``la.fit(loader, unpack=next_tokens)``, with ``Categorical(ignore_index=-100)`` as the likelihood.
    Hugging Face shifts labels within its models, where it computes their loss; a posterior needs them shifted. Left
    out, as -100, are the last place, padding, what a place of padding would predict, and labels that are -100 already,
    such as those of a prompt.

    Args:
        batch: a mapping with input_ids (n, L), and where there are some attention_mask (n, L), 1 for what is there, and
            labels (n, L) (None or missing: the tokens themselves). All other entries are inputs too.

    Returns:
        All entries but the labels, and targets (n, L).

    Raises:
        ValueError: if there are no input_ids, or labels of another shape.
    """
    names, own = ", ".join(map(repr, batch)), "Write an unpack= of your own."
    require("input_ids" in batch, "an entry 'input_ids' in each batch", f"entries {names}", own)
    tokens = torch.as_tensor(batch["input_ids"])
    labels = tokens if batch.get("labels") is None else torch.as_tensor(batch["labels"])
    require(
        labels.shape == tokens.shape and tokens.ndim == 2,
        f"labels of the shape of input_ids, (n, L), here {tuple(tokens.shape)}",
        f"{tuple(labels.shape)}",
        "A model that reads one text and writes another needs no shift: fit(loader, labels='labels').",
    )
    targets = _next(labels, IGNORED)
    if batch.get("attention_mask") is not None:
        here = torch.as_tensor(batch["attention_mask"]) != 0
        targets = targets.masked_fill(~(here & _next(here, False)), IGNORED)
    return {name: value for name, value in batch.items() if name != "labels"}, targets


def _next(rows: Tensor, last: int) -> Tensor:
    """(n, L) entries of the places after, and something after the last."""
    return torch.cat([rows[:, 1:], torch.full_like(rows[:, :1], last)], 1)
