"""Tables of how sampla and BayesianRidge agree where they are the same model."""

from math import log1p
from typing import Any

import writing
from config import ORACLE_SAMPLES, SETS
from kept import Kept

LIMIT = 1e-3
"""Largest relative difference allowed."""
_MEASURES = ("coefficients", "noise precision", "prior precision", "predictive std")
_NOTHING = 1e-9
"""Stated errors below this are rounding, and make no z-score."""


def sections(kept: Kept) -> list[str]:
    """All of them."""
    return [_exact(kept), _sampled(kept), _intercept(kept)]


def _exact(kept: Kept) -> str:
    found = kept.results("oracle/")
    if not found:
        return ""
    rows, worst = [], 0.0
    for name in (name for name in SETS if name in found):
        values = [found[name][measure] for measure in _MEASURES]
        worst = max(worst, *values)
        rows.append(
            [name, f"{found[name]['rows']:,} x {found[name]['columns']}", *(f"{v:.1e}" for v in values)]
        )  # fmt: skip
    verdict = "met" if worst <= LIMIT and len(found) == len(SETS) else "NOT MET"
    words = (
        "The largest relative differences between sampla (exact) and BayesianRidge (tol=1e-12, hyperpriors 0) on all rows "
        "of each set, columns standardised and everything centred, no intercept in either; of the coefficients relative "
        "to the largest of them, of the predictive standard deviation (noise included) over all rows.\n\n"
        f"- **{verdict}** at most {LIMIT:g} on every set: the largest is {worst:.1e}, on {len(found)} of {len(SETS)} sets"
    )
    return f"## The oracle\n\n{words}\n\n{writing.table(['set', 'N x D', *_MEASURES], rows)}"


def _sampled(kept: Kept) -> str:
    rows, scores = [], []
    for prefix, features in (("sampled/", "raw"), ("sampled, random features/", "random")):
        found = kept.results(prefix)
        for name in (name for name in SETS if name in found):
            result = found[name]
            prior, noise = (
                _score(result[f"{what} precision"], result[f"stated {what}"]) for what in ("prior", "noise")
            )
            scores += [z for z in (prior, noise, result["z of the quadratic form"]) if z is not None]
            rows.append(
                [
                    f"{name}, {features}", f"{result['effective dimension']:.1f}", "yes" if result["settled"] else "NO",
                    f"{result['coefficients']:.2%}", f"{result['prior precision']:+.1%}", _text(prior),
                    f"{result['noise precision']:+.2%}", _text(noise), _text(result["z of the quadratic form"]),
                    f"{result['rms z of variances']:.2f}", f"{result['largest z of variances']:.1f}",
                ]
            )  # fmt: skip
    if not rows:
        return ""
    head = ["set", "gamma", "settled", "mean", "prior", "z", "noise", "z", "z of z'Hz", "variances: rms z", "largest"]
    beyond = sum(abs(z) > 3 for z in scores)
    words = (
        f"The matrix-free way with its defaults and K = {ORACLE_SAMPLES} against BayesianRidge. 'mean': relative distance "
        "of the fitted values. z of the precisions: the log of the ratio over the standard error that the fit states (and "
        "beyond what more iterations may change). z of z'Hz: of the sum over all draws, chi-square with K D degrees of "
        "freedom at the hyperparameters found. Variances of the function at every row: relative error over sqrt(2 / K); "
        "rows are correlated, and the largest over all rows is beyond 3 as a rule.\n\n"
        f"- {len(scores)} z-scores, {beyond} of them beyond 3, the largest {max(map(abs, scores)):.1f}"
    )
    return f"## Sampled quantities within their stated errors\n\n{words}\n\n{writing.table(head, rows)}"


def _score(difference: float, stated: list[float] | None) -> float | None:
    """Log ratio over its stated standard error, what more iterations may change taken off."""
    if stated is None or stated[0] < _NOTHING:
        return None
    off, spread = log1p(difference), stated[0]
    return max(abs(off) - stated[1], 0.0) * (1 if off > 0 else -1) / spread


def _text(score: float | None) -> str:
    return "-" if score is None else f"{score:+.1f}"


def _intercept(kept: Kept) -> str:
    found: dict[str, dict[str, Any]] = kept.results("intercept/")
    if not found:
        return ""
    means = [result["mean"] for result in found.values()]
    largest = max(result["largest"] for result in found.values())
    words = (
        "With an intercept the two differ: sampla's has a flat prior and its uncertainty is in every prediction, and it "
        "takes a degree of freedom from the noise; BayesianRidge centres and leaves both out. Predictive variances are "
        f"larger by {min(means):.2f} / N to {max(means):.2f} / N on average over the rows of a set ({largest:.2f} / N at "
        "most): one N-th from the intercept's own variance, one from the noise's degrees of freedom."
    )
    return f"## What the flat intercept changes\n\n{words}"
