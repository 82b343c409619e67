"""Features whose products go on in smaller parts when memory runs out."""

from collections.abc import Callable, Iterator
from gc import collect

import torch
from torch import Tensor

from sampla.core.chunks import Chunks
from sampla.core.inputs import num_inputs, pick
from sampla.core.memory import is_out_of_memory
from sampla.core.typing import Inputs
from sampla.features._base import Features, Linearisation, OutputCurvature

_Rows = tuple[Linearisation, slice]


class Chunked(Linearisation):
    """A linearisation that halves its data or vectors until they fit.

    A product that runs out of memory is thrown away as a whole and made again in smaller parts, so that nothing is
    counted twice.

    Args:
        features: the feature map.
        inputs: of n data.
        chunks: what is known about memory; learns from what happens here.
    """

    def __init__(self, features: Features, inputs: Inputs, chunks: Chunks) -> None:
        self._features, self._inputs, self._chunks = features, inputs, chunks
        self._size = num_inputs(inputs) or 1  # an object that cannot be cut counts as one
        self._full: Linearisation | None = None
        self._outputs: Tensor | None = None

    @property
    def outputs(self) -> Tensor:
        if self._outputs is None:
            self._outputs = self._safely(
                1, lambda rows, _: torch.cat([part.outputs for part, _ in self._in_chunks(rows)])
            )
        return self._outputs

    def jvp(self, vectors: Tensor) -> Tensor:
        def pushed(rows: int, columns: int) -> Tensor:
            split = vectors.split(columns)
            return _joined([_joined([part.jvp(few) for few in split], 0) for part, _ in self._in_chunks(rows)], 1)

        return self._safely(len(vectors), pushed)

    def vjp(self, cotangents: Tensor) -> Tensor:
        def pulled(rows: int, columns: int) -> Tensor:
            total = None
            for part, place in self._in_chunks(rows):
                each = _joined([part.vjp(few[:, place]) for few in cotangents.split(columns)], 0)
                total = each if total is None else total.add_(each)
            assert total is not None
            return total

        return self._safely(len(cotangents), pulled)

    def product(self, vectors: Tensor, output_curvature: OutputCurvature) -> Tensor:
        """In one go if memory allows; in parts the two products are made one after the other."""
        if self._chunks.possible(self._size, len(vectors)) == (self._size, len(vectors)):
            full = next(self._in_chunks(self._size))[0]
            try:
                return full.product(vectors, output_curvature)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = _first_line(error)
            del full
            self._make_room(self._size, len(vectors), reason)
        return super().product(vectors, output_curvature)

    def rounded_otherwise(self) -> Linearisation:
        self._full = None  # its activations make room for those of the other
        return Chunked(self._features.rounded_otherwise(), self._inputs, self._chunks)

    def squared_vjp(self, cotangents: Tensor) -> Tensor:
        def pulled(rows: int, columns: int) -> Tensor:
            del columns  # the mean over all of them
            parts = [part.squared_vjp(cotangents[:, place]) for part, place in self._in_chunks(rows)]
            return torch.stack(parts).sum(0)

        return self._safely(1, pulled)

    def _in_chunks(self, rows: int) -> Iterator[_Rows]:
        """Linearisations of so many data each; the one of all data is kept."""
        if rows >= self._size:
            if self._full is None:
                self._full = self._features.linearise(self._inputs)
            yield self._full, slice(None)
            return
        for start in range(0, self._size, rows):
            place = slice(start, start + rows)
            yield self._features.linearise(pick(self._inputs, place)), place

    def _safely(self, count: int, product: Callable[[int, int], Tensor]) -> Tensor:
        while True:
            rows, columns = self._chunks.possible(self._size, count)
            try:
                return product(rows, columns)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = _first_line(error)
            self._make_room(rows, columns, reason)

    def _make_room(self, rows: int, columns: int, reason: str) -> None:
        """To be called outside of the handler, whose traceback would keep the tensors of the failed product alive."""
        self._full = None
        collect()
        if self._features.device.type == "cuda":
            torch.cuda.empty_cache()
        self._chunks.halve(rows, columns, reason)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def _joined(parts: list[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=axis)
