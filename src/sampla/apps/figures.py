"""Figures of what a fit did and what it is worth.

Every ``draw_...`` puts one thing on given axes, so that the same drawing serves a file of its own and an overview.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from sklearn.calibration import calibration_curve
from torch import Tensor

GREY, BLUE, ORANGE, GREEN = "#6b7280", "#0072b2", "#d55e00", "#009e73"
"""Colours that colour-blind readers can tell apart (Okabe and Ito 2008), with a neutral grey."""
MARKERS = ("o", "s", "^", "D")
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9ca3af",
    "axes.labelcolor": "#374151",
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "axes.axisbelow": True,
    "xtick.color": "#374151",
    "ytick.color": "#374151",
    "legend.frameon": False,
    "lines.linewidth": 2,
    "lines.markersize": 5,
    "figure.dpi": 100,
    "savefig.dpi": 150,
}
RELIABILITY_BINS = 10


@dataclass(frozen=True)
class Series:
    """A named line with its colour."""

    name: str
    values: Sequence[float]
    colour: str


@dataclass(frozen=True)
class Example:
    """One image with what the posterior says about it."""

    image: Tensor
    """(height, width) in [0, 1]."""
    label: int
    predicted: int
    probability: float
    entropy: float
    mutual_information: float


def new_figure(width: float, height: float) -> Figure:
    """An empty figure (inches) that no window system knows of."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def em_figure(trace: Sequence[Mapping[str, Any]], groups: Sequence[str]) -> bytes:
    """Prior precision and effective dimension at every EM step, one line for each prior group."""
    with rc_context(STYLE):
        figure = new_figure(9, 3.4)
        left, right = figure.subplots(1, 2)
        steps = range(1, len(trace) + 1)
        colours = (BLUE, ORANGE, GREEN, GREY)
        for k, name in enumerate(groups):
            gamma = [row["effective_dimension"][k] for row in trace]
            error = [row["effective_dimension_error"][k] for row in trace]
            style = {"color": colours[k % 4], "marker": MARKERS[k // 4 % 4], "label": name}
            left.plot(steps, [row["precision"][k] for row in trace], **style)
            right.errorbar(steps, gamma, yerr=error, capsize=3, **style)
        left.set(title="Prior precision alpha", xlabel="EM step", yscale="log")
        _log_ticks(left, lambda value, _: f"{value:g}")
        right.set(title="Parameters the data determine, gamma", xlabel="EM step")
        right.set_ylim(bottom=0)
        for axes in (left, right):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(groups) > 1:
            left.legend(fontsize=8)
        return png(figure)


def convergence_figure(
    trace: Sequence[Mapping[str, Any]], history: Sequence[float], em_tolerance: float, tolerance: float
) -> bytes:
    """Error of the samples against passes over the data: the solve of every E-step, then the final one."""
    with rc_context(STYLE):
        figure = new_figure(9, 3.4)
        axes = figure.subplots()
        spent = 0
        for row in trace:
            _draw_solve(axes, spent, row.get("solve_history", []), row["passes"], row["solve_error"], ORANGE, "o")
            spent += row["passes"]
        _draw_solve(axes, spent, history, len(history), history[-1] if history else 0.0, BLUE, "s")
        if trace:
            axes.plot([], [], "o-", color=ORANGE, label="solves within EM, one after the other")
            axes.axhline(em_tolerance, color=ORANGE, linestyle=":", linewidth=1.3, label="asked for within EM")
        axes.plot([], [], "s-", color=BLUE, label="final solve")
        axes.axhline(tolerance, color=BLUE, linestyle="--", linewidth=1.3, label="asked for at the end")
        axes.set(title="Estimated error of a function draw", xlabel="passes over the data, solves only", yscale="log")
        _log_ticks(axes, lambda value, _: f"{100 * value:g} %")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(left=0)
        axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return png(figure)


def _draw_solve(
    axes: Axes, spent: int, history: Sequence[float], passes: int, error: float, colour: str, marker: str
) -> None:
    """One solve after ``spent`` passes, less its first pass (no estimate yet); its end alone if it has no history."""
    known = [(spent + k, e) for k, e in enumerate(history, 1) if k > 1] or [(spent + passes, error)]
    known = [(k, e) for k, e in known if e > 0]
    if known:
        axes.plot(*zip(*known, strict=True), color=colour, marker=marker)


def reliability_curve(
    probs: Tensor, labels: Tensor, bins: int = RELIABILITY_BINS, fewest: int = 5
) -> list[tuple[float, float, int]]:
    """(mean confidence, accuracy, count) of every equal-width confidence bin that holds enough to say something.

    Args:
        probs: (n, C) class probabilities.
        labels: (n,) class numbers.
        bins: on (0, 1].
        fewest: data that a bin needs.
    """
    confidence, predicted = probs.double().max(-1)
    said, right = confidence.clamp(max=1).numpy(), (predicted == labels).numpy()
    accuracy, mean = calibration_curve(right, said, pos_label=True, n_bins=bins)  # of the bins that are not empty
    counts = np.bincount(np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], said))
    rows = zip(mean.tolist(), accuracy.tolist(), counts[counts > 0].tolist(), strict=True)
    return [row for row in rows if row[2] >= fewest]


