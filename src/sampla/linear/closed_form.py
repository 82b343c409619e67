"""Linear regression in closed form: the singular values of the rows, and EM on them.

With X (N, D) weighted, centred and scaled, X = U diag(s) V. In the primal (D <= N) R of X = Q R is updated chunk by
chunk (TSQR, Demmel, Grigori, Hoemmen, Langou 2012), which does not square the condition number, and V comes from R; in
the dual (N < D) U and s come from X X'. Either way what is kept is s^2, V and the targets' coordinates U' Y: EM, the
mean, exact samples and variances follow from these alone, for every prior and noise precision.

With full noise covariance S = W diag(v) W' the outputs Y W decouple, and each is a ridge regression with its own noise
variance v_c but the same X: nothing of size (D C)^2 exists. With prior precisions by group, X diag(A)^(-1/2) has a
spectrum of its own, and in its coordinates A is the identity.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf, log, pi
from typing import Literal
from warnings import warn

import torch
from torch import Tensor

from sampla.core.checks import ConvergenceWarning
from sampla.core.progress import Progress
from sampla.features import Rows
from sampla.inference.mackay import (
    BOUNDS,
    change_that_matters,
    degrees_left,
    has_settled,
    relative_change,
    still_ahead,
    updated_alphas,
    updated_variance,
)
from sampla.linear.columns import Columns
from sampla.linear.sources import Chunk, Source

_BLOCK = 2**24
"""Entries of the dense rows of X that are in memory at once in the dual: 128 MiB."""
Noise = Literal["shared", "diagonal", "full"]
_SMALLEST = 1e-14
"""Noise variance over the variance of the targets, at least: beyond, rounding decides."""
_TIGHT = 1e-6
"""Steps go on until they are so small a part of the tolerance: they cost no reading of the rows."""
_SILENT = 1e-30
"""Variance of targets that do not vary at all."""


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
    progress.enter("QR of the rows")
    shown = Progress(False) if source.in_parts else progress
    found = source.reduced(partial(_triangle, columns=columns, progress=shown), _one_triangle)
    assert found is not None, "the moments have refused data without rows"
    (upper, read), size = found, source.num_columns
    reached, beyond = upper[:size, size:], upper[size:, size:]
    rest = beyond.mT @ beyond if full else beyond.square().sum(0)
    left, singular, basis = torch.linalg.svd(upper[:size, :size], full_matrices=False)
    return _truncated(singular.square(), basis, left.mT @ reached, rest, 1, read)


def _triangle(source: Source, columns: Columns, progress: Progress) -> tuple[Tensor, int] | None:
    """R of the rows [X, Y] = Q R, and how many they are: it holds Q' Y, and Q would cost as much again."""
    upper, read = None, 0
    for rows, y in progress.sweep(prepared(source, columns, max(2 * source.num_columns, 1024)), None):
        both = torch.cat([rows, y], dim=1)
        stacked = both if upper is None else torch.cat([upper, both])
        upper, read = torch.linalg.qr(stacked, mode="r").R, read + len(rows)
    return None if upper is None else (upper, read)


def _one_triangle(first: tuple[Tensor, int], second: tuple[Tensor, int]) -> tuple[Tensor, int]:
    return torch.linalg.qr(torch.cat([first[0], second[0]]), mode="r").R, first[1] + second[1]


def dual_spectrum(source: Source, columns: Columns, full: bool, progress: Progress) -> Spectrum:
    """X X' (N, N) from pairs of chunks, its eigenvectors, and one more pass for V = diag(s)^-1 U' X.

    Rows that lie in parts elsewhere are gathered: V, of their size, is kept here anyway.
    """
    far, source = source.in_parts, source.gathered()
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
    return Spectrum(values, basis, coordinates, rest, 1 if far else 3 + len(strips))


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


def dense(rows: Rows) -> Tensor:
    """A chunk's rows as a dense tensor."""
    return rows if isinstance(rows, Tensor) else torch.from_numpy(rows.toarray())


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


@dataclass(frozen=True)
class Hyperparameters:
    """What is learnt; ``precision`` (G,) alpha of the groups, ``variances`` (C,) and ``axes`` (C, C) of the noise."""

    precision: Tensor
    variances: Tensor
    """(C,) noise variances of the outputs, or for full noise of the outputs in ``axes``."""
    axes: Tensor | None = None
    """(C, C) W, orthonormal columns; None: the outputs themselves."""

    @property
    def covariance(self) -> Tensor:
        """(C,) or (C, C) noise covariance."""
        return self.variances if self.axes is None else (self.axes * self.variances) @ self.axes.mT


