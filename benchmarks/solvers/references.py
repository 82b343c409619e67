"""What the library's solvers are compared with: conjugate gradients one right-hand side at a time."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sampla.solvers import Iterate, LinearSystem, RightHandSide, Solver, Start


@dataclass(frozen=True)
class SeparateState:
    """K independent iterations side by side."""

    value: Tensor
    residual: Tensor
    """(K, P) b - H z."""
    direction: Tensor
    size: Tensor
    """(K,) r' D^-1 r."""
    first: Tensor
    """(K,) the same at the start."""
    passes: int = 0


@dataclass(frozen=True)
class SeparateCG(Solver[SeparateState]):
    """Jacobi-preconditioned conjugate gradients (Hestenes and Stiefel 1952), each column in a Krylov space of its own.

    The columns share the pass over the data and nothing else. The error stated is the relative residual in the norm of
    the preconditioner, which is what ordinary implementations stop on.
    """

    def init(self, system: LinearSystem, rhs: RightHandSide, guess: Start | None) -> SeparateState:
        if guess is not None:
            raise ValueError("expected no guess, got one: this reference always starts from zero.")
        preconditioned = self._apply(system, rhs.total)
        size = (rhs.total * preconditioned).sum(1)
        return SeparateState(torch.zeros_like(rhs.total), rhs.total, preconditioned, size, size)

    def step(self, system: LinearSystem, rhs: RightHandSide, state: SeparateState) -> SeparateState:  # noqa: ARG002
        pushed = system.product(state.direction)
        length = _safe(state.size, (state.direction * pushed).sum(1))
        residual = state.residual - length[:, None] * pushed
        preconditioned = self._apply(system, residual)
        size = (residual * preconditioned).sum(1)
        direction = preconditioned + _safe(size, state.size)[:, None] * state.direction
        value = state.value + length[:, None] * state.direction
        return SeparateState(value, residual, direction, size, state.first, state.passes + 1)

    def error(self, state: SeparateState) -> float:
        return float((state.size / state.first).mean().sqrt())

    def solution(self, system: LinearSystem, rhs: RightHandSide, state: SeparateState) -> Iterate:
        curvature_value = rhs.total - state.residual - system.precision * state.value
        return Iterate(state.value, curvature_value)

    def _apply(self, system: LinearSystem, vectors: Tensor) -> Tensor:
        return vectors / (system.diagonal + system.precision)


def _safe(top: Tensor, bottom: Tensor) -> Tensor:
    """top / bottom, and zero for a column that has converged to the last bit."""
    return torch.where(bottom > 0, top / bottom.clamp_min(torch.finfo(bottom.dtype).tiny), torch.zeros_like(top))
