"""MacKay's updates of the hyperparameters, and when their iteration has settled (docs/method.md, section 3).

With gamma the effective dimension and theta* the mode, both at the present hyperparameters, an EM step is

    alpha <- gamma / |theta*|^2,                               the prior's precision, for every group of parameters,
    beta  <- (N C - gamma) / sum_n |y_n - phi_n theta*|^2,     the noise's precision.

scikit-learn's BayesianRidge has the same two lines, where alpha is called lambda_ and beta alpha_; David MacKay,
Bayesian interpolation, Neural Computation 4(3), 1992. Every fit of this package takes them from here: networks by a
Krylov space or by samples, and linear models in closed form. Numbers and tensors only, no model and no solver.
"""

from math import inf
from typing import TypeVar

import torch
from torch import Tensor

Number = TypeVar("Number", float, Tensor)

BOUNDS = 1e-30, 1e30
"""Where alpha is stopped: inside of float32, and far from what usual units of inputs and targets make of it."""
LEAST_LEFT = 1e-3
"""Part of N C that N C - gamma is taken to be at least, and must exceed for the noise to be learnt from it."""
_ROUNDED = 1e-9
"""Relative distance from a bound at which alpha is there."""
_SMALLEST = 1e-300
"""Divisor at least."""
_FEWEST_DEGREES = 4.0
"""Degrees of freedom that an estimated trace is taken to have at least."""
DETERMINED = 0.1
"""gamma that a group must exceed for the data to say anything about its alpha. EM does not wait for the others, unless
alpha falls: then it is only too large still."""
_LEAST_AT_START = 1e-4
"""gamma below which EM does not start: from there alpha would only come down, and rounding hides gamma."""
_STANDARD_ERRORS = 3.0
"""Standard errors by which N C - gamma must exceed zero for the noise to be learnt from it."""
_ROUNDING = 4.0
"""Rounding errors of the targets within which outputs are taken to be equal to them."""
_OF_BRACKET = 0.25
"""An estimate is never said to be better than this part of what quadrature proves: on a plateau the last iterations
change little however far the limit is. Costs 2 % more iterations than 0.02, which was wrong by up to twenty times."""
_SLOWEST = 0.9
"""Rate of convergence from which Aitken's estimate is not believed any more."""
CREEPS = 1 / 3
"""1 - rate below which a group creeps: what is left is more than three times the step."""
LONGEST, BEYOND = 10.0, 1.5
"""Times a step that a creeping group's next one may be, and by how much more than it in log alpha."""
_SECANTS, _LEAST_MOVE, SLOWEST_LEFT = 2, 0.02, 0.05
"""Secants by which a rate is told, from how far a move of log alpha, and 1 - rate at least: less is rounding."""
FINEST = 1e-7
"""Noise over the spread of the targets below which EM does not go: its square is the rounding of float64, and from
there beta M hides A."""
ALL_MET = "the linear model meets the targets up to rounding"


def updated_alpha(gamma: Number, size: Number) -> Number:
    """MacKay's update of a prior precision, gamma / |theta*|^2.

    Args:
        gamma: effective dimension of the group.
        size: |theta*|^2 of the group, in the coordinates of the prior's scale.
    """
    return gamma / _at_least(size, _SMALLEST)


def updated_noise(entries: float, gamma: float, residual: Number) -> Number:
    """MacKay's update of a noise precision, (N C - gamma) / sum_n |y_n - phi_n theta*|^2.

    Args:
        entries: N C, the number of observed numbers, less those that the features have absorbed.
        gamma: effective dimension of all groups.
        residual: sum of the squared residuals at the mode. Weighted by a noise precision, the update is the factor by
            which that precision changes.
    """
    return degrees_left(entries, gamma) / _at_least(residual, _SMALLEST)


def updated_variance(entries: float, gamma: Tensor, residual: Tensor) -> Tensor:
    """The inverse of ``updated_noise``, sum_n |y_n - phi_n theta*|^2 / (N C - gamma): it may be zero."""
    return residual / degrees_left(entries, gamma)


def degrees_left(entries: float, gamma: Number) -> Number:
    """N C - gamma, which parameters leave of the data; at least a thousandth of N C."""
    return _at_least(entries - gamma, LEAST_LEFT * entries)


def updated_alphas(alpha: Tensor, gamma: Tensor, size: Tensor) -> Tensor:
    """(G,) MacKay's update of every group's alpha; as it was where there is nothing to go by.

    Args:
        alpha: (G,) present alpha.
        gamma: (G,) effective dimension.
        size: (G,) |theta*|^2. Both are zero for a dead layer.
    """
    known = (gamma > 0) & (size > 0)
    return torch.where(known, updated_alpha(gamma, size).clamp(*BOUNDS), alpha)


