"""The singular value decomposition of a design matrix, from its rows read chunk by chunk: the exact way.

With X (N, D) weighted, centred and scaled, X = U diag(s) V. In the primal (D <= N) R of X = Q R is updated chunk by
chunk (TSQR, Demmel, Grigori, Hoemmen, Langou 2012), which does not square the condition number, and V comes from R; in
the dual (N < D) U and s come from X X'. Either way what is kept is s^2, V and the targets' coordinates U' Y: EM, the
mean, exact samples and variances follow from these alone, for every prior and noise precision.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sampla._progress import Progress
from sampla.linear.rows import Columns
from sampla.linear.sources import Chunk, Source

_BLOCK = 2**24
"""Entries of a dense piece of X in the dual: 128 MiB."""


@dataclass(frozen=True)
class Spectrum:
    """X = U diag(values)^(1/2) V and Y = U targets + rest; float64."""

    values: Tensor
    """(r,) squares of the singular values, r the numerical rank."""
    basis: Tensor
    """(r, D) V, orthonormal rows."""
    targets: Tensor
    """(r, C) U' Y."""
    rest: Tensor
    """(C, C), or (C,) its diagonal: second moment of the part of Y that X cannot reach."""
    passes: int
    """How often the rows were read."""

    def rescaled(self, scale: Tensor) -> "Spectrum":
        """That of X diag(scale)."""
        left, singular, basis = torch.linalg.svd(self.values.sqrt()[:, None] * self.basis * scale, full_matrices=False)
        return replace(self, values=singular.square(), basis=basis, targets=left.mT @ self.targets)


def primal_spectrum(source: Source, columns: Columns, full: bool, progress: Progress) -> Spectrum:
    """One pass of QR updates, then the SVD of R (D, D).

    Args:
        source: rows with targets.
        columns: what is taken off them.
        full: whether the rest is needed with its correlations, (C, C).
        progress: shown while the rows are read.
    """
    size, read = source.num_columns, 0
    upper: Tensor | None = None
    progress.enter("QR of the rows")
    for rows, y in progress.sweep(prepared(source, columns, max(2 * size, 1024)), None):
        both = torch.cat([rows, y], dim=1)
        stacked = both if upper is None else torch.cat([upper, both])
        upper = torch.linalg.qr(stacked, mode="r").R  # of [X, Y]: it holds Q' Y, and Q would cost as much again
        read += len(rows)
    assert upper is not None, "the moments have refused data without rows"
    reached, beyond = upper[:size, size:], upper[size:, size:]
    rest = beyond.mT @ beyond if full else beyond.square().sum(0)
    left, singular, basis = torch.linalg.svd(upper[:size, :size], full_matrices=False)
    return _truncated(singular.square(), basis, left.mT @ reached, rest, 1, read)


def dual_spectrum(source: Source, columns: Columns, full: bool, progress: Progress) -> Spectrum:
    """X X' (N, N) from pairs of chunks, its eigenvectors, and one more pass for V = diag(s)^-1 U' X."""
    step = max(1, _BLOCK // source.num_columns)
    targets = torch.cat([y for _, y in prepared(source, columns, step)])
    strips = []
    progress.enter("products of pairs of rows")
    for rows, _ in progress.sweep(prepared(source, columns, step), None):
        strips.append(torch.cat([other @ rows.mT for other, _ in prepared(source, columns, step)]))
    kernel = torch.cat(strips, dim=1)
    values, left = torch.linalg.eigh((kernel + kernel.mT) / 2)
    kept = values > len(values) * torch.finfo(torch.float64).eps * values[-1].clamp_min(0)
    values, left = values[kept], left[:, kept]
    basis = values.new_zeros(len(values), source.num_columns)
    start = 0
    for rows, _ in prepared(source, columns, step):
        basis += left[start : start + len(rows)].mT @ rows
        start += len(rows)
    basis /= values.sqrt()[:, None]
    coordinates = left.mT @ targets
    lost = targets - left @ coordinates
    rest = lost.mT @ lost if full else lost.square().sum(0)
    return Spectrum(values, basis, coordinates, rest, 3 + len(strips))


def prepared(source: Source, columns: Columns, rows: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Weighted, centred and scaled chunks (n, D) and targets (n, C), dense in float64; rows without weight left out."""
    for chunk in source.chunks(rows):
        pair = _prepared(chunk, columns)
        if len(pair[0]):
            yield pair


def standardised(rows: Tensor, columns: Columns) -> Tensor:
    """(x - centre) / scale in float64."""
    rows = rows.double()
    if columns.centre is not None:
        rows = rows - columns.centre
    return rows if columns.scale is None else rows / columns.scale


def dense(rows: object) -> Tensor:
    """A chunk's rows as a dense tensor."""
    return rows if isinstance(rows, Tensor) else torch.from_numpy(rows.toarray())  # type: ignore[attr-defined]


def _prepared(chunk: Chunk, columns: Columns) -> tuple[Tensor, Tensor]:
    rows, targets, weights = chunk
    assert targets is not None
    design, y = standardised(dense(rows), columns), targets.double()
    if columns.target_centre is not None:
        y = y - columns.target_centre
    y = y / columns.target_unit
    if weights is None:
        return design, y
    root, kept = weights.double().sqrt()[:, None], weights > 0
    return (root * design)[kept], (root * y)[kept]


def _truncated(values: Tensor, basis: Tensor, targets: Tensor, rest: Tensor, passes: int, rows: int) -> Spectrum:
    """Without the directions that are only rounding; what they hold of Y is beyond the reach of X."""
    largest = values.max() if len(values) else values.new_zeros(())
    kept = values > (max(rows, basis.shape[1]) * torch.finfo(torch.float64).eps) ** 2 * largest
    lost = targets[~kept]
    rest = rest + (lost.mT @ lost if rest.ndim == 2 else lost.square().sum(0))
    return Spectrum(values[kept], basis[kept], targets[kept], rest, passes)
