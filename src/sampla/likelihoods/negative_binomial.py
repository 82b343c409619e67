"""Counts with more spread than chance gives them."""

from typing import Any

import torch
from scipy.special import betainc
from torch import Tensor
from torch.distributions import NegativeBinomial as Counts

from sampla.core.checks import require, require_finite
from sampla.likelihoods._elementwise import Elementwise


class NegativeBinomial(Elementwise):
    """Counts with mean mu = exp f and variance mu + mu^2 / r, targets of the shape of the outputs.

    Outputs are logarithms of means, and r is known; with r to infinity this is ``Poisson``. B = diag(mu r / (r + mu))
    is Fisher's information: the Hessian of the loss depends on y, and B is its expectation. torch.distributions has
    the logits f - log r.

    Args:
        total_count: r, a number or one for each output on the last axis (C,).
        ignore_nan: whether targets that are NaN are left out; else they are refused.

    Raises:
        ValueError: for r that is not positive and finite.
    """

    lowest = 0.0

    def __init__(self, total_count: float | Tensor, *, ignore_nan: bool = False) -> None:
        super().__init__(ignore_nan=ignore_nan)
        self.total_count = torch.as_tensor(total_count, dtype=torch.float64, device="cpu")
        fix = "It is what training found: the variance is mu + mu^2 / total_count."
        require_finite(self.total_count, "total_count", fix)
        low = float(self.total_count.min())
        require(low > 0 and self.total_count.ndim < 2, "total_count as a positive number or (C,)", f"{low:g}", fix)

    def log_density(self, outputs: Tensor, targets: Tensor) -> Tensor:
        r = self.total_count.to(outputs)
        both = torch.logaddexp(outputs, r.log())
        ways = torch.lgamma(targets + r) - torch.lgamma(r) - torch.lgamma(targets + 1)
        return ways + targets * (outputs - both) + r * (r.log() - both)

    def information(self, outputs: Tensor) -> Tensor:
        r = self.total_count.to(outputs)
        return r * (outputs - r.log()).sigmoid()

    def distribution(self, outputs: Tensor) -> Counts:
        r = self.total_count.to(outputs)
        return Counts(r, logits=outputs - r.log(), validate_args=False)

    def target_moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """With f ~ N(m, v): E mu = exp(m + v / 2), E mu^2 = (E mu)^2 exp(v), var y = E mu + E mu^2 / r + var mu."""
        mu = (mean + variance / 2).exp()
        square = mu.square() * variance.exp() / self.total_count.to(mean)
        return mu, mu + square + mu.square() * variance.expm1()

    def cdf(self, outputs: Tensor, values: Tensor) -> Tensor:
        """P(y <= k) = I_p(r, k + 1) with p = r / (r + mu), the regularised incomplete beta function."""
        r = self.total_count.to(outputs)
        counts = values.floor().expand_as(outputs)
        chance = (r.log() - outputs).sigmoid()
        found = betainc(*(each.cpu().numpy() for each in (r, counts.clamp_min(0) + 1, chance)))
        return torch.as_tensor(found).to(outputs).where(counts >= 0, 0)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "total_count": self.total_count.tolist()}
