"""Preconditioned stochastic gradients between exact residuals, for data too many to read them ten times.

A stage is a run and a snapshot. The run takes minibatch steps on H d = r, the system that the iterate still lacks,

    d <- d - eta P^-1 (H_batch d - r),    H_batch = (N / n) sum over the batch of phi' B phi + A,

and averages d with weights that grow with the step (polynomial-decay averaging, Shamir and Zhang 2013). r is exact: the
noise is proportional to what is missing and vanishes with it (SVRG, Johnson and Zhang 2013, for a linear system; with a
sketch as P, Frangella, Rathore, Zhao, Udell 2023, SketchySVRG in PROMISE). The snapshot is one exact product H d.
Instead of z + d the stage takes the best point (in the norm of H) of all columns of d and of the directions before,

    D = d - (d H D_-') (D_- H D_-')^-1 D_-,    Z <- Z + R D' (D H D')^-1 D,

flexible block conjugate gradients (Notay 2000): as K columns help one another, a poor run does no harm.
"""

from dataclasses import dataclass, replace
from math import ceil, inf

import torch
from torch import Tensor

from sampla.core.blocks import dots, gram
from sampla.core.checks import require
from sampla.model import LinearModel
from sampla.solvers._base import INDEFINITE, NOT_FINITE, Iterate, LinearSystem, RightHandSide, Solver, Start
from sampla.solvers._descent import automatic_step, descend
from sampla.solvers._preconditioners import Preconditioner, Sketch, nystrom

_SKETCH_PASSES, _SKETCH_AT_MOST = 0.2, 4.0
"""What a sketch of its own should cost, and may cost where N is too small for that."""
_SKETCH_DATA = 256
"""Data a sketch needs at least."""
_HELD_OUT, _PARTS = 128, 50
"""Data on which function-space norms are measured where there is no snapshot; at most one in so many."""
_DEPENDENT = 1e-6
"""Eigenvalues of D H D' (unit diagonal) that are not told from zero."""
_SLOWEST = 0.99
"""Largest gain (of squares) that is believed."""
_ROUNDING = 10.0
"""Rounding errors of the right-hand side in the residual that no stage makes smaller."""
_LEAST = 0.02
"""Passes that are not worth a run."""


@dataclass(frozen=True)
class MinibatchState:
    """The iterate, and what the next stage needs; vectors are rows."""

    value: Tensor
    """(K, P) Z."""
    residual: Tensor | None
    """(K, P) B - H Z, exact; None after a run without a snapshot."""
    curvature: Tensor
    """(K, P) M Z: exact, or without a snapshot estimated from part of the data."""
    inverse: Preconditioner
    sketch: Sketch | None
    """What ``inverse`` was made of, if the solver made it."""
    step_size: float
    spent: float
    """Passes, all products counted."""
    direction: Tensor
    """(K, P) D of the stage before; no rows at first."""
    pushed: Tensor
    """(K, P) H D."""
    scale: Tensor
    """() |B|^2 in the norm of P^-1."""
    turn: int = 0
    """Which interleaved part of the data comes next."""
    missing: Tensor | None = None
    """(K,) estimate of |z - z*|_M^2."""
    bound: float = inf
    """No |z - z*|_M^2, summed over the columns, is larger."""
    complaint: str = ""


