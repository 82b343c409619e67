"""Scores of a reconstruction and its error bars against a reference image."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import minimum_filter
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

    Both take the reference's own range as the range of the data. Pixels in which the reference is NaN, because nobody
    knows the truth there, are left out: of the similarity those whose window holds none.

    Raises:
        ModuleNotFoundError: without scikit-image.
        ValueError: if the shapes differ, or the reference is constant.
    """
    shape = tuple(reference.shape)
    require(image.shape == reference.shape, f"an image of shape {shape}", f"{tuple(image.shape)}", "Resize it.")
    metrics = import_skimage_metrics()
    ours, theirs = (t.detach().double().cpu().numpy() for t in (image, reference))
    known = np.isfinite(theirs)
    require(bool(known.any()), "a reference with pixels that are known", "NaN only", "Leave it out.")
    extent = float(theirs[known].max() - theirs[known].min())
    require(extent > 0, "a reference that shows something", "a constant image", "Give the image it should look like.")
    window = min(7, min(theirs.shape) // 2 * 2 - 1)
    psnr = float(metrics.peak_signal_noise_ratio(theirs[known], ours[known], data_range=extent))
    if known.all():
        return psnr, float(metrics.structural_similarity(theirs, ours, data_range=extent, win_size=window))
    filled = (np.where(known, image, 0.0) for image in (theirs, ours))
    _, similar = metrics.structural_similarity(*filled, data_range=extent, win_size=window, full=True)
    whole = minimum_filter(known, size=window, mode="constant", cval=True)
    return psnr, float(similar[whole].mean()) if whole.any() else float("nan")


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
    """Patch size -> log density in nats per pixel, where there are whole patches."""


def score(predictive: ImagePredictive, reference: Tensor) -> ImageScores:
    """Compute all scores of a predictive against a reference image (H, W), NaN where the truth is not known."""
    psnr, ssim = psnr_ssim(predictive.mean, reference)
    known = reference.isfinite()
    error = (reference.to(predictive.mean) - predictive.mean).abs()[known.to(predictive.mean.device)].cpu().numpy()
    spread = predictive.std[known.to(predictive.std.device)].cpu().numpy()
    constant = float(np.ptp(spread)) == 0
    correlation = float("nan") if constant else float(spearmanr(spread, error).statistic)
    sizes = [size for size in PATCH_SIZES if size <= min(reference.shape)]
    tried = {size: predictive.log_prob_per_pixel(reference, size) for size in sizes}
    found = {size: value for size, value in tried.items() if value == value}  # no patch of that size is known
    return ImageScores(psnr, ssim, predictive.inside(reference), correlation, found)
