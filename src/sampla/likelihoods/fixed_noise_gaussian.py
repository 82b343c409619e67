"""Regression with a known noise variance for every target."""

from typing import Any

import torch
from torch import Tensor

from sampla.core.checks import require
from sampla.likelihoods._elementwise import require_numbers
from sampla.likelihoods.gaussian import Gaussian


class FixedNoiseGaussian(Gaussian):
    """y ~ N(f, v) with a variance v for each target: targets (n, *out, 2), values and variances.

    B = diag(1 / v). What is said of new targets needs their variances too: ``pred.log_prob`` takes them with the
    values, and the total variance is ``pred.variance`` plus yours.

    Args:
        ignore_nan: whether values that are NaN are left out; else they are refused.
    """

    def __init__(self, *, ignore_nan: bool = False) -> None:
        super().__init__(1.0, learn=False, ignore_nan=ignore_nan)

    def counted(self, targets: Tensor) -> Tensor | None:
        return super().counted(targets[..., 0])

    def curvature_weights(self, targets: Tensor) -> Tensor:
        known, precision = self.counted(targets), targets[..., 1].reciprocal()
        return precision if known is None else precision.where(known, 0)

    def residuals(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().residuals(outputs, targets[..., 0])

    def noise_covariance(self, outputs: Tensor) -> Tensor:
        raise TypeError(
            "FixedNoiseGaussian does not know the noise of new targets: add their variances to pred.variance, or give "
            "them to pred.log_prob(torch.stack([y, variance], -1))."
        )

    def num_targets(self, num_outputs: int) -> int:
        raise ValueError("FixedNoiseGaussian is no head: its targets are pairs. Take sampla.Gaussian(noise_precision).")

    def check_targets(self, outputs: Tensor, targets: Tensor) -> None:
        shape, given = (*outputs.shape, 2), tuple(targets.shape)
        fix = "Give torch.stack([y, variance], -1)."
        require(given == shape, f"targets {shape}: values, and variances of their noise", f"{given}", fix)
        known = self.counted(targets)
        require_numbers(targets[..., 0], tuple(outputs.shape), -torch.inf, known, type(self).__name__)
        variance = targets[..., 1] if known is None else targets[known][..., 1]
        positive = bool(((variance > 0) & variance.isfinite()).all())
        require(positive, "positive variances of the noise", f"{float(variance.min()):g}", "They are squared errors.")

    def config(self) -> dict[str, Any]:
        return {"name": type(self).__name__, "ignore_nan": self.ignore_nan}
