"""Scores of a reconstruction and its error bars against a reference image."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from torch import Tensor

from sampla.core.checks import require
from sampla.tomography.image import PATCH_SIZES, ImagePredictive

_MISSING = "PSNR and SSIM need scikit-image, which is not installed: pip install 'sampla[tomography]'."


def import_skimage_metrics() -> Any:
    """skimage.metrics.

    Raises:
        ModuleNotFoundError: saying how to install it.
    """
    try:
        import skimage.metrics
    except ImportError as error:
        raise ModuleNotFoundError(_MISSING) from error
    return skimage.metrics


def psnr_ssim(image: Tensor, reference: Tensor) -> tuple[float, float]:
    """Peak signal-to-noise ratio in dB and structural similarity (Wang et al. 2004), of (H, W) images.

    Both take the reference's own range as the range of the data.

    Raises:
        ModuleNotFoundError: without scikit-image.
        ValueError: if the shapes differ, or the reference is constant.
    """
    shape = tuple(reference.shape)
    require(image.shape == reference.shape, f"an image of shape {shape}", f"{tuple(image.shape)}", "Resize it.")
    metrics = import_skimage_metrics()
    ours, theirs = (t.detach().double().cpu().numpy() for t in (image, reference))
    extent = float(theirs.max() - theirs.min())
    require(extent > 0, "a reference that shows something", "a constant image", "Give the image it should look like.")
    window = min(7, min(theirs.shape) // 2 * 2 - 1)
    return (
        float(metrics.peak_signal_noise_ratio(theirs, ours, data_range=extent)),
        float(metrics.structural_similarity(theirs, ours, data_range=extent, win_size=window)),
    )


@dataclass(frozen=True)
class ImageScores:
    """Scores of one reconstruction with error bars."""

    psnr: float
    ssim: float
    inside: dict[int, float]
    """Share of the pixels within 1, 2, 3 total standard deviations."""
    rank_correlation: float
    """Spearman, of the standard deviation with the absolute error; NaN if the former is constant."""
    log_prob: dict[int, float]
    """Patch size -> log density in nats per pixel."""


def score(predictive: ImagePredictive, reference: Tensor) -> ImageScores:
    """Compute all scores of a predictive against a reference image (H, W)."""
    psnr, ssim = psnr_ssim(predictive.mean, reference)
    error = (reference.to(predictive.mean) - predictive.mean).abs().flatten().cpu().numpy()
    spread = predictive.std.flatten().cpu().numpy()
    constant = float(np.ptp(spread)) == 0
    correlation = float("nan") if constant else float(spearmanr(spread, error).statistic)
    sizes = [size for size in PATCH_SIZES if size <= min(reference.shape)]
    found = {size: predictive.log_prob_per_pixel(reference, size) for size in sizes}
    return ImageScores(psnr, ssim, predictive.inside(reference), correlation, found)