@dataclass(frozen=True)
class Minibatch(Solver[MinibatchState]):
    """Minibatch steps between exact residuals; one step of the loop costs 1 + ``inner`` passes.

    For data sets of which a few passes, or less than one, can be afforded, and for few columns: it reaches 10 % in a
    fraction of a pass where N is hundreds of times the effective dimension, and with few columns 2 % in a third of the
    passes of block CG where it is tens of times. Where N is only a few times it, block CG needs half as many passes.

    The error stated after a stage is |dz|_M rho / sqrt(1 - rho^2), with dz the stage's step and rho what it gained in
    the exact residual's P^-1 norm; or the bound |A^(-1/2) r| / 2, if smaller, which is rigorous. ``solve`` goes on
    until that bound rules out 1.5 times the tolerance: what a stage gained says nothing of directions that it does not
    reach. After a run without a snapshot the error is the root of the sum of squares of the averages' noise (from two
    quarters of the run) and of the residual that the run still met, both in function space on part of the data: an
    estimate with no proof, and the status says so.

    Args:
        budget: passes that may be spent, sketch and step size included, such as 0.3; None leaves it to ``max_passes``.
            A part of it that is too short for a snapshot is used for a run without one: the solution's M Z is then an
            estimate from part of the data.
        inner: passes of minibatch steps before each snapshot.
        step_size: eta; None: 1 / lambda, the largest eigenvalue of P^-1 H_batch over a few minibatches. Halved when a
            run does more harm than good.
        rank: of the sketch that is made if the system has no preconditioner.
        seed: of the sketch's random vectors.

    Raises:
        ValueError: for a setting that is not positive.
    """

    budget: float | None = None
    inner: float = 0.5
    step_size: float | None = None
    rank: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        fix = "A pass is one reading of all data for all columns: 0.3 is a third of one."
        for name, value in (("budget", self.budget), ("inner", self.inner), ("step_size", self.step_size)):
            require(value is None or 0 < value < float("inf"), f"a positive {name}", f"{value}", fix)
        require(self.rank >= 1, "a rank of at least 1", f"{self.rank}", "64 is usual.")

    def init(self, system: LinearSystem, rhs: RightHandSide, guess: Start | None) -> MinibatchState:
        total = rhs.total
        before = system.model.ledger.products
        value = torch.zeros_like(total) if guess is None else guess.value
        curvature = torch.zeros_like(total) if guess is None else guess.curvature_value
        sketch = None if system.preconditioner is not None else self._sketch(system.model, len(total), guess)
        inverse = system.inverse if sketch is None else sketch.at(system.precision)
        step_size = self.step_size or automatic_step(system, inverse, len(total))
        spent = (system.model.ledger.products - before) / len(total)
        residual = total - curvature - system.precision * value
        scale = dots(total, inverse.solve(total)).sum()
        return MinibatchState(
            value, residual, curvature, inverse, sketch, step_size, spent, total[:0], total[:0], scale
        )  # fmt: skip

    def _sketch(self, model: LinearModel, columns: int, guess: Start | None) -> Sketch | None:
        """The one an earlier solve with the same M has made, or a new one from part of the data; None: no budget."""
        kept = guess.reusable if guess is not None else None
        if isinstance(kept, tuple) and kept[0] is model and isinstance(kept[1], Sketch):
            return kept[1]
        rank = min(self.rank, model.num_parameters)
        most = max(1, model.data.num_data // _SKETCH_DATA)
        allowed, at_most = _SKETCH_PASSES, _SKETCH_AT_MOST
        if self.budget is not None:
            allowed = at_most = min(_SKETCH_PASSES, self.budget / 3)
        rank = int(min(rank, at_most * columns * most))
        return nystrom(model, rank, self.seed, min(most, ceil(rank / columns / allowed))) if rank else None

    def step(self, system: LinearSystem, rhs: RightHandSide, state: MinibatchState) -> MinibatchState:
        left = float("inf") if self.budget is None else self.budget - state.spent
        if not state.step_size > 0:
            return replace(state, complaint=_NO_STEP)
        if state.residual is not None and left >= self.inner + 1:
            return self._stage(system, rhs, state, state.residual)
        return self._last_run(system, rhs, state, left)

    def _stage(
        self, system: LinearSystem, rhs: RightHandSide, state: MinibatchState, residual: Tensor
    ) -> MinibatchState:
        """A run, a snapshot, and the best point of what both have found."""
        before = system.model.ledger.products
        run = descend(system, state.inverse, residual, state.step_size, self.inner, state.turn)
        correction = state.inverse.solve(residual) if run is None else run.average
        pushed = system.product(correction)
        if not bool(pushed.isfinite().all()):
            return replace(state, complaint=NOT_FINITE)
        step_size = state.step_size if run is not None else state.step_size / 4
        if float((dots(correction, pushed) / 2 - dots(correction, residual)).sum()) > 0:
            step_size = step_size / 2
        direction, pushed = _conjugate(correction, pushed, state)
        direction_gram = gram(direction, pushed)
        if not _definite(direction_gram, pushed.dtype):
            return replace(state, complaint=INDEFINITE)
        weights = (_inverse(direction_gram) @ gram(direction, residual)).mT.to(residual)
        move, moved = weights @ direction, weights @ pushed
        value, remainder = state.value + move, residual - moved
        spent = state.spent + (system.model.ledger.products - before) / len(value)
        return MinibatchState(
            value, remainder, rhs.total - remainder - system.precision * value, state.inverse, state.sketch,
            step_size, spent, direction, pushed, state.scale, state.turn if run is None else run.turn,
            _missing(system, state, move, moved, residual, remainder), float(_bounds(system, remainder).sum()),
        )  # fmt: skip

    def _last_run(self, system: LinearSystem, rhs: RightHandSide, state: MinibatchState, left: float) -> MinibatchState:
        """What is left of the budget as one run without a snapshot, and its error from the run itself."""
        model = system.model
        share = max(left - 3 * _held_out(model), 0.0)
        run = None
        if share >= _LEAST and state.residual is not None:
            run = descend(system, state.inverse, state.residual, state.step_size, share, state.turn)
        spent = state.spent + left
        if run is None:  # too little left, or the steps diverged: the iterate before stays, if there is one
            return replace(state, spent=spent, complaint=_NOTHING if state.missing is None else "")
        value = state.value + run.average
        still = state.inverse.solve(run.residual)
        seen = model.curvature_product(torch.cat([value, run.noise, still]), _stride(model))
        curvature, noise, direction_gram = seen.split(len(value))
        missing = dots(run.noise, noise) + _unmet(system, still, direction_gram, run.residual)
        return replace(state, value=value, residual=None, curvature=curvature, missing=missing, bound=inf, spent=spent)

    def error(self, state: MinibatchState) -> float:
        if state.complaint or state.missing is None:
            return float("nan")
        missing = float(state.missing.clamp_min(0).sum())
        size = float(dots(state.value, state.curvature).clamp_min(0).sum())
        if size == 0:
            return 0.0 if missing == 0 else float("inf")
        return float((missing / size) ** 0.5)

    def proved(self, state: MinibatchState) -> float:
        size = float(dots(state.value, state.curvature).clamp_min(0).sum())
        return (state.bound / size) ** 0.5 if size > 0 else self.error(state)

    def spent(self, state: MinibatchState) -> bool:
        return self.budget is not None and self.budget - state.spent < _LEAST

    def stagnated(self, state: MinibatchState) -> bool:
        if state.residual is None:
            return False
        rounding = _ROUNDING * torch.finfo(state.residual.dtype).eps
        return bool(dots(state.residual, state.inverse.solve(state.residual)).sum() <= rounding**2 * state.scale)

    def complaint(self, state: MinibatchState) -> str:
        return state.complaint

    def solution(self, system: LinearSystem, rhs: RightHandSide, state: MinibatchState) -> Iterate:
        size = dots(state.value, state.curvature).clamp_min(0)
        missing = torch.full_like(size, torch.inf) if state.missing is None else state.missing.clamp_min(0)
        errors = (missing / torch.where(size > 0, size, torch.ones_like(size))).sqrt()
        return Iterate(
            state.value, state.curvature, errors=errors,
            reusable=(system.model, state.sketch), curvature_exact=state.residual is not None,
        )  # fmt: skip


_NO_STEP = "no step size: minibatch products are NaN, infinite or negative; check the likelihood's curvature and data"
_NOTHING = "the budget is too small for a sketch, a step size and a run, or the steps diverged: raise it"


def _conjugate(correction: Tensor, pushed: Tensor, state: MinibatchState) -> tuple[Tensor, Tensor]:
    """d and H d without their part along the directions of the stage before, in the inner product of H."""
    if len(state.direction) == 0:
        return correction, pushed
    weights = _inverse(gram(state.direction, state.pushed)) @ gram(state.pushed, correction)
    shared = weights.mT.to(correction)
    return correction - shared @ state.direction, pushed - shared @ state.pushed


def _definite(direction_gram: Tensor, dtype: torch.dtype) -> bool:
    """Whether D H D' has no negative eigenvalue that rounding does not explain."""
    values = torch.linalg.eigvalsh((direction_gram + direction_gram.mT) / 2)
    return bool(values[0] >= -1e3 * torch.finfo(dtype).eps * values.abs().max())


def _inverse(direction_gram: Tensor) -> Tensor:
    """The inverse of D H D' on the directions that are not (nearly) combinations of others; float64."""
    direction_gram = (direction_gram + direction_gram.mT) / 2
    scale = direction_gram.diagonal().clamp_min(0).sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale)).reciprocal()
    values, vectors = torch.linalg.eigh(scale[:, None] * direction_gram * scale)
    kept = values > _DEPENDENT * values[-1].clamp_min(torch.finfo(values.dtype).tiny)
    vectors = scale[:, None] * vectors[:, kept]
    inverse: Tensor = (vectors / values[kept]) @ vectors.mT
    return inverse


