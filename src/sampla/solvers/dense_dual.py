"""Exact solution over the outputs: for few outputs and any number of parameters, N C << P.

With B_n = S_n S_n', G = S' phi A^-1 phi' S of (N C, N C) and w = S' phi z, the system H z = b reads

    (I + G) w = S' phi A^-1 b,    z = A^-1 (b - phi' S w),    log det H = log det A + log det(I + G)

(Woodbury; the representer weights of a Gaussian process). G costs N C products, once for all right-hand sides, and for
all noise precisions and alphas where A is a multiple of the identity and the noise scalar.

In float32 the products leave G uncertain by rounding of its own size, |G| eps. Eigenvalues below that are noise, and
with them every direction of which the data say little; where it is not small beside the least eigenvalue of I + G the
factorisation knows nothing of its own error, and the bound of ``DenseDual`` is stated. Use float64 models here.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sampla.core.blocks import dots
from sampla.core.checks import require
from sampla.core.noise import PROBE, standard_normal
from sampla.model import LinearModel
from sampla.solvers._base import Iterate, LinearSystem, RightHandSide, Start, num_outputs, rounded_terms
from sampla.solvers._factorised import Factorisation, Factorised, cholesky, relative_errors, require_room, unit_rows
from sampla.solvers._outputs import pulled, pushed, times_of

_COLUMNS = 64
_REFINEMENTS = 2
"""That are made in any case: nothing is known of the rate before."""
_SURE = 0.5
"""Rate at which refinement must converge for the factorisation to be believed about what is missing."""
_BLUR = 4.0
"""Rounding of G over the least eigenvalue of I + G up to which every direction is one that refinement repairs."""
_INVERSE_STEPS = 8
_FLOOR = 10.0
"""What is missing ceases to fall once it is so many times what rounding hides."""


@dataclass(frozen=True)
class OutputKernel:
    """G at A = 1, and what it belongs to."""

    model: LinearModel
    matrix: Tensor
    """(N C, N C) S' phi phi' S, float64."""

    def at(self, system: LinearSystem) -> Tensor | None:
        """G of a system with the same features and data, if it is a multiple of this one."""
        factor = times_of(self.model, system)
        return None if factor is None else self.matrix * factor


@dataclass(frozen=True)
class DenseDualState(Factorisation):
    """With what refinement needs; the factorisation is that of I + G."""

    image: Tensor | None = None
    """(K, P) M Z, by products."""
    lengths: Tensor | None = None
    """(K,) |missing|_M."""
    contracts: bool = False
    """Whether refinement has converged at a rate that is believed."""
    blurred: bool = False
    """Whether rounding of the products hides eigenvalues of I + G from the factorisation."""
    kernel: OutputKernel | None = None


@dataclass(frozen=True)
class DenseDual(Factorised[DenseDualState]):
    """Cholesky factorisation of I + G in float64, with iterative refinement.

    b - phi' S w is a difference of numbers |G| times as large as z: each repetition on the residual, a difference taken
    in float64, regains as much. What is missing is |H^-1 (b - H z)|_M. Where refinement does not converge, or rounding
    of the products hides eigenvalues of I + G, the factorisation is not to be believed, and the error stated is the
    bound |z - z*|_M^2 <= r' A^-1 r / 4.

    Args:
        max_outputs: refuse larger N C, whose matrix would not fit.

    Raises:
        ValueError: in ``solve``, for more outputs, or a loader that shuffles.
    """

    max_outputs: int = 8_000
    krylov_e_step = True

    def init(self, system: LinearSystem, rhs: RightHandSide, guess: Start | None) -> DenseDualState:
        require_room(num_outputs(system.model), self.max_outputs, "outputs over all data", "dense dual")
        require(
            system.model.data.fixed_order, "a loader with a fixed order", "a shuffled one", "Use solver='block-cg'."
        )
        kept = guess.reusable if guess is not None and isinstance(guess.reusable, OutputKernel) else None
        return DenseDualState(torch.zeros_like(rhs.data_part) if guess is None else guess.value, kernel=kept)

    def factorised(self, system: LinearSystem, rhs: RightHandSide, state: DenseDualState) -> DenseDualState:
        kernel = None if state.kernel is None else state.kernel.at(system)
        if kernel is None:
            kernel = _kernel(system.model, system.precision)
        kernel, root = cholesky(kernel, torch.ones(len(kernel)).to(kernel), system.precision.dtype)
        if root is None:
            return DenseDualState(torch.full_like(state.value, torch.nan))
        value, _ = _woodbury(system, rhs.total.double(), root)
        determinant = 2 * float(root.diagonal().log().sum()) + float(system.precision.double().log().sum())
        blur = system.model.rounding * float(kernel.norm())
        found = DenseDualState(
            value.to(rhs.data_part), root, log_determinant=determinant, blurred=blur > _BLUR * _least(root),
            kernel=state.kernel,
        )  # fmt: skip
        found = self.measured(system, rhs, found)
        for _ in range(_REFINEMENTS):
            found = self.refined(system, rhs, found)
        return found

    def measured(self, system: LinearSystem, rhs: RightHandSide, state: DenseDualState) -> DenseDualState:
        """With M Z by a product, what is missing to Z, and its error: see the class's docstring."""
        assert state.root is not None
        image = system.model.curvature_product(state.value)
        residual = rhs.total.double() - image.double() - system.precision.double() * state.value.double()
        terms = rounded_terms(system, rhs, state.value, system.diagonal, len(state.root))
        size = terms.mean(0, keepdim=True).sqrt() * system.model.rounding
        rounding = size * standard_normal(rhs.seed, PROBE, range(1), 0, (size.shape[1],), size)
        missing, functions = _woodbury(system, torch.cat([residual, rounding]), state.root)
        missing, lengths, hidden = missing[:-1], functions[:-1].norm(dim=1), functions[-1].norm()
        sizes = dots(state.value, image).clamp_min(0).sqrt()
        bound = dots(residual, residual, system.precision.reciprocal()).sqrt() / 2
        rate = 1.0 if state.lengths is None else float(lengths.norm() / state.lengths.norm().clamp_min(1e-300))
        contracts = rate <= _SURE and not state.blurred
        sure = contracts or (state.contracts and bool(lengths.norm() <= _FLOOR * hidden * len(lengths) ** 0.5))
        found = (torch.minimum(lengths / (1 - min(rate, _SURE)), bound) if sure else bound).hypot(hidden)
        return replace(
            state, image=image, missing=missing, lengths=lengths, errors=relative_errors(found, sizes),
            sizes=sizes, contracts=contracts or state.contracts,
        )  # fmt: skip

    def known(self, system: LinearSystem, state: DenseDualState) -> Iterate:
        assert state.image is not None
        return Iterate(state.value, state.image, errors=state.errors, log_determinant=state.log_determinant)


