"""Regression by a network that says how large the noise is at each input."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal

from sampla.core.checks import require
from sampla.likelihoods._base import Likelihood
from sampla.likelihoods._elementwise import require_numbers


class HeteroscedasticGaussian(Likelihood):
    """y ~ N(m, exp s) with outputs (n, ..., 2 C): C means m, then C logarithms s of variances; targets (n, ..., C).

    As torch.nn.GaussianNLLLoss has it with var = exp(s). B = diag(exp(-s), 1/2) is Fisher's information, of which the
    Hessian of the loss is a noisy version (Immer et al. 2023).

    Args:
        ignore_nan: whether targets that are NaN are left out; else they are refused.
    """

    observation_axes = (-1,)

    def __init__(self, *, ignore_nan: bool = False) -> None:
        self.ignore_nan = bool(ignore_nan)

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.observation_log_prob(outputs, targets).reshape(outputs.shape[0], -1).sum(1)

    def observation_log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        mean, log_variance = outputs.chunk(2, -1)
        known = ~targets.isnan() if self.ignore_nan else None
        filled = targets if known is None else targets.where(known, 0.0)
        square = (filled.to(outputs) - mean).square() * (-log_variance).exp()
        density = -0.5 * (square + log_variance + log_variance.new_tensor(2 * torch.pi).log())
        return (density if known is None else density * known).sum(-1)

    def counted(self, targets: Tensor) -> Tensor | None:
        if not self.ignore_nan:
            return None
        known = ~targets.isnan()
        return torch.cat([known, known], -1)

    def curvature_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        return self._information(outputs).to(vectors) * vectors

    def curvature_root_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        return self._information(outputs).to(vectors).sqrt() * vectors

    def _information(self, outputs: Tensor) -> Tensor:
        log_variance = outputs.chunk(2, -1)[1]
        return torch.cat([(-log_variance).exp(), torch.full_like(log_variance, 0.5)], -1)

    def distribution(self, outputs: Tensor) -> Normal:
        mean, log_variance = outputs.chunk(2, -1)
        return Normal(mean, (log_variance / 2).exp(), validate_args=False)

    def target_moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """With f Gaussian: E y = E m and var y = var m + E exp s, the last exp(E s + var s / 2)."""
        centre, log_variance = mean.chunk(2, -1)
        of_centre, of_log_variance = variance.chunk(2, -1)
        return centre, of_centre + (log_variance + of_log_variance / 2).exp()

    def num_targets(self, num_outputs: int) -> int:
        return num_outputs // 2

    def check_targets(self, outputs: Tensor, targets: Tensor) -> None:
        shape, name = tuple(outputs.shape), type(self).__name__
        even = len(shape) > 1 and shape[-1] % 2 == 0
        require(even, "outputs (n, ..., 2 C): means, then log variances", f"{shape}", "Return torch.cat of both.")
        known = ~targets.isnan() if self.ignore_nan else None
        require_numbers(targets, (*shape[:-1], shape[-1] // 2), -torch.inf, known, name)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "ignore_nan": self.ignore_nan}
