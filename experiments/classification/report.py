"""results.md and its picture from the store of a run; the words are in page.md.j2."""

from collections.abc import Callable
from math import log
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes

from experiments.classification.contenders import Contender, Sets, behind, best, contenders
from experiments.classification.experiment import Experiment, Settings
from experiments.classification.methods import EM_WIDTH, MAIN
from experiments.classification.registry import LAPLACE, METHODS, NETWORK, SAMPLA
from experiments.common.facts import GIB
from experiments.common.images import CLEAN, Shift
from experiments.common.metrics import ACCURACY, AUROC, ECE, JOINT_NLL, MEASURES, NLL, Score
from experiments.common.page import RESULTS, grid, provenance, states, table, write_page
from experiments.common.store import Row, Store
from sampla.apps.figures import STYLE, new_figure, png

_COLOURS = {
    SAMPLA: ("#0072b2", "#56b4e9", "#003f6b", "#7fa8c9", "#9ab8cf"),
    LAPLACE: ("#d55e00", "#e69f00", "#a34700", "#f0b27a", "#c98f5e"),
}
_OTHERS = ("#374151", "#9ca3af", "#009e73", "#cc79a7")
"""Families have colours of their own: sampla blue, laplace-torch orange."""
_MARKERS = ("o", "s", "^", "D", "v", "P")


def write(experiment: Experiment, store: Store, out: Path, device: str = "", command: str = "") -> None:
    """The page and its picture, from everything known so far; device and command as for ``page``."""
    shifts = experiment.shifts(Settings.from_json(store.settings))
    those = contenders(store.rows, experiment.methods)
    picture = draw(out / "shifts.png", those, shifts, experiment.angles)
    elsewhere = not device and out != RESULTS / experiment.name
    values = page(experiment, store, device, command) | {"picture": picture, "elsewhere": elsewhere}
    write_page(out / "results.md", "experiments/classification/page.md.j2", **values)


def page(experiment: Experiment, store: Store, device: str = "", command: str = "") -> dict[str, Any]:
    """What the template is filled with.

    Args:
        experiment: of the page.
        store: of its run.
        device: where the run was; empty: on one thread of a CPU, each method in a process of its own.
        command: that made it; empty: the experiment's own.
    """
    settings = Settings.from_json(store.settings)
    those, shifts = contenders(store.rows, experiment.methods), experiment.shifts(settings)
    rows = {METHODS[key].name: store.rows.get(key) for key in experiment.methods}
    fitted = {name: row for name, row in rows.items() if row is not None and "fit_seconds" in row}
    said = store.rows["prepared"]["members"][0] if "prepared" in store.rows else {}
    command = command or f"experiments.classification.{experiment.name} --root DIR"
    return {
        "experiment": experiment, "settings": settings, "states": states(store), "several": several, "device": device,
        "provenance": provenance(store, command, "sampla torch laplace-torch curvlinops-for-pytorch"),
        "network": "; ".join(f"{name}: {_number(value)}" for name, value in said.items()),
        "targets": targets(those, shifts, experiment.classes), "clean": clean(those), "kinds": len(shifts),
        "guess": log(experiment.classes), "shifted": shifted(those, shifts, experiment.angles),
        "costs": table(fitted, _COSTS), "scaling": scaling(fitted, settings.images, experiment.scale_to),
        "missing": [line for name, row in rows.items() for line in _missing(name, row)],
        "traces": {name: row["facts"] for name, row in fitted.items() if "trace" in row["facts"]},
    }  # fmt: skip


def targets(those: list[Contender], shifts: tuple[Shift, ...], classes: int) -> list[tuple[str, str]]:
    """What was to be shown, row by row of sampla, computed from the scores: title and table."""
    ours = [one for one in those if one.family == SAMPLA and one.competes]
    others = [one for one in those if one.family != SAMPLA]
    peers = [one for one in those if one.family == LAPLACE]
    every = [name for shift in shifts for name in shift.names]
    mild = [name for name in every if _informs(those, name, classes)]
    wanted = [([CLEAN], "clean images"), (every, "mean of the shifted sets")]
    if len(mild) < len(every):
        wanted.insert(1, (mild, "mean of the shifted sets on which the network alone beats a uniform guess"))
    pieces = []
    for names, where in wanted:
        for what, rivals, measure, slack in (
            ("Joint NLL best, or within one standard error of the best", others, JOINT_NLL, 1.0),
            ("NLL ahead of every row of laplace-torch", peers, NLL, 0.0),
        ):
            lines = [line for one in ours for line in _target(one, rivals, names, measure, slack)]
            if lines:
                met = sum(line[1] == "**met**" for line in lines)
                title = f"{what}: {where} ({met} of {len(lines)} rows met)"
                pieces.append((title, grid(["", "", "worse by", "than"], lines)))
    return pieces


