"""Simulation-based calibration (Talts et al. 2018) of the linear models: are the ranks of the truth uniform?

    python -m experiments.regression.calibration [--sets 1000] [--out DIR]

Writes results.md, results.json and ranks.png; a few minutes.
"""

import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import binom, chisquare

import sampla
from experiments.common.command import command, say
from experiments.common.page import RESULTS, Target, provenance, table, write_page
from experiments.common.store import Measures, Row, Store, save_arrays

SEED = 20180418  # chosen once
DRAWS, BINS = 63, 16
"""Posterior draws of each data set, so ranks from 0 to 63; bins in which they are counted."""
PRIOR_PRECISION, NOISE_PRECISION = 1.0, 4.0
QUANTITIES = ("mean function", "noise", "prediction")
LIMIT = 0.01
"""p-value that every statistic at given precisions must exceed."""


@dataclass(frozen=True)
class Way:
    """One way of solving, on data of one size; the precisions are learnt, or the true ones given."""

    name: str
    solver: str
    rows: int
    columns: int
    learnt: bool = False

    @property
    def key(self) -> str:
        """Of its row."""
        return f"{'learnt' if self.learnt else 'given'}/{self.name}"


_SIZES = (("exact, primal", "exact", 40, 10), ("exact, dual", "exact", 12, 30), ("krylov", "block-cg", 40, 10))
WAYS = tuple(Way(*size, learnt) for learnt in (False, True) for size in _SIZES)


def simulate(way: Way, seed: tuple[int, ...]) -> tuple[list[int], int]:
    """One data set: the rank of the truth among ``DRAWS`` draws for each quantity, and how many warnings there were.

    The mean function is x' theta at a new row; the noise is y - x' theta at a training row, among y - x' theta_k; the
    prediction is a new target at another new row, among draws of ``sample_y``.
    """
    rng = np.random.default_rng(seed)
    x, new = rng.standard_normal((way.rows, way.columns)), rng.standard_normal((2, way.columns))
    theta = rng.standard_normal(way.columns) / PRIOR_PRECISION**0.5
    noise, later = rng.standard_normal(way.rows) / NOISE_PRECISION**0.5, rng.standard_normal() / NOISE_PRECISION**0.5
    precisions = {} if way.learnt else {"prior_precision": PRIOR_PRECISION, "noise_precision": NOISE_PRECISION}
    seeds = rng.integers(2**31 - 1, size=3).tolist()
    model = sampla.BayesianLinearRegression(
        solver=way.solver, num_samples=DRAWS, fit_intercept=False, random_state=seeds[0], progress=False, **precisions
    )
    y = x @ theta + noise
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, y)
    draws = model.sample_coef(DRAWS, random_state=seeds[1])[0]  # (S, D)
    predicted = model.sample_y(new[1:], DRAWS, random_state=seeds[2])[0]
    pairs = ((new[0] @ theta, draws @ new[0]), (noise[0], y[0] - draws @ x[0]), (new[1] @ theta + later, predicted))
    return [int(np.sum(among < truth)) for truth, among in pairs], len(caught)


def _counts(arrays: Any) -> dict[str, list[int]]:
    """How many ranks fell into each bin."""
    bins = arrays["ranks"] * BINS // (DRAWS + 1)
    return {quantity: np.bincount(bins[:, k], minlength=BINS).tolist() for k, quantity in enumerate(QUANTITIES)}


MEASURES: Measures = {
    "counts": _counts,
    "p": lambda arrays: {quantity: float(chisquare(count).pvalue) for quantity, count in _counts(arrays).items()},
}


def main() -> None:
    """All ways, each on its own data sets."""
    asked = command(__doc__, RESULTS / "calibration", anew=True, sets=(1000, "simulated data sets for each way"))
    store = Store(asked.out / "results.json", {"sets": asked.sets}, asked.cache, asked.anew)
    for number, way in enumerate(WAYS):
        row = store.once(way.key, partial(_all, store, way, number, asked.sets), measures=MEASURES)
        say(f"{way.key}: {row['p']}")
    write_page(asked.out / "results.md", "experiments/regression/calibration.md.j2", **page(store))
    draw(asked.out / "ranks.png", [(way, store.rows[way.key]) for way in WAYS])


def _all(store: Store, way: Way, number: int, sets: int) -> dict[str, Any]:
    found = [simulate(way, (SEED, number, index)) for index in range(sets)]
    save_arrays(store.predictions(way.key), ranks=np.array([ranks for ranks, _ in found]))
    return {"warned": sum(warned > 0 for _, warned in found)}


def page(store: Store) -> dict[str, Any]:
    """What the template is filled with."""
    given, learnt = ([{"way": w, **store.rows[w.key]} for w in WAYS if w.learnt == which] for which in (False, True))
    columns = {"way": "{way.name}", "N x D": "{way.rows} x {way.columns}"}
    columns |= {f"p, {quantity}": f"{{p[{quantity}]:.3g}}" for quantity in QUANTITIES} | {
        "fits that warned": "{warned}"
    }
    call = f"experiments.regression.calibration --sets {store.settings['sets']}"
    return {
        "provenance": provenance(store, call, "sampla torch numpy"), "sets": store.settings["sets"], "seed": SEED,
        "draws": DRAWS, "bins": BINS, "alpha": PRIOR_PRECISION, "noise": NOISE_PRECISION, "limit": LIMIT,
        "targets": [_target(given)], "given": table(given, columns), "learnt": table(learnt, columns),
    }  # fmt: skip


def _target(given: list[dict[str, Any]]) -> Target:
    found = [(p, f"{row['way'].name}, {quantity}") for row in given for quantity, p in row["p"].items()]
    failed = [f"{name} (p = {p:.2g})" for p, name in found if p <= LIMIT]
    smallest, where = min(found)
    detail = "; ".join(failed) if failed else f"the smallest of {len(found)} is {smallest:.2g} ({where})"
    return not failed, f"p above {LIMIT:g} for every way and quantity", detail


def draw(path: Path, pairs: list[tuple[Way, Row]]) -> None:
    """Histograms: a row for each way, a column for each quantity."""
    figure, axes = plt.subplots(
        len(pairs), len(QUANTITIES), figsize=(9, 1.6 * len(pairs)), sharex=True, sharey=True, layout="constrained"
    )
    for line, (way, row) in zip(axes, pairs, strict=True):
        for axis, quantity in zip(line, QUANTITIES, strict=True):
            count = row["counts"][quantity]
            axis.axhspan(*binom.interval(1 - LIMIT, sum(count), 1 / BINS), color="#dde6ee", zorder=0)
            axis.bar(np.arange(BINS), count, width=0.9, color="#9a9a9a" if way.learnt else "#2f6f9f")
            axis.set_xticks([])
            label = f"p = {row['p'][quantity]:.2g}"
            axis.text(0.02, 0.95, label, transform=axis.transAxes, va="top", fontsize=8)
        line[0].set_ylabel(way.name + (",\nlearnt" if way.learnt else ""), fontsize=8)
    for top, bottom, quantity in zip(axes[0], axes[-1], QUANTITIES, strict=True):
        top.set_title(quantity)
        bottom.set_xlabel("rank of the truth (bins)")
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