def draw_reliability(axes: Axes, curves: Mapping[str, tuple[str, list[tuple[float, float, int]]]]) -> None:
    """Accuracy against confidence; the size of a dot says how many images stand behind it.

    Args:
        axes: where.
        curves: name -> (colour, ``reliability_curve``).
    """
    axes.plot([0, 1], [0, 1], color="#9ca3af", linestyle="--", linewidth=1.2, label="perfectly calibrated")
    for (name, (colour, rows)), marker in zip(curves.items(), MARKERS, strict=False):
        if not rows:
            continue
        confidence, accuracy, count = zip(*rows, strict=True)
        sizes = [18 + 120 * (c / sum(count)) ** 0.5 for c in count]
        axes.plot(confidence, accuracy, color=colour, linewidth=1.5)
        axes.scatter(confidence, accuracy, sizes, color=colour, marker=marker, label=name, alpha=0.85, zorder=3)
    axes.set(title="Reliability", xlabel="confidence", ylabel="accuracy", xlim=(0, 1.03), ylim=(0, 1.05))
    for handle in axes.legend(fontsize=8.5, loc="best").legend_handles:
        if isinstance(handle, PathCollection):
            handle.set_sizes([40])


def draw_curves(axes: Axes, x: Sequence[float], series: Sequence[Series], **labels: Any) -> None:
    """Several measures against one variable, lower is better."""
    for line, marker in zip(series, MARKERS, strict=False):
        axes.plot(x, line.values, color=line.colour, marker=marker, label=line.name)
    axes.set(**labels)
    axes.set_ylim(bottom=0)
    axes.set_ylim(top=1.28 * axes.get_ylim()[1])  # room for the legend above the curves
    axes.legend(fontsize=8.5, loc="upper left", ncols=2)


def draw_examples(grid: Sequence[Axes], examples: Sequence[Example], details: bool = True) -> None:
    """One image on each axes, with the predicted class, its probability and the uncertainty about it."""
    for axes, example in zip(grid, examples, strict=False):
        axes.imshow(example.image.numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        wrong = example.predicted != example.label
        for spine in axes.spines.values():
            spine.set(visible=True, color=ORANGE if wrong else "#d1d5db", linewidth=2 if wrong else 1)
        words = f"{example.predicted}: {example.probability:.1%}"
        axes.set_title(words, fontsize=9.5, loc="center", pad=4, color=ORANGE if wrong else "#111827")
        if details:
            below = f"entropy {example.entropy:.3f}\nmut. inf. {example.mutual_information:.3f}"
            axes.set_xlabel((f"is a {example.label}\n" if wrong else "") + below, fontsize=7.5, color="#374151")


def _log_ticks(axes: Axes, words: Callable[[float, int], str]) -> None:
    """Labels at 1, 2 and 5 times the powers of ten of a logarithmic y axis."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(words))


def reliability_figure(curves: Mapping[str, tuple[str, list[tuple[float, float, int]]]]) -> bytes:
    """``draw_reliability`` as a picture of its own."""
    with rc_context(STYLE):
        figure = new_figure(5.6, 5)
        draw_reliability(figure.subplots(), curves)
        return png(figure)


def curves_figure(x: Sequence[float], panels: Mapping[str, Sequence[Series]], **labels: Any) -> bytes:
    """One panel of ``draw_curves`` beside another."""
    with rc_context(STYLE):
        figure = new_figure(4.7 * len(panels), 3.7)
        for axes, (title, series) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
        ):
            draw_curves(axes, x, series, title=title, **labels)
        return png(figure)


def examples_figure(rows: Mapping[str, Sequence[Example]]) -> bytes:
    """A row of examples under each heading."""
    with rc_context(STYLE):
        width = max(len(examples) for examples in rows.values())
        figure = new_figure(1.25 * width, 2.1 * len(rows))
        parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
        for part, (title, examples) in zip(parts, rows.items(), strict=True):
            part.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
            draw_examples(part.subplots(1, width, squeeze=False)[0], examples)
        return png(figure)


def overview_figure(
    curves: Mapping[str, tuple[str, list[tuple[float, float, int]]]],
    x: Sequence[float],
    series: Sequence[Series],
    rows: Mapping[str, Sequence[Example]],
    **labels: Any,
) -> bytes:
    """The demo in one picture: calibration, behaviour under rotation, and the images behind it."""
    with rc_context(STYLE):
        figure = new_figure(13.5, 4.2)
        left, middle, right = figure.subfigures(1, 3, squeeze=False, width_ratios=[1, 1.15, 1.25])[0]
        draw_reliability(left.subplots(), curves)
        draw_curves(middle.subplots(), x, series, **labels)
        parts = right.subfigures(len(rows), 1, squeeze=False)[:, 0]
        for part, (title, examples) in zip(parts, rows.items(), strict=True):
            part.suptitle(title, x=0.02, ha="left", fontsize=11, fontweight="bold")
            draw_examples(part.subplots(1, len(examples), squeeze=False)[0], examples, details=False)
        return png(figure)


def surest_and_least_sure(entropy: Tensor, count: int) -> tuple[list[int], list[int]]:
    """Positions of the ``count`` smallest and of the ``count`` largest entropies (n,), each most extreme first."""
    order = torch.argsort(entropy, stable=True).tolist()
    return order[:count], order[::-1][:count]