def _informs(those: list[Contender], name: str, classes: int) -> bool:
    """Whether the network alone has a lower NLL on a set than uniform probabilities."""
    alone = next((one.score([name], NLL) for one in those if one.key == NETWORK), None)
    return alone is not None and alone.value < log(classes)


def _target(one: Contender, others: list[Contender], names: Sets, measure: str, slack: float) -> list[list[str]]:
    """One line; met if it is not further behind than so many standard errors (or ahead, for none)."""
    found = behind(one, others, names, measure)
    if found is None:
        return []
    other, difference, error = found
    met = difference <= slack * error if slack else difference < 0
    return [[one.name, "**met**" if met else "**not met**", f"{difference:+.4f} ± {error:.4f}", other]]


def clean(those: list[Contender]) -> str:
    """All measures on the clean test images, and how foreign images are told."""

    def words(score: Score, measure: str, _: str) -> str:
        digits, factor = (MEASURES[measure].digits, MEASURES[measure].factor) if measure in MEASURES else (4, 1)
        return f"{factor * score.value:.{digits}f} ± {factor * score.error:.{digits}f}"

    foreign = those[0].scores.get(AUROC, {}) if those else ()
    columns = {m: (m, [CLEAN]) for m in MEASURES} | {f"{AUROC} {name}": (AUROC, [name]) for name in foreign}
    return _scores(those, columns, words)


def shifted(those: list[Contender], shifts: tuple[Shift, ...], angles: bool) -> dict[str, str]:
    """Measure -> table over the shifted sets."""
    if not shifts:
        return {}
    columns: dict[str, Sets] = {}
    if angles:
        columns |= {f"{s:g}{shifts[0].unit}": [shifts[0].name(s)] for s in shifts[0].strengths}
    else:
        for number, severity in enumerate(shifts[0].strengths):
            columns[f"severity {severity:g}"] = [shift.names[number] for shift in shifts]
    columns |= {shift.kind: shift.names for shift in shifts}
    columns["all"] = sorted({name for names in columns.values() for name in names})

    def words(score: Score, measure: str, head: str) -> str:
        factor, digits = MEASURES[measure].factor, 1 if measure == ACCURACY else 3
        return f"{factor * score.value:.{digits}f}" + (f" ± {factor * score.error:.2g}" if head == "all" else "")

    found = {}
    for measure in (NLL, JOINT_NLL, ECE, ACCURACY):
        known = [one for one in those if one.score(columns["all"], measure) is not None]
        found[measure] = _scores(known, {head: (measure, names) for head, names in columns.items()}, words)
    return found if found[NLL] else {}


def _scores(
    those: list[Contender], columns: dict[str, tuple[str, Sets]], words: Callable[[Score, str, str], str]
) -> str:
    """A line for each contender; a column is the mean of a measure over some sets, its best one in bold."""
    tops = {head: best(those, names, measure) for head, (measure, names) in columns.items()}

    def cell(one: Contender, head: str) -> str:
        (measure, names), top = columns[head], tops[head]
        score = one.score(names, measure)
        if score is None or top is None:
            return "-"
        leads = top[0] is one or (measure == AUROC and score.value == top[1].value)
        return f"**{words(score, measure, head)}**" if leads else words(score, measure, head)

    cells = {head: lambda one, head=head: cell(one, head) for head in columns}
    return table(those, {"": lambda one: one.name} | cells)


