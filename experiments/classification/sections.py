"""The parts of results.md."""

from math import log
from typing import Any

from classification.data import CLEAN, Shift
from classification.metrics import ACCURACY, BRIER, ECE, JOINT_NLL, NLL, Score
from classification.registry import LAPLACE, METHODS, NETWORK, OTHER, SAMPLA
from classification.rows import Row, behind, best
from classification.settings import Settings

_GIB = 2**30


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, the first column text and the others numbers."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def verdicts(rows: list[Row], shifts: tuple[Shift, ...], classes: int) -> str:
    """What was to be shown, row by row of sampla, computed from the scores."""
    ours = [row for row in rows if row.family == SAMPLA and row.competes]
    others = [row for row in rows if row.family in (LAPLACE, OTHER)]
    peers = [row for row in rows if row.family == LAPLACE]
    every = [shift.name(strength) for shift in shifts for strength in shift.strengths]
    pieces = []
    mild = [name for name in every if _informs(rows, name, classes)]
    wanted = [([CLEAN], "clean images"), (every, "mean of the shifted sets")]
    if len(mild) < len(every):
        wanted.insert(1, (mild, "mean of the shifted sets on which the network alone beats a uniform guess"))
    for names, where in wanted:
        joint = [line for row in ours for line in _verdict(row, others, names, JOINT_NLL, 1.0)]
        single = [line for row in ours for line in _verdict(row, peers, names, NLL, 0.0)]
        for lines, target in (
            (joint, f"Joint NLL best, or within one standard error of the best: {where}"),
            (single, f"NLL ahead of every row of laplace-torch: {where}"),
        ):
            if lines:
                met = sum(line[1] == "**met**" for line in lines)
                head = ["", "", "worse by", "than"]
                pieces.append(f"{target} ({met} of {len(lines)} rows met)\n\n{table(head, lines)}")
    if not pieces:
        return ""
    words = (
        "Every row of sampla against the best of the others (of laplace-torch's rows for NLL): by how much it is worse "
        "(negative: better), with the standard error of the difference on the same images. The reference takes no part."
    )
    return f"## Targets\n\n{words}\n\n" + "\n\n".join(pieces)


def _informs(rows: list[Row], name: str, classes: int) -> bool:
    """Whether the network alone has a lower NLL on a set than uniform probabilities."""
    alone = next((row for row in rows if row.key == NETWORK), None)
    score = None if alone is None else alone.score([name], NLL)
    return score is not None and score.value < log(classes)


def _verdict(row: Row, others: list[Row], names: list[str], measure: str, slack: float) -> list[list[str]]:
    """One line; met if the row is not further behind than so many standard errors (or ahead, for none)."""
    found = behind(row, others, names, measure)
    if found is None:
        return []
    other, difference, error = found
    met = difference <= slack * error if slack else difference < 0
    return [[row.name, "**met**" if met else "**not met**", f"{difference:+.4f} ± {error:.4f}", other]]


def clean(rows: list[Row], settings: Settings) -> str:
    """All measures on the clean test images, and how foreign images are told."""
    if not rows:
        return ""
    measures, foreign = [ACCURACY, NLL, ECE, BRIER, JOINT_NLL], list(rows[0].auroc)
    leaders = {measure: best(rows, [CLEAN], measure) for measure in measures}
    lines = []
    for row in rows:
        cells = [_cell(row.score([CLEAN], m), m, leaders[m] is not None and leaders[m][0] is row) for m in measures]
        top = {name: max(r.auroc[name].value for r in rows if name in r.auroc) for name in foreign}
        areas = {name: row.auroc.get(name) for name in foreign}
        cells += [_cell(area, "AUROC", area is not None and area.value == top[n]) for n, area in areas.items()]
        lines.append([row.name, *cells])
    words = (
        "Value ± standard error over test images (jackknife over twenty parts). NLL in nats per image; ECE with 15 "
        "bins; joint NLL in nats per group of ten labels on two images (dyadic sampling); AUROC of the entropy, "
        "foreign against clean. 'probit' uses MacKay's formula on the K samples' variances and has no joint; 'its own "
        "probit' is the library's own prediction from its exact variances. Bold: best of a column."
    )
    head = ["", *measures, *(f"AUROC {name}" for name in foreign)]
    return f"## Clean test images, N = {settings.images:,}\n\n{words}\n\n{table(head, lines)}"


