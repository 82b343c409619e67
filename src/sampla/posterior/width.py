"""The width of error bars, found from the training data: by which factors deviations from the network are taken.

EM finds the prior for which the linear model explains the targets best. That is no promise for predictions around the
network: where it has fitted its training data to the last, their error bars come out several times too wide. So the
posterior's deviations are taken s times, with the s that gives training labels the highest probability when each is
left out (leave_one_out.py). Probabilities of one label, and those of several labels explained by one function, want
different s: the second comes from the same score for a label that has been seen ten times (docs/method.md, section 9).
With Gaussian noise a single s serves both. experiments/width measures the rule on networks that it was not chosen on.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import inf, isfinite, nan, sqrt
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sampla.core.checks import require
from sampla.model import LinearModel
from sampla.posterior.leave_one_out import Linear, linear_batches, mixing

Rule = Literal["loo", "em", "given"]

FACTORS: list[float] = [0.0, *np.geomspace(0.02, 12.0, 18).tolist()]
"""Factors among which the best is looked for."""
_REPEATS = 10
"""How often a label is seen for the joint factor: the size of a group in joint scores (Osband et al. 2022)."""
_PARTS = 20
"""Parts of the data that are left out in turn, for standard errors."""
NEAR_ONE = 0.9
"""Leverage from which an observation determines what is said of it almost alone."""
_SAME = 1e-9
"""Relative difference of scores that is none."""
_LARGEST_SCALE = 10.0
"""What the mode's outputs are multiplied by at most, or divided; usual are 1 to 3."""
_COVERS = {False: 1.0, True: 2.0}
"""Deviations at most, by whether B is at the linear mode, that may lie between the linear mode and the network."""


