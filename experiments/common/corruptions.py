"""Images spoiled in five ways, each at five severities (after Hendrycks and Dietterich 2019), in NumPy and SciPy alone.

Everywhere images are (n, channels, height, width) float32 in [0, 1], and severity runs from 1 to 5. The strengths of
noise, blur, contrast, brightness and pixelation are those of CIFAR-10-C; brightness is added to every channel here
instead of to the value of HSV.
"""

from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter, rotate

SEVERITIES = (1, 2, 3, 4, 5)


def gaussian_noise(images: np.ndarray, deviation: float, seed: int) -> np.ndarray:
    """Independent normal noise on every pixel: the same draw at every severity, scaled."""
    return images + deviation * np.random.default_rng(seed).standard_normal(images.shape, dtype=np.float32)


def pixelate(images: np.ndarray, factor: float) -> np.ndarray:
    """Averaged over the larger pixels of a smaller image, and blown up again (nearest pixel)."""
    by_row, by_column = (_blocky(side, round(side * factor)) for side in images.shape[2:])
    return np.einsum("ri,ncij,sj->ncrs", by_row, images, by_column, optimize=True)


def contrast(images: np.ndarray, factor: float) -> np.ndarray:
    """Every channel drawn towards its own mean."""
    mean = images.mean((2, 3), keepdims=True)
    return mean + factor * (images - mean)


def _blocky(side: int, small: int) -> np.ndarray:
    """(side, side) matrix that averages a row of pixels down to ``small`` ones and repeats these."""
    edges, pixels = np.linspace(0, side, small + 1), np.arange(side)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    down = overlap.clip(0) * (small / side)  # (small, side): rows sum to one
    nearest = ((pixels + 0.5) * small / side).astype(int)
    return down[nearest].astype(np.float32)


CORRUPTIONS: dict[str, tuple[Callable[[np.ndarray, float, int], np.ndarray], tuple[float, ...]]] = {
    "Gaussian noise": (gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "blur": (lambda x, sigma, _: gaussian_filter(x, (0, 0, sigma, sigma)), (0.4, 0.6, 0.7, 0.8, 1.0)),
    "contrast": (lambda x, factor, _: contrast(x, factor), (0.75, 0.5, 0.4, 0.3, 0.15)),
    "brightness": (lambda x, more, _: x + np.float32(more), (0.05, 0.1, 0.15, 0.2, 0.3)),
    "pixelate": (lambda x, factor, _: pixelate(x, factor), (0.95, 0.9, 0.85, 0.75, 0.65)),
}
"""Images, strength and seed -> images; its strength at each severity."""


def corrupted(images: np.ndarray, severity: float, kind: str, seed: int = 0) -> np.ndarray:
    """The images, spoiled.

    Args:
        images: (n, channels, height, width) float32 in [0, 1].
        severity: 1 to 5.
        kind: a key of ``CORRUPTIONS``.
        seed: of the noise.
    """
    if kind not in CORRUPTIONS or severity not in SEVERITIES:
        raise ValueError(f"expected one of {', '.join(CORRUPTIONS)} at severity 1 to 5, got {kind!r} at {severity}.")
    spoil, strengths = CORRUPTIONS[kind]
    return spoil(images, strengths[int(severity) - 1], seed).astype(np.float32).clip(0, 1)


def rotated(images: np.ndarray, degrees: float) -> np.ndarray:
    """The images turned about their middle, by linear interpolation with black outside."""
    return rotate(images, degrees, axes=(3, 2), reshape=False, order=1).clip(0, 1)


def turned(images: np.ndarray, most: float, fill: tuple[float, ...], seed: int) -> np.ndarray:
    """Each image turned by an angle of its own, uniform in [-most, most] degrees: the nearest pixel, ``fill`` outside.

    The sets on which others have published figures for CIFAR-10 (experiments/classification/published.py).

    Args:
        images: (n, channels, side, side).
        most: degrees.
        fill: for each channel.
        seed: of the angles, the same share of the most at every strength.
    """
    side, angles = images.shape[-1], np.random.default_rng(seed).uniform(-1, 1, len(images)) * np.deg2rad(most)
    centred = np.arange(side) - (side - 1) / 2
    cos, sin = np.cos(angles)[:, None, None], np.sin(angles)[:, None, None]
    row, column = centred[None, :, None], centred[None, None, :]
    rows, columns = (
        np.rint(at + (side - 1) / 2).astype(int) for at in (cos * row + sin * column, cos * column - sin * row)
    )
    inside = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
    picked = images[np.arange(len(images))[:, None, None], :, rows.clip(0, side - 1), columns.clip(0, side - 1)]
    result: np.ndarray = np.where(inside[..., None], picked, np.asarray(fill, images.dtype)).transpose(0, 3, 1, 2)
    return result
