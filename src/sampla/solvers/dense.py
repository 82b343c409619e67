"""Exact solution by forming M: for small P, and the only place where a (P, P) matrix exists."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sampla.solvers._base import Iterate, LinearSystem, RightHandSide, Start, num_outputs, rounded_terms
from sampla.solvers._factorised import Factorisation, Factorised, cholesky, relative_errors, require_room, unit_rows

_COLUMNS = 256


@dataclass(frozen=True)
class DenseState(Factorisation):
    """With M and what its factorisation, H = R R', tells."""

    curvature: Tensor | None = None
    """M, float64."""
    spread: Tensor | None = None
    """(P,) diagonal of H^-1 M H^-1: |e|_M^2 for a residual of one in a coordinate."""
    effective_dimension: Tensor | None = None
    entries: int = 1
    """N C."""


@dataclass(frozen=True)
class Dense(Factorised[DenseState]):
    """Cholesky factorisation of H in float64; costs P products once, then K for another A.

    The products are those of the model, in its own type, and so is the error stated: H is applied to the solution once
    more, and H e = b - H z is solved for what is missing. Where that is above the tolerance it is added (iterative
    refinement), for as long as it becomes smaller.

    Args:
        max_parameters: refuse larger P, whose matrix would not fit.
    """

    max_parameters: int = 20_000

    def init(self, system: LinearSystem, rhs: RightHandSide, guess: Start | None) -> DenseState:
        require_room(system.model.num_parameters, self.max_parameters, "parameters", "dense")
        kept = guess.reusable if guess is not None else None
        curvature = kept[1] if kept is not None and kept[0] is system.model else None
        value = torch.zeros_like(rhs.data_part) if guess is None else guess.value
        return DenseState(value, curvature=curvature)

    def factorised(self, system: LinearSystem, rhs: RightHandSide, state: DenseState) -> DenseState:
        precision = system.precision.double()
        formed = state.curvature if state.curvature is not None else _form(system)
        curvature, root = cholesky(formed, precision, system.precision.dtype)
        if root is None:
            return DenseState(torch.full_like(state.value, torch.nan), curvature=curvature)
        inverse = torch.cholesky_inverse(root)
        found = DenseState(
            torch.cholesky_solve(rhs.total.double().mT, root).mT.to(rhs.data_part),
            root,
            log_determinant=2 * float(root.diagonal().log().sum()),
            curvature=curvature,
            spread=(inverse.diagonal() - inverse.square() @ precision).clamp_min(0),  # H^-1 M H^-1 = H^-1 - H^-1 A H^-1
            # float32 products leave M slightly indefinite
            effective_dimension=(1 - precision * inverse.diagonal()).clamp(0, 1),
            entries=num_outputs(system.model),
        )
        return self.measured(system, rhs, found)

    def measured(self, system: LinearSystem, rhs: RightHandSide, state: DenseState) -> DenseState:
        """As a product with the model's own M tells."""
        assert state.root is not None
        assert state.curvature is not None
        assert state.spread is not None
        image = system.model.curvature_product(state.value)
        residual = rhs.total.double() - image.double() - system.precision.double() * state.value.double()
        missing = torch.cholesky_solve(residual.mT, state.root).mT
        terms = rounded_terms(system, rhs, state.value, state.curvature.diagonal(), state.entries)
        hidden = system.model.rounding**2 * (terms @ state.spread)
        lengths = (_sizes(missing, state.curvature).square() + hidden).sqrt()
        sizes = _sizes(state.value, state.curvature)
        return replace(state, missing=missing, errors=relative_errors(lengths, sizes), sizes=sizes)

    def known(self, system: LinearSystem, state: DenseState) -> Iterate:
        assert state.curvature is not None
        return Iterate(
            state.value, (state.value.double() @ state.curvature).to(state.value),
            effective_dimension=state.effective_dimension, reusable=(system.model, state.curvature),
            errors=state.errors, log_determinant=state.log_determinant,
        )  # fmt: skip


def _sizes(vectors: Tensor, curvature: Tensor) -> Tensor:
    """(K,) |v|_M."""
    vectors = vectors.double()
    return ((vectors @ curvature) * vectors).sum(1).clamp_min(0).sqrt()


def _form(system: LinearSystem) -> Tensor:
    size = system.model.num_parameters
    rows = []
    for start in range(0, size, _COLUMNS):
        identity = unit_rows(start, _COLUMNS, size, system.precision)
        rows.append(system.model.curvature_product(identity).double())
    curvature = torch.cat(rows)
    return (curvature + curvature.mT) / 2
