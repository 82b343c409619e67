"""How much goes through the network at once, measured on the first data of a fit: the fastest for a datum and a vector.

Sizes grow from small to large until that brings nothing more, so that a large network is never tried with more than it
needs. Then the features' other way of taking products is tried with the best of them. A small problem keeps the preset:
measuring would cost more than it saves, and is not repeatable to the bit.
"""

from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from sampla.core.data import Batch
from sampla.core.memory import LivePeak, free_bytes, is_out_of_memory
from sampla.core.noise import PROBE, standard_normal
from sampla.features import Features
from sampla.linear_batch import LinearBatch
from sampla.model import LinearModel

_FEWEST_PRODUCTS, _LEAST_WORK = 2**14, 2**32
"""Data times vectors, and the same times P, of a pass that is worth measuring for."""
_MOST_ENTRIES = 4096
_GAIN = 0.95
"""A larger chunk must bring this much; and of equals the smaller is taken, which needs less memory."""
_SPACE = 48
"""Vectors of a usual Krylov space of EM: what reduced products save is a part of so many, and what they cost is a
product with each of the K right-hand sides, for the residual of the start that they give (docs/notes/engine.md)."""
_SECONDS, _SHARE = 3.0, 0.05
"""What measuring may take, in seconds or as a part of one pass, whichever is more."""
_QUICK = 0.5
"""Seconds below which a product is timed twice: the first one meets cold caches."""
_OF_FREE = 0.5
"""Part of the free memory that a chunk may need."""


@dataclass(frozen=True)
class ChunkMemory:
    """Bytes that a product holds at its peak beyond its arguments: bilinear in n data and K vectors."""

    base: float
    per_row: float
    per_column: float
    per_entry: float

    def __call__(self, rows: int, columns: int) -> int:
        """Bytes for so many data and vectors at once."""
        return int(self.base + self.per_row * rows + self.per_column * columns + self.per_entry * rows * columns)


def chunk_memory(features: Features, batch: Batch) -> ChunkMemory:
    """Linearise one datum and then more of the batch, with one vector and with two, and count what is alive.

    What kernels use as scratch is not seen.
    """
    rows = 1 if batch.opaque else min(4, batch.size)  # an opaque batch is alive as a whole, however few are asked for
    few, many = (_live(features, batch, n, 1) for n in (1, rows))
    few_wide, many_wide = (_live(features, batch, n, 3) for n in (1, rows))
    step = max(rows - 1, 1)
    per_entry = max(0.0, (many_wide - few_wide - many + few) / (2 * step))
    per_row = max(0.0, (many - few) / step - per_entry)
    per_column = max(0.0, (few_wide - few) / 2 - per_entry)
    return ChunkMemory(max(0.0, few - per_row - per_column - per_entry), per_row, per_column, per_entry)


def _live(features: Features, batch: Batch, rows: int, columns: int) -> int:
    vectors = _vectors(features, columns)
    inputs = batch.rows(0, rows).inputs
    with LivePeak() as alive:
        here = features.linearise(inputs)
        here.product(vectors, lambda _, pushed: pushed)
    peak: int = alive.peak
    return peak


def tune(model: LinearModel, num_vectors: int) -> None:
    """Measure how many data and vectors should go through the features at once, and remember it in ``model.chunks``.

    Does nothing where they are known already, where the data come in chunks of their own or cannot be cut, or where a
    pass is short.

    Args:
        model: whose data have been read once.
        num_vectors: K of the products to come.
    """
    chunks, data = model.chunks, model.data
    if chunks.way:
        _take(model, chunks.way)
    work = data.num_data * num_vectors
    settled = chunks.source != "preset" or chunks.halvings > 0
    if settled or not data.cut or work < _FEWEST_PRODUCTS or work * model.num_parameters < _LEAST_WORK:
        return
    start = perf_counter()
    first = next(iter(data), None)
    if first is None or first.opaque:
        return
    search = _Search(model, first, num_vectors, work)
    rows, columns = search.best()
    chunks.prefer(rows * columns, columns, "measured")
    search.choose_way((rows, columns))
    search.choose_precision((rows, columns))
    chunks.way, chunks.seconds = model.features.unscaled()[0].way, perf_counter() - start


