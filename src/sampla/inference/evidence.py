"""How much the data have determined, and what that says about the hyperparameters (MacKay 1992)."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from sampla.core.blocks import gram
from sampla.core.params import ParameterLayout
from sampla.inference.mackay import updated_alphas
from sampla.priors import BoundPrior
from sampla.solvers import Iterate

Key = TypeVar("Key", bound=Hashable)


def effective_dimension(solution: Iterate, num_samples: int, prior: BoundPrior) -> tuple[Tensor, Tensor, float]:
    """gamma_g = tr_g(H^-1 M) for every prior group (docs/method.md, section 3).

    Returns:
        (G,) gamma, never negative, (G,) its standard error, and that of the sum over the groups, whose errors are not
        independent: from the solver if it knows it exactly (error zero), otherwise the mean over posterior samples of
        sum_i z_i (M z)_i, and the nearest to it without negative parts.
    """
    if solution.effective_dimension is not None:
        gamma = prior.group_sum(solution.effective_dimension)
        return gamma, torch.zeros_like(gamma), 0.0
    values, images = solution.value[:num_samples], solution.curvature_value[:num_samples]
    each = torch.stack([prior.group_sum(row) for row in values * images])  # sums are unbiased for tr(H^-1 M)
    gamma, (error, error_of_sum) = each.mean(0), _standard_errors(values, images, prior)
    if bool((gamma < 0).any()):  # a group's share of z' M z may be, where the data say little about it
        shares = at_least_zero(dict(enumerate(zip(gamma.tolist(), error.tolist(), strict=True))))
        gamma = gamma.new_tensor([share for share, _ in shares.values()])
    return gamma, error, error_of_sum


def _standard_errors(values: Tensor, images: Tensor, prior: BoundPrior) -> tuple[Tensor, float]:
    """(G,) of the mean over K samples z ~ N(0, H^-1) of z' S_g z, S_g the symmetric part of M's rows of group g; and of
    the sum over g, z' M z.

    Its variance is 2 tr (H^-1 S_g)^2 / K, and (z_j' S_g z_k)^2 is an unbiased estimate of that trace for every pair of
    samples: K (K - 1) / 2 of them tell it better than the spread of K numbers, which is small where their mean is.
    """
    count = len(values)
    forms = torch.zeros(len(prior.names), count, count, dtype=torch.float64, device=values.device)
    groups, widths = torch.unique_consecutive(prior.group, return_counts=True)
    columns = zip(groups.tolist(), values.split(widths.tolist(), 1), images.split(widths.tolist(), 1), strict=True)
    for group, left, right in columns:
        forms[group] += gram(left, right)
    symmetric = (forms + forms.mT) / 2
    squares = torch.cat([symmetric, symmetric.sum(0, keepdim=True)]).square()
    pairs = squares.sum((1, 2)) - squares.diagonal(dim1=1, dim2=2).sum(1)
    errors = (2 * pairs / (count - 1)).sqrt() / count
    return errors[:-1], float(errors[-1])


def dimension_by_layer(solution: Iterate, num_samples: int, layout: ParameterLayout) -> dict[str, tuple[float, float]]:
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


def at_least_zero(shares: dict[Key, tuple[float, float]]) -> dict[Key, tuple[float, float]]:
    """The shares nearest to sampled ones of which none is negative, and which add up to the same.

    A share's true value is at least zero, and sampling errors can be far larger than it. Of
    sum (x - share)^2 / error^2 under both conditions the least is at x = max(0, share - t error^2), one t for all:
    that of the sum over the shares that stay above zero, found by leaving out the others one after another (Michelot,
    A finite algorithm for finding the projection of a point onto the canonical simplex, 1986).

    Args:
        shares: name -> a share of gamma and its standard error, as ``dimension_by_layer`` gives them.

    Returns:
        The same names and errors.
    """
    if all(share >= 0 for share, _ in shares.values()):
        return shares
    total = max(0.0, sum(share for share, _ in shares.values()))
    above, t = [(share, error**2) for share, error in shares.values() if share > 0], 0.0
    while above and sum(variance for _, variance in above) > 0:
        t = (sum(share for share, _ in above) - total) / sum(variance for _, variance in above)
        still = [(share, variance) for share, variance in above if share > t * variance]
        if len(still) == len(above):
            break
        above = still
    return {name: (max(0.0, share - t * error**2), error) for name, (share, error) in shares.items()}


def updated_precision(prior: BoundPrior, gamma: Tensor, mode: Tensor) -> Tensor:
    """(G,) MacKay's update of alpha, mode (P,) in the coordinates of the prior's scale; a fixed group keeps its own."""
    updated = updated_alphas(prior.precision, gamma, prior.group_sum(mode.square()))
    return torch.where(prior.learnt, updated, prior.precision)


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
