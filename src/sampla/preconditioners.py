"""Preconditioners: symmetric positive definite P near H = M + A, of which only P^-1 v and log det P are asked.

What costs passes (a sketch of M) does not depend on A: it is made once and serves every step of EM through ``Sketch.at``.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Preconditioner(ABC):
    """P near H; a solver multiplies by P^-1 and never forms it."""

    @abstractmethod
    def solve(self, vectors: Tensor) -> Tensor:
        """P^-1 v: (K, P) -> (K, P). Linear, symmetric and positive definite."""

    @property
    @abstractmethod
    def log_determinant(self) -> float:
        """log det P."""


@dataclass(frozen=True)
class Jacobi(Preconditioner):
    """P = diag(H)."""

    diagonal: Tensor
    """(P,) positive."""

    def solve(self, vectors: Tensor) -> Tensor:
        return vectors / self.diagonal

    @property
    def log_determinant(self) -> float:
        return float(self.diagonal.double().log().sum())


@dataclass(frozen=True)
class Sketch:
    """M on a few directions: M is near V' T V + c (I - V' V), whatever A is."""

    basis: Tensor
    """(m, P) V, orthonormal rows."""
    gram: Tensor
    """(m, m) T = V M V', float64, positive semi-definite."""
    tail: float
    """c, the level of M outside the basis."""

    def at(self, precision: Tensor) -> "LowRank":
        """The preconditioner for H = M + diag(precision)."""
        diagonal = precision + self.tail
        weighted = self.basis / diagonal
        inner = (weighted @ self.basis.mT).double()
        identity = torch.eye(len(inner), dtype=torch.float64, device=inner.device)
        core = self.gram.to(inner) - self.tail * identity
        system = identity + core @ inner
        middle = torch.linalg.solve(system, core)
        determinant = diagonal.double().log().sum() + torch.linalg.slogdet(system).logabsdet
        return LowRank(diagonal, weighted, ((middle + middle.mT) / 2).to(precision), float(determinant))


@dataclass(frozen=True)
class LowRank(Preconditioner):
    """P = D + V' S V by Woodbury: P^-1 = D^-1 - D^-1 V' (I + S V D^-1 V')^-1 S V D^-1."""

    diagonal: Tensor
    """(P,) D."""
    weighted: Tensor
    """(m, P) V D^-1."""
    middle: Tensor
    """(m, m) (I + S V D^-1 V')^-1 S."""
    determinant: float

    def solve(self, vectors: Tensor) -> Tensor:
        return vectors / self.diagonal - (vectors @ self.weighted.mT @ self.middle) @ self.weighted

    @property
    def log_determinant(self) -> float:
        return self.determinant
