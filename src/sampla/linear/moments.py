"""The first pass over the rows: how many, their means and variances, and whether all numbers are finite."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sampla._checks import require, require_finite
from sampla.features import Rows
from sampla.linear.sources import Chunk, Source, as_tensor

_CONSTANT = 1e3
"""A column whose standard deviation is at most so many rounding errors of its largest entry is constant."""


@dataclass(frozen=True)
class Moments:
    """What one pass says about the columns; float64, on the source's device."""

    num_rows: int
    """N, rows whose weight is not zero."""
    total: float
    """Sum of the weights; N without weights."""
    mean: Tensor
    """(D,) weighted."""
    variance: Tensor
    """(D,) weighted, around the mean; exactly zero for constant columns."""
    square: Tensor
    """(D,) weighted mean of x^2."""
    target_mean: Tensor | None
    """(C,) weighted."""
    target_variance: Tensor | None
    """(C,) weighted, around the mean."""
    target_square: Tensor | None
    """(C,) weighted mean of y^2."""


@dataclass(frozen=True)
class _Part:
    """Mean and sum of squares around it, of a part of the data with so much weight."""

    total: float
    mean: Tensor
    spread: Tensor

    def joined(self, other: "_Part") -> "_Part":
        """Both parts together (Chan, Golub, LeVeque 1983: no cancellation)."""
        total = self.total + other.total
        if total == 0:
            return self
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.total / total)
        spread = self.spread + other.spread + apart.square() * (self.total * other.total / total)
        return _Part(total, mean, spread)


def measure(source: Source) -> Moments:
    """One pass.

    Raises:
        ValueError: for NaN or infinity, negative weights, weights that are all zero, or no rows.
    """
    columns: _Part | None = None
    targets: _Part | None = None
    rows, largest = 0, torch.zeros(source.num_columns, dtype=torch.float64, device=source.device)
    for chunk in source.chunks():
        _check(chunk)
        weights = _weights(chunk)
        rows += int((weights > 0).sum())
        part, most = _of_rows(chunk[0], weights)
        columns = part if columns is None else columns.joined(part)
        largest = torch.maximum(largest, most)
        if chunk[1] is not None:
            part = _of_dense(chunk[1], weights)
            targets = part if targets is None else targets.joined(part)
    require(rows > 0, "at least one row with a positive weight", "none", "Give data, or other weights.")
    assert columns is not None
    _check_range(largest, source.dtype)
    variance = columns.spread / columns.total
    variance[variance.sqrt() <= _CONSTANT * torch.finfo(source.dtype).eps * largest] = 0
    if targets is not None:
        still = (targets.spread / targets.total).sqrt() <= _CONSTANT * torch.finfo(
            torch.float64
        ).eps * targets.mean.abs()
        targets = replace(targets, spread=torch.where(still, 0.0, targets.spread))
    return Moments(
        rows, columns.total, columns.mean, variance, columns.spread / columns.total + columns.mean.square(),
        None if targets is None else targets.mean,
        None if targets is None else targets.spread / targets.total,
        None if targets is None else targets.spread / targets.total + targets.mean.square(),
    )  # fmt: skip


def _weights(chunk: Chunk) -> Tensor:
    rows, _, weights = chunk
    if weights is not None:
        return weights.double()
    device = rows.device if isinstance(rows, Tensor) else torch.device("cpu")
    return torch.ones(rows.shape[0], dtype=torch.float64, device=device)


def _of_rows(rows: Rows, weights: Tensor) -> tuple[_Part, Tensor]:
    """The part's moments, and (D,) the largest |x|."""
    if isinstance(rows, Tensor):
        return _of_dense(rows, weights), rows.abs().amax(0).double()
    total, flat = float(weights.sum()), weights.numpy()
    mean = torch.from_numpy(rows.T @ flat) / max(total, 1e-300)
    square = torch.from_numpy(rows.power(2).T @ flat)
    sizes, places = as_tensor(rows.data, "X").abs().double(), as_tensor(rows.indices, "X").long()
    most = torch.zeros(rows.shape[1], dtype=torch.float64).scatter_reduce(0, places, sizes, "amax")
    return _Part(total, mean, (square - total * mean.square()).clamp_min(0)), most


def _of_dense(rows: Tensor, weights: Tensor) -> _Part:
    rows, total = rows.double(), float(weights.sum())
    mean = weights @ rows / max(total, 1e-300)
    return _Part(total, mean, weights @ (rows - mean).square())


def _check(chunk: Chunk) -> None:
    rows, targets, weights = chunk
    stored = rows if isinstance(rows, Tensor) else as_tensor(rows.data, "X")
    require_finite(stored, "entries of X (no NaN, no infinity)", "Remove or impute them.")
    if targets is not None:
        require_finite(targets, "entries of y (no NaN, no infinity)", "Remove or impute them.")
    if weights is not None:
        require_finite(weights, "sample weights", "Remove or impute them.")
        low = float(weights.min())
        require(low >= 0, "sample weights of at least zero", f"{low:g}", "A weight says how often a row counts.")


def _check_range(largest: Tensor, dtype: torch.dtype) -> None:
    """Refuse numbers whose squares the type of the products cannot hold."""
    kind, most = torch.finfo(dtype), float(largest.max())
    inside = most == 0 or kind.tiny**0.5 < most < 1e-3 * kind.max**0.5
    allowed = f"entries of X between {kind.tiny**0.5:.0e} and {1e-3 * kind.max**0.5:.0e} in size ({dtype})"
    require(inside, allowed, f"{most:.3g} as the largest", "Use other units, or float64.")
