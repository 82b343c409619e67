"""results.md and the histograms; no number in them is written by hand."""

import platform
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import binom
from simulation import QUANTITIES, Way

import sampla

LIMIT = 0.01
"""p-value that every statistic at given precisions must exceed."""


@dataclass(frozen=True)
class Outcome:
    """What the data sets of one way gave."""

    way: Way
    counts: dict[str, np.ndarray]
    """Quantity -> how many ranks fell into each bin."""
    p_values: dict[str, float]
    """Of the chi-square test of uniformity."""
    warned: int
    """Fits that gave a warning."""


def write(path: Path, outcomes: list[Outcome], settings: dict[str, float]) -> None:
    """The page."""
    given = [outcome for outcome in outcomes if not outcome.way.learnt]
    bins = len(next(iter(given[0].counts.values())))
    text = f"""\
# Simulation-based calibration of the linear models

Written by `python experiments/calibration/run.py --sets {settings["sets"]}`: sampla {sampla.__version__}, torch \
{torch.__version__}, numpy {np.__version__}, python {platform.python_version()}. Seed {settings["seed"]}, chosen once.

{settings["sets"]:,} data sets for each way, each drawn anew: X standard normal, theta from a prior of precision \
{settings["alpha"]:g}, noise of precision {settings["noise"]:g}, no intercept. A fit that is right cannot be told from \
the draw that made the data: the rank of the truth among {settings["draws"]} posterior draws is uniform (Talts, \
Betancourt, Simpson, Vehtari, Gelman 2018). Ranks are counted in {bins} bins, and p is that of the chi-square test.

- mean function: x' theta at a new row
- noise: y - x' theta at a training row, among y - x' theta_k
- prediction: a new target at another new row, among draws of `sample_y`

## Targets

{_verdict(given)}

## Precisions given

{_table(given)}

## Precisions learnt

Without a requirement: sampla maximises the evidence and then takes the precisions as known, and the data sets are \
small, so the posterior must be somewhat too narrow.

{_table([outcome for outcome in outcomes if outcome.way.learnt])}

![Histograms of the ranks](ranks.png)

Counts of the ranks. Band: where {1 - LIMIT:.0%} of the counts of one bin fall if ranks are uniform. Grey: precisions
learnt.
"""
    path.write_text(text, encoding="utf-8")


def draw(path: Path, outcomes: list[Outcome]) -> None:
    """Histograms: a row for each way, a column for each quantity."""
    figure, axes = plt.subplots(
        len(outcomes), len(QUANTITIES), figsize=(9, 1.6 * len(outcomes)), sharex=True, sharey=True, layout="constrained"
    )
    for row, outcome in zip(axes, outcomes, strict=True):
        for axis, quantity in zip(row, QUANTITIES, strict=True):
            _histogram(axis, outcome, quantity)
    for axis, quantity in zip(axes[0], QUANTITIES, strict=True):
        axis.set_title(quantity)
    for axis in axes[-1]:
        axis.set_xlabel("rank of the truth (bins)")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _histogram(axis: plt.Axes, outcome: Outcome, quantity: str) -> None:
    count, bins = outcome.counts[quantity], len(outcome.counts[quantity])
    low, high = binom.interval(1 - LIMIT, int(count.sum()), 1 / bins)
    axis.axhspan(low, high, color="#dde6ee", zorder=0)
    axis.bar(np.arange(bins), count, width=0.9, color="#9a9a9a" if outcome.way.learnt else "#2f6f9f")
    axis.set_xticks([])
    axis.text(0.02, 0.95, f"p = {outcome.p_values[quantity]:.2g}", transform=axis.transAxes, va="top", fontsize=8)
    if quantity == QUANTITIES[0]:
        axis.set_ylabel(outcome.way.name + (",\nlearnt" if outcome.way.learnt else ""), fontsize=8)


def _verdict(given: list[Outcome]) -> str:
    found = [(p, f"{outcome.way.name}, {quantity}") for outcome in given for quantity, p in outcome.p_values.items()]
    failed = [f"{name} (p = {p:.2g})" for p, name in found if p <= LIMIT]
    smallest, where = min(found)
    detail = "; ".join(failed) if failed else f"the smallest of {len(found)} is {smallest:.2g} ({where})"
    return f"- **{'NOT MET' if failed else 'met'}** p above {LIMIT:g} for every way and quantity: {detail}"


def _table(outcomes: list[Outcome]) -> str:
    lines = [
        "| way | N x D | " + " | ".join(f"p, {quantity}" for quantity in QUANTITIES) + " | fits that warned |",
        "| --- | ---: |" + " ---: |" * (len(QUANTITIES) + 1),
    ]
    for outcome in outcomes:
        values = " | ".join(f"{outcome.p_values[quantity]:.3g}" for quantity in QUANTITIES)
        way = outcome.way
        lines.append(f"| {way.name} | {way.rows} x {way.columns} | {values} | {outcome.warned} |")
    return "\n".join(lines)
