"""Designs with known coefficients, made chunk by chunk so that making them needs no more memory than they do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from scipy.fft import dct

from benchmarks.linear.sizes import DOUBLE

_CHUNK = 2**22  # entries made at once
NOISE = 0.3  # standard deviation of the noise over that of the function


@dataclass(frozen=True)
class Problem:
    """Rows (N, P), targets (N,) or (N, C), and the function behind them: the targets without noise."""

    x: Any
    y: np.ndarray
    function: np.ndarray


def power_law(columns: int, rows: int) -> Problem:
    """Correlated Gaussian columns of equal size: the eigenvalues of the covariance fall like 1 / i^2.

    A rotation by the discrete cosine transform mixes columns of standard deviation 1 / i.
    """
    rng = np.random.default_rng(columns)
    dtype = np.float64 if columns <= DOUBLE else np.float32
    spread = (1 / np.arange(1, columns + 1)).astype(dtype)
    x = np.empty((rows, columns), dtype)
    for part in _parts(rows, columns):
        x[part] = dct(rng.standard_normal((part.stop - part.start, columns), dtype) * spread, norm="ortho", axis=1)
    x *= columns**0.5
    theta = (rng.standard_normal(columns) / columns**0.5).astype(dtype)
    return _observed(x, x @ theta, rng)


def text(rows: int, columns: int, each: int) -> Problem:
    """A sparse matrix like word counts: columns follow Zipf's law, rows have unit length, float32 with int32 indices.

    Coefficients are drawn for standardised columns, so that rare words matter as much as frequent ones.
    """
    rng = np.random.default_rng(0)
    share = 1 / (np.arange(columns) + 10.0)
    edges = np.cumsum(share) / share.sum()
    data, indices = np.empty(rows * each, np.float32), np.empty(rows * each, np.int32)
    square = np.zeros(columns)
    for part in _parts(rows, 4 * each):
        count, slots = part.stop - part.start, np.arange(each)
        drawn = np.searchsorted(edges, (slots + rng.random((count, each))) / each)
        drawn = np.maximum.accumulate(drawn - slots, axis=1) + slots  # strictly increasing: no word twice
        drawn = np.minimum(drawn, columns - each + slots)
        value = (1 + rng.exponential(size=drawn.shape)) * -np.log(share / share.sum())[drawn]
        value /= np.linalg.norm(value, axis=1, keepdims=True)
        inside = slice(part.start * each, part.stop * each)
        data[inside], indices[inside] = value.ravel(), drawn.ravel()
        square += np.bincount(drawn.ravel(), value.ravel() ** 2, columns)
    x = sparse.csr_array((data, indices, np.arange(rows + 1, dtype=np.int32) * each), shape=(rows, columns))
    theta = rng.standard_normal(columns) / np.sqrt(np.maximum(square / rows, 1 / rows) * columns)
    return _observed(x, x @ theta.astype(np.float32), rng)


def on_disk(path: Path, gib: float, columns: int) -> Problem:
    """A np.memmap of standard normal float32 entries."""
    rng, rows = np.random.default_rng(1), int(gib * 2**30 / 4 / columns)
    theta = (rng.standard_normal(columns) / columns**0.5).astype(np.float32)
    function = np.empty(rows, np.float32)
    with path.open("wb") as file:
        for part in _parts(rows, columns):
            chunk = rng.standard_normal((part.stop - part.start, columns), np.float32)
            function[part] = chunk @ theta
            chunk.tofile(file)
    return _observed(np.memmap(path, np.float32, "r", shape=(rows, columns)), function, rng)


def many_outputs(rows: int, columns: int, outputs: int) -> Problem:
    """Outputs whose noise is correlated: a tenth as many common factors as outputs, and noise of their own."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((rows, columns))
    function = x @ (rng.standard_normal((columns, outputs)) / columns**0.5)
    factors = rng.standard_normal((max(1, outputs // 10), outputs)) / (outputs / 10) ** 0.5
    noise = rng.standard_normal((rows, len(factors))) @ factors + 0.5 * rng.standard_normal(function.shape)
    return Problem(x, function + NOISE * noise, function)


def _observed(x: Any, function: np.ndarray, rng: np.random.Generator) -> Problem:
    noise = NOISE * function.std() * rng.standard_normal(len(function))
    return Problem(x, (function + noise).astype(function.dtype), function)


def _parts(rows: int, columns: int) -> list[slice]:
    step = max(1, _CHUNK // columns)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
