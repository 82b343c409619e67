"""Filtered back-projection, parallel and fan beam with a flat detector (Kak and Slaney 1988, chapter 3).

ASTRA has it on a CPU for parallel rays only. These are the limit of a distant source, so one formula serves both.
"""

import numpy as np
import torch

from sampla.core.checks import require_finite
from sampla.tomography.geometry import Geometry


def filtered_back_projection(sinogram: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The textbook reconstruction, (A, D) -> (H, W), for views spread evenly over a half or a full turn.

    f(x, y) = (pi / A) sum_b U^-2 (h * p cos)(u),  with h the band-limited ramp (Ram-Lak) sampled at the bins as they
    appear at the rotation's centre, u where the pixel's ray meets the detector, U its relative distance from the source
    and cos the obliquity of the bin's ray. A full fan turn sees each ray twice, as a full parallel one does.

    Raises:
        ValueError: if the sinogram does not fit the geometry or is not finite.
    """
    geometry.check_sinogram(sinogram.shape)
    require_finite(torch.from_numpy(np.asarray(sinogram, dtype=float)), "measurements", "Leave out dead bins.")
    width = geometry.bin_width / geometry.magnification
    places = (np.arange(geometry.num_bins) - (geometry.num_bins - 1) / 2) * width
    weighted = np.asarray(sinogram, dtype=float)
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
    return image * np.pi / geometry.num_angles


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
