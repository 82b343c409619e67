"""Densities of targets that are functions plus Gaussian noise: exact, given the covariance of K samples."""

from math import log, pi

import torch
from torch import Tensor

from sampla.likelihoods import Likelihood

_ROWS = 4096
"""Data whose densities are taken together, so that their K x K matrices need little memory."""


def gaussian_log_prob(
    likelihood: Likelihood, mean: Tensor, deviations: Tensor, width: float, targets: Tensor, noise_log_det: float
) -> Tensor:
    """(n,) log N(y; mean, B^-1 + s^2 D' D / K) of each datum, all its outputs together; arguments as below."""
    each = [
        gaussian_joint_log_prob(likelihood, m, d, width, y, torch.arange(len(y), device=y.device), noise_log_det)
        for m, d, y in zip(mean.split(_ROWS), deviations.split(_ROWS, dim=1), targets.split(_ROWS), strict=True)
    ]
    return torch.cat(each)


def gaussian_joint_log_prob(
    likelihood: Likelihood,
    mean: Tensor,
    deviations: Tensor,
    width: float,
    targets: Tensor,
    group: Tensor,
    noise_log_det: float,
) -> Tensor:
    """(G,) log N(y; mean, B^-1 + s^2 D' D / K) for each group, by Woodbury in K x K.

    Args:
        likelihood: for the products with B.
        mean: (n, *out).
        deviations: (K, n, *out) D.
        width: s.
        targets: (n, *out).
        group: (n,) of each datum, 0 .. G - 1.
        noise_log_det: log det B of one datum.
    """
    dtype, count, groups = mean.dtype, len(deviations), int(group.max()) + 1
    mean, deviations = mean.double(), deviations.double()  # float32 loses the identity beside large ones
    own = likelihood.log_precisions(mean, targets)
    left = targets.to(mean) - mean if own is None else likelihood.residuals(mean, targets)
    assert left is not None
    residual = left.unsqueeze(0)
    weighted = likelihood.curvature_product(mean, residual)
    pushed = likelihood.curvature_product(mean, deviations)
    weights = None if own is None else likelihood.curvature_weights(targets)
    if weights is not None:
        weighted, pushed = weighted * weights.to(mean), pushed * weights.to(mean)

    def grouped(each: Tensor) -> Tensor:
        return each.new_zeros(groups, *each.shape[1:]).index_add(0, group, each)

    def flat(each: Tensor) -> Tensor:
        return each.reshape(*each.shape[:2], -1).movedim(0, -1)  # (k, n, *out) -> (n, out, k)

    inner = grouped(flat(deviations).mT @ flat(pushed)) / count * width**2  # (G, K, K)
    cross = grouped(flat(deviations).mT @ flat(weighted)) / count**0.5 * width  # (G, K, 1)
    square = grouped((flat(residual) * flat(weighted)).sum((1, 2)))
    root = torch.linalg.cholesky(inner + torch.eye(count).to(inner))
    explained = torch.cholesky_solve(cross, root).mul(cross).sum((1, 2))
    log_det = 2 * root.diagonal(dim1=1, dim2=2).log().sum(1)
    if own is None or weights is None:
        constant = grouped(mean.new_ones(len(mean))) * (mean[0].numel() * log(2 * pi) - noise_log_det)
    else:
        constant = grouped(((weights > 0) * log(2 * pi) - own).reshape(len(mean), -1).sum(1))
    density: Tensor = -0.5 * (square - explained + log_det + constant)
    return density.to(dtype)
