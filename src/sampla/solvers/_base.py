"""One loop for every solver of H Z = B, H = M + A: init, step until done, a Solution that says how far it came."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from math import inf
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from sampla.core.blocks import dots
from sampla.core.checks import complain
from sampla.model import LinearModel
from sampla.solvers._preconditioners import Jacobi, Preconditioner
from sampla.solvers._seen import Seen


class Status(Enum):
    """How a solve ended, each with the sentence a user needs."""

    CONVERGED = "reached the tolerance"
    UNVERIFIED = (
        "could not rule out an error hidden in directions that neither the residual nor the measurement shows: allow "
        "more passes, raise the prior precision, use float64, or read the error as an estimate"
    )
    MAX_PASSES = "stopped at max_passes before reaching the tolerance: allow more passes, or ask for less accuracy"
    SPENT = "spent its budget before reaching the tolerance: raise budget, or ask for less accuracy"
    STAGNATED = "stopped because rounding allows no more progress: use float64, or ask for less accuracy"
    BROKE_DOWN = (
        "met NaN, infinity or a curvature that is not positive: check the likelihood's curvature and the scaling "
        "of the data; for SGD, lower step_size"
    )


NOT_FINITE = (
    "a product with M is NaN or infinite: check the data and the weights for huge values, scale the inputs, or use "
    "float64"
)
INDEFINITE = (
    "a product has negative curvature, so M is not positive semi-definite: check that the likelihood's curvature is "
    "positive, that the network is deterministic (dropout off), and that every pass gives the same data"
)
_PARTED = (
    "the samples and what the solver took for their products with M had parted: the products are not those of one M"
)


@dataclass(frozen=True)
class LinearSystem:
    """H = M + diag(precision), in the coordinates of the model's features."""

    model: LinearModel
    precision: Tensor
    """(P,) the diagonal of A."""
    diagonal: Tensor
    """(P,) an estimate of the diagonal of M, for preconditioning."""
    preconditioner: Preconditioner | None = None
    """Near H; None for the diagonal of H."""
    stride: int = 1
    """M from every stride-th minibatch of the data only, scaled to all of them."""
    seen: Seen | None = None
    """Where products are written down; None: nowhere."""

    @property
    def inverse(self) -> Preconditioner:
        """The preconditioner to use."""
        return self.preconditioner or Jacobi(
            (self.diagonal + self.precision).clamp_min(torch.finfo(self.precision.dtype).tiny)
        )

    def product(self, vectors: Tensor) -> Tensor:
        """H v: (K, P) -> (K, P), one pass over the data, or that part of one."""
        found = self.model.curvature_product(vectors, self.stride).addcmul_(self.precision, vectors)
        return found if self.seen is None else self.seen.see(vectors, found)


@dataclass(frozen=True)
class RightHandSide:
    """b = data part + A theta0, kept apart (docs/method.md, section 2), and the mean's columns behind the samples'."""

    data_part: Tensor
    """(K, P) sum_n phi_n' S_n xi_n; for a column of the mean sum_n phi_n' B_n y_n."""
    prior_part: Tensor
    """(K, P) A theta0 = A^(1/2) xi; zero for the mean."""
    num_samples: int
    """How many columns (the first ones) are posterior samples."""
    seed: int
    """Of the noise, so that a solver may regenerate the noise of each datum."""

    @property
    def total(self) -> Tensor:
        """(K, P) the right-hand side b."""
        return self.data_part + self.prior_part


@dataclass(frozen=True)
class Start:
    """Z to start a solve from: an approximate solution, or one of a nearby system."""

    value: Tensor
    """(K, P)."""
    curvature_value: Tensor
    """(K, P) M Z."""
    curvature_exact: bool = field(default=True, kw_only=True)
    """Whether ``curvature_value`` is more than an estimate from part of the data, or by coarser products."""
    reusable: Any = field(default=None, kw_only=True)
    """What the solver that it comes from can use again when only A has changed."""


