"""Preconditioners: symmetric positive definite P near H = M + A, of which only P^-1 v is asked.

What costs passes (a sketch of M) does not depend on A: made once, it serves every step of EM through ``Sketch.at``.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sampla.core.blocks import gram, orthonormal
from sampla.core.checks import require
from sampla.core.noise import PROBE, standard_normal
from sampla.core.params import row_dot
from sampla.core.stack import Stack
from sampla.model import LinearModel


class Preconditioner(ABC):
    """P near H; a solver multiplies by P^-1 and never forms it."""

    @abstractmethod
    def solve(self, vectors: Tensor) -> Tensor:
        """P^-1 v: (K, P) -> (K, P). Linear, symmetric and positive definite."""


@dataclass(frozen=True)
class Jacobi(Preconditioner):
    """P = diag(H)."""

    diagonal: Tensor
    """(P,) positive."""

    def solve(self, vectors: Tensor) -> Tensor:
        return vectors / self.diagonal


@dataclass(frozen=True)
class Sketch:
    """M on a few directions: M is near V' T V + c (I - V' V), whatever A is."""

    basis: Stack
    """(m, P) V, orthonormal rows; a slice of them where each of several processes holds one."""
    gram: Tensor
    """(m, m) T = V M V', float64, positive semi-definite."""
    tail: float
    """c, the level of M outside the basis."""
    whole: bool = False
    """Whether this is M itself, because the basis holds the whole of its range."""

    def times(self, factor: float) -> "Sketch":
        """Of M times a factor."""
        return Sketch(self.basis, self.gram * factor, self.tail * factor, self.whole)

    def at(self, precision: Tensor) -> "LowRank":
        """The preconditioner for H = M + diag(precision)."""
        diagonal = precision + self.tail
        inner = gram(self.basis, self.basis, self.basis.slices.own(diagonal.reciprocal()))
        identity = torch.eye(len(inner), dtype=torch.float64, device=inner.device)
        core = self.gram.to(inner) - self.tail * identity
        middle = torch.linalg.solve(identity + core @ inner, core)
        return LowRank(diagonal, self.basis, ((middle + middle.mT) / 2).to(precision))


@dataclass(frozen=True)
class LowRank(Preconditioner):
    """P = D + V' S V by Woodbury: P^-1 = D^-1 - D^-1 V' (I + S V D^-1 V')^-1 S V D^-1."""

    diagonal: Tensor
    """(P,) D."""
    basis: Stack
    """(m, P) V."""
    middle: Tensor
    """(m, m) (I + S V D^-1 V')^-1 S."""

    def solve(self, vectors: Tensor) -> Tensor:
        slices = self.basis.slices
        own, diagonal = slices.own(vectors), slices.own(self.diagonal)
        inside = self.basis.along(own / diagonal) @ self.middle
        return slices.whole(self.basis.add_to(own.clone(), -inside).div_(diagonal))


def nystrom(model: LinearModel, rank: int, seed: int = 0, stride: int = 1) -> Sketch:
    """The Nystrom approximation of M from products with random vectors (Frangella, Tropp, Udell 2021, algorithm 2.1).

    M is near (M W')(W M W')^-1 (W M), W with orthonormal random rows. Costs rank products, or with a stride that part.

    Args:
        model: what M belongs to.
        rank: how many random vectors, at most P.
        seed: of the vectors.
        stride: use every stride-th minibatch (needs a loader with a fixed order to be of use a second time).

    Raises:
        ValueError: for a rank outside 1..P.
    """
    size = model.num_parameters
    require(1 <= rank <= size, f"a rank from 1 to {size}", f"{rank}", "64 is usual.")
    probes, _ = orthonormal(standard_normal(seed, PROBE, range(rank), 0, (size,), model.features.like))
    pushed = model.curvature_product(probes, stride)
    core = gram(probes, pushed)
    values, vectors = torch.linalg.eigh((core + core.mT) / 2)
    kept = values > 10 * torch.finfo(probes.dtype).eps * values.max().clamp_min(torch.finfo(values.dtype).tiny)
    root = (vectors[:, kept] / values[kept].sqrt()).mT
    basis, factor = orthonormal(root.to(pushed) @ pushed)
    inner = factor @ factor.mT
    smallest = float(torch.linalg.eigvalsh(inner)[0]) if len(inner) else 0.0
    return Sketch(Stack([basis]), inner, max(smallest, 0.0))


@dataclass(frozen=True)
class SubsetInverse(Preconditioner):
    """P = H with M from every stride-th minibatch, inverted by conjugate gradients (of so many products each).

    Dear: one application costs ``products / stride`` passes. Here to be measured against the others.
    """

    model: LinearModel
    precision: Tensor
    diagonal: Tensor
    """(P,) estimate of diag M, for the inner iterations."""
    stride: int = 3
    tolerance: float = 1e-2
    """Relative residual of the inner solves."""
    max_products: int = 100

    def solve(self, vectors: Tensor) -> Tensor:
        inverse = (self.diagonal + self.precision).reciprocal()
        value, residual = torch.zeros_like(vectors), vectors.clone()
        direction = inverse * residual
        size = first = row_dot(residual, direction)
        for _ in range(self.max_products):
            active = size > self.tolerance**2 * first
            if not bool(active.any()):
                break
            pushed = self.model.curvature_product(direction, self.stride) + self.precision * direction
            length = torch.where(active, size / row_dot(direction, pushed), 0.0).unsqueeze(1)
            value, residual = value + length * direction, residual - length * pushed
            scaled = inverse * residual
            following = row_dot(residual, scaled)
            direction = scaled + torch.where(active, following / size, 0.0).unsqueeze(1) * direction
            size = following
        return value