@dataclass(frozen=True)
class Width:
    """Factors on the posterior's standard deviations, and where they come from."""

    marginal: float = 1.0
    """For probabilities and densities of single data."""
    joint: float = 1.0
    """For functions: joint samples and densities, their standard deviations, and what is derived from them."""
    rule: Rule = "em"
    """"loo": by leave-one-out on the training data; "em": the posterior as EM leaves it; "given"."""
    errors: tuple[float, float] = (0.0, 0.0)
    """Standard errors of both factors, from the data (a jackknife over twenty parts of them); NaN of a single datum,
    and at the largest or the smallest factor that is tried, where the best is beyond."""
    score: float = nan
    """Mean leave-one-out log density of an observation at the marginal factor, in nats."""
    score_error: float = nan
    """Its standard error."""
    num_observations: float = nan
    """How many observations were left out in turn."""
    near_one: float = nan
    """How many of them have a leverage above .9."""
    cover: float = inf
    """What no factor was allowed to exceed: the distance between linear mode and network, in deviations."""
    scale: float = 1.0
    """By how much the linear mode's outputs were multiplied to stand for the network's."""

    def __post_init__(self) -> None:
        for value in (self.marginal, self.joint):
            fix = "1 is EM's own, 0 the network alone; width='loo' finds it from the training data."
            require(0 <= value < inf, "a width of at least 0", f"{value}", fix)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> "Width":
        """The inverse of ``to_dict``; None, from a file of an earlier version, is EM's width."""
        if values is None:
            return cls()
        return cls(**{**values, "errors": tuple(nan if each is None else each for each in values["errors"])})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without what is not known."""
        values = {**asdict(self), "errors": [each if isfinite(each) else None for each in self.errors]}
        return {name: value for name, value in values.items() if not isinstance(value, float) or isfinite(value)}

    def __str__(self) -> str:
        if self.rule != "loo":
            return f"{self.marginal:.3g} times the posterior's deviations" + (", as given" * (self.rule == "given"))
        words = f"{self.shown(joint=False)} times the posterior's deviations"
        if self.joint != self.marginal:
            words += f" for probabilities, {self.shown(joint=True)} for joint predictions"
        alone = "; functions do not differ from the network's" if self.joint == 0 else ""
        far = "; the linear mode's outputs, multiplied by {:g}, at the limit, still are not the network's"
        return words + alone + (far.format(self.scale) if _scale_at_limit(self.scale) else "")

    def shown(self, joint: bool, sign: str = "+-") -> str:
        """A factor with its standard error, or at which end of those that are tried it is, where it has none."""
        factor, error = (self.joint, self.errors[1]) if joint else (self.marginal, self.errors[0])
        if at_limit(factor):
            return f"{factor:.2f} (at the limit)"
        return f"{factor:.2f} {sign} {error:.2f}"

    @property
    def left_out(self) -> str:
        """What leaving out said of the training data, in words; empty where nothing was left out."""
        if self.rule != "loo":
            return ""
        return (
            f"log score {self.score:.3f} +- {self.score_error:.3f} nats for an observation that is left out; leverage "
            f"near 1: {self.near_one:.0f} of {self.num_observations:.0f}"
        )


def at_limit(factor: float) -> bool:
    """Whether a factor is the largest or the smallest that is tried, zero included: leaving out parts of the data does
    not move it, which says nothing about its error."""
    return factor >= FACTORS[-1] or factor <= FACTORS[1]


def _scale_at_limit(scale: float) -> bool:
    return not 1 / _LARGEST_SCALE < scale < _LARGEST_SCALE


def leave_one_out_width(model: LinearModel, samples: Tensor, mean: Tensor, at_mode: bool, seed: int) -> Width:
    """The factors that leave-one-out on the training data prefers, by a pass of K + 1 jvps.

    Args:
        model: of the network's own parameters, unscaled, its outputs the network's.
        samples: (K, P) zero-mean posterior samples.
        mean: (P,) the linear model's mode.
        at_mode: whether H has B at the linear mode's outputs, not at the network's.
        seed: of the draws over which a likelihood is averaged.
    """
    scale = outputs_scale(model, mean) if at_mode else 1.0
    scores, tallies = model.once("width", samples, lambda: _sums(model, samples, mean, at_mode, seed, scale))
    counts, near = tallies[0], float(tallies[1].sum())
    # the width of a quadratic likelihood, which alone has one score, does not depend on where B is taken
    without = [inf if len(scores) == 1 else _cover(tallies, at_mode, part) for part in (*range(_PARTS), None)]
    cover = without.pop()
    filled = (counts > 0).nonzero().flatten().tolist()
    factors = [_chosen(each[:, filled], cover) for each in scores]
    at = int(np.abs(np.asarray(FACTORS) - factors[0]).argmin())
    parts = scores[0, at, filled] / counts[filled]
    errors = [
        nan if at_limit(factor) else _error(each, without, filled) for factor, each in zip(factors, scores, strict=True)
    ]  # fmt: skip
    return Width(
        factors[0], factors[-1], "loo", (errors[0], errors[-1]),
        score=float(scores[0, at].sum() / counts.sum()),
        score_error=float(parts.std()) / len(parts) ** 0.5 if len(parts) > 1 else nan,
        num_observations=float(counts.sum()), near_one=near, cover=cover, scale=scale,
    )  # fmt: skip


def outputs_scale(model: LinearModel, mean: Tensor) -> float:
    """c of the least-squares fit f = c f* over the training data: the mode's outputs are the network's but for it.

    Between 1 / 10 and 10: of a mode near zero it would be noise.
    """
    return float(model.once("scale", mean, lambda: [_scale(model, mean)])[0])


def _scale(model: LinearModel, mean: Tensor) -> Tensor:
    along = size = torch.zeros((), dtype=torch.float64)
    for each in linear_batches(model, mean.new_empty(0, len(mean)), mean, True):
        network, mode = (_centred(each, values).double().cpu() for values in (each.network, each.mode))
        along, size = along + (network * mode).sum(), size + mode.square().sum()
    along, size = model.data.summed("scale", along, size)
    return (along / size.clamp_min(1e-300)).clamp(1 / _LARGEST_SCALE, _LARGEST_SCALE)


def _centred(each: Linear, values: Tensor) -> Tensor:
    """Outputs less what changes no probability: their mean over the classes; zero where nothing counts."""
    axis = each.batch.likelihood.class_axis
    alone = axis is None or values.shape[axis] == 1
    return each.batch.weighted(values if alone else values - values.mean(axis, keepdim=True), 0.5)


def _sums(
    model: LinearModel, samples: Tensor, mean: Tensor, at_mode: bool, seed: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Scores (powers, factors, parts) summed over the data; (4, parts) counts, leverages near one, |f - f*|^2_B at f*,
    and the mean of |d|^2_B."""
    like = torch.empty(0, dtype=torch.float32, device=model.features.device)
    mix = mixing(seed, len(samples), like)
    scores: Tensor | None = None
    tallies = torch.zeros(4, _PARTS, dtype=torch.float64)
    for each in linear_batches(model, samples, mean, at_mode):
        left = each.left_out(mix, scale)
        powers = (1.0,) if each.batch.likelihood.is_quadratic else (1.0, _REPEATS)
        counted = each.counted(left.leverage)
        found = left.log_prob(FACTORS, powers) * counted
        found = found.reshape(len(powers), len(FACTORS), len(counted), -1).sum(-1).double()
        part = torch.arange(each.batch.start, each.batch.stop, device=found.device) % _PARTS
        summed = found.new_zeros(len(powers), len(FACTORS), _PARTS).index_add_(2, part, found)
        scores = summed.cpu() if scores is None else scores + summed.cpu()
        number, near = (
            values.reshape(len(counted), -1).sum(1).double()
            for values in (counted, counted * (left.leverage > NEAR_ONE))
        )
        bent = each.batch.weighted
        apart = torch.cat([(each.network - each.mode)[None], each.deviations])
        size = apart * bent(each.batch.likelihood.curvature_product(each.mode, apart))
        size = size.double().reshape(*size.shape[:2], -1).sum(2)
        tallies += torch.zeros_like(tallies).index_add_(
            1, part.cpu(), torch.stack([number, near, size[0], size[1:].mean(0)]).cpu()
        )
    scores, tallies = model.data.summed("width", scores, tallies)
    return scores, tallies