@dataclass(frozen=True)
class Iterate(Start):
    """Where a solver stands, with all that it knows of it beside the error; M Z as the solver knows it."""

    effective_dimension: Tensor | None = field(default=None, kw_only=True)
    """(P,) diagonal of H^-1 M, where the solver knows it exactly."""
    errors: Tensor | None = field(default=None, kw_only=True)
    """(K,) the error estimate of every column, where the solver has one."""
    log_determinant: float | None = field(default=None, kw_only=True)
    """log det H, where the solver knows it exactly."""
    check_products: int = field(default=0, kw_only=True)
    """Products with single vectors that measuring the error cost, beside the passes."""


@dataclass(frozen=True)
class Solution(Iterate):
    """Z with H Z close to B, what it cost, and how close: only ``solve`` makes one."""

    status: Status
    passes: int
    error: float
    """Estimate of |phi(z - z*)|_B / |phi z*|_B, the root mean square over the columns."""
    history: list[float] = field(default_factory=list)
    """The error estimate after each pass."""


State = TypeVar("State")

SLACK = 1.5
"""An estimate within the tolerance counts once no error above so many times the tolerance is left possible."""


class Solver(ABC, Generic[State]):
    """Frozen hyperparameters and three methods; all that changes lives in the state."""

    uses_start = False
    """Whether an approximate solution and a preconditioner near H save it passes."""
    krylov_e_step = False
    """Whether EM, where it has the choice, takes one Krylov space of M and not this solver's samples."""
    exact_determinant = False
    """Whether its solutions tell log det H exactly."""

    def preconditioner(self, system: LinearSystem) -> Preconditioner | None:
        """What ``solve`` preconditions the system with: what it comes with, such as EM's sketch; None: its diagonal."""
        return system.preconditioner

    @abstractmethod
    def init(self, system: LinearSystem, rhs: RightHandSide, guess: Start | None) -> State:
        """The state before the first step, starting from zero or from the guess."""

    @abstractmethod
    def step(self, system: LinearSystem, rhs: RightHandSide, state: State) -> State:
        """One more pass over the data."""

    @abstractmethod
    def error(self, state: State) -> float:
        """The error estimate of the present iterate; NaN when the iteration has broken down."""

    @abstractmethod
    def solution(self, system: LinearSystem, rhs: RightHandSide, state: State) -> Iterate:
        """The present iterate, with what the solver knows of it."""

    def certify(self, system: LinearSystem, rhs: RightHandSide, state: State, tolerance: float) -> State:
        """The same iterate with an error worth stating: called only where the loop would stop, so it may cost.

        Args:
            system: H.
            rhs: B.
            state: the iterate.
            tolerance: what ``proved`` should come below 1.5 times, if that is not too dear; infinite where the
                iterate must do as it is.
        """
        return state

    def proved(self, state: State) -> float:
        """No error larger than this is possible, as far as the solver can tell; its estimate, where that is a bound."""
        return self.error(state)

    def stagnated(self, state: State) -> bool:
        """Whether rounding makes further steps useless."""
        return False

    def spent(self, state: State) -> bool:
        """Whether a budget of the solver's own, in passes, is used up."""
        return False

    def complaint(self, state: State) -> str:
        """What exactly went wrong in a state whose error is NaN, for the message; empty if there is no more to say."""
        return ""