def output_kernel(model: LinearModel, say: Callable[[str], None] = lambda _: None) -> OutputKernel:
    """G at A = 1, by N C products; ``say`` is called with how many are made."""
    return OutputKernel(
        model, _kernel(model, torch.ones_like(model.features.like.new_empty(model.num_parameters)), say)
    )


def _kernel(model: LinearModel, precision: Tensor, say: Callable[[str], None] = lambda _: None) -> Tensor:
    """G in float64, symmetric."""
    entries, rows = num_outputs(model), []
    for start in range(0, entries, _COLUMNS):
        say(f"{start:,} of {entries:,} products")
        columns = pulled(model, unit_rows(start, _COLUMNS, entries, precision)) / precision
        rows.append(pushed(model, columns, entries).double())
    kernel = torch.cat(rows)
    return (kernel + kernel.mT) / 2


def _least(root: Tensor) -> float:
    """The least eigenvalue of R R', by a few steps of inverse iteration: from above."""
    vector = standard_normal(0, PROBE, range(1), 0, (len(root),), root).mT
    size = 1.0
    for _ in range(_INVERSE_STEPS):
        vector = torch.cholesky_solve(vector / vector.norm(), root)
        size = 1 / float(vector.norm())
    return size


def _woodbury(system: LinearSystem, right: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
    """z = A^-1 (b - phi' S w) for (K, P) b in float64, and (K, N C) w = S' phi z; only the products are not float64."""
    model, precision = system.model, system.precision.double()
    start = right / precision
    outputs = pushed(model, start.to(system.precision), len(root))
    functions = torch.cholesky_solve(outputs.double().mT, root).mT
    return start - pulled(model, functions.to(system.precision)).double() / precision, functions
