"""Whether a sinogram fits its geometry: mistakes that leave a normal-looking image, found by what they do to it.

With a wrong geometry no image explains the measurements, or only one that varies far more. So the least total variation
that meets the sinogram to the noise seen in it, in units of the image's own size and times the misfit where that cannot
be met, is least where the scan is read rightly: on a phantom and a measured scan 1.3 times more and up for clockwise
angles of a fan, degrees for radians, counts for line integrals, a dead bin or an axis off by a bin. It is taken on a
coarse image, in one to four seconds each. Parallel rays turned the other way make a mirrored image: nobody can tell.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import pi, sqrt

import numpy as np
import torch
from torch import Tensor

from sampla.tomography.dip import noise_seen, total_variation
from sampla.tomography.geometry import Geometry
from sampla.tomography.rays import ray_transform
from sampla.tomography.tv import constant_image, solve_tv

_SIDE = 48
"""Pixels of the coarse image's shorter side, at least; or the root of the number of measurements."""
_STEPS, _TOLERANCE = 500, 1e-2
_BETTER = 0.8
"""Part of the score that another reading must come below to be named."""
_MISSED = 1.5
"""Misfit from which no image explains the sinogram, as far as can be told."""
_DEAD = 6.0
"""Times the usual difference to its neighbours that a bin must show in most views."""
_OFF = 0.3
"""Bins that the axis must be off to be named."""
_FURTHEST = 0.25
"""Part of the detector within which the axis is looked for."""


@dataclass(frozen=True)
class Reading:
    """One way to read a scan."""

    cause: str
    """What would be wrong with the scan as it is given."""
    remedy: str
    sinogram: Tensor
    geometry: Geometry
    kept: Tensor
    """(A, D) which measurements count."""


@dataclass(frozen=True)
class Diagnosis:
    """How well a scan fits as it is given, and what would fit better."""

    score: float
    misfit: float
    """Of the coarse image, in units of the noise seen."""
    others: tuple[tuple[float, Reading], ...]
    """Score and reading of what was tried, best first."""

    @property
    def better(self) -> tuple[tuple[float, Reading], ...]:
        """Those that fit clearly better."""
        return tuple(other for other in self.others if other[0] < _BETTER * self.score)

    @property
    def warning(self) -> str:
        """What to tell the user; empty if all is well."""
        if self.better:
            score, reading = self.better[0]
            return (
                f"the scan would fit {self.score / score:.1f} times better with {reading.cause}. {reading.remedy} "
                "The report below is of the scan as it was given."
            )
        if self.misfit > _MISSED:
            tried = ", ".join(reading.cause for _, reading in self.others) or "nothing else"
            return (
                f"no image explains the sinogram: the best one misses it by {self.misfit:.1f} times the noise seen in "
                f"it. Not better with: {tried}. Other causes: wrong distances, bin width or pixel, an axis of rotation "
                "beside the middle of the detector (--centre), an object that moved or reaches beyond the image. Error "
                "bars cannot be trusted then."
            )
        return ""


def diagnose(sinogram: Tensor, geometry: Geometry, kept: Tensor | None = None) -> Diagnosis:
    """Try the usual mistakes on a scan.

    Args:
        sinogram: (A, D) line integrals.
        geometry: of the scan.
        kept: (A, D) which measurements count; None: all.
    """
    kept = torch.ones_like(sinogram, dtype=torch.bool) if kept is None else kept
    score, misfit = _score(sinogram, geometry, kept)
    readings = _readings(sinogram, geometry, kept, misfit > _MISSED)
    tried = [(_score(one.sinogram, one.geometry, one.kept)[0], one) for one in readings]
    return Diagnosis(score, misfit, tuple(sorted(tried, key=lambda pair: pair[0])))


def _score(sinogram: Tensor, geometry: Geometry, kept: Tensor) -> tuple[float, float]:
    """Total variation per pixel in units of the image's size, times the misfit beyond the noise; and the misfit."""
    shorter = min(geometry.image_shape)
    factor = max(1, round(shorter / max(_SIDE, sqrt(sinogram.numel()))))
    height, width = (max(2, round(side / factor)) for side in geometry.image_shape)
    operator = ray_transform(replace(geometry, image_shape=(height, width), pixel=geometry.pixel * factor)).only(kept)
    y = sinogram[kept].to(operator.like)
    unit = abs(constant_image(operator, y))
    found = solve_tv(operator, y, noise_seen(sinogram), _STEPS, _TOLERANCE)
    size = float(total_variation(found.image[None])) / (max(unit, 1e-30) * height * width)
    return size * max(1.0, found.misfit), found.misfit


