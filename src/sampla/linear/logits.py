"""Averages of class probabilities over Gaussian logits."""

from math import sqrt

import torch
from torch import Tensor

_WIDE = 3.0
"""Standard deviation of a logit from which its average is taken over levels instead of deviations."""


def logit_deviations(root: Tensor) -> Tensor:
    """Deviations that have each row's covariance, sum_k r_k r_k' of (k, n, C): C of them will do, for few classes."""
    number, outputs = len(root), root.shape[-1]
    if outputs**2 > number:
        return root * sqrt(number)
    each = root.movedim(0, -1)
    values, vectors = torch.linalg.eigh(each @ each.mT)
    half = vectors * (outputs * values.clamp_min(0)).sqrt().unsqueeze(-2)
    deviations: Tensor = (half @ vectors.mT).movedim(-1, 0)  # the symmetric root, which is continuous in the row
    return deviations


def expected_sigmoid(mean: Tensor, std: Tensor) -> Tensor:
    """E sigmoid(mean + std z), z standard normal, to eleven digits and on the mean's side of a half.

    By the trapezoidal rule, which converges exponentially for integrands that are analytic in a strip (Trefethen and
    Weideman 2014): over z where std is small; else over l with the logistic density of Phi((mean - l) / std).
    """
    z = torch.linspace(-9.0, 9.0, 101, dtype=mean.dtype, device=mean.device)
    weights = (-0.5 * z.square()).exp()
    narrow = torch.tensordot((mean[..., None] + std[..., None].clamp_max(_WIDE) * z).sigmoid(), weights, dims=1)
    level = torch.linspace(-39.0, 39.0, 131, dtype=mean.dtype, device=mean.device)
    density = level.sigmoid() * (-level).sigmoid()
    inside = torch.special.ndtr((mean[..., None] - level) / std[..., None].clamp_min(_WIDE))
    wide = torch.tensordot(inside, density, dims=1)
    return torch.where(std > _WIDE, wide / density.sum(), narrow / weights.sum())
