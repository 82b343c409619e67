"""Pictures of a reconstruction and its error bars; each is a PNG of its own."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import norm
from torch import Tensor

from sampla.apps.figures import BLUE, GREY, STYLE, new_figure, png
from sampla.tomography import ImagePredictive

_ACROSS = 4
"""Panels in a row."""
_LEVELS = np.linspace(0.02, 0.98, 49)


def images_figure(panels: Mapping[str, tuple[Tensor, str]], unit: str = "") -> bytes:
    """Images in rows of four: title -> ((H, W), kind).

    "image" panels share one grey scale from the 0.5 to the 99.5 percent quantile of the first; "spread" panels start at
    zero and have colours of their own. Bars say how large, in the unit.
    """
    first = next(image for image, kind in panels.values() if kind == "image")
    quantiles = torch.nanquantile(first.flatten().double(), torch.tensor([0.005, 0.995]).double())
    low, high = (float(q) for q in quantiles)
    rows = -(-len(panels) // _ACROSS)
    with rc_context({**STYLE, "axes.grid": False}):
        figure = new_figure(3.3 * min(_ACROSS, len(panels)), 3.1 * rows)
        grid = figure.subplots(rows, min(_ACROSS, len(panels)), squeeze=False).flatten()
        for axes, (title, (image, kind)) in zip(grid, panels.items(), strict=False):
            _draw(figure, axes, image, kind, (low, high), unit)
            axes.set_title(title)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        return png(figure)


def _draw(figure: Figure, axes: Axes, image: Tensor, kind: str, limits: tuple[float, float], unit: str) -> None:
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    values = image.detach().double().cpu().numpy()
    if kind == "image":
        shown = axes.imshow(values, cmap="gray", vmin=limits[0], vmax=limits[1])
    else:
        shown = axes.imshow(values, cmap="viridis", vmin=0, vmax=float(np.nanquantile(values, 0.995)) or 1.0)
    shown.set_interpolation("nearest")
    bar = figure.colorbar(shown, ax=axes, shrink=0.85, label=unit)
    bar.outline.set_visible(False)


def residual_figure(residual: Tensor) -> bytes:
    """(A, D) residuals in standard deviations, from -4 to 4; NaN stays grey."""
    with rc_context({**STYLE, "axes.grid": False}):
        figure = new_figure(6.4, 3.6)
        axes = figure.subplots()
        axes.set_facecolor("#9ca3af")
        shown = axes.imshow(
            residual.cpu().numpy(), cmap="RdBu", vmin=-4, vmax=4, aspect="auto", interpolation="nearest"
        )
        axes.set(xlabel="detector bin", ylabel="view")
        figure.colorbar(shown, ax=axes, label="standard deviations").outline.set_visible(False)
        return png(figure)


def calibration_figure(ratios: Mapping[str, Tensor]) -> bytes:
    """How often the truth lies in an interval that should hold it so often: name -> |error| / standard deviation."""
    with rc_context(STYLE):
        figure = new_figure(5.2, 4.8)
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="#9ca3af", linestyle="--", linewidth=1)
        for (name, ratio), colour in zip(ratios.items(), (BLUE, GREY), strict=False):
            axes.plot(_LEVELS, coverage(ratio, _LEVELS), color=colour, label=name)
        axes.set(xlabel="probability of the interval", ylabel="share inside", xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.legend(loc="lower right")
        return png(figure)


def coverage(ratio: Tensor, levels: Sequence[float] | np.ndarray) -> list[float]:
    """Share of |error| / std below the Gaussian quantile of each central interval."""
    flat = ratio.flatten()
    return [float((flat <= float(norm.ppf((1 + level) / 2))).double().mean()) for level in levels]


def samples_panels(predictive: ImagePredictive, count: int = 4) -> dict[str, tuple[Tensor, str]]:
    """The first samples, and how each departs from the reconstruction."""
    shown = range(min(count, len(predictive.deviations)))
    images = {f"Sample {k + 1}": (predictive.samples[k], "image") for k in shown}
    return {**images, **{f"|Sample {k + 1} - mean|": (predictive.deviations[k].abs(), "spread") for k in shown}}
