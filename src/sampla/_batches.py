"""Reading the user's data: batches with positions, and a watch on whether a loader's data stay the same.

Every pass sums a hash of each datum (inputs and targets). The sum does not depend on the order, so a
shuffled loader passes; random augmentation, or shuffling with drop_last, changes it and is explained.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sampla._checks import require
from sampla._progress import Progress
from sampla._typing import Inputs, Loader

_CHANGED = (
    "the loader gave different data on a later pass ({detail}). A posterior needs the same N data on every pass: "
    "use a loader without random augmentation, and without drop_last when it shuffles."
)
_EMPTY = "Check the data set, and that the loader can be read more than once (a list or DataLoader, no generator)."


@dataclass(frozen=True)
class Batch:
    """A run of data: n of them, from ``position`` (0-based, in loader order)."""

    inputs: Inputs
    targets: Tensor
    position: int
    size: int
    weights: Tensor | None = None
    """(n,) how often each datum counts; None: once."""

    def pieces(self, rows: int) -> "Iterator[Batch]":
        """Cut at positions that are multiples of ``rows``, wherever this batch happens to start."""
        start = 0
        while start < self.size:
            stop = min(self.size, start + rows - (self.position + start) % rows)
            inputs = map_inputs(lambda t, a=start, b=stop: t[a:b], self.inputs)
            weights = None if self.weights is None else self.weights[start:stop]
            yield Batch(inputs, self.targets[start:stop], self.position + start, stop - start, weights)
            start = stop


def map_inputs(function: Any, inputs: Inputs) -> Inputs:
    """Apply a function to every tensor of the inputs, keeping tuple or dict."""
    if isinstance(inputs, Tensor):
        mapped: Inputs = function(inputs)
        return mapped
    if isinstance(inputs, Mapping):
        return {name: function(value) for name, value in inputs.items()}
    return tuple(function(value) for value in inputs)


def input_tensors(inputs: Inputs) -> list[Tensor]:
    """The tensors of the inputs, in a fixed order."""
    if isinstance(inputs, Tensor):
        return [inputs]
    if isinstance(inputs, Mapping):
        return [inputs[name] for name in sorted(inputs)]
    return list(inputs)


def describe_inputs(inputs: Inputs) -> str:
    """Shapes and dtypes, for messages."""
    return ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in input_tensors(inputs))


def check_inputs(inputs: Any, where: str) -> int:
    """The number of data n in the inputs.

    Raises:
        TypeError: if they are not a tensor, a tuple or a dict of tensors.
        ValueError: if their first axes differ or are empty.
    """
    container = isinstance(inputs, (Tensor, Mapping, tuple, list))
    if not container or not all(isinstance(t, Tensor) for t in input_tensors(inputs)):
        raise TypeError(
            f"{where}: expected inputs as a tensor, a tuple or a dict of tensors, got {type(inputs).__name__}. "
            "Convert them in the data set or with a collate_fn."
        )
    sizes = {t.shape[0] if t.ndim else 0 for t in input_tensors(inputs)}
    require(
        len(sizes) == 1 and 0 not in sizes,
        f"inputs that share a first axis of n > 0 data in {where}",
        describe_inputs(inputs) or "no tensor",
        "Give every input tensor the shape (n, ...).",
    )
    return sizes.pop()


def _as_batch(item: Any, index: int, position: int, device: torch.device) -> Batch:
    where = f"batch {index} of the loader"
    if not (isinstance(item, (tuple, list)) and len(item) == 2):
        raise TypeError(
            f"{where}: expected a pair (inputs, targets), got {type(item).__name__}"
            f"{f' of length {len(item)}' if isinstance(item, (tuple, list)) else ''}. "
            "Several inputs go into one tuple or dict: ((x1, x2), y)."
        )
    inputs, targets = item
    size = check_inputs(inputs, where)
    require(
        isinstance(targets, Tensor) and targets.ndim > 0 and targets.shape[0] == size,
        f"targets as a tensor with first axis {size}, like the inputs, in {where}",
        f"{tuple(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__,
        "Give one target per datum.",
    )
    return Batch(map_inputs(lambda t: brought(t, device), inputs), brought(targets, device), position, size)


def brought(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor where it is needed, and one that derivatives may go through, which those of inference mode are not."""
    return tensor.to(device).clone() if tensor.is_inference() else tensor.to(device)


