"""Exact solution by forming M: for small P, and the only place where a (P, P) matrix exists."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sampla._checks import require
from sampla.solvers._base import LinearSystem, RightHandSide, Solution, Solver, Status

_COLUMNS = 256


@dataclass(frozen=True)
class DenseState:
    """Z, M and the diagonal of H^-1 M once the only step is done."""

    curvature: Tensor | None
    value: Tensor
    effective_dimension: Tensor | None = None
    log_determinant: float | None = None


@dataclass(frozen=True)
class Dense(Solver[DenseState]):
    """Cholesky factorisation of H in float64; costs P products once, then nothing for another A.

    Args:
        max_parameters: refuse larger P, whose matrix would not fit.
    """

    max_parameters: int = 20_000
    exact_determinant = True

    def init(self, system: LinearSystem, rhs: RightHandSide, guess: Solution | None) -> DenseState:
        size = system.model.num_parameters
        require(
            size <= self.max_parameters,
            f"at most {self.max_parameters:,} parameters for the dense solver",
            f"{size:,} ({8 * size**2 / 2**30:.1f} GiB for one matrix)",
            "Use solver='block-cg', which forms no matrix.",
        )
        kept = guess.reusable if guess is not None else None
        curvature = kept[1] if kept is not None and kept[0] is system.model else None
        return DenseState(curvature, torch.zeros_like(rhs.data_part) if guess is None else guess.value)

    def step(self, system: LinearSystem, rhs: RightHandSide, state: DenseState) -> DenseState:
        curvature = state.curvature if state.curvature is not None else _form(system)
        precision = system.precision.double()
        root, info = torch.linalg.cholesky_ex(curvature + precision.diag())
        if int(info) != 0:
            curvature = _without_rounding(curvature, system.precision.dtype)
            root, info = torch.linalg.cholesky_ex(curvature + precision.diag())
        if int(info) != 0:
            return DenseState(curvature, torch.full_like(state.value, torch.nan))
        value = torch.cholesky_solve(rhs.total.double().mT, root).mT.to(rhs.data_part)
        inverse_diagonal = torch.cholesky_inverse(root).diagonal()
        determined = (1 - precision * inverse_diagonal).clamp(0, 1)  # float32 products leave M slightly indefinite
        determinant = 2 * float(root.diagonal().log().sum())
        return DenseState(curvature, value, determined, determinant)

    def error(self, state: DenseState) -> float:
        return 0.0 if bool(state.value.isfinite().all()) else float("nan")

    def solution(self, system: LinearSystem, rhs: RightHandSide, state: DenseState) -> Solution:
        if state.curvature is None:  # broke down: all there is is the guess
            return Solution(state.value, system.model.curvature_product(state.value), Status.BROKE_DOWN, 0, 0.0)
        return Solution(
            state.value,
            (state.value.double() @ state.curvature).to(state.value),
            Status.CONVERGED,
            1,
            0.0,
            effective_dimension=state.effective_dimension,
            reusable=(system.model, state.curvature),
            errors=torch.zeros(len(state.value), dtype=torch.float64),
            log_determinant=state.log_determinant,
        )


def _without_rounding(curvature: Tensor, dtype: torch.dtype) -> Tensor:
    """M with negative eigenvalues that rounding of its products explains set to zero; any other M as it is."""
    if not bool(curvature.isfinite().all()):
        return curvature
    eigenvalues, vectors = torch.linalg.eigh(curvature)
    if eigenvalues[0] < -1e3 * torch.finfo(dtype).eps * eigenvalues[-1]:
        return curvature
    nearest: Tensor = (vectors * eigenvalues.clamp_min(0)) @ vectors.mT
    return nearest


def _form(system: LinearSystem) -> Tensor:
    size = system.model.num_parameters
    rows = []
    for start in range(0, size, _COLUMNS):
        identity = torch.zeros(min(_COLUMNS, size - start), size).to(system.precision)
        identity[torch.arange(len(identity)), torch.arange(start, start + len(identity))] = 1
        rows.append(system.model.curvature_product(identity).double())
    curvature = torch.cat(rows)
    return (curvature + curvature.mT) / 2
