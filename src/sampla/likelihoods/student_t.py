"""Regression with outliers."""

from math import lgamma, log, pi
from typing import Any

import torch
from scipy.special import stdtr
from torch import Tensor
from torch.distributions import StudentT as Targets

from sampla.core.checks import require
from sampla.likelihoods._elementwise import Elementwise


class StudentT(Elementwise):
    """y = f + scale t with t of Student's distribution with df degrees of freedom; targets of the shape of the outputs.

    B = (df + 1) / ((df + 3) scale^2) is Fisher's information, the same for every datum: the Hessian of the loss depends
    on y and is negative for outliers, and B is its expectation (Lange, Little and Taylor 1989).

    Args:
        df: degrees of freedom, above 0; 4 is usual. The noise has a variance above 2 only.
        scale: of the noise, in units of the targets; what the network was trained with.
        ignore_nan: whether targets that are NaN are left out; else they are refused.

    Raises:
        ValueError: for numbers that are not positive and finite.
    """

    def __init__(self, df: float, scale: float = 1.0, *, ignore_nan: bool = False) -> None:
        super().__init__(ignore_nan=ignore_nan)
        self.df, self.scale = float(df), float(scale)
        for name, value in (("df", self.df), ("scale", self.scale)):
            fix = "They are those of the loss that the network was trained with."
            require(0 < value < torch.inf, f"a positive {name}", f"{value:g}", fix)

    def log_density(self, outputs: Tensor, targets: Tensor) -> Tensor:
        half = (self.df + 1) / 2
        constant = lgamma(half) - lgamma(self.df / 2) - 0.5 * log(self.df * pi) - log(self.scale)
        return constant - half * ((targets - outputs) / self.scale).square().div(self.df).log1p()

    def information(self, outputs: Tensor) -> Tensor:
        return torch.full_like(outputs, (self.df + 1) / (self.df + 3) / self.scale**2)

    def noise_covariance(self, outputs: Tensor) -> Tensor:
        variance = self.scale**2 * self.df / (self.df - 2) if self.df > 2 else torch.inf
        return outputs.new_tensor(variance)

    def target_moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Those of f plus noise; taken at the width of single labels, as all that is said of a target is."""
        return mean, variance + self.noise_covariance(mean)

    def distribution(self, outputs: Tensor) -> Targets:
        return Targets(self.df, outputs, self.scale, validate_args=False)

    def cdf(self, outputs: Tensor, values: Tensor) -> Tensor:
        found = stdtr(self.df, ((values - outputs) / self.scale).cpu().numpy())
        return torch.as_tensor(found).to(outputs)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "df": self.df, "scale": self.scale}