def solve(
    solver: Solver[State],
    system: LinearSystem,
    rhs: RightHandSide,
    *,
    tolerance: float = 0.02,
    max_passes: int = 100,
    guess: Start | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Solution:
    """Iterate until the estimated function-space error is at most ``tolerance``, and 1.5 times it cannot be exceeded.

    An estimate sees what has been moving lately. Where the prior is weak an error can hide in directions of small
    eigenvalues, in which the residual is small too. Hence the second condition, for which the solver has a bound.

    Args:
        solver: any Solver.
        system: H.
        rhs: B.
        tolerance: relative error |phi(z - z*)|_B / |phi z*|_B asked for.
        max_passes: products with M per column at most.
        guess: where to start, such as the solution of a nearby system; None: at zero.
        say: called with one line before each pass.

    Returns:
        The Solution; if it is not converged a ConvergenceWarning says what was asked and what was reached.

    Raises:
        ArithmeticError: if it broke down before the first good iterate, with no guess to fall back on.
    """
    if guess is not None and not guess.curvature_exact:  # its residual would be wrong: a pass to know it
        curvature_value = system.model.curvature_product(guess.value, system.stride)
        guess = replace(guess, curvature_value=curvature_value, curvature_exact=True)
    system = replace(system, preconditioner=solver.preconditioner(system))
    ended = _iterated(solver, system, rhs, solver.init(system, rhs, guess), tolerance, max_passes, say)
    if not ended.history and guess is None and ended.status is Status.BROKE_DOWN:  # zeros would pass for certainty
        raise ArithmeticError(f"{type(solver).__name__} has no solution: in its first pass it {ended.said}.")
    ended = _certified(solver, system, rhs, ended, tolerance)
    found, ended = _checked(system, rhs, solver.solution(system, rhs, ended.state), ended)
    reached, passes = ended.history[-1] if ended.history else inf, len(ended.history)
    if ended.status is not Status.CONVERGED:
        asked = f"{type(solver).__name__} was asked for a relative error of {tolerance:.1e}, reached an estimated"
        said = f"{asked} {reached:.1e} in {passes} passes and {ended.said}."
        complain(f"{type(solver).__name__}, {ended.status.name}", reached / tolerance, said)
    known = {each.name: getattr(found, each.name) for each in fields(Iterate)}
    return Solution(**known, status=ended.status, passes=passes, error=reached, history=ended.history)


@dataclass(frozen=True)
class _Ended(Generic[State]):
    """Where the iteration has ended, and how."""

    state: State
    """The last good one."""
    history: list[float]
    status: Status
    complaint: str = ""

    @property
    def said(self) -> str:
        """The end of a sentence for the user."""
        return f"{self.status.value} ({self.complaint})" if self.complaint else self.status.value


def _iterated(
    solver: Solver[State], system: LinearSystem, rhs: RightHandSide, state: State, tolerance: float, max_passes: int,
    say: Callable[[str], None],
) -> _Ended[State]:  # fmt: skip
    """Steps until the tolerance is reached and proved, or until there is a reason to stop."""
    history: list[float] = []
    for number in range(1, max_passes + 1):
        say(f"pass {number}" + (f", error {history[-1]:.1%}" if history else ""))
        following = solver.step(system, rhs, state)
        error = solver.error(following)
        if error <= tolerance:
            following = solver.certify(system, rhs, following, tolerance)
            error = solver.error(following)
        if error != error:  # NaN: keep the last good iterate
            return _Ended(state, history, Status.BROKE_DOWN, solver.complaint(following))
        state = following
        history.append(error)
        if error <= tolerance and solver.proved(state) <= SLACK * tolerance:
            return _Ended(state, history, Status.CONVERGED)
        if solver.spent(state):
            return _Ended(state, history, Status.SPENT)
        if solver.stagnated(state):
            return _Ended(state, history, Status.STAGNATED)
    return _Ended(state, history, Status.MAX_PASSES)


def _certified(
    solver: Solver[State], system: LinearSystem, rhs: RightHandSide, ended: _Ended[State], tolerance: float
) -> _Ended[State]:
    """With the error of a state that must do known as well as it can be: as it was if that breaks down."""
    state, history, status, complaint = ended.state, ended.history, ended.status, ended.complaint
    if history and status not in (Status.CONVERGED, Status.BROKE_DOWN):
        certified = solver.certify(system, rhs, state, inf)
        error = solver.error(certified)
        state, error = (certified, error) if error == error else (state, solver.error(state))
        history = [*history[:-1], error]
        if error <= tolerance:
            proved = solver.proved(state)
            status = Status.CONVERGED if proved <= SLACK * tolerance else Status.UNVERIFIED
            complaint = f"no more than {proved:.0e} is proved"
    if status is Status.STAGNATED:
        complaint = f"{rhs.data_part.dtype} can reach about {history[-1]:.0e} here"
    return _Ended(state, history, status, complaint)


def _checked(
    system: LinearSystem, rhs: RightHandSide, found: Iterate, ended: _Ended[State]
) -> tuple[Iterate, _Ended[State]]:
    """The iterate with its true M Z, where what the solver took for it has negative curvature."""
    if ended.status is Status.BROKE_DOWN or not _curves_down(rhs, found):
        return found, ended
    image = system.model.curvature_product(found.value)
    found = replace(found, curvature_value=image, errors=None)
    indefinite = _curves_down(rhs, found)
    error = inf if indefinite else _bounded_error(system, rhs, found)
    complaint = INDEFINITE if indefinite else _PARTED
    return found, _Ended(ended.state, [*ended.history[:-1], error], Status.BROKE_DOWN, complaint)


def _curves_down(rhs: RightHandSide, found: Start) -> bool:
    """Whether sum_k z_k' M z_k, gamma where the columns are samples, is negative by more than rounding explains."""
    lengths = (dots(found.value, found.value) * dots(rhs.total, rhs.total)).sqrt()
    size = float(dots(found.value, found.curvature_value).sum())
    return size < -1e3 * torch.finfo(found.value.dtype).eps * float(lengths.sum())


def _bounded_error(system: LinearSystem, rhs: RightHandSide, found: Start) -> float:
    """|phi(z - z*)|_B^2 <= r' A^-1 r / 4 for any z, over |phi z|_B^2; r from its definition."""
    residual = rhs.total - found.curvature_value - system.precision * found.value
    bound = dots(residual, residual, system.precision.reciprocal()) / 4
    return relative_rms(bound.sqrt(), dots(found.value, found.curvature_value).clamp_min(0).sqrt())


def relative_rms(numerator: Tensor, denominator: Tensor) -> float:
    """Root mean square of a over that of b: one number for the accuracy of a block of columns."""
    top, bottom = float(numerator.square().mean().sqrt()), float(denominator.square().mean().sqrt())
    if bottom == 0:
        return 0.0 if top == 0 else float("inf")
    return top / bottom


def error_bound(system: LinearSystem, scaled_residual: Tensor, size: Tensor) -> float:
    """A rigorous bound of the function-space error: |phi e|_B^2 <= e' H e = r' H^-1 r <= |D r|^2 / min(D A D).

    Args:
        system: H.
        scaled_residual: (K, P) D r with D = jacobi_root(system), however accurate the diagonal in it.
        size: (K,) |phi z|_B.
    """
    smallest = (system.precision * jacobi_root(system).square()).min()
    return relative_rms(scaled_residual.norm(dim=1) * smallest.rsqrt(), size)


def jacobi_root(system: LinearSystem) -> Tensor:
    """(P,) (diag M + A)^(-1/2): scales H to a nearly constant diagonal."""
    return (system.diagonal + system.precision).clamp_min(torch.finfo(system.precision.dtype).tiny).rsqrt()


def without_rounding(curvature: Tensor, dtype: torch.dtype) -> Tensor:
    """A semi-definite matrix whose negative eigenvalues are rounding with these set to zero; any other as it is."""
    if not bool(curvature.isfinite().all()):
        return curvature
    eigenvalues, vectors = torch.linalg.eigh(curvature)
    if eigenvalues[0] < -1e3 * torch.finfo(dtype).eps * eigenvalues[-1]:
        return curvature
    nearest: Tensor = (vectors * eigenvalues.clamp_min(0)) @ vectors.mT
    return nearest


def num_outputs(model: LinearModel) -> int:
    """N C."""
    if model.data.num_outputs:
        return model.data.num_outputs
    first = next(model.batches(1))
    return first.features.outputs.numel() // (first.stop - first.start) * model.data.num_data


def rounded_terms(system: LinearSystem, rhs: RightHandSide, value: Tensor, diagonal: Tensor, entries: int) -> Tensor:
    """(K, P) squares of what b - H z is made of, of which its rounding errors are a part; float64.

    M z = phi' S (S' phi z) is rounded on the way, where S' phi z may be a difference of much larger terms: entry p by
    about M_pp sum_q M_qq z_q^2 / (N C), squared.

    Args:
        system: H.
        rhs: B.
        value: Z.
        diagonal: (P,) of M.
        entries: N C.
    """
    value, diagonal = value.double(), diagonal.double()
    inside = (value.square() @ diagonal)[:, None] * diagonal / entries
    return inside + (system.precision.double() * value).square() + rhs.total.double().square()
