"""Moments of the columns from a first pass, centring and scaling, and the rows as ``LinearModel`` reads them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sampla.core.checks import require, require_finite
from sampla.core.data import Batch, Data
from sampla.core.progress import Progress
from sampla.features import DesignMatrix, Rows
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
class _PartialMoments:
    """Mean and sum of squares around it, of a part of the data with so much weight."""

    total: float
    mean: Tensor
    spread: Tensor

    def joined(self, other: "_PartialMoments") -> "_PartialMoments":
        """Both parts together (Chan, Golub, LeVeque 1983: no cancellation)."""
        total = self.total + other.total
        if total == 0:
            return self
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.total / total)
        spread = self.spread + other.spread + apart.square() * (self.total * other.total / total)
        return _PartialMoments(total, mean, spread)


@dataclass(frozen=True)
class _Seen:
    """What some chunks say."""

    rows: int
    """Whose weight is not zero."""
    columns: _PartialMoments
    targets: _PartialMoments | None
    largest: Tensor
    """(D,) |x|."""

    def joined(self, other: "_Seen") -> "_Seen":
        """These chunks and others."""
        targets = None
        if self.targets is not None and other.targets is not None:
            targets = self.targets.joined(other.targets)
        return _Seen(
            self.rows + other.rows, self.columns.joined(other.columns), targets,
            torch.maximum(self.largest, other.largest),
        )  # fmt: skip


def measure(source: Source) -> Moments:
    """Compute the weighted moments of columns and targets in one pass.

    Raises:
        ValueError: for NaN or infinity, negative weights, weights that are all zero, or no rows.
    """
    seen = source.reduced(_seen_in, _Seen.joined)
    rows = 0 if seen is None else seen.rows
    require(rows > 0, "at least one row with a positive weight", "none", "Give data, or other weights.")
    assert seen is not None
    columns, targets, largest = seen.columns, seen.targets, seen.largest
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


def _seen_in(source: Source) -> _Seen | None:
    seen: _Seen | None = None
    for chunk in source.chunks():
        _check(chunk)
        weights = _weights(chunk)
        columns, largest = _of_rows(chunk[0], weights)
        targets = None if chunk[1] is None else _of_dense(chunk[1], weights)
        here = _Seen(int((weights > 0).sum()), columns, targets, largest)
        seen = here if seen is None else seen.joined(here)
    return seen


def _weights(chunk: Chunk) -> Tensor:
    rows, _, weights = chunk
    if weights is not None:
        return weights.double()
    device = rows.device if isinstance(rows, Tensor) else torch.device("cpu")
    return torch.ones(rows.shape[0], dtype=torch.float64, device=device)


def _of_rows(rows: Rows, weights: Tensor) -> tuple[_PartialMoments, Tensor]:
    """The part's moments, and (D,) the largest |x|."""
    if isinstance(rows, Tensor):
        return _of_dense(rows, weights), rows.abs().amax(0).double()
    total, flat = float(weights.sum()), weights.numpy()
    mean = torch.from_numpy(rows.T @ flat) / max(total, 1e-300)
    square = torch.from_numpy(rows.power(2).T @ flat)
    sizes, places = as_tensor(rows.data, "X").abs().double(), as_tensor(rows.indices, "X").long()
    most = torch.zeros(rows.shape[1], dtype=torch.float64).scatter_reduce(0, places, sizes, "amax")
    return _PartialMoments(total, mean, (square - total * mean.square()).clamp_min(0)), most


def _of_dense(rows: Tensor, weights: Tensor) -> _PartialMoments:
    rows, total = rows.double(), float(weights.sum())
    mean = weights @ rows / max(total, 1e-300)
    return _PartialMoments(total, mean, weights @ (rows - mean).square())


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


@dataclass(frozen=True)
class Columns:
    """Means that are subtracted from the columns and scales that they are divided by, in float64."""

    centre: Tensor | None
    """(D,) the means, where an intercept is taken out; None: nothing."""
    scale: Tensor | None
    """(D,) standard deviations; None: nothing."""
    target_centre: Tensor | None
    """(C,)."""
    total: float
    """Sum of the weights."""
    power: Tensor
    """(D,) mean square of each column as the model sees it."""
    unit: Tensor
    """(G,) in which the columns of each group are measured, beside any standardisation; part of ``scale``."""
    target_unit: float
    """In which the targets are measured."""

    @property
    def means(self) -> tuple[Tensor, Tensor] | None:
        """(D,) of the columns and (C,) of the targets, where an intercept is taken out."""
        return None if self.centre is None or self.target_centre is None else (self.centre, self.target_centre)

    @property
    def precision_unit(self) -> Tensor:
        """(G,) the model's alpha over the user's: the model's theta is the user's, times unit over target_unit."""
        return self.target_unit**2 / self.unit.square()

    def informed(self, diagonal: Tensor, outputs: int) -> Tensor:
        """The diagonal of M (D C,), zero for columns without power, of which it has rounding only.

        Args:
            diagonal: (D C,) or more, of what follows the columns.
            outputs: C.
        """
        dead = (self.power == 0).repeat_interleave(outputs).to(diagonal.device)
        return diagonal.masked_fill(torch.nn.functional.pad(dead, (0, len(diagonal) - len(dead))), 0)

    def design(self, source: Source, outputs: int, constants: Tensor | None = None) -> DesignMatrix:
        """The features of such rows."""
        return DesignMatrix(
            source.num_columns, outputs, source.dtype,
            centre=self.centre, scale=self.scale, constants=constants, device=source.device,
        )  # fmt: skip