class Data(ABC):
    """N data that can be read many times, in batches."""

    cut = True
    """Whether batches are to be cut to the size that products like; otherwise they come in that size, and checked."""
    fixed_order = True
    """False once two passes came in different orders."""
    sweeps = 0
    """How often the data have been read to their end."""

    @property
    @abstractmethod
    def num_data(self) -> int:
        """N, known after the first pass."""

    @abstractmethod
    def __iter__(self) -> Iterator[Batch]:
        """One pass."""


class CheckedLoader(Data):
    """The user's loader, checked: the same data on every pass, in any order."""

    def __init__(self, loader: Loader, device: torch.device, progress: Progress) -> None:
        if not isinstance(loader, Iterable) or isinstance(loader, Iterator):
            raise TypeError(
                "expected a loader that can be read many times (a DataLoader, or a list of (inputs, targets) batches), "
                f"got {type(loader).__name__}. Wrap it in list(...) if it fits into memory."
            )
        self._loader = loader
        self._device = device
        self._progress = progress
        self._length: int | None = None
        self._fingerprint: tuple[int, int] | None = None
        self._first_order: int | None = None

    @property
    def num_data(self) -> int:
        """N, known after the first pass."""
        assert self._fingerprint is not None, "read the loader once first"
        return self._fingerprint[0]

    @property
    def fingerprint(self) -> str:
        """A hexadecimal hash of all data in any order, known after the first pass."""
        assert self._fingerprint is not None, "read the loader once first"
        return f"{self._fingerprint[1]:016x}"

    def __iter__(self) -> Iterator[Batch]:
        position, content, order, index = 0, 0, 0, -1
        for index, item in enumerate(self._progress.sweep(self._loader, self._length)):
            batch = _as_batch(item, index, position, self._device)
            hashes = _datum_hashes(batch)
            content = _wrap(content + int(_mix(hashes).sum()))
            positions = torch.arange(position, position + batch.size, device=hashes.device)
            order = _wrap(order + int(_mix(hashes + _mix(positions)).sum()))
            position += batch.size
            yield batch
        self._finish(position, content, order, index + 1)

    def _finish(self, size: int, content: int, order: int, batches: int) -> None:
        if self._fingerprint is None:
            require(size > 0, "a loader with at least one batch", "an empty one", _EMPTY)
            self._fingerprint, self._first_order, self._length = (size, content), order, batches
        elif size != self._fingerprint[0]:
            hint = "" if size else "; was it a generator, which can be read only once?"
            raise ValueError(_CHANGED.format(detail=f"{self._fingerprint[0]} data, then {size}{hint}"))
        elif content != self._fingerprint[1]:
            raise ValueError(_CHANGED.format(detail=f"{size} data both times, but not the same ones"))
        self.fixed_order = self.fixed_order and order == self._first_order
        self.sweeps += 1


def _wrap(value: int) -> int:
    return value % 2**64


def _mix(x: Tensor) -> Tensor:
    """Finaliser of SplitMix64 (Steele et al. 2014) on int64, whose products wrap."""
    x = (x ^ (x >> 30)) * -4658895280553007687
    x = (x ^ (x >> 27)) * -7723592293110705685
    return x ^ (x >> 31)


def _datum_hashes(batch: Batch) -> Tensor:
    """(n,) int64: a hash of the bits of each datum and its target."""
    total = torch.zeros(batch.size, dtype=torch.int64, device=batch.targets.device)
    for k, tensor in enumerate([*input_tensors(batch.inputs), batch.targets]):
        bits = _bits(tensor)
        weights = _mix(torch.arange(1, bits.shape[1] + 1, device=bits.device) + (k << 40))
        total = _mix(total + (bits * weights).sum(1))
    return total


def _bits(tensor: Tensor) -> Tensor:
    """The bits of (n, ...) as (n, d) int64."""
    flat = tensor.detach().reshape(tensor.shape[0], -1).contiguous()
    if flat.is_floating_point():
        flat = flat.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
    return flat.to(torch.int64)


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A hexadecimal hash of named tensors: tells one network's weights from another's."""
    total = torch.zeros((), dtype=torch.int64)
    for name in sorted(tensors):
        bits = _bits(tensors[name].detach().reshape(1, -1).cpu())
        weights = _mix(torch.arange(1, bits.shape[1] + 1) + sum(name.encode()))
        total = _mix(total + (bits * weights).sum())
    return f"{_wrap(int(total)):016x}"
