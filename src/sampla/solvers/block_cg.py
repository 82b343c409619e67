"""Block conjugate gradients: all right-hand sides share one Krylov space.

O'Leary 1980 in the form of Dubrulle 2001 (BCGrQ): the block residual is kept as Q C with orthonormal Q, so that
columns that converge or become dependent do no harm. Jacobi preconditioning by symmetric scaling.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sampla.model import curvature_norm
from sampla.solvers._base import (
    LinearSystem,
    RightHandSide,
    Solution,
    Solver,
    Status,
    error_bound,
    jacobi_root,
    relative_rms,
)


@dataclass(frozen=True)
class BlockCGState:
    """Everything in scaled coordinates y = z / d with d = (diag M + A)^(-1/2); vectors are rows."""

    value: Tensor
    """(K, P) the iterate z, unscaled."""
    basis: Tensor
    """(m, P) orthonormal rows Q of the residual D R = C' Q, m = min(K, P)."""
    factor: Tensor
    """(m, K) C."""
    direction: Tensor
    """(m, P) search directions S."""
    increments: tuple[float, ...] = ()
    """|phi dz|_B / |phi z|_B of every step."""
    residuals: tuple[float, ...] = ()
    """|R| / |B| after every step, in scaled coordinates."""
    bound: float = float("inf")
    """A rigorous bound of the error, |R| / sqrt(smallest eigenvalue) relative to |phi z|_B."""
    broken: bool = False


@dataclass(frozen=True)
class BlockCG(Solver[BlockCGState]):
    """Block conjugate gradients (the default solver): no step size, K columns help one another.

    The error estimate extrapolates the size of the last steps in function space, |phi dz|_B: a step that is a
    fraction r of the one before announces r / sqrt(1 - r^2) of itself still to come. Where the residual proves less
    (a block that spans the whole space ends at once), the proof counts.
    """

    def init(self, system: LinearSystem, rhs: RightHandSide, guess: Solution | None) -> BlockCGState:
        scale = jacobi_root(system)
        if guess is None:
            value, residual = torch.zeros_like(rhs.data_part), rhs.total
        else:
            value = guess.value
            residual = rhs.total - guess.curvature_value - system.precision * value
        basis, factor = _orthonormal(residual * scale)
        return BlockCGState(value, basis, factor, basis)

    def step(self, system: LinearSystem, rhs: RightHandSide, state: BlockCGState) -> BlockCGState:
        scale = jacobi_root(system)
        pushed = system.product(state.direction * scale) * scale
        gram = state.direction @ pushed.mT
        root, info = torch.linalg.cholesky_ex((gram + gram.mT) / 2)
        if int(info) != 0 or not bool(root.isfinite().all()):
            return _broken(state)
        weights = torch.cholesky_solve(state.factor, root)  # (m, K)
        value = state.value + (weights.mT @ state.direction) * scale
        remainder = state.basis - torch.cholesky_solve(pushed, root)
        basis, change = _orthonormal(remainder)
        factor = change @ state.factor
        direction = basis + change @ state.direction
        increment, bound = self._increment(system, rhs, value, weights, state, basis, factor)
        if increment != increment:
            return _broken(state)
        size = float(factor.norm() / (rhs.total * scale).norm())
        increments, residuals = (*state.increments, increment), (*state.residuals, size)
        return BlockCGState(value, basis, factor, direction, increments, residuals, bound)

    def _increment(
        self,
        system: LinearSystem,
        rhs: RightHandSide,
        value: Tensor,
        weights: Tensor,
        before: BlockCGState,
        basis: Tensor,
        factor: Tensor,
    ) -> tuple[float, float]:
        """|phi dz|_B / |phi z|_B, read off the residuals (M dz = R_before - R_after - A dz), and the bound."""
        unscale = jacobi_root(system).reciprocal()
        step = (weights.mT @ before.direction) / unscale
        old, new = before.factor.mT @ before.basis, factor.mT @ basis
        curvature_step = (old - new) * unscale - system.precision * step
        curvature_value = rhs.total - new * unscale - system.precision * value
        size = curvature_norm(value, curvature_value)
        return relative_rms(curvature_norm(step, curvature_step), size), error_bound(system, new, size)

    def error(self, state: BlockCGState) -> float:
        return float("nan") if state.broken else min(self._extrapolated(state), state.bound)

    def _extrapolated(self, state: BlockCGState) -> float:
        if len(state.increments) < 2:
            return 1.0 if state.increments and state.increments[-1] > 0 else 0.0
        last, *earlier = state.increments[-1], *state.increments[-3:-1]
        if last == 0:
            return 0.0
        ratio = min(max(last / earlier[-1], (last / earlier[0]) ** (1 / len(earlier))), 0.99)
        return float(last * ratio / (1 - ratio**2) ** 0.5)

    def stagnated(self, state: BlockCGState) -> bool:
        return state.residuals[-1] < 10 * torch.finfo(state.value.dtype).eps

    def solution(self, system: LinearSystem, rhs: RightHandSide, state: BlockCGState) -> Solution:
        residual = (state.factor.mT @ state.basis) / jacobi_root(system)
        curvature_value = rhs.total - residual - system.precision * state.value
        return Solution(state.value, curvature_value, Status.MAX_PASSES, len(state.increments), 0.0)


def _orthonormal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Q (m, P) with orthonormal rows and C (m, K) with rows = C' Q."""
    q, c = torch.linalg.qr(rows.mT)
    return q.mT.contiguous(), c


def _broken(state: BlockCGState) -> BlockCGState:
    return BlockCGState(state.value, state.basis, state.factor, state.direction, broken=True)