def _cell(score: Score | None, measure: str, leads: bool) -> str:
    if score is None:
        return "-"
    digits = 2 if measure == ACCURACY else 4
    scale = 100 if measure == ACCURACY else 1
    words = f"{scale * score.value:.{digits}f} ± {scale * score.error:.{digits}f}"
    return f"**{words}**" if leads else words


def shifted(rows: list[Row], shifts: tuple[Shift, ...], settings: Settings, angles: bool, classes: int) -> str:
    """Accuracy, NLL, ECE and joint NLL over the shifted sets."""
    if not shifts:
        return ""
    rows = [row for row in rows if all(shift.name(s) in row.sets for shift in shifts for s in shift.strengths)]
    if not rows:
        return ""
    columns = {}
    if angles:
        turned, *shifts_left = shifts
        columns |= {f"{s:g}{turned.unit}": [turned.name(s)] for s in turned.strengths}
    else:
        shifts_left = list(shifts)
        for number, severity in enumerate(shifts[0].strengths):
            columns[f"severity {severity:g}"] = [shift.name(shift.strengths[number]) for shift in shifts]
    columns |= {shift.kind: [shift.name(s) for s in shift.strengths] for shift in shifts_left}
    words = "Means over the sets of a column; bold: best."
    if not angles:
        words = f"Means over the {len(shifts)} kinds at a severity, or over the severities of a kind; bold: best."
    guess = log(classes)
    words += f" Uniform probabilities would have NLL {guess:.3f} and joint NLL {10 * guess:.2f}."
    pieces = [f"## Shifted test images ({settings.shifted:,} of each set)\n\n{words}"]
    for measure in (NLL, JOINT_NLL, ECE, ACCURACY):
        pieces.append(f"### {measure}\n\n{_shift_table(rows, columns, measure)}")
    return "\n\n".join(pieces)


def _shift_table(rows: list[Row], columns: dict[str, list[str]], measure: str) -> str:
    every = sorted({name for names in columns.values() for name in names})
    wanted = {**columns, "all": every}
    leaders = {name: best(rows, sets, measure) for name, sets in wanted.items()}
    lines = []
    for row in rows:
        cells = []
        for name, sets in wanted.items():
            score, leader = row.score(sets, measure), leaders[name]
            if score is None:
                cells.append("-")
                continue
            value = f"{100 * score.value:.1f}" if measure == ACCURACY else f"{score.value:.3f}"
            value += f" ± {100 * score.error if measure == ACCURACY else score.error:.2g}" if name == "all" else ""
            cells.append(f"**{value}**" if leader is not None and leader[0] is row else value)
        if set(cells) != {"-"}:
            lines.append([row.name, *cells])
    return table(["", *wanted], lines)


def costs(methods: dict[str, dict[str, Any]], order: tuple[str, ...]) -> str:
    """Time, memory and what was learnt."""
    lines = []
    for key in order:
        found = methods.get(key, {})
        if "fit_seconds" in found:
            lines.append(
                [
                    METHODS[key].name, f"{found['fit_seconds']:.1f}", f"{found['predict_seconds']:.2f}",
                    f"{found['peak_bytes'] / _GIB:.2f}", _learnt(found["facts"]),
                ]
            )  # fmt: skip
    if not lines:
        return ""
    words = (
        "Fit: after the network's own training, prior precision included (an ensemble's members are trained "
        "beforehand: see above). Predict: 1,000 clean images, all ways of averaging. CPU seconds of one thread. Peak "
        "memory: resident size of the method's own process, with torch and the images."
    )
    head = ["", "fit, s", "predict, s per 1,000", "peak, GiB", "learnt"]
    return f"## Cost\n\n{words}\n\n{table(head, lines)}"


