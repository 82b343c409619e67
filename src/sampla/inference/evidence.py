"""How much the data have determined, and what that says about the hyperparameters (MacKay 1992)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sampla.core.params import ParameterLayout
from sampla.priors import BoundPrior
from sampla.solvers import Solution

_FURTHEST, _HALVINGS = 1e30, 100
"""How far, and how often halved, the interval in which ``at_least_zero`` looks for t may become."""
_BOUNDS = 1e-12, 1e12
"""Where a prior precision is stopped: beyond, the data say nothing about it, or everything."""


def effective_dimension(solution: Solution, num_samples: int, prior: BoundPrior) -> tuple[Tensor, Tensor]:
    """gamma_g = tr_g(H^-1 M) for every prior group (docs/method.md, section 3).

    Returns:
        (G,) gamma and (G,) its standard error: from the solver if it knows it exactly (error zero), otherwise the mean
        over posterior samples of sum_i z_i (M z)_i, with the spread of that mean.
    """
    if solution.effective_dimension is not None:
        gamma = prior.group_sum(solution.effective_dimension)
        return gamma, torch.zeros_like(gamma)
    parts = solution.value[:num_samples] * solution.curvature_value[:num_samples]  # sums are unbiased for tr(H^-1 M)
    each = torch.stack([prior.group_sum(row) for row in parts])
    return each.mean(0), each.std(0) / num_samples**0.5


def dimension_by_layer(solution: Solution, num_samples: int, layout: ParameterLayout) -> dict[str, tuple[float, float]]:
    """The share of gamma that each module's own parameters have, tr over them of H^-1 M.

    Returns:
        Module name -> its share and the standard error of that (zero when exact); they add up to gamma.
    """
    exact = solution.effective_dimension
    if exact is not None:
        views = {name: value.double() for name, value in layout.views(exact[None]).items()}
    else:
        image = layout.views(solution.curvature_value[:num_samples])
        values = layout.views(solution.value[:num_samples])
        views = {name: value * image[name] for name, value in values.items()}
    shares: dict[str, Tensor] = {}
    for name, value in views.items():
        layer, part = name.rpartition(".")[0], value.reshape(len(value), -1).sum(1, dtype=torch.float64)
        shares[layer] = shares[layer] + part if layer in shares else part
    spread = 0.0 if exact is not None else num_samples**-0.5
    return {
        layer: (float(each.mean()), float(each.std()) * spread if spread else 0.0) for layer, each in shares.items()
    }


def at_least_zero(shares: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """The shares nearest to sampled ones of which none is negative, and which add up to the same.

    A share's true value is at least zero, and sampling errors can be far larger than it. Of
    sum (x - share)^2 / error^2 under both conditions the least is at x = max(0, share - t error^2), one t for all.

    Args:
        shares: name -> a share of gamma and its standard error, as ``dimension_by_layer`` gives them.

    Returns:
        The same names and errors.
    """
    total = sum(share for share, _ in shares.values())
    if all(share >= 0 for share, _ in shares.values()):
        return shares

    def shrunk(t: float) -> dict[str, tuple[float, float]]:
        return {name: (max(0.0, share - t * error**2), error) for name, (share, error) in shares.items()}

    def excess(t: float) -> float:
        return sum(share for share, _ in shrunk(t).values()) - max(total, 0.0)

    low, high = 0.0, 1.0
    while excess(high) > 0 and high < _FURTHEST:
        high *= 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return shrunk(high)


def updated_precision(prior: BoundPrior, gamma: Tensor, mode: Tensor) -> Tensor:
    """MacKay's update alpha_g <- gamma_g / |mode|_g^2, mode (P,) in the coordinates of the prior's scale.

    A group with nothing to go by (gamma and mode both zero, as for a dead layer) and a fixed one keep their alpha.
    """
    size = prior.group_sum(mode.square())
    gamma = gamma.clamp_min(0)
    known = (gamma > 0) & (size > 0) & prior.learnt
    ratio = gamma / size.clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(known, ratio.clamp(*_BOUNDS), prior.precision)


def accelerated(used: list[Tensor], updates: list[Tensor]) -> Tensor:
    """Where the fixed point alpha = update(alpha) is expected, by a secant through the last two EM steps.

    MacKay's update overshoots when the effective dimension falls steeply with alpha, and creeps when it hardly falls;
    both are cured by one secant step in log alpha, group by group. Never further than three times the plain update.

    Args:
        used: (G,) alpha of the EM steps so far.
        updates: (G,) what MacKay's update made of each.

    Returns:
        (G,) the next alpha to try.
    """
    x, step = used[-1].log(), (updates[-1] / used[-1]).log()
    if len(used) < 2:
        return updates[-1]
    before, step_before = used[-2].log(), (updates[-2] / used[-2]).log()
    slope = (step - step_before) / (x - before)
    secant = -step / slope
    usable = slope.isfinite() & (slope < -0.1) & (secant.abs() <= 3 * step.abs())
    return torch.where(usable, x + secant, x + step).exp().clamp(*_BOUNDS)


def change_that_matters(prior: BoundPrior, updated: Tensor, gamma: Tensor) -> float:
    """The largest relative change over the groups in which the data determine anything (gamma_g > 0.1)."""
    alive = gamma > 0.1
    return relative_change(prior.precision[alive], updated[alive]) if bool(alive.any()) else 0.0


def relative_change(old: Tensor, new: Tensor) -> float:
    """The largest |log(new / old)| over groups: 0.02 is a change of 2 %."""
    return float((new / old).log().abs().max())


@dataclass(frozen=True)
class LogEvidence:
    """log p(y) of the linear model (Laplace's approximation, exact for a Gaussian likelihood), in nats.

    log p(y | mode) - |mode|_A^2 / 2 - log det(I + A^-1 M) / 2 (MacKay 1992; docs/method.md, section 8).
    """

    value: float
    standard_error: float
    """Of the log determinant's estimate, halved; zero when exact."""
    truncation: float
    """What more iterations might still change."""