def out_of_bounds(alpha: Tensor, gamma: Tensor) -> bool:
    """Whether an update was stopped at ``BOUNDS``; one that goes to infinity without any data that tell it may be.

    Args:
        alpha: (G,) updates; some routes have no bounds, and steps are taken in logarithms.
        gamma: (G,) effective dimensions.
    """
    low, high = ((alpha / bound - 1).abs() < _ROUNDED for bound in BOUNDS)
    return bool((low | (high & (gamma > DETERMINED))).any())


def accelerated(used: list[Tensor], updates: list[Tensor]) -> Tensor:
    """Where the fixed point alpha = update(alpha) is expected, by a secant through the last two EM steps.

    MacKay's update overshoots when the effective dimension falls steeply with alpha, and creeps when it hardly falls;
    both are cured by one secant step in log alpha, group by group. Where it creeps a secant is a long way: at most ten
    times the plain update and not more than a factor of 4.5 beyond it.

    Args:
        used: (G,) alpha of the EM steps so far.
        updates: (G,) what MacKay's update made of each.

    Returns:
        (G,) the next alpha to try.
    """
    x, step = used[-1].log(), (updates[-1] / used[-1]).log()
    if len(used) < 2:
        return updates[-1]
    slope = _slope(used, updates, 1)[1]
    secant = -step / slope
    usable = slope.isfinite() & (slope < -0.1) & (secant.abs() <= 3 * step.abs())
    times = torch.where(slope < 0, -1 / slope, inf).clamp(1, LONGEST)  # beyond zero the update runs away from x
    long = torch.minimum(step.abs() * times, step.abs() + BEYOND) * step.sign()
    ahead = torch.where(slope.isfinite() & (slope > -CREEPS), long, step)
    return torch.where(usable, x + secant, x + ahead).exp().clamp(*BOUNDS)


def _slope(used: list[Tensor], updates: list[Tensor], back: int) -> tuple[Tensor, Tensor]:
    """(G,) by how much log alpha moved in the step that ended ``back`` steps from the end, 1 for the last one, and
    d log(update / alpha) / d log alpha over it, which is the rate of convergence less one."""
    step, before = ((updates[-n] / used[-n]).log() for n in (back, back + 1))
    moved = used[-back].log() - used[-back - 1].log()
    return moved, (step - before) / moved


def distance_that_matters(
    used: list[Tensor], updates: list[Tensor], gamma: Tensor, turned: Tensor | None = None
) -> float:
    """How far alpha is from its fixed point, relatively: over the groups that count for ``change_that_matters``.

    A plain update tells it where convergence is fast. Where a group creeps, it is many times smaller than the way that
    is left, step / (1 - rate) by Aitken, with the rate from the last two secants, the slower one.

    Args:
        used: (G,) alpha of the EM steps so far.
        updates: (G,) what MacKay's update made of each.
        gamma: (G,) effective dimension at the last alpha.
        turned: as for ``change_that_matters``.
    """
    change = change_that_matters(used[-1], updates[-1], gamma, turned)
    left = torch.ones_like(used[-1])
    for back in range(1, min(_SECANTS, len(used) - 1) + 1):
        moved, slope = _slope(used, updates, back)
        known = slope.isfinite() & (moved.abs() > _LEAST_MOVE) & (slope > -CREEPS)
        left = torch.where(known, torch.minimum(left, (-slope).clamp(SLOWEST_LEFT, 1)), left)
    creeps = (left < CREEPS) & counted(used[-1], updates[-1], gamma, turned)
    if not bool(creeps.any()):
        return change
    return max(change, float(((updates[-1] / used[-1]).log().abs() / left)[creeps].max()))


def relative_change(old: Tensor, new: Tensor) -> float:
    """The largest |log(new / old)|: 0.02 is a change of 2 %."""
    return float((new / old).log().abs().max())


def change_that_matters(old: Tensor, new: Tensor, gamma: Tensor, turned: Tensor | None = None) -> float:
    """The largest relative change of alpha (G,) over the groups about which the data say anything, or may do so yet.

    A group with hardly any gamma is one that the data do not need, whose alpha rises for ever, or one whose alpha is
    far above its fixed point, from where it falls by about the same factor in every step.

    Args:
        old: (G,) alpha.
        new: (G,) MacKay's update of it.
        gamma: (G,) effective dimension at the old alpha.
        turned: (G,) bool, groups whose alpha has risen before from a smaller one with as little gamma, so that the
            fixed point lies where the data say nothing. None: there are none.
    """
    counts = counted(old, new, gamma, turned)
    return relative_change(old[counts], new[counts]) if bool(counts.any()) else 0.0