@dataclass(frozen=True)
class ExactFit:
    """The fixed point of EM, and the posterior there."""

    spectrum: Spectrum
    """Of X diag(A)^(-1/2), so that the prior is the identity."""
    prior_scale: Tensor
    """(D,) A^(-1/2)."""
    hyperparameters: Hyperparameters
    mean: Tensor
    """(D, C) posterior mean of the coefficients."""
    effective_dimension: Tensor
    """(G,) gamma."""
    log_evidence: float
    trace: list[dict[str, list[float] | float]] = field(default_factory=list)
    settled: bool = True

    @property
    def shrinkage(self) -> Tensor:
        """(r, C) posterior over prior variance along each direction of the basis, 1 / (1 + lambda / v_c)."""
        return 1 / (1 + self.spectrum.values[:, None] / self.hyperparameters.variances)


@dataclass(frozen=True)
class Learn:
    """What EM is to find, and what is given."""

    noise: Noise
    group: Tensor
    """(D,) int64."""
    degrees: float
    """Observations of each output: the sum of the weights, one less with an intercept."""
    precision: Tensor | None = None
    """(G,) alpha, where it is fixed."""
    covariance: Tensor | None = None
    """(), (C,) or (C, C) noise covariance, where it is fixed."""
    tolerance: float = 1e-2
    """Relative error at which EM has settled."""
    max_steps: int = 300


def exact_em(spectrum: Spectrum, learn: Learn) -> ExactFit:
    """MacKay's fixed point alpha = gamma / |mean|^2, noise = residual / (degrees - gamma), from a wide prior.

    A ConvergenceWarning says if it has not settled after ``max_steps``.
    """
    groups = int(learn.group.max()) + 1
    current = _start(spectrum, learn, groups)
    trace: list[dict[str, list[float] | float]] = []
    several = groups > 1
    white = spectrum if not several else None
    change, ahead = 1.0, inf
    fixed = learn.precision is not None and learn.covariance is not None
    while True:
        scale = current.precision[learn.group].rsqrt()
        at = spectrum.rescaled(scale) if white is None else _scaled(white, scale[0])
        mean = _mean(at, current)
        gamma = _gamma(at, current, learn.group, groups)
        if fixed or change <= _TIGHT * learn.tolerance or len(trace) >= learn.max_steps:
            break
        updated = _updated(at, current, mean, gamma, learn)
        before, change = change, _change(current, updated, gamma)
        ahead = still_ahead(before, change)
        trace.append({"precision": current.precision.tolist(), "gamma": gamma.tolist(), "change": change})
        current = updated
    settled = fixed or has_settled(learn.tolerance, ahead)
    if not settled:
        warn_unsettled(learn.tolerance, len(trace), ahead)
    back = mean if current.axes is None else mean @ current.axes.mT
    coefficients = scale[:, None] * (at.basis.mT @ back)
    evidence = _log_evidence(at, current, mean, learn.degrees)
    return ExactFit(at, scale, current, coefficients, gamma, evidence, trace, settled)


def warn_unsettled(tolerance: float, steps: int, ahead: float) -> None:
    """Say that EM in closed form has used up its steps."""
    warn(
        f"EM was asked to settle within {tolerance:.0e}, and after {steps} steps the hyperparameters are still "
        f"{ahead:.1e} from where they are going: raise max_iter, or fix prior_precision.",
        ConvergenceWarning,
        stacklevel=4,
    )


def _scaled(spectrum: Spectrum, scale: Tensor) -> Spectrum:
    """The same for one alpha, without a new decomposition."""
    return Spectrum(spectrum.values * scale.square(), spectrum.basis, spectrum.targets, spectrum.rest, spectrum.passes)


def _start(spectrum: Spectrum, learn: Learn, groups: int) -> Hyperparameters:
    """Noise as large as the targets, and a prior as wide as they ask for."""
    like = spectrum.values
    power = spectrum.targets.square().sum(0) + (spectrum.rest.diagonal() if spectrum.rest.ndim == 2 else spectrum.rest)
    power = (power / max(learn.degrees, 1.0)).clamp_min(_SILENT)
    if learn.covariance is not None:
        variances, axes = _axes_of(learn.covariance, spectrum.targets.shape[1])
    else:
        variances, axes = power.mean().expand_as(power) if learn.noise == "shared" else power, None
    level = float(like.mean() / max(learn.degrees, 1.0)) if len(like) else 1.0
    alpha = min(max(level / float(power.mean()), BOUNDS[0]), BOUNDS[1])
    start = like.new_full((groups,), alpha) if learn.precision is None else learn.precision.to(like)
    return Hyperparameters(start, variances.to(like), axes)