def _readings(sinogram: Tensor, geometry: Geometry, kept: Tensor, missed: bool) -> Iterator[Reading]:
    angles = np.asarray(geometry.angles)
    if geometry.is_fan:
        yield Reading(
            "angles counted the other way (clockwise)", "Negate the angles, or reverse the order of the bins.",
            sinogram, replace(geometry, angles=tuple(-angles)), kept,
        )  # fmt: skip
    if np.abs(angles).max() > 2.1 * pi:
        yield Reading(
            "angles in degrees", "Name them angles_deg, or give radians.",
            sinogram, replace(geometry, angles=tuple(np.deg2rad(angles))), kept,
        )  # fmt: skip
    if len(angles) > 2 and np.ptp(angles) < 0.12:
        yield Reading(
            "angles in radians that were taken for degrees", "Name them angles instead of angles_deg.",
            sinogram, replace(geometry, angles=tuple(np.rad2deg(angles))), kept,
        )  # fmt: skip
    dead = dead_bins(sinogram, kept)
    if dead:
        without = kept.clone()
        without[:, dead] = False
        yield Reading(
            f"bin(s) {', '.join(map(str, dead))} left out as dead", "Leave them out: --bad-bins, or a mask.",
            sinogram, geometry, without,
        )  # fmt: skip
    centre = estimated_centre(sinogram.double().cpu().numpy(), geometry)
    if centre is not None and abs(centre - geometry.centre) > _OFF:
        yield Reading(
            f"the axis of rotation {centre:+.2f} bins beside the middle of the detector",
            f"Give centre = {centre:.2f} (--centre).", sinogram, replace(geometry, centre=centre), kept,
        )  # fmt: skip
    if missed and bool((sinogram > 0).all()):
        integrals = (sinogram.quantile(0.999) / sinogram).clamp_min(1).log()
        if bool(integrals.any()):
            yield Reading(
                "measurements as counts", "Name them counts and give open_beam, or take -log(counts / open_beam).",
                integrals, geometry, kept,
            )  # fmt: skip
    if missed and sinogram.shape[0] == sinogram.shape[1]:
        yield Reading(
            "rows and columns of the sinogram exchanged",
            "Transpose it: rows are views.",
            sinogram.mT,
            geometry,
            kept.mT,
        )


def dead_bins(sinogram: Tensor, kept: Tensor | None = None) -> list[int]:
    """Bins that differ from the mean of their neighbours far more than bins do, in the median over the views."""
    if sinogram.shape[1] < 5:
        return []
    away = (sinogram[:, 1:-1] - (sinogram[:, 2:] + sinogram[:, :-2]) / 2).abs().median(0).values
    around = torch.nn.functional.pad(away, (1, 1))
    peak = (away >= around[:-2]) & (away >= around[2:])
    found = (peak & (away > _DEAD * away.median())).nonzero().flatten() + 1
    whole = kept is None or kept.any(0)
    return [int(j) for j in found if whole is True or bool(whole[j])][:16]


def estimated_centre(sinogram: np.ndarray, geometry: Geometry) -> float | None:
    """The axis in bins beside the detector's middle at which opposite rays agree best, where views oppose each other.

    The ray (b, g) is the ray (b + pi - 2 g, -g) of another view; between views and bins values are interpolated.

    Returns:
        The estimate; None where fewer than a quarter of the rays are seen twice.
    """
    angles = np.asarray(geometry.angles) % (2 * pi)
    order = np.argsort(angles)
    turned, rows = angles[order], sinogram[order]
    if len(turned) < 4:
        return None
    gap = np.diff(np.append(turned, turned[0] + 2 * pi))
    limit = 1.5 * float(np.median(gap[gap > 1e-9])) if bool((gap > 1e-9).any()) else 0.0
    most = _FURTHEST * geometry.num_bins / 2
    coarse = np.arange(-np.floor(most), np.floor(most) + 1)
    errors = [_disagreement(turned, rows, gap, limit, replace(geometry, centre=float(c))) for c in coarse]
    if not np.isfinite(errors).any():
        return None
    best = float(coarse[int(np.nanargmin(errors))])
    fine = best + np.linspace(-1, 1, 41)
    errors = [_disagreement(turned, rows, gap, limit, replace(geometry, centre=float(c))) for c in fine]
    return float(fine[int(np.nanargmin(errors))])


def _disagreement(angles: np.ndarray, rows: np.ndarray, gap: np.ndarray, limit: float, geometry: Geometry) -> float:
    """Mean square of the difference of opposite rays over that of rays; NaN where too few are seen twice."""
    fan = np.zeros(geometry.num_bins)
    if geometry.source_detector is not None:
        fan = np.arctan(geometry.places / geometry.source_detector)
    bins = -geometry.places / geometry.bin_width + (geometry.num_bins - 1) / 2 + geometry.centre  # where -u is seen
    other = (angles[:, None] + pi - 2 * fan) % (2 * pi)
    after = np.searchsorted(angles, other) % len(angles)
    before = (after - 1) % len(angles)
    width = gap[before]
    part = np.where(width > 1e-9, ((other - angles[before]) % (2 * pi)) / np.maximum(width, 1e-9), 0.0)
    low = np.clip(np.floor(bins).astype(int), 0, geometry.num_bins - 2)
    share = bins - low
    seen = (width <= limit) & (part <= 1 + 1e-9) & (bins >= 0) & (bins <= geometry.num_bins - 1)

    def at(view: np.ndarray) -> np.ndarray:
        found: np.ndarray = rows[view, low] * (1 - share) + rows[view, low + 1] * share
        return found

    opposite: np.ndarray = at(before) * (1 - part) + at(after) * part
    if seen.sum() < max(8, rows.size / 4):
        return float("nan")
    return float(np.mean((rows - opposite)[seen] ** 2) / max(np.mean(rows[seen] ** 2), 1e-30))