def counted(old: Tensor, new: Tensor, gamma: Tensor, turned: Tensor | None) -> Tensor:
    """(G,) bool: the groups that EM waits for."""
    falls = new < old if turned is None else (new < old) & ~turned
    return (gamma > DETERMINED) | falls


def highest_start(trace: Tensor) -> Tensor:
    """(G,) alpha above which EM does not start: gamma = tr (M + alpha)^-1 M is at most tr M / alpha.

    Args:
        trace: (G,) tr M over each group's parameters.
    """
    return trace / _LEAST_AT_START


def lowest_start(trace: Tensor, sizes: Tensor, rounding: float) -> Tensor:
    """(G,) alpha below which EM does not start: beside M, by its mean eigenvalue, it is lost in rounding.

    Args:
        trace: (G,) tr M over each group's parameters.
        sizes: (G,) their number.
        rounding: of products with M, relative.
    """
    return rounding * trace / sizes


def has_settled(tolerance: float, ahead: float, error: float = 0.0) -> bool:
    """Whether EM has settled: the hyperparameters are where they are going, and the E-step tells where that is.

    Args:
        tolerance: relative error of the hyperparameters asked for.
        ahead: how far they still are from their fixed point: ``distance_that_matters`` where secants are taken,
            ``still_ahead`` where steps converge linearly, zero where the fixed point itself was solved for.
        error: relative error of the hyperparameters that the E-step leaves open. Half of the tolerance is its share.
    """
    return ahead <= tolerance and error <= tolerance / 2


def tolerance_factor(change: float, tolerance: float) -> float:
    """How many times looser an E-step may work while the hyperparameters still change by much in a step: 1 to 4."""
    return min(4.0, max(1.0, change / (5 * tolerance)))


def still_ahead(before: float, change: float, slowest: float = inf) -> float:
    """How far a linearly converging sequence is from its limit, from its last two steps (Aitken's extrapolation)."""
    rate = min(change / before, slowest) if before > 0 else 0.0
    return change * rate / (1 - rate) if rate < 1 else inf


def settled_error(history: list[float], bracket: float) -> float:
    """How far the last of a converging sequence may be from its limit: Aitken's estimate, within what is proved."""
    if len(history) < 3:
        return bracket
    ahead = still_ahead(abs(history[-2] - history[-3]), abs(history[-1] - history[-2]), _SLOWEST)
    return min(max(ahead, _OF_BRACKET * bracket), bracket)


def why_noise_is_unknown(entries: float, gamma: float, error: float) -> str:
    """Why N C - gamma cannot tell the noise; empty if it can.

    Args:
        entries: N C.
        gamma: effective dimension.
        error: its standard error.
    """
    if entries - gamma > max(_STANDARD_ERRORS * error, LEAST_LEFT * entries):
        return ""
    known = f" +- {error:.1f}" if error else ""
    return (
        f"the {entries:.0f} numbers observed, less the {gamma:.1f}{known} parameters that they determine, leave "
        "nothing to tell it from"
    )


def is_rounding(residual: Tensor, target: Tensor, dtype: torch.dtype) -> Tensor:
    """(C,) or (1,): whether an output's residuals are rounding, so that its noise cannot be learnt from them.

    Args:
        residual: second moment of targets less outputs, (), (C,) or (C, C).
        target: the same of the targets.
        dtype: of the outputs.
    """
    missed, size = ((each.diagonal() if each.ndim == 2 else each).reshape(-1) for each in (residual, target))
    return missed.sqrt() <= _ROUNDING * torch.finfo(dtype).eps * size.sqrt()


def _at_least(value: Number, least: float) -> Number:
    return value.clamp_min(least) if isinstance(value, Tensor) else max(value, least)


def trace_error(value: Tensor, variance: Tensor) -> Tensor:
    """Standard error of an estimated trace, a mean of Gaussian quadratic forms that tells its own variance as well.

    The two rise and fall together: where value and variance are both a multiple of chi^2_nu, nu = 2 value^2 / variance,
    the mean square of (value - truth) / variance^(1/2) is nu / (nu - 2) instead of one.

    Args:
        value: the estimate, at least zero.
        variance: of it, estimated.
    """
    nu = (2 * value.square() / variance.clamp_min(_SMALLEST)).clamp_min(_FEWEST_DEGREES)
    return (variance * nu / (nu - 2)).sqrt()