def scaling(fitted: dict[str, Row], images: int, target: int | None) -> str:
    """What the fits would take on all training images."""
    if target is None:
        return ""
    families = {method.name: method.family for method in METHODS.values()}

    def each(row: Any) -> str:
        facts = row["facts"]
        work = images * facts["samples"] * facts.get("passes", 0)
        return f"{1000 * row['fit_seconds'] / work:.2f}" if work else "-"

    columns = {
        "": "{key}",
        "s per image": lambda row: f"{row['fit_seconds'] / images:.3f}",
        "ms per image, sample and pass": each,
        f"hours for {target:,} images, one thread": lambda row: f"{row['fit_seconds'] * target / images / 3600:.1f}",
    }
    return table({name: row for name, row in fitted.items() if families[name] in (SAMPLA, LAPLACE)}, columns)


def _learnt(facts: dict[str, Any]) -> str:
    if "gamma" in facts:
        settled = "" if facts["settled"] else ", EM NOT settled"
        settled += f", scaled by {facts['scale']:.3f}" if "scale" in facts else ""
        if facts.get("width") and "scale" not in facts:
            settled += f", width {facts['width']['marginal']:.2f}, joint {facts['width']['joint']:.2f}"
        settled += ", seconds since it was cut off" if facts.get("continued") else ""
        return (
            f"alpha {several(facts['alpha'])}, gamma {facts['gamma']:.1f} ± {facts['gamma_error']:.1f}, "
            f"{facts['passes']:.1f} passes, error {facts['solve_error']:.2%}{settled}"
        )
    if "prior_precision" in facts:
        return (
            f"prior precision {several(facts['prior_precision'])}; curvature {facts['curvature_seconds']:.1f} s, "
            f"tuning {facts['tuning_seconds']:.1f} s"
        )
    if "members" in facts:
        return f"{facts['members']} networks, whose training is not counted"
    return ", ".join(f"{name} {value:.4g}" for name, value in facts.items())


_COSTS = {
    "": "{key}", "fit, s": "{fit_seconds:.1f}", "predict, s per 1,000": "{predict_seconds:.2f}",
    "peak, GiB": lambda row: f"{row['peak_bytes'] / GIB:.2f}", "learnt": lambda row: _learnt(row["facts"]),
}  # fmt: skip


def several(values: list[float]) -> str:
    """One number, or the smallest and the largest."""
    return f"{values[0]:.4g}" if len(values) == 1 else f"{min(values):.3g} to {max(values):.3g}"


def _missing(name: str, row: Row | None) -> list[str]:
    """Why a method has no scores; or what sampla warned of."""
    if row is None:
        return [f"{name}: not run yet"]
    if row.failed:
        return [f"{name}: FAILED, {row['failed']}"]
    if "plan" in row:
        plan = row["plan"]
        return [
            f"{name}: does not fit: {plan['parameters']:,} parameters need about {plan['bytes'] / GIB:,.0f} GiB and, "
            f"at the speed of one measured product and factorisation, {plan['seconds'] / 3600:,.1f} hours on one thread"
        ]
    return [f"{name} warned: {word}" for word in row["warnings"]]


def _number(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def draw(path: Path, those: list[Contender], shifts: tuple[Shift, ...], angles: bool) -> bool:
    """NLL and joint NLL as the images move away from the training data; whether there was anything to draw."""
    if not shifts:
        return False
    points: dict[float, Sets] = {0: [CLEAN]}
    for number, strength in enumerate(shifts[0].strengths):
        moved = {strength: [shifts[0].names[number]]} if angles else {number + 1: [s.names[number] for s in shifts]}
        points |= moved
    complete = [
        one for one in those if one.way in (MAIN, EM_WIDTH) and all(one.score(sets, NLL) for sets in points.values())
    ]
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


def _lines(axes: Axes, those: list[Contender], points: dict[float, Sets], measure: str) -> None:
    used: dict[str, int] = {}
    for one in those:
        values = [score.value for names in points.values() if (score := one.score(names, measure)) is not None]
        if len(values) < len(points):
            continue
        colours, number = _COLOURS.get(one.family, _OTHERS), used.get(one.family, 0)
        used[one.family] = number + 1
        colour, style = colours[number % len(colours)], "-" if one.family == SAMPLA else "--"
        marker = _MARKERS[number % len(_MARKERS)]
        axes.plot(list(points), values, style, marker=marker, markersize=4, linewidth=1.6, color=colour, label=one.name)
    axes.set_ylim(bottom=0)