def _axes_of(covariance: Tensor, outputs: int) -> tuple[Tensor, Tensor | None]:
    if covariance.ndim < 2:
        return covariance.double().expand(outputs), None
    values, vectors = torch.linalg.eigh(covariance.double())
    return values, vectors


def _in_noise_axes(values: Tensor, at: Hyperparameters) -> Tensor:
    return values if at.axes is None else values @ at.axes


def _mean(spectrum: Spectrum, at: Hyperparameters) -> Tensor:
    """(r, C) coordinates of the mean in the basis, in the noise's axes: s t / (s^2 + v)."""
    root = spectrum.values.sqrt()[:, None]
    return root * _in_noise_axes(spectrum.targets, at) / (spectrum.values[:, None] + at.variances)


def _determined(spectrum: Spectrum, at: Hyperparameters) -> Tensor:
    """(r, C) how much of each direction the data determine, between 0 and 1."""
    return spectrum.values[:, None] / (spectrum.values[:, None] + at.variances)


def _gamma(spectrum: Spectrum, at: Hyperparameters, group: Tensor, groups: int) -> Tensor:
    each = _determined(spectrum, at).sum(1)
    if groups == 1:
        return each.sum()[None]
    return spectrum.values.new_zeros(groups).index_add(0, group, each @ spectrum.basis.square())


def _updated(spectrum: Spectrum, at: Hyperparameters, mean: Tensor, gamma: Tensor, learn: Learn) -> Hyperparameters:
    precision = at.precision
    if learn.precision is None:
        size = torch.zeros_like(gamma)
        whole = mean.square().sum() if len(gamma) == 1 else (spectrum.basis.mT @ mean).square().sum(1)
        size = whole[None] if len(gamma) == 1 else size.index_add(0, learn.group, whole)
        # the mean is in units of A^(-1/2): |theta*|^2 is size over alpha
        precision = updated_alphas(precision, precision * gamma, size)
    if learn.covariance is not None:
        return Hyperparameters(precision, at.variances, at.axes)
    return Hyperparameters(precision, *_updated_noise(spectrum, at, mean, learn))


def _updated_noise(spectrum: Spectrum, at: Hyperparameters, mean: Tensor, learn: Learn) -> tuple[Tensor, Tensor | None]:
    missed = _in_noise_axes(spectrum.targets, at) - spectrum.values.sqrt()[:, None] * mean
    determined = _determined(spectrum, at).sum(0)  # (C,)
    power = spectrum.targets.square().sum(0) + (spectrum.rest.diagonal() if spectrum.rest.ndim == 2 else spectrum.rest)
    floor = _SMALLEST * (power.mean() / learn.degrees).clamp_min(_SILENT)
    if learn.noise == "full":
        rest = spectrum.rest if at.axes is None else at.axes.mT @ spectrum.rest @ at.axes
        moment = missed.mT @ missed + rest + (determined * at.variances).diag()
        values, vectors = torch.linalg.eigh(moment / learn.degrees)
        return values.clamp_min(floor), vectors if at.axes is None else at.axes @ vectors
    residual = missed.square().sum(0) + spectrum.rest
    if learn.noise == "shared":
        variance = residual.sum() / degrees_left(learn.degrees, determined).sum()
        return variance.clamp_min(floor).expand_as(residual), None
    return updated_variance(learn.degrees, determined, residual).clamp_min(floor), None


def _change(old: Hyperparameters, new: Hyperparameters, gamma: Tensor) -> float:
    noise = relative_change(old.variances, new.variances)
    return max(noise, change_that_matters(old.precision, new.precision, gamma))


def _log_evidence(spectrum: Spectrum, at: Hyperparameters, mean: Tensor, degrees: float) -> float:
    """log of the density of the targets (of their contrasts, with an intercept), in nats."""
    rest = spectrum.rest
    turned = rest if at.axes is None else (at.axes.mT @ rest @ at.axes)
    diagonal = turned.diagonal() if turned.ndim == 2 else turned
    missed = _in_noise_axes(spectrum.targets, at) - spectrum.values.sqrt()[:, None] * mean
    residual = ((missed.square().sum(0) + diagonal) / at.variances).sum()
    volume = (spectrum.values[:, None] / at.variances).log1p().sum()
    constant = degrees * (len(at.variances) * log(2 * pi) + at.variances.log().sum())
    return -0.5 * float(constant + volume + residual + mean.square().sum())
