"""results.md and its picture from the store of a run; the words are in page.md.j2."""

from math import log
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes

from experiments.classification.contenders import Contender, Sets, behind, best, contenders
from experiments.classification.experiment import Experiment, Settings
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


def write(experiment: Experiment, store: Store, out: Path) -> None:
    """The page and its picture, from everything known so far."""
    settings = Settings.from_json(store.settings)
    those, shifts = contenders(store.rows, experiment.methods), experiment.shifts(settings)
    picture = bool(those) and draw(out / "shifts.png", those, shifts, experiment.angles)
    write_page(
        out / "results.md", "experiments/classification/page.md.j2", **page(experiment, store), picture=picture,
        elsewhere=out != RESULTS / experiment.name,
    )  # fmt: skip


def page(experiment: Experiment, store: Store) -> dict[str, Any]:
    """What the template is filled with."""
    settings = Settings.from_json(store.settings)
    those, shifts = contenders(store.rows, experiment.methods), experiment.shifts(settings)
    rows = {METHODS[key].name: store.rows.get(key) for key in experiment.methods}
    fitted = {name: row for name, row in rows.items() if row is not None and "fit_seconds" in row}
    said = store.rows["prepared"]["members"][0] if "prepared" in store.rows else {}
    command = f"experiments.classification.{experiment.name} --root DIR"
    return {
        "experiment": experiment,
        "settings": settings,
        "provenance": provenance(store, command, "sampla torch laplace-torch curvlinops-for-pytorch"),
        "states": states(store),
        "network": "; ".join(f"{name}: {_number(value)}" for name, value in said.items()),
        "targets": targets(those, shifts, experiment.classes),
        "clean": clean(those),
        "kinds": len(shifts),
        "guess": log(experiment.classes),
        "shifted": shifted(those, shifts, experiment.angles),
        "costs": costs(fitted),
        "scaling": scaling(fitted, settings.images, experiment.scale_to),
        "missing": [line for name, row in rows.items() for line in _missing(name, row)],
        "traces": {name: row["facts"] for name, row in fitted.items() if "trace" in row["facts"]},
        "several": several,
    }


def targets(those: list[Contender], shifts: tuple[Shift, ...], classes: int) -> list[tuple[str, str]]:
    """What was to be shown, row by row of sampla, computed from the scores: title and table."""
    ours = [one for one in those if one.family == SAMPLA and one.competes]
    others = [one for one in those if one.family != SAMPLA]
    peers = [one for one in those if one.family == LAPLACE]
    every = [shift.name(strength) for shift in shifts for strength in shift.strengths]
    mild = [name for name in every if _informs(those, name, classes)]
    wanted = [([CLEAN], "clean images"), (every, "mean of the shifted sets")]
    if len(mild) < len(every):
        wanted.insert(1, (mild, "mean of the shifted sets on which the network alone beats a uniform guess"))
    pieces = []
    for names, where in wanted:
        joint = [line for one in ours for line in _target(one, others, names, JOINT_NLL, 1.0)]
        single = [line for one in ours for line in _target(one, peers, names, NLL, 0.0)]
        for lines, what in (
            (joint, f"Joint NLL best, or within one standard error of the best: {where}"),
            (single, f"NLL ahead of every row of laplace-torch: {where}"),
        ):
            if lines:
                met = sum(line[1] == "**met**" for line in lines)
                title = f"{what} ({met} of {len(lines)} rows met)"
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
    foreign = those[0].scores.get(AUROC, {}) if those else ()
    wanted = {measure: (measure, CLEAN) for measure in MEASURES} | {f"{AUROC} {n}": (AUROC, n) for n in foreign}
    tops = {head: best(those, [name], measure) for head, (measure, name) in wanted.items()}

    def cell(one: Contender, head: str) -> str:
        measure, name = wanted[head]
        score, top = one.score([name], measure), tops[head]
        ties = measure == AUROC and score is not None and top is not None and score.value == top[1].value
        return "-" if score is None else _cell(score, measure, ties or (top is not None and top[0] is one))

    columns = {head: lambda one, head=head: cell(one, head) for head in wanted}
    return table(those, {"": lambda one: one.name} | columns)


def _cell(score: Score, measure: str, leads: bool) -> str:
    digits, factor = (MEASURES[measure].digits, MEASURES[measure].factor) if measure in MEASURES else (4, 1)
    words = f"{factor * score.value:.{digits}f} ± {factor * score.error:.{digits}f}"
    return f"**{words}**" if leads else words