def _best(scores: Tensor) -> float:
    """The factor with the largest of the scores (factors,), by a parabola through the three around it.

    One where all are the same, because the posterior is certain of the training data.
    """
    if float(scores.max() - scores.min()) <= _SAME * float(scores.abs().max()):
        return 1.0
    at = int(scores.argmax())
    if not 1 < at < len(FACTORS) - 1:
        return FACTORS[at]
    low, middle, high = scores[at - 1 : at + 2].tolist()
    bend = low - 2 * middle + high
    step = 0.5 * (low - high) / bend if bend < 0 else 0.0
    ratio: float = FACTORS[2] / FACTORS[1]
    return float(FACTORS[at] * ratio**step)


def _chosen(scores: Tensor, cover: float) -> float:
    """The factor, from scores (factors, parts); no cover, infinity, says that the likelihood is quadratic.

    For these EM's width is right by the model, and leave-one-out often cannot tell it from none: the factor is the one
    nearest to one that is not worse than the best by a standard error of the difference.
    """
    best = _best(scores.sum(-1))
    if isfinite(cover):
        return min(best, cover)
    if scores.shape[-1] < 2:
        return 1.0
    at = int(scores.sum(-1).argmax())
    behind = scores[at] - scores
    tied = (behind.sum(-1) <= behind.std(-1) * behind.shape[-1] ** 0.5).tolist()
    step = -1 if best > 1 else 1
    nearest = best
    while 0 <= at + step < len(FACTORS) and tied[at + step] and (nearest - 1) * step < 0:
        at += step
        nearest = FACTORS[at]
    return max(nearest, 1.0) if best > 1 else min(nearest, 1.0)


def _cover(tallies: Tensor, at_mode: bool, without: int | None) -> float:
    """What no factor may exceed, from all the data or without a part of them."""
    apart, spread = (float(each.sum() - (0 if without is None else each[without])) for each in tallies[2:])
    return _COVERS[at_mode] * sqrt(max(apart, 0.0) / spread) if spread > 0 else inf


def _error(scores: Tensor, covers: list[float], filled: list[int]) -> float:
    """Jackknife standard error of the factor over the parts that hold data; NaN where there is but one.

    Args:
        scores: (factors, parts).
        covers: without each part.
        filled: the parts that hold data.
    """
    if len(filled) < 2:
        return nan
    left = np.asarray([_chosen(scores[:, [p for p in filled if p != part]], covers[part]) for part in filled])
    return float(np.sqrt((len(filled) - 1) * left.var()))
