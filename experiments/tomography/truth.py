"""What the reference of a real scan does not know itself, and error bars scored with it.

The reference is filtered back-projection from all views. Its noise is that of the same back-projection of the
sinogram's noise alone: sixth differences from view to view, in which the object all but cancels (of second ones half
the variance is the object's where views are a degree apart), with the variance of one view and a random sign for each
of them, without which they would cancel again in pixels that lie in the same bin of several views. An error bar is that
of the image; the error that is seen is the image's and the reference's, taken for independent, though the views of the
image are some of those of the reference.
"""

from collections.abc import Callable
from dataclasses import replace
from math import comb, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from experiments.common.store import Arrays
from experiments.tomography.scans import every_view, load
from sampla.tomography import Geometry, ImagePredictive, filtered_back_projection

TRUTH = "with the truth's noise"
_ORDER = 6


def noise_of_views(sinogram: np.ndarray, seed: int = 0) -> np.ndarray:
    """Noise of the same covariance within a view, none between views, from views (A, D) that go once around."""
    weights = [(-1) ** k * comb(_ORDER, k) for k in range(_ORDER + 1)]
    rest = sum(weight * np.roll(sinogram, k, axis=0) for k, weight in enumerate(weights))
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (len(sinogram), 1))
    return np.asarray(rest * signs / sqrt(sum(weight**2 for weight in weights)))


def reference_noise(sinogram: np.ndarray, geometry: Geometry, block: int, known: np.ndarray) -> float:
    """Root mean square of the noise in means over blocks of pixels, where something is known."""
    image = filtered_back_projection(noise_of_views(sinogram), geometry)
    height, width = known.shape
    whole = image[: height * block, : width * block].reshape(height, block, width, block)
    return float(np.sqrt(np.square(whole.mean((1, 3))[known]).mean()))


def beside(root: Path, case: str, factor: int) -> Callable[[Arrays], Any]:
    """A measure of a row's predictions: the noise, who lies within 1, 2, 3 deviations, and the best rank correlation.

    That is Spearman's of the deviations and errors drawn from them and the reference's noise: what error bars that are
    exactly right would have.
    """

    def scores(arrays: Arrays) -> dict[str, Any]:
        reference = load(root, case, factor).reference
        assert reference is not None
        known = reference.isfinite().numpy()
        noise = reference_noise(*every_view(root, case), factor, known)
        mean, deviations = (torch.from_numpy(arrays[name]) for name in ("mean", "deviations"))
        predictive = replace(ImagePredictive.stabilised(mean, deviations), floor=noise)
        spread, errors = predictive.std.numpy()[known], predictive.total_std.numpy()[known]
        drawn = np.abs(errors * np.random.default_rng(0).standard_normal(errors.shape))
        missed = (predictive.mean - reference).numpy()[known]
        return {
            "noise": noise, "error": float(np.sqrt(np.square(missed).mean())), "inside": predictive.inside(reference),
            "rank_correlation": float(spearmanr(spread, drawn).statistic),
        }  # fmt: skip

    return scores
