"""A batch of data, and how it gets to the network's device."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sampla.core.inputs import brought, input_tensors, map_inputs, moved, named_leaves, pick
from sampla.core.typing import Inputs, Opaque


@dataclass(frozen=True)
class Batch:
    """n consecutive data of a pass; the first has number ``position``, from 0, in the loader's order."""

    inputs: Inputs
    targets: Tensor
    position: int
    size: int
    weights: Tensor | None = None
    """(n,) how often each datum counts; None: once."""

    @property
    def opaque(self) -> bool:
        """Whether the batch is one object for the network, which cannot be cut."""
        return isinstance(self.inputs, Opaque)

    @property
    def kind(self) -> str:
        """Entries, numbers of axes and types of inputs and targets, whatever their sizes, in words."""
        if isinstance(self.inputs, (Opaque, list)):
            whole = self.inputs.content if isinstance(self.inputs, Opaque) else self.inputs[0]
            inputs = f"{'one' if self.opaque else 'a list of'} {type(whole).__name__}"
        else:
            inputs = ", ".join(f"{name} {_kind(leaf)}".strip() for name, leaf in named_leaves(self.inputs))
        return f"inputs {inputs}; targets {_kind(self.targets)}"

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(t.nbytes for t in (*input_tensors(self.inputs), self.targets))

    def rows(self, start: int, stop: int) -> "Batch":
        """The data from start to stop; all of them if the batch is opaque."""
        if self.opaque:
            return self
        weights = None if self.weights is None else self.weights[start:stop]
        inputs = pick(self.inputs, slice(start, stop))
        return Batch(inputs, self.targets[start:stop], self.position + start, min(stop, self.size) - start, weights)

    def minibatches(self, rows: int) -> "Iterator[Batch]":
        """Cut at positions that are multiples of ``rows``, wherever this batch happens to start."""
        start = 0
        while start < self.size:
            stop = self.size if self.opaque else min(self.size, start + rows - (self.position + start) % rows)
            yield self.rows(start, stop)
            start = stop

    def on(self, device: torch.device, wait: bool = True) -> "Batch":
        """The batch on a device, in the types it has: images of uint8 travel as such.

        Args:
            device: of the network.
            wait: whether it is there when this returns; else once the current stream has come so far.
        """
        targets = brought(self.targets, device, wait)
        return replace(self, inputs=moved(self.inputs, device, wait), targets=targets)

    def pinned(self) -> "Batch":
        """The batch in page-locked memory, from which a GPU copies while the CPU goes on; objects stay as they are."""

        def pin(tensor: Tensor) -> Tensor:
            return tensor.pin_memory() if tensor.device.type == "cpu" else tensor

        return replace(self, inputs=map_inputs(pin, self.inputs), targets=pin(self.targets))


def _kind(leaf: Any) -> str:
    """Type and number of axes of a tensor, or the type of a constant."""
    if not isinstance(leaf, Tensor):
        return type(leaf).__name__
    return f"{str(leaf.dtype).removeprefix('torch.')} with {leaf.ndim} ax{'i' if leaf.ndim == 1 else 'e'}s"


def arriving(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches on a device; on a GPU each is on its way while the one before is worked on.

    The next batch is asked for as soon as the work on the present one has been queued. A stream of its own copies it
    from page-locked memory, beside that work.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch.on(device)
        return
    stream, before = torch.cuda.Stream(device), None
    for batch in batches:
        with torch.cuda.stream(stream):
            there = batch.pinned().on(device, wait=False)
            copied = stream.record_event()
        if before is not None:
            yield _arrived(*before)
        before = there, copied
        copied.synchronize()  # for long done: now the loader may use its memory again
    if before is not None:
        yield _arrived(*before)


def _arrived(batch: Batch, copied: Any) -> Batch:
    """The batch, for whose copy the work queued from now on waits; its memory is not used again before that is done."""
    current = torch.cuda.current_stream(batch.targets.device)
    current.wait_event(copied)
    for tensor in (*input_tensors(batch.inputs), batch.targets):
        tensor.record_stream(current)
    return batch
