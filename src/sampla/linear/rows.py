"""The rows as the linear model reads them: batches of a design matrix with centred targets."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sampla._batches import Batch, Data
from sampla._progress import Progress
from sampla.features import DesignMatrix
from sampla.linear.moments import Moments
from sampla.linear.sources import Source


@dataclass(frozen=True)
class Columns:
    """What is taken off the columns before the model sees them, in float64."""

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
    def precision_unit(self) -> Tensor:
        """(G,) the model's alpha over the user's: the model's theta is the user's, times unit over target_unit."""
        return self.target_unit**2 / self.unit.square()

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

    @property
    def num_data(self) -> int:
        assert self._count is not None, "read the data once first"
        return self._count

    def __iter__(self) -> Iterator[Batch]:
        position, number = 0, 0
        for rows, targets, weights in self.progress.sweep(self._source.chunks(), self._chunks):
            assert targets is not None
            size = rows.shape[0]
            yield Batch((rows,), self._targets(targets), position, size, weights)
            position, number = position + size, number + 1
        self._count, self._chunks, self.sweeps = position, number, self.sweeps + 1


def centred(columns: Columns) -> Callable[[Tensor], Tensor]:
    """Targets without their mean, in their unit."""
    centre, unit = columns.target_centre, columns.target_unit
    return lambda targets: (targets if centre is None else targets - centre.to(targets)) / unit