def shifted(those: list[Contender], shifts: tuple[Shift, ...], angles: bool) -> dict[str, str]:
    """Measure -> table over the shifted sets."""
    if not shifts:
        return {}
    every = [shift.name(s) for shift in shifts for s in shift.strengths]
    those = [one for one in those if one.score(every, NLL) is not None]
    columns: dict[str, Sets] = {}
    if angles:
        turned, *rest = shifts
        columns |= {f"{s:g}{turned.unit}": [turned.name(s)] for s in turned.strengths}
    else:
        rest = list(shifts)
        for number, severity in enumerate(shifts[0].strengths):
            columns[f"severity {severity:g}"] = [shift.name(shift.strengths[number]) for shift in shifts]
    columns |= {shift.kind: [shift.name(s) for s in shift.strengths] for shift in rest}
    columns["all"] = sorted({name for names in columns.values() for name in names})
    return {m: _shift_table(those, columns, m) for m in (NLL, JOINT_NLL, ECE, ACCURACY)} if those else {}


def _shift_table(those: list[Contender], columns: dict[str, Sets], measure: str) -> str:
    factor = MEASURES[measure].factor
    tops = {head: best(those, names, measure) for head, names in columns.items()}

    def cell(one: Contender, head: str) -> str:
        score, top = one.score(columns[head], measure), tops[head]
        if score is None:
            return "-"
        value = f"{factor * score.value:.{1 if measure == ACCURACY else 3}f}"
        value += f" ± {factor * score.error:.2g}" if head == "all" else ""
        return f"**{value}**" if top is not None and top[0] is one else value

    known = [one for one in those if one.score(columns["all"], measure) is not None]
    cells = {head: lambda one, head=head: cell(one, head) for head in columns}
    return table(known, {"": lambda one: one.name} | cells)


def costs(fitted: dict[str, Row]) -> str:
    """Time, memory and what was learnt."""
    return table(
        fitted.items(),
        {
            "": lambda pair: pair[0],
            "fit, s": lambda pair: f"{pair[1]['fit_seconds']:.1f}",
            "predict, s per 1,000": lambda pair: f"{pair[1]['predict_seconds']:.2f}",
            "peak, GiB": lambda pair: f"{pair[1]['peak_bytes'] / GIB:.2f}",
            "learnt": lambda pair: _learnt(pair[1]["facts"]),
        },
    )


def scaling(fitted: dict[str, Row], images: int, target: int | None) -> str:
    """What the fits would take on all training images."""
    if target is None:
        return ""
    families = {method.name: method.family for method in METHODS.values()}
    lines = []
    for name, row in fitted.items():
        if families[name] in (SAMPLA, LAPLACE):
            facts, seconds = row["facts"], row["fit_seconds"]
            each = f"{1000 * seconds / (images * facts['samples'] * facts['passes']):.2f}" if "passes" in facts else "-"
            lines.append([name, f"{seconds / images:.3f}", each, f"{seconds * target / images / 3600:.1f}"])
    head = ["", "s per image", "ms per image, sample and pass", f"hours for {target:,} images, one thread"]
    return grid(head, lines)


def _learnt(facts: dict[str, Any]) -> str:
    if "gamma" in facts:
        settled = "" if facts["settled"] else ", EM NOT settled"
        settled += f", scaled by {facts['scale']:.3f}" if "scale" in facts else ""
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
    points = _points(shifts, angles)
    names = [name for sets in points.values() for name in sets]
    complete = [one for one in those if one.way == "" and one.score(names, NLL) is not None]
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


def _points(shifts: tuple[Shift, ...], angles: bool) -> dict[float, Sets]:
    """Strength -> the sets whose mean is drawn there."""
    if angles:
        return {0: [CLEAN], **{s: [shifts[0].name(s)] for s in shifts[0].strengths}}
    numbers = range(len(shifts[0].strengths))
    return {0: [CLEAN], **{k + 1: [shift.name(shift.strengths[k]) for shift in shifts] for k in numbers}}


def _lines(axes: Axes, those: list[Contender], points: dict[float, Sets], measure: str) -> None:
    used: dict[str, int] = {}
    for one in those:
        found = [one.score(names, measure) for names in points.values()]
        values = [score.value for score in found if score is not None]
        if len(values) < len(points):
            continue
        colours, number = _COLOURS.get(one.family, _OTHERS), used.get(one.family, 0)
        used[one.family] = number + 1
        colour, style = colours[number % len(colours)], "-" if one.family == SAMPLA else "--"
        marker = _MARKERS[number % len(_MARKERS)]
        axes.plot(list(points), values, style, marker=marker, markersize=4, linewidth=1.6, color=colour, label=one.name)
    axes.set_ylim(bottom=0)