def _take(model: LinearModel, way: str) -> None:
    """Take products as the fit did before it was cut off."""
    base, first = model.features.unscaled()[0], next(iter(model.data)).rows(0, 2).inputs
    for other in [base, *base.alternatives(first)]:
        for each in (other, other.reduction(first)):
            if each is not None and each.way == way:
                base.adopt(each)
                return


class _Search:
    """Timings of products with M, and the memory they may take."""

    def __init__(self, model: LinearModel, batch: Batch, num_vectors: int, work: int) -> None:
        self._model, self._batch, self._work = model, batch, work
        self._base, _ = model.features.unscaled()
        self._features = self._base
        self._num_vectors, self._most_columns = num_vectors, min(num_vectors, model.chunks.columns)
        self._vectors = _vectors(self._features, self._most_columns)
        self._memory = chunk_memory(self._features, batch)
        self._free = free_bytes(self._features.device)
        self._times: dict[tuple[int, int], float] = {}
        self._spent = 0.0

    def best(self) -> tuple[int, int]:
        """Rows and columns: rows grow fourfold with all columns, then twofold about the best; then fewer columns."""
        columns = self._most_columns
        shape = (1, columns)
        self._time(shape)
        for factor in (4, 2):
            while self._faster((shape[0] * factor, columns), shape):
                shape = shape[0] * factor, columns
        while shape[1] >= 8 and self._faster((shape[0] * 2, -(-shape[1] // 2)), shape):
            shape = shape[0] * 2, -(-shape[1] // 2)
        return shape

    def choose_way(self, shape: tuple[int, int]) -> None:
        """Take the features' other way where it gains, all timed once more, one after the other."""
        before = min(self._times[shape], self._time(shape))
        for other in self._base.alternatives(self._batch.rows(0, 2).inputs):
            self._features = other
            seconds = self._time(shape)
            if seconds < _GAIN * before:
                before = seconds
                self._base.adopt(other)
        self._times[shape], self._features = before, self._base

    def choose_precision(self, shape: tuple[int, int]) -> None:
        """Take products in reduced precision where EM saves more than they cost, both timed once more in turn."""
        other = self._base.reduction(self._batch.rows(0, 2).inputs)
        if other is None:
            return
        before = min(self._times[shape], self._time(shape))
        self._features = other.cheaper()
        if self._time(shape) < _GAIN * before * (1 - self._num_vectors / _SPACE):
            self._base.adopt(other)

    def _faster(self, shape: tuple[int, int], than: tuple[int, int]) -> bool:
        rows, columns = shape
        if rows > self._batch.size or rows * columns > _MOST_ENTRIES:
            return False
        if self._free is not None and self._memory(rows, columns) > _OF_FREE * self._free:
            return False
        if self._spent > max(_SECONDS, _SHARE * self._work * min(self._times.values())):
            return False
        return self._time(shape) < _GAIN * self._times[than]

    def _time(self, shape: tuple[int, int]) -> float:
        """Seconds for a datum and a vector."""
        rows, columns = shape
        first = self._once(rows, columns)
        seconds = first if first > _QUICK else min(first, self._once(rows, columns), self._once(rows, columns))
        self._times[shape] = seconds / (rows * columns)
        return self._times[shape]

    def _once(self, rows: int, columns: int) -> float:
        start = perf_counter()
        try:
            few = self._batch.rows(0, rows)
            here = self._features.linearise(few.inputs)
            trial = LinearBatch(here, self._model.likelihood, few.targets, 0, rows, 0)
            trial.curvature_product(self._features.entering(self._vectors[:columns]))
            if self._vectors.is_cuda:
                torch.cuda.synchronize(self._vectors.device)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return float("inf")
        finally:
            self._spent += perf_counter() - start
        return perf_counter() - start


def _vectors(features: Features, count: int) -> Tensor:
    return standard_normal(0, PROBE, range(count), 0, (features.layout.total,), features.like.to(features.device))
