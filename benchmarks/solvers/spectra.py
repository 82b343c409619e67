"""Linear models whose M has a prescribed spectrum, with the answer in closed form."""

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from benchmarks.solvers.problem import SEED, Batches, Problem, Truth, prior_part, surveyed
from sampla.features import DesignMatrix
from sampla.likelihoods import Gaussian

KINDS = ("power-law", "clustered", "flat")
CONDITIONS = (1e2, 1e4, 1e6, 1e8)
ALPHAS = (1e-6, 1.0, 1e6)
"""From all but no prior to nothing but prior; the mean eigenvalue of M is 1."""
_CLUSTERS, _BATCH = 5, 500


@dataclass(frozen=True)
class Spectrum:
    """M = V diag(eigenvalues) V', and data whose features have it."""

    kind: str
    condition: float
    eigenvalues: Tensor  # (P,) descending, mean 1
    vectors: Tensor  # (P, P) V, columns
    rows: Tensor  # (N, P) the features: phi' phi = M
    targets: Tensor  # (N, 1) a draw of the model at prior precision 1

    @property
    def name(self) -> str:
        """For tables and keys."""
        return f"{self.kind}, condition {self.condition:.0e}"

    def batches(self, dtype: torch.dtype = torch.float64) -> Batches:
        """The data as a loader."""
        rows, targets = self.rows.to(dtype), self.targets.to(dtype)
        return list(zip(rows.split(_BATCH), targets.split(_BATCH), strict=True))

    def size(self, vectors: Tensor) -> Tensor:
        """(K,) |phi v| from the known eigenvalues, without the rounding of a product."""
        return ((vectors.double() @ self.vectors).square() * self.eigenvalues).sum(1).sqrt()

    def solve(self, rhs: Tensor, alpha: float) -> Truth:
        """(M + alpha)^-1 b and M times it."""
        inside = rhs.double() @ self.vectors / (self.eigenvalues + alpha)
        value, curvature = inside @ self.vectors.mT, (inside * self.eigenvalues) @ self.vectors.mT
        residual = curvature + alpha * value - rhs.double()
        return Truth(value, curvature, float(residual.norm() / rhs.double().norm()), "closed form")

    def problem(self, alpha: float, columns: int, dtype: torch.dtype = torch.float64) -> Problem:
        """Of sampling at this alpha, isotropic prior, unit noise."""
        model = surveyed(DesignMatrix(self.rows.shape[1], dtype=dtype), Gaussian(1.0), self.batches(dtype))
        draw = model.draw_noise(SEED, columns)
        rhs = draw.data_part.double() + prior_part(torch.full_like(draw.diagonal, alpha), columns).double()
        model.ledger.products = 0
        return Problem(f"{self.name}, alpha {alpha:.0e}", model, alpha, draw, self.solve(rhs, alpha))


def spectrum(kind: str, condition: float, size: int, num_data: int, seed: int = SEED) -> Spectrum:
    """Random eigenvectors, prescribed eigenvalues, N >= P data that are random orthogonal combinations."""
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, dtype=torch.float64, generator=generator)

    eigenvalues = eigenvalues_of(kind, condition, size)
    vectors, left = torch.linalg.qr(normal(size, size))[0], torch.linalg.qr(normal(num_data, size))[0]
    rows = (left * eigenvalues.sqrt()) @ vectors.mT
    return Spectrum(
        kind, condition, eigenvalues, vectors, rows, targets=rows @ normal(size, 1) + normal(num_data, 1)
    )  # fmt: skip


def eigenvalues_of(kind: str, condition: float, size: int) -> Tensor:
    """(P,) descending from largest to largest / condition, mean 1.

    Power-law: i^-p. Clustered: five levels in geometric progression, each spread by a thousandth. Flat: evenly spaced.
    """
    position = torch.linspace(0, 1, size, dtype=torch.float64)
    level = (position * _CLUSTERS).floor().clamp_max(_CLUSTERS - 1)
    found = {
        "power-law": torch.arange(1, size + 1, dtype=torch.float64) ** -(log(condition) / log(size)),
        "clustered": condition ** (-level / (_CLUSTERS - 1)) * (1 + 1e-3 * (position * _CLUSTERS - level)),
        "flat": 1 - position * (1 - 1 / condition),
    }[kind]
    return found.sort(descending=True).values / found.mean()
