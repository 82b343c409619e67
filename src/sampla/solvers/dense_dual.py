"""Exact solution over the outputs: for few outputs and any number of parameters, N C << P.

With B_n = S_n S_n', G = S' phi A^-1 phi' S of (N C, N C) and w = S' phi z, the system H z = b reads

    (I + G) w = S' phi A^-1 b,    z = A^-1 (b - phi' S w),    log det H = log det A + log det(I + G)

(Woodbury; the representer weights of a Gaussian process). G costs N C products, once for all right-hand sides.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sampla._checks import require
from sampla.model import LinearModel
from sampla.solvers._base import LinearSystem, RightHandSide, Solution, Solver, Status

_COLUMNS = 64
_REFINEMENTS = 2
"""b - phi' S w is a difference of numbers |G| times as large as z: each repetition on the residual regains as much."""


@dataclass(frozen=True)
class DenseDualState:
    """Z once the only step is done."""

    value: Tensor
    log_determinant: float | None = None


@dataclass(frozen=True)
class DenseDual(Solver[DenseDualState]):
    """Cholesky factorisation of I + G in float64.

    Args:
        max_outputs: refuse larger N C, whose matrix would not fit.

    Raises:
        ValueError: in ``solve``, for more outputs, or a loader that shuffles.
    """

    max_outputs: int = 8_000
    exact_determinant = True
    recycles = True
    """It needs neither, but EM may then find its hyperparameters in one Krylov space."""

    def init(self, system: LinearSystem, rhs: RightHandSide, guess: Solution | None) -> DenseDualState:
        entries = _outputs(system.model)
        require(
            entries <= self.max_outputs,
            f"at most {self.max_outputs:,} outputs over all data for the dense dual solver",
            f"{entries:,} ({8 * entries**2 / 2**30:.1f} GiB for one matrix)",
            "Use solver='block-cg', which forms no matrix.",
        )
        require(
            system.model.data.fixed_order, "a loader with a fixed order", "a shuffled one", "Use solver='block-cg'."
        )
        return DenseDualState(torch.zeros_like(rhs.data_part) if guess is None else guess.value)

    def step(self, system: LinearSystem, rhs: RightHandSide, state: DenseDualState) -> DenseDualState:
        model, precision = system.model, system.precision
        entries = _outputs(model)
        kernel = torch.cat([self._rows(system, start, entries) for start in range(0, entries, _COLUMNS)])
        kernel = (kernel + kernel.mT) / 2
        root, info = torch.linalg.cholesky_ex(kernel + torch.eye(entries).to(kernel))
        if int(info) != 0:
            return DenseDualState(torch.full_like(state.value, torch.nan))
        value = torch.zeros_like(rhs.total)
        residual = rhs.total
        for _ in range(1 + _REFINEMENTS):
            start = residual / precision
            functions = torch.cholesky_solve(_pushed(model, start, entries).double().mT, root).mT
            value = value + start - _pulled(model, functions.to(start)) / precision
            residual = rhs.total - system.product(value)
        determinant = 2 * float(root.diagonal().log().sum()) + float(precision.double().log().sum())
        return DenseDualState(value, determinant)

    def error(self, state: DenseDualState) -> float:
        return 0.0 if bool(state.value.isfinite().all()) else float("nan")

    def solution(self, system: LinearSystem, rhs: RightHandSide, state: DenseDualState) -> Solution:
        if state.log_determinant is None:  # broke down: all there is is the guess
            return Solution(state.value, system.model.curvature_product(state.value), Status.BROKE_DOWN, 0, 0.0)
        return Solution(
            state.value,
            rhs.total - system.precision * state.value,
            Status.CONVERGED,
            1,
            0.0,
            errors=torch.zeros(len(state.value), dtype=torch.float64),
            log_determinant=state.log_determinant,
        )

    def _rows(self, system: LinearSystem, start: int, entries: int) -> Tensor:
        """Rows of G, in float64."""
        identity = torch.zeros(min(_COLUMNS, entries - start), entries).to(system.precision)
        identity[torch.arange(len(identity)), torch.arange(start, start + len(identity))] = 1
        pulled = _pulled(system.model, identity) / system.precision
        return _pushed(system.model, pulled, entries).double()


def _outputs(model: LinearModel) -> int:
    """N C."""
    first = next(model.batches(1))
    return first.features.outputs.numel() // (first.stop - first.start) * model.data.num_data


def _pushed(model: LinearModel, vectors: Tensor, entries: int) -> Tensor:
    """S' phi z: (K, P) -> (K, N C)."""
    functions = vectors.new_zeros(len(vectors), entries)
    for batch in model.batches(len(vectors)):
        outputs = batch.features.outputs
        part = slice(batch.first_output, batch.first_output + outputs.numel())
        pushed = batch.likelihood.curvature_root_transpose_product(
            outputs, batch.weighted(batch.features.jvp(vectors), 0.5)
        )
        functions[:, part] = pushed.flatten(1)
    model.ledger.products += len(vectors) / 2
    return functions


def _pulled(model: LinearModel, functions: Tensor) -> Tensor:
    """phi' S w: (K, N C) -> (K, P)."""
    total = functions.new_zeros(len(functions), model.num_parameters)
    for batch in model.batches(len(functions)):
        outputs = batch.features.outputs
        part = functions[:, batch.first_output : batch.first_output + outputs.numel()]
        rooted = batch.likelihood.curvature_root_product(outputs, part.reshape(len(part), *outputs.shape))
        total += batch.features.vjp(batch.weighted(rooted, 0.5))
    model.ledger.products += len(functions) / 2
    return total
