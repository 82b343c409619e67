"""Images spoiled in five ways, each at five severities (after Hendrycks and Dietterich 2019), in NumPy and SciPy alone.

Everywhere images are (n, channels, height, width) float32 in [0, 1], and severity runs from 1 to 5. The strengths of
noise, blur, contrast, brightness and pixelation are those of CIFAR-10-C; brightness is added to every channel here
instead of to the value of HSV.
"""

from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter, rotate

SEVERITIES = (1, 2, 3, 4, 5)
NOISE, BLUR, CONTRAST = (0.04, 0.06, 0.08, 0.09, 0.10), (0.4, 0.6, 0.7, 0.8, 1.0), (0.75, 0.5, 0.4, 0.3, 0.15)
BRIGHTNESS, PIXELATE = (0.05, 0.1, 0.15, 0.2, 0.3), (0.95, 0.9, 0.85, 0.75, 0.65)
"""Standard deviations; pixels; factor on the deviation from the mean; what is added; side of the small image."""


def gaussian_noise(images: np.ndarray, severity: int, seed: int) -> np.ndarray:
    """Independent normal noise on every pixel: the same draw at every severity, scaled."""
    noise = np.random.default_rng(seed).standard_normal(images.shape, dtype=np.float32)
    return (images + NOISE[severity - 1] * noise).clip(0, 1)


def blur(images: np.ndarray, severity: int, seed: int) -> np.ndarray:  # noqa: ARG001
    """A Gaussian filter within each channel."""
    sigma = BLUR[severity - 1]
    return gaussian_filter(images, (0, 0, sigma, sigma)).clip(0, 1)


def contrast(images: np.ndarray, severity: int, seed: int) -> np.ndarray:  # noqa: ARG001
    """Every channel drawn towards its own mean."""
    mean = images.mean((2, 3), keepdims=True)
    return (mean + CONTRAST[severity - 1] * (images - mean)).clip(0, 1)


def brightness(images: np.ndarray, severity: int, seed: int) -> np.ndarray:  # noqa: ARG001
    """A constant added to every channel."""
    return (images + np.float32(BRIGHTNESS[severity - 1])).clip(0, 1)


def pixelate(images: np.ndarray, severity: int, seed: int) -> np.ndarray:  # noqa: ARG001
    """Averaged over the larger pixels of a smaller image, and blown up again (nearest pixel)."""
    factor = PIXELATE[severity - 1]
    by_row, by_column = (_blocky(side, round(side * factor)) for side in images.shape[2:])
    return np.einsum("ri,ncij,sj->ncrs", by_row, images, by_column, optimize=True).astype(np.float32).clip(0, 1)


def _blocky(side: int, small: int) -> np.ndarray:
    """(side, side) matrix that averages a row of pixels down to ``small`` ones and repeats these."""
    edges, pixels = np.linspace(0, side, small + 1), np.arange(side)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    down = overlap.clip(0) * (small / side)  # (small, side): rows sum to one
    nearest = ((pixels + 0.5) * small / side).astype(int)
    return down[nearest].astype(np.float32)


CORRUPTIONS: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
    "Gaussian noise": gaussian_noise,
    "blur": blur,
    "contrast": contrast,
    "brightness": brightness,
    "pixelate": pixelate,
}


def corrupted(images: np.ndarray, kind: str, severity: int, seed: int = 0) -> np.ndarray:
    """The images, spoiled.

    Args:
        images: (n, channels, height, width) float32 in [0, 1].
        kind: a key of ``CORRUPTIONS``.
        severity: 1 to 5.
        seed: of the noise.
    """
    if kind not in CORRUPTIONS or severity not in SEVERITIES:
        raise ValueError(f"expected one of {', '.join(CORRUPTIONS)} at severity 1 to 5, got {kind!r} at {severity}.")
    return CORRUPTIONS[kind](images, severity, seed).astype(np.float32)


def rotated(images: np.ndarray, degrees: float) -> np.ndarray:
    """The images turned about their middle, by linear interpolation with black outside."""
    return rotate(images, degrees, axes=(3, 2), reshape=False, order=1).clip(0, 1)
