"""What the two solvers by Cholesky's factorisation of a matrix in float64 have in common: iterative refinement."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from sampla.core.checks import require
from sampla.solvers._base import Iterate, LinearSystem, RightHandSide, Solver, relative_rms, without_rounding


@dataclass(frozen=True)
class Factorisation:
    """Z once the first step is done, and what the factorisation says is missing to it."""

    value: Tensor
    root: Tensor | None = None
    """Cholesky's factor; None before the first step, and if there is none."""
    missing: Tensor | None = None
    """(K, P) H^-1 (B - H Z), float64, as far as the factorisation knows H."""
    errors: Tensor | None = None
    """(K,) of |z - z*|_M / |z|_M, with what rounding hides."""
    sizes: Tensor | None = None
    """(K,) |z|_M."""
    log_determinant: float | None = None
    """log det H."""
    stuck: bool = False


State = TypeVar("State", bound=Factorisation)


class Factorised(Solver[State]):
    """A matrix is factorised in the first step; each further one adds what is missing, as long as that becomes less."""

    exact_determinant = True

    @abstractmethod
    def factorised(self, system: LinearSystem, rhs: RightHandSide, state: State) -> State:
        """The first step: the matrix formed and factorised, Z solved for and its error measured."""

    @abstractmethod
    def measured(self, system: LinearSystem, rhs: RightHandSide, state: State) -> State:
        """With what is missing to Z, and the error."""

    @abstractmethod
    def known(self, system: LinearSystem, state: State) -> Iterate:
        """The iterate after the first step."""

    def step(self, system: LinearSystem, rhs: RightHandSide, state: State) -> State:
        if state.root is None:
            return self.factorised(system, rhs, state)
        better = self.refined(system, rhs, state)
        before, after = self.error(state), self.error(better)
        return replace(better if after < before else state, stuck=not after < before / 2)

    def refined(self, system: LinearSystem, rhs: RightHandSide, state: State) -> State:
        """Z with what was missing, as far as that was known."""
        assert state.missing is not None
        return self.measured(system, rhs, replace(state, value=(state.value + state.missing).to(state.value)))

    def error(self, state: State) -> float:
        if state.errors is None or state.sizes is None:
            return float("nan")
        return relative_rms(state.errors * state.sizes, state.sizes)

    def stagnated(self, state: State) -> bool:
        return state.stuck

    def solution(self, system: LinearSystem, rhs: RightHandSide, state: State) -> Iterate:
        if state.root is None:  # broke down: all there is is the guess
            return Iterate(state.value, system.model.curvature_product(state.value))
        return self.known(system, state)


def relative_errors(wrong: Tensor, sizes: Tensor) -> Tensor:
    """(K,) |z - z*|_M / |z|_M, and zero for a column without any function, as for a right-hand side of zero."""
    return torch.where(sizes == 0, 0.0, wrong / sizes)


def require_room(size: int, most: int, what: str, solver: str) -> None:
    """Refuse a matrix of so many rows, if they are too many.

    Raises:
        ValueError: saying how large it would be.
    """
    require(
        size <= most,
        f"at most {most:,} {what} for the {solver} solver",
        f"{size:,} ({8 * size**2 / 2**30:.1f} GiB for one matrix)",
        "Use solver='block-cg', which forms no matrix.",
    )


def unit_rows(start: int, columns: int, size: int, like: Tensor) -> Tensor:
    """Rows ``start`` and following, ``columns`` of them or what is left, of the identity of this size."""
    rows = torch.zeros(min(columns, size - start), size).to(like)
    rows[torch.arange(len(rows)), torch.arange(start, start + len(rows))] = 1
    return rows


def cholesky(matrix: Tensor, diagonal: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """A semi-definite matrix and Cholesky's factor of it plus a diagonal, None if it has none.

    Args:
        matrix: float64, from products in ``dtype``, whose rounding may have made it indefinite: that is taken away.
        diagonal: to be added.
        dtype: of the products.
    """
    root, info = torch.linalg.cholesky_ex(matrix + diagonal.diag())
    if int(info) != 0:
        matrix = without_rounding(matrix, dtype)
        root, info = torch.linalg.cholesky_ex(matrix + diagonal.diag())
    return matrix, root if int(info) == 0 else None
