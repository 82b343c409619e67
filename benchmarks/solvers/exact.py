"""gamma, alpha and log evidence without any approximation: dense float64 eigenvalues of M. For P up to a few thousand.

Isotropic in whitened coordinates, A = alpha I. For a Gaussian likelihood the evidence is the marginal likelihood; for
others it is that of the Laplace approximation of the linear model with B at the network:
log p(y | theta*) - alpha/2 |theta*|^2 - 1/2 log det(I + M / alpha).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from math import log, pi

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

_SETTLED = 1e-10
_MOST = 2000


@dataclass
class Dense(ABC):
    """A linear model written out."""

    features: Tensor
    """(R, P) all rows of all phi_n, in whitened coordinates, float64."""

    @property
    @abstractmethod
    def rooted(self) -> Tensor:
        """(R', P) with rooted' rooted = M."""

    @abstractmethod
    def mode(self, alpha: float) -> Tensor:
        """(P,) theta*."""

    @abstractmethod
    def log_likelihood(self, theta: Tensor) -> float:
        """log p(y | theta)."""

    @cached_property
    def eigenvalues(self) -> Tensor:
        """(P,) of M, ascending."""
        return torch.linalg.eigvalsh(self.rooted.mT @ self.rooted).clamp_min(0)

    def gamma(self, alpha: float) -> float:
        """tr M (M + alpha)^-1."""
        return float((self.eigenvalues / (self.eigenvalues + alpha)).sum())

    def log_determinant(self, alpha: float) -> float:
        """log det(I + M / alpha)."""
        return float(torch.log1p(self.eigenvalues / alpha).sum())

    def log_evidence(self, alpha: float) -> float:
        """See the module's docstring; exact for a Gaussian likelihood, whose integral Laplace's is."""
        theta = self.mode(alpha)
        prior = 0.5 * alpha * float(theta.square().sum())
        return self.log_likelihood(theta) - prior - 0.5 * self.log_determinant(alpha)

    def fixed_point(self, start: float) -> float:
        """MacKay's alpha = gamma(alpha) / |theta*(alpha)|^2, by repetition from a start."""
        alpha = start
        for _ in range(_MOST):
            following = self.gamma(alpha) / float(self.mode(alpha).square().sum())
            change, alpha = abs(log(following / alpha)), following
            if change < _SETTLED:
                return alpha
        raise ArithmeticError(f"expected MacKay's update to settle in {_MOST} steps, still changes by {change:.1e}")


@dataclass
class DenseGaussian(Dense):
    """y = phi theta + noise of unit precision."""

    targets: Tensor
    """(R,)."""

    @property
    def rooted(self) -> Tensor:
        return self.features

    def mode(self, alpha: float) -> Tensor:
        values, vectors, pulled = self._decomposed
        found: Tensor = vectors @ (pulled / (values + alpha))
        return found

    @cached_property
    def _decomposed(self) -> tuple[Tensor, Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.features.mT @ self.features)
        return values.clamp_min(0), vectors, vectors.mT @ (self.features.mT @ self.targets)

    def log_likelihood(self, theta: Tensor) -> float:
        residual = self.targets - self.features @ theta
        return -0.5 * (float(residual.square().sum()) + len(self.targets) * log(2 * pi))


@dataclass
class DenseCategorical(Dense):
    """Softmax, B at given logits (the network's)."""

    labels: Tensor
    """(N,) int64."""
    logits: Tensor
    """(N, C) at which B is taken."""
    _last: list[Tensor] = field(default_factory=list)

    @property
    def rooted(self) -> Tensor:
        return self._rows(self.logits)

    def mode(self, alpha: float) -> Tensor:
        """Newton's method on the penalised loss, from the last mode found, halving steps that do not descend."""
        theta = self._last[-1] if self._last else self.features.new_zeros(self.features.shape[1])
        for _ in range(_MOST):
            step, decrement = self._newton_step(theta, alpha)
            length, value = 1.0, self._penalised(theta, alpha)
            while self._penalised(theta + length * step, alpha) > value + 1e-12 * abs(value) and length > 1e-6:
                length /= 2
            theta = theta + length * step
            if decrement <= _SETTLED**2 * alpha * float(theta.square().sum()):
                self._last[:] = [theta]
                return theta
        raise ArithmeticError(f"expected Newton's method to converge in {_MOST} steps")

    def log_likelihood(self, theta: Tensor) -> float:
        return -float(cross_entropy(self._outputs(theta), self.labels, reduction="sum"))

    def _penalised(self, theta: Tensor, alpha: float) -> float:
        return -self.log_likelihood(theta) + 0.5 * alpha * float(theta.square().sum())

    def _newton_step(self, theta: Tensor, alpha: float) -> tuple[Tensor, float]:
        outputs = self._outputs(theta)
        error = outputs.softmax(-1)
        error[torch.arange(len(error)), self.labels] -= 1
        gradient = self.features.mT @ error.flatten() + alpha * theta
        rows = self._rows(outputs)
        hessian = rows.mT @ rows
        hessian.diagonal().add_(alpha)
        step = -torch.cholesky_solve(gradient[:, None], torch.linalg.cholesky(hessian))[:, 0]
        return step, -float(gradient @ step)

    def _outputs(self, theta: Tensor) -> Tensor:
        return (self.features @ theta).view(self.logits.shape)

    def _rows(self, logits: Tensor) -> Tensor:
        """S' phi with S S' = B at these logits."""
        p = logits.softmax(-1)
        phi = self.features.view(*self.logits.shape, -1)
        middle = (p.unsqueeze(-1) * phi).sum(1, keepdim=True)
        rows: Tensor = (p.sqrt().unsqueeze(-1) * (phi - middle)).flatten(0, 1)
        return rows