def columns_of(moments: Moments, fit_intercept: bool, standardize: bool, group: Tensor | None = None) -> Columns:
    """Centre where there is an intercept; scale to unit variance (unit mean square without an intercept).

    Columns that keep their sizes are measured in units that do not depend on the user's, one for each group of columns,
    so that no absolute bound on a precision is ever met: alpha goes with the square of a unit.

    Args:
        moments: of the rows.
        fit_intercept: whether a constant is taken out.
        standardize: whether all columns get one size.
        group: (D,) int64 number of each column's group; None: one group.
    """
    power, scale = moments.variance if fit_intercept else moments.square, None
    group = torch.zeros_like(power, dtype=torch.int64) if group is None else group
    unit = torch.ones(int(group.max()) + 1, dtype=torch.float64, device=power.device)
    if standardize:
        scale = torch.where(power > 0, power.sqrt(), torch.ones_like(power))
    else:
        sums = torch.zeros_like(unit).index_add(0, group, power)
        unit = _unit(sums / torch.bincount(group).to(power))
        scale = unit[group] if bool((unit != 1).any()) else None
    if scale is not None:
        power = power / scale.square()
    centre, target_centre = (moments.mean, moments.target_mean) if fit_intercept else (None, None)
    targets = moments.target_variance if fit_intercept else moments.target_square
    target_unit = 1.0 if targets is None else float(_unit(targets.mean()))
    return Columns(centre, scale, target_centre, moments.total, power, unit, target_unit)


def _unit(square: Tensor) -> Tensor:
    """Near the root of a mean square: one for ordinary data, else a power of 2^16, which changes no digit."""
    step = 16.0
    power = torch.where(square > 0, square, torch.ones_like(square)).log2() / 2
    return 2 ** (step * (power / step).round())


class RowData(Data):
    """The rows of a source, N of them, chunk by chunk.

    Args:
        source: read once for every pass.
        targets: what the likelihood sees of a chunk's targets (n, C).
        progress: shown while a pass is read.
    """

    cut = False

    def __init__(self, source: Source, targets: Callable[[Tensor], Tensor], progress: Progress) -> None:
        self._source, self._targets, self.progress = source, targets, progress
        self._count: int | None = source.num_rows
        self._chunks: int | None = None
        self.in_parts, self.start = source.in_parts, source.start
        self.fixed_order = not source.in_parts  # a pass over some of the parts has no companions, and saves no reading

    @property
    def num_data(self) -> int:
        assert self._count is not None, "read the data once first"
        return self._count

    def __iter__(self) -> Iterator[Batch]:
        position = self.start
        for rows, targets, weights in self.chunks():
            yield Batch((rows,), targets, position, rows.shape[0], weights)
            position += rows.shape[0]

    def chunks(self) -> Iterator[tuple[Rows, Tensor, Tensor | None]]:
        """One pass: rows (n, D), targets (n, C) as the likelihood sees them, weights (n,) or None."""
        count, number = 0, 0
        for rows, targets, weights in self.progress.sweep(self._source.chunks(), self._chunks):
            assert targets is not None, "a model is fitted to rows with targets"
            yield rows, self._targets(targets), weights
            count, number = count + rows.shape[0], number + 1
        self._count, self._chunks, self.sweeps = count, number, self.sweeps + 1

    def over_parts(self, each: Callable[[Data], list[Tensor]]) -> list[Tensor]:
        outputs = self.num_outputs // self.num_data if self.num_outputs else 0
        sums = _SumsOverRows(each, self._targets, outputs) if self.in_parts else lambda _: each(self)
        found = self._source.reduced(sums, _added)
        assert found is not None, "the moments have refused data without rows"
        self.sweeps += self.in_parts
        return found

    def count_outputs(self, numbers: int) -> int:
        self.num_outputs = numbers if self.in_parts else 0
        return numbers


@dataclass(frozen=True)
class _SumsOverRows:
    """Sums over the rows of a part, made where it lies."""

    each: Callable[[Data], list[Tensor]]
    targets: Callable[[Tensor], Tensor]
    outputs: int
    """C, by which noise is numbered; zero before it is known."""

    def __call__(self, source: Source) -> list[Tensor]:
        data = RowData(source, self.targets, Progress(False))
        data.first_output = source.start * self.outputs
        return self.each(data)


def _added(some: list[Tensor], others: list[Tensor]) -> list[Tensor]:
    return [one + other for one, other in zip(some, others, strict=True)]


def centred(columns: Columns) -> Callable[[Tensor], Tensor]:
    """Return a function that subtracts the targets' mean and divides by their unit."""
    centre, unit = columns.target_centre, columns.target_unit
    return lambda targets: (targets if centre is None else targets - centre.to(targets)) / unit
