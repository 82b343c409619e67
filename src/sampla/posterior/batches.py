"""The batches of a loader, with targets or without, as inputs of predictions."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sampla.core.inputs import as_inputs, num_inputs
from sampla.core.unpacking import Unpack, pair_of, unpacking

_TENSORS = (Tensor, np.ndarray)


def is_loader(given: Any, takes_lists: bool) -> bool:
    """Whether batches are given: a DataLoader, an iterator, or a list of pairs (inputs, targets) as ``fit`` takes it.

    Args:
        given: what is to be predicted.
        takes_lists: whether a list is one batch to this network, one object for each datum.
    """
    if isinstance(given, (DataLoader, Iterator)):
        return True
    return isinstance(given, list) and len(given) > 0 and not takes_lists and all(map(_is_batch, given))


def batches(loader: Iterable[Any], labels: str | None, unpack: Unpack | None) -> Iterator[tuple[Any, Tensor | None]]:
    """Inputs of each batch, and its targets where there are some.

    A pair is (inputs, targets), a list or tuple of one are inputs, and so is anything else.

    Args:
        loader: of batches.
        labels: the entry of mappings that holds the targets, in those that have it.
        unpack: a function of the batch that returns (inputs, targets), the targets None where there are none.

    Raises:
        TypeError: for a tuple of which nobody says what is what.
    """
    taken = unpacking(labels, unpack)
    for index, item in enumerate(loader):
        where = f"batch {index} of the loader"
        told = unpack is not None or (labels is not None and isinstance(item, Mapping) and labels in item)
        inputs, targets = pair_of(item, where, taken) if told else _parted(item, where)
        yield inputs, torch.as_tensor(targets) if isinstance(targets, _TENSORS) else None


def _parted(item: Any, where: str) -> tuple[Any, Any]:
    if not isinstance(item, (tuple, list)):
        return item, None
    if len(item) == 1 and isinstance(item[0], (*_TENSORS, Mapping, tuple, list)):
        return item[0], None
    pair = len(item) == 2 and isinstance(item[0], (*_TENSORS, Mapping, tuple, list))
    if pair or (len(item) == 2 and (item[1] is None or isinstance(item[1], _TENSORS))):
        return item[0], item[1]
    if isinstance(item, tuple) or any(isinstance(each, _TENSORS) for each in item):
        raise TypeError(
            f"{where}: expected inputs, or a pair (inputs, targets), got {type(item).__name__} of length "
            f"{len(item)}. Several inputs go into one tuple or dict; predict(loader, unpack=lambda batch: (inputs, "
            "None)) takes any batch apart."
        )
    return item, None


def _is_batch(item: Any) -> bool:
    """Whether it is a pair of inputs and one target for each datum."""
    if not (isinstance(item, (tuple, list)) and len(item) == 2 and isinstance(item[1], _TENSORS) and item[1].ndim):
        return False
    try:
        size = num_inputs(as_inputs(item[0], "predict"))
    except (TypeError, ValueError):
        return False
    return size is None or size == len(item[1])
