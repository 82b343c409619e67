"""results.md and its pictures from the store of a run; the words are in page.md.j2."""

from collections.abc import Callable
from math import exp, log
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib import rc_context

from experiments.common.page import Target, grid, provenance, states, table, write_page
from experiments.common.store import Row, Store
from experiments.width.cases import CASES
from experiments.width.data import DEGREES, NOISE, PIXEL_NOISE, SCALE, TABLE_NOISE, TURNED
from experiments.width.scores import ALONE, BEST, EM, RULE
from sampla.apps.figures import STYLE, new_figure, png
from sampla.posterior.width import Width

WAYS = (ALONE, EM, RULE, BEST)
AT = {"network": "B at the network (the default)", "linear-mode": "B at the linear mode"}
NEW, USED = "new networks", "networks on which the rule was chosen"
_COLOURS = {EM: ("#d55e00", "s"), RULE: ("#0072b2", "o"), BEST: ("#9ca3af", "d")}
_WORSE, _SMALLER, _GAINS, _CLOSE, _COST = 1.02, 0.8, 0.75, 1.05, 1.1
"""The targets: at most so much of the network's NLL; so much of it where the best width gives at most so much; at most
so much of the best width's NLL, in the median; and of the cost without the rule."""
_FAR = 10.0
_EDGES = (0.08, 12.0)
"""Of the pictures: what lies beyond is drawn there."""
Rows = dict[str, Row]


def write(store: Store, out: Path) -> None:
    """The page, and a picture for each place of the curvature."""
    for at in AT:
        rows = _rows(store, at)
        if rows:
            draw(out / f"{at}.png", rows)
    write_page(out / "results.md", "experiments/width/page.md.j2", **page(store))


def page(store: Store) -> dict[str, Any]:
    """What the template is filled with."""
    found = {at: _rows(store, at) for at in AT}
    return {
        "provenance": provenance(store, "experiments.width.suite --root DIR --checkpoints DIR", "sampla torch"),
        "states": states(store), "count": len(found["network"]), "cases": len(CASES),
        "new": sum(not row["used"] for row in found["network"].values()),
        "parts": [_part(at, rows) for at, rows in found.items() if rows],
        "pixel_noise": PIXEL_NOISE, "table_noise": TABLE_NOISE, "degrees": DEGREES, "scale": SCALE,
    }  # fmt: skip


def _part(at: str, rows: Rows) -> dict[str, Any]:
    groups = {"all networks": rows, NEW: _of(rows, used=False)}
    kinds = {
        f"{name}: {kind}": {n: row for n, row in _of(rows, used).items() if row["classifier"] == classifier}
        for name, used in ((USED, True), (NEW, False))
        for kind, classifier in (("classifiers", True), ("regressions", False))
    }
    return {
        "at": at, "title": AT[at], "verdicts": {name: targets(group) for name, group in groups.items()},
        "summary": {name: summary(group) for name, group in groups.items()},
        "tables": {name: (table(group, _MAIN, 2), table(group, _SHIFTED), table(group, _FITS))
                   for name, group in kinds.items() if group},
        "warnings": [(name, text) for name, row in rows.items() for text in row["warnings"]],
    }  # fmt: skip


def _rows(store: Store, at: str) -> Rows:
    return {name: row for name, row in store.under(f"{at}/").items() if "scores" in row}


def _of(rows: Rows, used: bool) -> Rows:
    return {name: row for name, row in rows.items() if row["used"] == used}


def relative(row: Row, measure: str, way: str, to: str) -> float:
    """A score beside another one: their ratio, for regression (where NLL may be negative) exp of their difference."""
    here, there = (row["scores"][measure][one] for one in (way, to))
    return here / there if row["classifier"] else exp(here - there)


def unharmed(row: Row, measure: str = "NLL", way: str = RULE) -> bool:
    """Whether NLL is at most 2 % above the network alone, or one standard error of the difference."""
    found = row["scores"]
    over = found[measure][way] - found[measure][ALONE]
    return relative(row, measure, way, ALONE) <= _WORSE or over <= found[f"{measure} error"]


def asked_more(row: Row) -> bool:
    """Whether the network is much worse on test data than on training data, and the best width helps much."""
    alone, gained = row["scores"]["NLL"][ALONE], relative(row, "NLL", BEST, ALONE)
    return row["classifier"] and alone > 2 * row["train NLL"] and gained <= _GAINS


def targets(rows: Rows) -> list[Target]:
    """What was to be shown, from the scores."""
    harmed = [name for name, row in rows.items() if not unharmed(row)]
    more = {name: row for name, row in rows.items() if asked_more(row)}
    short = [name for name, row in more.items() if relative(row, "NLL", RULE, ALONE) > _SMALLER]
    joint = [n for n, row in rows.items() if row["scores"]["joint NLL"][RULE] >= row["scores"]["joint NLL"][ALONE]]
    behind = {
        k: [relative(row, "NLL", RULE, BEST) for row in rows.values() if row["classifier"] == k] for k in (True, False)
    }
    found: list[Target] = [
        (not harmed, "clean NLL at most 2 %, or one standard error of the difference, above the network alone",
         _counted(rows, harmed, lambda name: _factor(rows, name, ALONE))),
        (not short, "clean NLL at least 20 % below the network alone where that exceeds twice the training NLL and the "
         "best width gains 25 %", _counted(more, short, lambda name: _factor(rows, name, ALONE))),
        (not joint, "joint NLL better than the network alone",
         _counted(rows, joint, lambda n: "{rule:.3f} for {alone:.3f}".format(**rows[n]["scores"]["joint NLL"]))),
    ]  # fmt: skip
    for classifier, what in ((True, "classifiers: NLL within 5 %"), (False, "regressions: NLL within .05 nats")):
        if beyond := behind[classifier]:
            middle = median(beyond)
            told = f"{middle - 1:+.1%}; the worst {_shown(max(beyond))}"
            if not classifier:
                told = f"{log(middle):+.3f}; the worst {log(max(beyond)):+.2f}"
            found.append((middle <= _CLOSE, f"{what} of the best width's, in the median", told))
    both = [row for row in rows.values() if "passes, em" in row]
    if not both:
        return found
    cost = sum(row["seconds"] for row in both) / sum(row["seconds, em"] for row in both)
    passes = [row["passes"] / row["passes, em"] for row in both]
    return [
        *found,
        (cost <= _COST, "a fit with the rule at most 1.1 times a fit without",
         f"CPU seconds of all {cost:.2f}; passes {median(passes):.2f} in the median, at most {max(passes):.2f}"),
    ]  # fmt: skip


