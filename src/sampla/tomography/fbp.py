"""Filtered back-projection, parallel and fan beam with a flat detector (Kak and Slaney 1988, chapter 3).

ASTRA has it on a CPU for parallel rays only. These are the limit of a distant source, so one formula serves both.
"""

import numpy as np
import torch

from sampla.core.checks import require_finite
from sampla.tomography.geometry import Geometry

_SAME = 1e-9
"""Angle in radians below which two views are one."""
_UNSEEN = 5.0
"""Usual gaps between views that a gap must exceed to be a part of the turn which was not scanned."""
_SMOOTH = np.deg2rad(10)
"""Over which the weight of doubly seen rays goes from one side to the other."""


def filtered_back_projection(sinogram: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The textbook reconstruction, (A, D) -> (H, W).

    f(x, y) = sum_b U^-2 (h * p w cos)(u),  with h the band-limited ramp (Ram-Lak) sampled at the bins as they appear at
    the rotation's centre, u where the pixel's ray meets the detector, U its relative distance from the source, cos the
    obliquity of the bin's ray and w what the bin stands for (``ray_weights``): pi / A for views spread evenly.

    Raises:
        ValueError: if the sinogram does not fit the geometry or is not finite.
    """
    geometry.check_sinogram(sinogram.shape)
    require_finite(torch.from_numpy(np.asarray(sinogram, dtype=float)), "measurements", "Leave out dead bins.")
    width = geometry.bin_width / geometry.magnification
    places = geometry.places / geometry.magnification
    weighted = np.asarray(sinogram, dtype=float) * ray_weights(geometry)
    if geometry.source_origin is not None:
        weighted = weighted * geometry.source_origin / np.hypot(geometry.source_origin, places)
    filtered = _ramp_filtered(weighted, width)
    x, y = _pixel_centres(geometry)
    image = np.zeros(geometry.image_shape)
    for angle, view in zip(geometry.angles, filtered, strict=True):
        across = x * np.cos(angle) + y * np.sin(angle)
        distance = np.ones_like(across)
        if geometry.source_origin is not None:
            distance = 1 + (y * np.cos(angle) - x * np.sin(angle)) / geometry.source_origin
        image += np.interp(across / distance, places, view, left=0.0, right=0.0) / distance**2
    return image


def ray_weights(geometry: Geometry) -> np.ndarray:
    """(A, D) angle in radians that each bin of each view stands for, when every ray is to count once.

    A view stands for half the way to its neighbours on either side, so that views which are missing are made up for by
    those next to them. A gap of more than five usual ones is not bridged: nothing is known there (limited angles).
    Parallel rays repeat after half a turn. A fan sees a ray again from the other side: of a ray (b, g) at the angle g
    to the central one, and (b + pi - 2 g, -g), each has a share c(b) / (c(b) + c(b')), with c one inside the arc that
    is scanned, zero outside, and smooth between (Noo, Defrise, Clackdoyle and Kudo 2002; Parker 1982).
    """
    angles, period = np.asarray(geometry.angles, dtype=float), 2 * np.pi if geometry.is_fan else np.pi
    order = np.argsort(angles % period, kind="stable")
    turned = (angles % period)[order]
    gaps = np.diff(np.append(turned, turned[0] + period))
    usual = float(np.median(gaps[gaps > _SAME]))
    unseen = gaps > _UNSEEN * usual if len(gaps) > 1 else np.zeros(1, dtype=bool)
    known = np.where(unseen, usual, gaps)
    steps = np.empty(len(angles))
    steps[order] = (known + np.roll(known, 1)) / 2
    weights = np.repeat(steps[:, None], geometry.num_bins, axis=1)
    if not geometry.is_fan:
        return weights
    if not unseen.any():
        return weights / 2
    holes = [(turned[k] + usual / 2, gaps[k] - usual) for k in np.flatnonzero(unseen)]
    assert geometry.source_detector is not None
    fan = np.arctan(geometry.places / geometry.source_detector)
    own = _scanned(angles, holes)[:, None]
    share: np.ndarray = weights * own / (own + _scanned(angles[:, None] + np.pi - 2 * fan, holes))
    return share


def _scanned(angles: np.ndarray, holes: list[tuple[float, float]]) -> np.ndarray:
    """c of angles: zero in the holes (start, width), rising to one within ten degrees around them."""
    inside = np.ones_like(angles)
    for start, width in holes:
        after = (angles - start - width) % (2 * np.pi)  # behind the end of the hole, going on to its start
        near = np.minimum(after, 2 * np.pi - width - after)
        inside *= np.sin(np.pi / 2 * np.clip(near / _SMOOTH, 0, 1)) ** 2
    return inside


def _pixel_centres(geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    height, width = geometry.image_shape
    rows, columns = np.mgrid[:height, :width]
    return (columns - (width - 1) / 2) * geometry.pixel, ((height - 1) / 2 - rows) * geometry.pixel


def _ramp_filtered(views: np.ndarray, width: float) -> np.ndarray:
    """Convolution along the detector with h_0 = 1 / (4 w^2), h_odd n = -1 / (pi n w)^2, times w."""
    bins = views.shape[1]
    length = 2 ** int(np.ceil(np.log2(2 * bins)))
    offsets = np.fft.fftfreq(length, 1 / length)
    kernel = np.zeros(length)
    kernel[0] = 1 / (4 * width**2)
    odd = offsets % 2 == 1
    kernel[odd] = -1 / (np.pi * offsets[odd] * width) ** 2
    spectrum = np.fft.rfft(views, length, axis=1) * np.fft.rfft(kernel)
    filtered: np.ndarray = np.fft.irfft(spectrum, length, axis=1)[:, :bins] * width
    return filtered
