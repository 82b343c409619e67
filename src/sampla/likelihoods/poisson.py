"""Counts without more spread than chance gives them."""

import torch
from torch import Tensor
from torch.distributions import Poisson as Counts

from sampla.likelihoods._elementwise import Elementwise


class Poisson(Elementwise):
    """y ~ Poisson(exp f), as torch.nn.PoissonNLLLoss(log_input=True) has it; targets of the shape of the outputs.

    Outputs are logarithms of rates. B = diag(exp f), also the Hessian of the loss. Exposure: add its logarithm to the
    output inside the network.

    Args:
        ignore_nan: whether targets that are NaN are left out; else they are refused.
    """

    lowest = 0.0

    def log_density(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return targets * outputs - outputs.exp() - torch.lgamma(targets + 1)

    def information(self, outputs: Tensor) -> Tensor:
        return outputs.exp()

    def distribution(self, outputs: Tensor) -> Counts:
        return Counts(outputs.exp(), validate_args=False)

    def target_moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """With f ~ N(m, v) the rate is log-normal: E y = exp(m + v / 2), var y = E y + (E y)^2 (exp(v) - 1)."""
        rate = (mean + variance / 2).exp()
        return rate, rate + rate.square() * variance.expm1()

    def cdf(self, outputs: Tensor, values: Tensor) -> Tensor:
        """P(y <= k) = Q(k + 1, exp f), the regularised upper incomplete gamma function."""
        counts = values.floor().expand_as(outputs)
        found: Tensor = torch.special.gammaincc(counts.clamp_min(0) + 1, outputs.exp())
        return found.where(counts >= 0, 0)