def _factor(rows: Rows, name: str, to: str) -> str:
    return _shown(relative(rows[name], "NLL", RULE, to))


def _shown(factor: float) -> str:
    """A factor in per cent, or of regressions far off in nats."""
    return f"{factor - 1:+.0%}" if factor < _FAR else f"{log(factor):+.1f} nats"


def _counted(rows: Rows, failed: list[str], told: Callable[[str], str]) -> str:
    those = f" (not {', '.join(f'{name} {told(name)}' for name in failed)})" if failed else ""
    return f"{len(rows) - len(failed)} of {len(rows)}{those}"


def summary(rows: Rows) -> str:
    """The widths beside each other: median and worst, of classifiers in per cent and of regressions in nats."""
    heads = ["", "NLL beside alone", "NLL beside best", "joint NLL beside alone", "joint NLL beside best"]
    lines = []
    for kind, classifier in (("classifiers", True), ("regressions", False)):
        those = [row for row in rows.values() if row["classifier"] == classifier]
        for way in WAYS[1:] if those else ():
            cells = []
            for measure, to in ((m, to) for m in ("NLL", "joint NLL") for to in (ALONE, BEST)):
                found = [relative(row, measure, way, to) for row in those]
                middle, worst = median(found), max(found)
                cells.append(
                    f"{middle - 1:+.1%} / {worst - 1:+.0%}" if classifier else f"{log(middle):+.2f} / {log(worst):+.2f}"
                )
            lines.append([f"{way}, {len(those)} {kind}", *cells])
    return grid(heads, lines)


def _four(measure: str) -> Callable[[Any], str]:
    def cell(row: Row) -> str:
        values = row["scores"].get(measure)
        return " / ".join(f"{values[way]:.3f}" for way in WAYS) if values else "-"

    return cell


def _maybe(name: str, spec: str) -> Callable[[Any], str]:
    return lambda row: format(row[name], spec) if name in row else "-"


_MAIN = {
    "network": "{key}", "N, P, C": "{data:,}, {parameters:,}, {outputs}", "training NLL": "{train NLL:.4f}",
    "NLL": _four("NLL"), "joint NLL": _four("joint NLL"),
    "width, rule / best": lambda row: f"{row['rule']['marginal']:.2f} / {row['scores']['best width']:.2f}",
    "joint width, rule / best": lambda row: f"{row['rule']['joint']:.2f} / {row['scores']['best joint width']:.2f}",
}  # fmt: skip
_SHIFTED = {"network": "{key}", "ECE": _four("ECE"), "NLL, noise": _four(f"NLL, {NOISE}"),
            "NLL, turned or scaled": _four(f"NLL, {TURNED}")}  # fmt: skip
_FITS = {
    "network": "{key}", "effective dimension": "{effective dimension:.0f}",
    "passes, EM": _maybe("passes, em", ".1f"), "passes, rule": "{passes:.1f}",
    "CPU s, EM": _maybe("seconds, em", ".2f"), "CPU s, rule": "{seconds:.2f}",
    "width": lambda row: Width.from_dict(row["rule"]).shown(joint=False, sign="±"),
    "joint width": lambda row: Width.from_dict(row["rule"]).shown(joint=True, sign="±"),
    "LOO log score": "{rule[score]:.3f} ± {rule[score_error]:.3f}", "leverage near 1": "{rule[near_one]:.0f}",
    "cover": lambda row: f"{row['rule']['cover']:.2f}" if "cover" in row["rule"] else "-",
}  # fmt: skip


def draw(path: Path, rows: Rows) -> None:
    """Every network's NLL and joint NLL beside the network alone, the new networks above."""
    names = [*_of(rows, used=True), *_of(rows, used=False)]
    with rc_context(STYLE):
        figure = new_figure(9.0, 1.2 + 0.19 * len(names))
        axes = figure.subplots(1, 2, sharey=True)
        for one, measure in zip(axes, ("NLL", "joint NLL"), strict=True):
            values = {way: [_inside(relative(rows[n], measure, way, ALONE)) for n in names] for way in _COLOURS}
            for place, (rule, best) in enumerate(zip(values[RULE], values[BEST], strict=True)):
                one.plot([best, rule], [place, place], color=_COLOURS[BEST][0], linewidth=1)
            for way, (colour, marker) in _COLOURS.items():
                one.plot(values[way], range(len(names)), marker, color=colour, markersize=4, label=way)
            one.axvline(1, color="black", linewidth=1)
            one.set_xscale("log")
            one.set_xlabel(f"{measure} / that of the network alone")
        axes[0].set_yticks(range(len(names)), [n if rows[n]["used"] else f"{n} *" for n in names], fontsize=6)
        axes[0].set_ylim(-1, len(names))
        axes[0].legend(loc="lower left", ncols=3, bbox_to_anchor=(0, 1), fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(figure))


def _inside(factor: float) -> float:
    return min(max(factor, _EDGES[0]), _EDGES[1])
