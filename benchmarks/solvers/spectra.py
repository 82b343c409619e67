"""Linear models whose M has a prescribed spectrum, with the answer in closed form."""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.solvers.problem import SEED, Batches, Problem, Truth, prior_part, surveyed
from sampla.features import DesignMatrix
from sampla.likelihoods import Gaussian

KINDS = ("power-law", "clustered", "flat")
CONDITIONS = (1e2, 1e4, 1e6, 1e8)
ALPHAS = (1e-6, 1.0, 1e6)
"""From all but no prior to nothing but prior; the mean eigenvalue of M is 1."""
_CLUSTERS = 5
_BATCH = 500


@dataclass(frozen=True)
class Spectrum:
    """M = V diag(eigenvalues) V', and data whose features have it."""

    kind: str
    condition: float
    eigenvalues: Tensor
    """(P,) descending, mean 1."""
    vectors: Tensor
    """(P, P) V, columns."""
    rows: Tensor
    """(N, P) the features: phi' phi = M."""
    targets: Tensor
    """(N, 1) a draw of the model at prior precision 1."""

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


def spectrum(kind: str, condition: float, size: int, num_data: int, seed: int = SEED) -> Spectrum:
    """Random eigenvectors, prescribed eigenvalues, N >= P data that are random orthogonal combinations."""
    generator = torch.Generator().manual_seed(seed)
    eigenvalues = eigenvalues_of(kind, condition, size)
    vectors = torch.linalg.qr(_normal(size, size, generator))[0]
    left = torch.linalg.qr(_normal(num_data, size, generator))[0]
    rows = (left * eigenvalues.sqrt()) @ vectors.mT
    theta = _normal(size, 1, generator)
    return Spectrum(kind, condition, eigenvalues, vectors, rows, rows @ theta + _normal(num_data, 1, generator))


def eigenvalues_of(kind: str, condition: float, size: int) -> Tensor:
    """(P,) descending from largest to largest / condition, mean 1.

    Power-law: i^-p. Clustered: five levels in geometric progression, each spread by a thousandth. Flat: evenly spaced.
    """
    position = torch.linspace(0, 1, size, dtype=torch.float64)
    if kind == "power-law":
        exponent = torch.log(torch.tensor(condition)).double() / torch.log(torch.tensor(float(size))).double()
        found = torch.arange(1, size + 1, dtype=torch.float64) ** -exponent
    elif kind == "clustered":
        level = (position * _CLUSTERS).floor().clamp_max(_CLUSTERS - 1)
        found = condition ** (-level / (_CLUSTERS - 1)) * (1 + 1e-3 * (position * _CLUSTERS - level))
    elif kind == "flat":
        found = 1 - position * (1 - 1 / condition)
    else:
        raise ValueError(f"expected one of {KINDS}, got {kind!r}")
    return found.sort(descending=True).values / found.mean()


def spectrum_problem(case: Spectrum, alpha: float, columns: int, dtype: torch.dtype = torch.float64) -> Problem:
    """The problem of sampling at this alpha, isotropic prior, unit noise."""
    batches = case.batches(dtype)
    features = DesignMatrix(case.rows.shape[1], dtype=dtype)
    model = surveyed(features, Gaussian(1.0), batches)
    draw = model.draw_noise(SEED, columns)
    precision = torch.full_like(draw.diagonal, alpha)
    truth = case.solve(draw.data_part.double() + prior_part(precision, columns).double(), alpha)
    model.ledger.products = 0
    facts = {"kind": case.kind, "condition": case.condition, "P": len(case.eigenvalues), "N": len(case.rows)}
    return Problem(f"{case.name}, alpha {alpha:.0e}", model, alpha, draw, truth, facts)


def _normal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=generator)
