"""NLL and joint NLL as the images move away from the training data."""

from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes

from classification.data import CLEAN, Shift
from classification.metrics import JOINT_NLL, NLL
from classification.registry import LAPLACE, SAMPLA
from classification.rows import Row
from sampla.apps.figures import STYLE, new_figure, png

_COLOURS = {
    SAMPLA: ("#0072b2", "#56b4e9", "#003f6b", "#7fa8c9", "#9ab8cf"),
    LAPLACE: ("#d55e00", "#e69f00", "#a34700", "#f0b27a", "#c98f5e"),
}
_OTHERS = ("#374151", "#9ca3af", "#009e73", "#cc79a7")
"""Families have colours of their own: sampla blue, laplace-torch orange."""
_MARKERS = ("o", "s", "^", "D", "v", "P")


def draw(path: Path, rows: list[Row], shifts: tuple[Shift, ...], angles: bool) -> bool:
    """The picture; whether there was anything to draw."""
    if not shifts:
        return False
    points = _points(shifts, angles)
    names = [name for sets in points.values() for name in sets]
    complete = [row for row in rows if row.way == "" and all(name in row.sets for name in names)]
    if not complete:
        return False
    with rc_context(STYLE):
        figure = new_figure(11, 4.6)
        left, right = figure.subplots(1, 2)
        for axes, measure in ((left, NLL), (right, JOINT_NLL)):
            _lines(axes, complete, points, measure)
            axes.set(title=measure, xlabel=f"{shifts[0].kind}{shifts[0].unit}" if angles else "severity (0: clean)")
            axes.set_xticks(list(points))
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(figure))
    return True


def _points(shifts: tuple[Shift, ...], angles: bool) -> dict[float, list[str]]:
    """Strength -> the sets whose mean is drawn there."""
    if angles:
        return {0: [CLEAN], **{s: [shifts[0].name(s)] for s in shifts[0].strengths}}
    numbers = range(len(shifts[0].strengths))
    return {0: [CLEAN], **{k + 1: [shift.name(shift.strengths[k]) for shift in shifts] for k in numbers}}


def _lines(axes: Axes, rows: list[Row], points: dict[float, list[str]], measure: str) -> None:
    used: dict[str, int] = {}
    for row in rows:
        found = [row.score(names, measure) for names in points.values()]
        if any(score is None for score in found):
            continue
        colours, number = _COLOURS.get(row.family, _OTHERS), used.get(row.family, 0)
        used[row.family] = number + 1
        values = [score.value for score in found if score is not None]
        colour, style = colours[number % len(colours)], "-" if row.family == SAMPLA else "--"
        marker = _MARKERS[number % len(_MARKERS)]
        axes.plot(list(points), values, style, marker=marker, markersize=4, linewidth=1.6, color=colour, label=row.name)
    axes.set_ylim(bottom=0)
