"""Exact solution by forming M: for small P, and the only place where a (P, P) matrix exists."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sampla.core.checks import require
from sampla.solvers._base import (
    Iterate,
    LinearSystem,
    RightHandSide,
    Solver,
    Start,
    num_outputs,
    relative_rms,
    rounded_terms,
    without_rounding,
)

_COLUMNS = 256


@dataclass(frozen=True)
class DenseState:
    """Z, and M with what its factorisation tells, once the first step is done."""

    curvature: Tensor | None
    value: Tensor
    root: Tensor | None = None
    """Cholesky's factor of H."""
    missing: Tensor | None = None
    """(K, P) H^-1 (B - H Z), float64: what is missing, as far as the factorisation knows H."""
    errors: Tensor | None = None
    """(K,) |missing|_M / |z|_M with what rounding hides, float64."""
    spread: Tensor | None = None
    """(P,) diagonal of H^-1 M H^-1: |e|_M^2 for a residual of one in a coordinate."""
    effective_dimension: Tensor | None = None
    log_determinant: float | None = None
    entries: int = 1
    """N C."""
    stuck: bool = False


@dataclass(frozen=True)
class Dense(Solver[DenseState]):
    """Cholesky factorisation of H in float64; costs P products once, then K for another A.

    The products are those of the model, in its own type, and so is the error stated: H is applied to the solution once
    more, and H e = b - H z is solved for what is missing. Where that is above the tolerance it is added (iterative
    refinement), for as long as it becomes smaller.

    Args:
        max_parameters: refuse larger P, whose matrix would not fit.
    """

    max_parameters: int = 20_000
    exact_determinant = True

    def init(self, system: LinearSystem, rhs: RightHandSide, guess: Start | None) -> DenseState:
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
        if state.root is None:
            return _factorised(system, rhs, state)
        assert state.missing is not None
        better = _measured(system, rhs, replace(state, value=(state.value + state.missing).to(state.value)))
        before, after = self.error(state), self.error(better)
        return replace(better if after < before else state, stuck=not after < before / 2)

    def error(self, state: DenseState) -> float:
        if state.errors is None or state.curvature is None:
            return float("nan")
        sizes = _sizes(state.value, state.curvature)
        return relative_rms(state.errors * sizes, sizes)

    def stagnated(self, state: DenseState) -> bool:
        return state.stuck

    def solution(self, system: LinearSystem, rhs: RightHandSide, state: DenseState) -> Iterate:
        if state.root is None or state.curvature is None:  # broke down: all there is is the guess
            return Iterate(state.value, system.model.curvature_product(state.value))
        return Iterate(
            state.value,
            (state.value.double() @ state.curvature).to(state.value),
            effective_dimension=state.effective_dimension,
            reusable=(system.model, state.curvature),
            errors=state.errors,
            log_determinant=state.log_determinant,
        )


def _factorised(system: LinearSystem, rhs: RightHandSide, state: DenseState) -> DenseState:
    """The first step: M formed, H factorised, Z solved for and its error measured."""
    curvature = state.curvature if state.curvature is not None else _form(system)
    precision = system.precision.double()
    root, info = torch.linalg.cholesky_ex(curvature + precision.diag())
    if int(info) != 0:
        curvature = without_rounding(curvature, system.precision.dtype)
        root, info = torch.linalg.cholesky_ex(curvature + precision.diag())
    if int(info) != 0:
        return DenseState(curvature, torch.full_like(state.value, torch.nan))
    value = torch.cholesky_solve(rhs.total.double().mT, root).mT.to(rhs.data_part)
    inverse = torch.cholesky_inverse(root)
    spread = (inverse.diagonal() - inverse.square() @ precision).clamp_min(0)  # H^-1 M H^-1 = H^-1 - H^-1 A H^-1
    determined = (1 - precision * inverse.diagonal()).clamp(0, 1)  # float32 products leave M slightly indefinite
    determinant = 2 * float(root.diagonal().log().sum())
    found = DenseState(
        curvature,
        value,
        root,
        spread=spread,
        entries=num_outputs(system.model),
        effective_dimension=determined,
        log_determinant=determinant,
    )
    return _measured(system, rhs, found)


def _measured(system: LinearSystem, rhs: RightHandSide, state: DenseState) -> DenseState:
    """With what is missing to Z, as a product with the model's own M tells."""
    assert state.root is not None
    assert state.curvature is not None
    image = system.model.curvature_product(state.value)
    residual = rhs.total.double() - image.double() - system.precision.double() * state.value.double()
    missing = torch.cholesky_solve(residual.mT, state.root).mT
    assert state.spread is not None
    terms = rounded_terms(system, rhs, state.value, state.curvature.diagonal(), state.entries)
    hidden = system.model.rounding**2 * (terms @ state.spread)
    lengths = (_sizes(missing, state.curvature).square() + hidden).sqrt()
    sizes = _sizes(state.value, state.curvature)
    errors = torch.where(lengths > 0, lengths / sizes, 0.0)
    return replace(state, missing=missing, errors=errors)


def _sizes(vectors: Tensor, curvature: Tensor) -> Tensor:
    """(K,) |v|_M."""
    vectors = vectors.double()
    return ((vectors @ curvature) * vectors).sum(1).clamp_min(0).sqrt()


def _form(system: LinearSystem) -> Tensor:
    size = system.model.num_parameters
    rows = []
    for start in range(0, size, _COLUMNS):
        identity = torch.zeros(min(_COLUMNS, size - start), size).to(system.precision)
        identity[torch.arange(len(identity)), torch.arange(start, start + len(identity))] = 1
        rows.append(system.model.curvature_product(identity).double())
    curvature = torch.cat(rows)
    return (curvature + curvature.mT) / 2
