"""Tables of how sampla and BayesianRidge agree where they are the same model."""

from math import log1p
from typing import Any

import writing
from config import ORACLE_SAMPLES, ORACLE_SEEDS, SETS
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
        "The largest relative differences between sampla (exact) and BayesianRidge (tol=1e-12, hyperpriors 0) on all "
        "rows of each set, columns standardised and everything centred, no intercept in either; of the coefficients "
        "relative to the largest of them, of the predictive standard deviation (noise included) over all rows.\n\n"
        f"- **{verdict}** at most {LIMIT:g} on every set: the largest is {worst:.1e}, on {len(found)} of {len(SETS)} "
        "sets"
    )
    return f"## The oracle\n\n{words}\n\n{writing.table(['set', 'N x D', *_MEASURES], rows)}"


def _sampled(kept: Kept) -> str:
    rows, all_scores = [], []
    for prefix, features in (("sampled/", "raw"), ("sampled, random features/", "random")):
        found = kept.results(prefix)
        for name in (name for name in SETS if name in found):
            runs = found[name]["runs"]
            scores = [_scores(runs, measure) for measure in ("prior", "noise")]
            scores.append([run["z of the quadratic form"] for run in runs])
            all_scores += [z for column in scores for z in column]
            settled = sum(run["settled"] for run in runs)
            variances = _root_mean_square([run["mean square z of variances"] ** 0.5 for run in runs])
            rows.append(
                [
                    f"{name}, {features}", f"{_mean(runs, 'effective dimension'):.1f}", f"{settled} of {len(runs)}",
                    f"{_mean(runs, 'mean'):.2%}", *(_spread(column) for column in scores), f"{variances:.2f}",
                ]
            )  # fmt: skip
    if not rows:
        return ""
    head = ["set", "gamma", "settled", "mean", "z, prior", "z, noise", "z, z'Hz", "z, variances"]
    beyond = sum(abs(z) > 3 for z in all_scores)
    words = f"""\
The matrix-free way with its defaults, K = {ORACLE_SAMPLES} and {ORACLE_SEEDS} seeds on each set, against BayesianRidge.
'mean': relative distance of the fitted values, the average over the seeds. Then z-scores, as root mean square over the
seeds (largest in brackets); 1 if the errors are as stated. Of the precisions: the log of the ratio to BayesianRidge's
over the standard error that the fit states, what more iterations may change taken off. z'Hz: the sum over all draws,
which is chi-square with K D degrees of freedom at the hyperparameters found. Variances of the function: relative
error over sqrt(2 / K), root mean square over all rows.

- {len(all_scores)} z-scores (without those of the variances), root mean square {_root_mean_square(all_scores):.2f}, \
{beyond} of them beyond 3, the largest {max(map(abs, all_scores)):.1f}"""
    return f"## Sampled quantities within their stated errors\n\n{words}\n\n{writing.table(head, rows)}"


def _mean(runs: list[dict[str, Any]], measure: str) -> float:
    return float(sum(run[measure] for run in runs) / len(runs))


def _root_mean_square(values: list[float]) -> float:
    return float((sum(value**2 for value in values) / len(values)) ** 0.5)


def _spread(scores: list[float]) -> str:
    return f"{_root_mean_square(scores):.2f} ({max(scores, key=abs):+.1f})" if scores else "-"


def _scores(runs: list[dict[str, Any]], measure: str) -> list[float]:
    found = (_score(run[f"{measure} precision"], run[f"stated {measure}"]) for run in runs)
    return [z for z in found if z is not None]


def _score(difference: float, stated: list[float] | None) -> float | None:
    """Log ratio over its stated standard error, what more iterations may change taken off."""
    if stated is None or stated[0] < _NOTHING:
        return None
    off, spread = log1p(difference), stated[0]
    return max(abs(off) - stated[1], 0.0) * (1 if off > 0 else -1) / spread


def _intercept(kept: Kept) -> str:
    found: dict[str, dict[str, Any]] = kept.results("intercept/")
    if not found:
        return ""
    means = [result["mean"] for result in found.values()]
    largest = max(result["largest"] for result in found.values())
    words = (
        "With an intercept the two differ: sampla's has a flat prior and its uncertainty is in every prediction, and "
        "it takes a degree of freedom from the noise; BayesianRidge centres and leaves both out. Predictive "
        f"variances are larger by {min(means):.2f} / N to {max(means):.2f} / N on average over the rows of a set "
        f"({largest:.2f} / N at most): one N-th from the intercept's own variance, one from the noise's degrees "
        "of freedom."
    )
    return f"## What the flat intercept changes\n\n{words}"