def scaling(methods: dict[str, dict[str, Any]], order: tuple[str, ...], images: int, target: int | None) -> str:
    """What the fits would take on all training images."""
    lines = []
    for key in order:
        found = methods.get(key, {})
        if target is None or METHODS[key].family not in (SAMPLA, LAPLACE) or "fit_seconds" not in found:
            continue
        facts, seconds = found["facts"], found["fit_seconds"]
        product = f"{1000 * seconds / (images * facts['samples'] * facts['passes']):.2f}" if "passes" in facts else "-"
        lines.append([METHODS[key].name, f"{seconds / images:.3f}", product, f"{seconds * target / images / 3600:.1f}"])
    if not lines:
        return ""
    assert target is not None
    words = (
        f"Every fit's time grows in proportion to the images: what is measured on {images:,}, carried over to "
        f"{target:,} with the same number of passes (which grows slowly with gamma). Memory does not grow with them, "
        "apart from the images themselves: sampla holds a few blocks of K vectors of P, and none of these methods "
        "keeps anything of each image."
    )
    head = ["", "s per image", "ms per image, sample and pass", f"hours for {target:,} images, one thread"]
    return f"## Scaling\n\n{words}\n\n{table(head, lines)}"


def _learnt(facts: dict[str, Any]) -> str:
    if "gamma" in facts:
        settled = "" if facts["settled"] else ", EM NOT settled"
        settled += f", scaled by {facts['scale']:.3f}" if "scale" in facts else ""
        return (
            f"alpha {_several(facts['alpha'])}, gamma {facts['gamma']:.1f} ± {facts['gamma_error']:.1f}, "
            f"{facts['passes']:.1f} passes, error {facts['solve_error']:.2%}{settled}"
        )
    if "prior_precision" in facts:
        return (
            f"prior precision {_several(facts['prior_precision'])}; curvature {facts['curvature_seconds']:.1f} s, "
            f"tuning {facts['tuning_seconds']:.1f} s"
        )
    if "members" in facts:
        return f"{facts['members']} networks, whose training is not counted"
    return ", ".join(f"{name} {value:.4g}" for name, value in facts.items())


def _several(values: list[float]) -> str:
    return f"{values[0]:.4g}" if len(values) == 1 else f"{min(values):.3g} to {max(values):.3g}"


def not_run(methods: dict[str, dict[str, Any]], order: tuple[str, ...]) -> str:
    """Methods that failed, do not fit or are still to come, and why; and sampla's warnings."""
    lines = []
    for key in order:
        found, name = methods.get(key), METHODS[key].name
        if found is None:
            lines.append(f"- {name}: not run yet")
        elif "error" in found:
            lines.append(f"- {name}: FAILED, {found['error']}")
        elif "plan" in found:
            plan = found["plan"]
            lines.append(
                f"- {name}: does not fit: {plan['parameters']:,} parameters need about {plan['bytes'] / _GIB:,.0f} GiB "
                f"and, at the speed of one measured product and factorisation, {plan['seconds'] / 3600:,.1f} hours "
                "on one thread"
            )
        else:
            lines += [f"- {name} warned: {word}" for word in found["warnings"]]
    return "## Not run, and warnings\n\n" + "\n".join(lines) if lines else ""


def traces(methods: dict[str, dict[str, Any]], order: tuple[str, ...]) -> str:
    """How each prior was found, and the certificates."""
    pieces = []
    for key in order:
        facts = methods.get(key, {}).get("facts", {})
        if "trace" not in facts:
            continue
        lines = [
            [
                str(number), _several(step["precision"]), f"{sum(step['effective_dimension']):.1f}",
                f"{step['change']:.1%}", f"{step['passes']:.2g}",
            ]
            for number, step in enumerate(facts["trace"], 1)
        ]  # fmt: skip
        steps = table(["step", "alpha", "gamma", "change", "passes"], lines) if lines else "Nothing was learnt."
        pieces.append(f"### {METHODS[key].name}\n\n{steps}\n\n```\n{facts['certificate']}\n```")
    return "## How sampla's priors were found\n\n" + "\n\n".join(pieces) if pieces else ""