def _missing(
    system: LinearSystem, state: MinibatchState, move: Tensor, moved: Tensor, before: Tensor, after: Tensor
) -> Tensor:
    """(K,) |z - z*|_M^2 after a stage: what its step and its gain announce, or the proof r' A^-1 r / 4."""
    step = (dots(move, moved) - dots(move, move * system.precision)).clamp_min(0)
    old, new = dots(before, state.inverse.solve(before)), dots(after, state.inverse.solve(after))
    gain = float((new.sum() / old.sum().clamp_min(torch.finfo(old.dtype).tiny)).clamp(0, _SLOWEST))
    return torch.minimum(step * gain / (1 - gain), _bounds(system, after))


def _bounds(system: LinearSystem, residual: Tensor) -> Tensor:
    """(K,) |z - z*|_M^2 = r' H^-1 M H^-1 r <= r' A^-1 r / 4."""
    return dots(residual, residual / system.precision) / 4


def _unmet(system: LinearSystem, still: Tensor, direction_gram: Tensor, residual: Tensor) -> Tensor:
    """(K,) |e|_M^2 for e = c P^-1 r, given P^-1 r and M P^-1 r.

    P^-1 r is short of H^-1 r along directions that P takes for steeper than H is: c >= 1 scales it as H would have it.
    """
    size = dots(still, direction_gram)
    curve = (size + dots(still, still * system.precision)).sum().clamp_min(torch.finfo(size.dtype).tiny)
    scaled: Tensor = (dots(still, residual).sum() / curve).clamp_min(1) ** 2 * size
    return scaled


def _held_out(model: LinearModel) -> float:
    """Passes (of K columns) for one product with the data on which norms are measured."""
    return 1 / _stride(model)


def _stride(model: LinearModel) -> int:
    return max(_PARTS, model.data.num_data // _HELD_OUT)
