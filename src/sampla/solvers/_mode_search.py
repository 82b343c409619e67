"""The search for the mode, which asks for one reading of the data at a time, of whoever reads them (linear_mode.py)."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from enum import Enum
from math import inf, isfinite, sqrt
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from sampla.core.checks import complain
from sampla.linear_batch import Asked
from sampla.model import LinearModel
from sampla.solvers._mode import Memory, Mode
from sampla.solvers._preconditioners import Jacobi, Preconditioner
from sampla.solvers._secants import Secants, dot

_ARMIJO = 1e-4
"""Share of the decrease promised by the slope that a step must keep."""
_TRIALS = 12
"""Lengths tried for one direction."""
_STEEP, _STRETCH = 0.9, 4.0
"""Share of its slope that a step too short leaves at its end; by which factor it is made longer then."""
_FORCING = 0.1
"""Relative residual at which a truncated Newton step is solved well enough."""
_IDLE = 20
"""Steps without progress, where the objective no longer resolves them, after which rounding is blamed."""
_ROUNDING = 10.0
"""Rounding of the objective, in units of the dtype's epsilon times its size."""


_CHECKS, _LATEST, _LITTLE = 40, 4, 0.1
"""Products of a check at most; it also ends where the latest ones have added so small a part of what it has found."""


Result = TypeVar("Result")
Steps: TypeAlias = Generator[Asked, tuple[float, Tensor], Result]
"""A part of the search: it yields what it asks and is sent the loss and the answer (``Companion.told``)."""


class _End(Enum):
    """How the iteration ended, with the sentence a user needs."""

    CONVERGED = "reached the tolerance"
    MAX_STEPS = "stopped at max_steps: allow more steps, or raise the prior precision it starts from"
    STAGNATED = "stopped because rounding allows no more progress: use float64, or ask for less accuracy"
    NOT_FINITE = (
        "met NaN or infinity however short the step: check that the likelihood's log_prob is finite for large outputs"
    )
    NO_DECREASE = (
        "found no smaller objective along the gradient: check that the likelihood's log_prob is differentiable, and "
        "that the loader gives the same data on every pass"
    )


@dataclass(frozen=True)
class _Point:
    theta: Tensor
    objective: float
    gradient: Tensor

    @property
    def resolution(self) -> float:
        """Differences of the objective below this are rounding."""
        return _ROUNDING * torch.finfo(self.theta.dtype).eps * abs(self.objective)

    @property
    def finite(self) -> bool:
        return isfinite(self.objective) and isfinite(float(self.gradient.sum()))


@dataclass(frozen=True)
class _Objective:
    """F, its gradient and its curvature."""

    model: LinearModel
    precision: Tensor

    def at(self, theta: Tensor) -> Steps[_Point]:
        loss, gradient = yield Asked(theta)
        return _Point(theta, loss + 0.5 * dot(self.precision * theta, theta), gradient + self.precision * theta)

    def curvature(self, theta: Tensor, vector: Tensor, stride: int) -> Steps[Tensor]:
        _, product = yield Asked(theta, vector, stride)
        return product + self.precision * vector

    def bound(self, point: _Point) -> float:
        """|theta - theta*|_A <= e = |g|_{A^-1}, and |theta*|_A >= |theta|_A - e."""
        distance = sqrt(float((point.gradient.double().square() / self.precision.double()).sum()))
        size = self.size(point) - distance
        return distance / size if size > 0 else (0.0 if distance == 0 else inf)

    def size(self, point: _Point) -> float:
        """|theta|_A."""
        return sqrt(float((self.precision * point.theta.square()).double().sum()))

    def negative_curvature(self, start: _Point, step: Tensor, change: Tensor) -> bool:
        """Whether the loss alone bends downwards along a step by more than rounding: log p is then not concave."""
        return dot(step, change) < 0.999 * dot(self.precision * step, step) - start.resolution


@dataclass
class _Search:
    """The state of the iteration; one ``advance`` is one accepted step."""

    objective: _Objective
    secants: Secants
    point: _Point
    newton: bool = True
    """Whether the next direction is a truncated Newton step."""
    log_concave: bool = True
    idle: int = 0
    best: tuple[_Point, float] | None = field(default=None)
    """The point to return, and its estimated error."""
    solved: Tensor | None = None
    """The Newton step that a check of the present point has found."""

    def measure(self) -> float:
        """Estimate the error of the present point, and keep the point if it is the best so far."""
        point = self.point
        distance = sqrt(max(0.0, dot(point.gradient, self.secants.cautious().solve(point.gradient))))
        size = self.objective.size(point)
        error = distance / size if size > 0 else (0.0 if distance == 0 else inf)
        self.idle += 1
        if self.best is None or point.objective < self.best[0].objective - point.resolution or error < self.best[1]:
            self.best, self.idle = (point, error), 0
        return error

    def checked(self) -> Steps[float]:
        """The error of the present point, measured: g' H^-1 g by conjugate gradients on H e = -g.

        Their steps add up to it from below, and what is missing is at most r' A^-1 r for the residual r, as H >= A. The
        secants know only where they have been; they learn these directions, too.
        """
        point, solver = self.point, self.secants
        step, residual = torch.zeros_like(point.theta), -point.gradient
        direction = solver.solve(residual)
        size, gains = dot(residual, direction), []
        missing = dot(residual, residual / self.objective.precision)
        for _ in range(_CHECKS):
            pushed = yield from self.objective.curvature(point.theta, direction, 1)
            curvature_along = dot(direction, pushed)
            if not (0 < curvature_along < inf and size > 0):
                break
            step, residual = step + (size / curvature_along) * direction, residual - (size / curvature_along) * pushed
            gains.append(size**2 / curvature_along)
            self.secants = self.secants.taught(direction, pushed)
            missing = dot(residual, residual / self.objective.precision)
            if missing <= sum(gains):
                break
            if len(gains) >= 2 * _LATEST and sum(gains[-_LATEST:]) <= _LITTLE * sum(gains):
                missing = min(missing, sum(gains))
                break
            preconditioned = solver.solve(residual)
            size, before = dot(residual, preconditioned), size
            direction = preconditioned + (size / before) * direction
        self.solved = step if bool(step.any()) else None
        error = sqrt(sum(gains) + missing) / max(self.objective.size(point), 1e-300)
        self.best = point, error
        return error

    def advance(self) -> Steps[_End | None]:
        """One step; None unless there is no going on."""
        point = self.point
        if self.solved is not None:
            direction, self.solved = self.solved, None
        else:
            direction = (yield from self._newton_step()) if self.newton else -self.secants.solve(point.gradient)
        length, trial = 1.0, point
        for tried in range(_TRIALS):
            trial = yield from self.objective.at(point.theta + length * direction)
            if self._accepts(trial, length, direction):
                self._learn((yield from self._longer(trial, length, direction)))
                return _End.STAGNATED if self.idle >= _IDLE else None
            if not self.newton:  # the secants promised too much: ask the curvature here
                self.newton, direction = True, (yield from self._newton_step())
            else:
                length *= _shorter(dot(point.gradient, direction), dot(trial.gradient, direction), tried)
        if not trial.finite:
            return _End.NOT_FINITE
        resolved = -dot(point.gradient, direction) > point.resolution
        return _End.NO_DECREASE if resolved else _End.STAGNATED

    def _longer(self, trial: _Point, length: float, direction: Tensor) -> Steps[_Point]:
        """A longer step where the slope has not changed over this one: what it was measured by says nothing here.

        So it is far from the mode of counts, where a truncated Newton step sees the curvature of few directions.
        """
        before = dot(self.point.gradient, direction)
        for _ in range(_TRIALS):
            if dot(trial.gradient, direction) > _STEEP * before:
                break
            length *= _STRETCH
            further = yield from self.objective.at(self.point.theta + length * direction)
            if not self._accepts(further, length, direction) or further.objective > trial.objective:
                break
            for start, end in ((self.point, trial), (trial, further)):
                self._watch(start, end)
            trial = further
        return trial

    def _accepts(self, trial: _Point, length: float, direction: Tensor) -> bool:
        """Enough decrease (Armijo); where rounding hides it, a smaller slope (Hager and Zhang 2005)."""
        before, after = (dot(p.gradient, direction) for p in (self.point, trial))
        if not trial.finite:
            return False
        if trial.objective <= self.point.objective + _ARMIJO * length * before:
            return True
        return trial.objective <= self.point.objective + self.point.resolution and abs(after) <= abs(before)

    def _learn(self, trial: _Point) -> None:
        self._watch(self.point, trial)
        self.secants = self.secants.taught(trial.theta - self.point.theta, trial.gradient - self.point.gradient)
        self.point, self.newton = trial, False

    def _watch(self, start: _Point, end: _Point) -> None:
        bends = self.objective.negative_curvature(start, end.theta - start.theta, end.gradient - start.gradient)
        self.log_concave = self.log_concave and not bends

    def _newton_step(self) -> Steps[Tensor]:
        """As many conjugate gradient steps on the Newton system as 1.5 products pay; the secants learn each of them."""
        point, solver, stride = self.point, self.secants, self.objective.model.hessian_stride
        step, residual = torch.zeros_like(point.theta), -point.gradient
        direction = solver.solve(residual)
        first = size = dot(residual, direction)
        for _ in range(stride):
            pushed = yield from self.objective.curvature(point.theta, direction, stride)
            curvature_along = dot(direction, pushed)
            if not (0 < curvature_along < inf and size > 0):
                break
            step, residual = step + (size / curvature_along) * direction, residual - (size / curvature_along) * pushed
            self.secants = self.secants.taught(direction, pushed)
            preconditioned = solver.solve(residual)
            size, before = dot(residual, preconditioned), size
            direction = preconditioned + (size / before) * direction
            if size <= _FORCING**2 * first:
                break
        return step if bool(step.any()) else -solver.solve(point.gradient)


def _shorter(before: float, after: float, tried: int) -> float:
    """The factor by which to shorten a step, from the slopes at its two ends (secant, kept within limits).

    The limits tighten with each length tried: a slope that jumps looks the same from any length far beyond the jump.
    """
    if not isfinite(after) or after <= before:
        return 0.1
    return max(0.1, min(0.7 ** (tried + 1), before / (before - after)))


def _begun(objective: _Objective, inverse: Preconditioner, guess: Tensor | Mode | None) -> Steps[_Search]:
    if isinstance(guess, Mode) and guess.memory is not None:
        theta, memory, precision = guess.value, guess.memory, objective.precision
        value = memory.loss + 0.5 * dot(precision * theta, theta)
        start = _Point(theta, value, memory.gradient + precision * theta)
        secants = memory.moved(precision, inverse)
        return _Search(objective, secants, start, newton=not secants.pairs)
    at = guess.value if isinstance(guess, Mode) else guess
    zero = torch.zeros(1, objective.model.num_parameters).to(objective.precision)
    start = yield from objective.at(zero if at is None else at)
    _require_start(start, at)
    return _Search(objective, Secants(inverse), start)


def _near_hessian(given: Preconditioner | Tensor, precision: Tensor) -> Preconditioner:
    if isinstance(given, Preconditioner):
        return given
    return Jacobi((given + precision).clamp_min(torch.finfo(precision.dtype).tiny))


def _require_start(start: _Point, guess: Tensor | None) -> None:
    if not start.finite:
        where = "theta = 0, the prior's mean" if guess is None else "the mode that was given to start from"
        raise ArithmeticError(
            f"the loss of the linear model or its gradient is not finite at {where}: check that the likelihood's "
            "log_prob is finite there and differentiable, and that the features are finite."
        )


def _warn(tolerance: float, error: float, steps: int, end: _End) -> None:
    complain(
        f"mode, {end.name}",
        error / tolerance,
        f"the mode of the linear model was asked for a relative error of {tolerance:.1e}, reached an estimated "
        f"{error:.1e} after {steps} steps and {end.value}.",
    )


class ModeSearch:
    """A search for the mode that is told what it asks, one reading of the data at a time.

    ``found`` takes the readings itself. As a companion of a model (``LinearModel.carrying``) the search goes on with
    every product with M that others take, without a reading of its own.

    Args: as for ``linear_mode``, and tolerance may be a function of |theta|^2: larger while that need not be known.
    """

    def __init__(
        self,
        model: LinearModel,
        precision: Tensor,
        preconditioner: Preconditioner | Tensor,
        *,
        guess: Tensor | Mode | None = None,
        tolerance: float | Callable[[float], float] = 0.005,
        max_steps: int = 500,
        check: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._model, self._objective = model, _Objective(model, precision)
        self._tolerance, self._max_steps, self._check, self._say = tolerance, max_steps, check, say
        self._inverse = _near_hessian(preconditioner, precision)
        self._search: _Search | None = None
        self._mode: Mode | None = None
        self._complaint: tuple[float, float, int, _End] | None = None
        self._products = 0.0
        self._steps = self._searched(guess)
        self.asked: Asked | None = None
        self._go_on(None)

    def told(self, loss: float, answer: Tensor, products: float) -> None:
        """Go on with what has been asked, to the next question (``Companion.told``)."""
        self._products += products
        self._go_on((loss, answer))

    def precondition(self, preconditioner: Preconditioner) -> None:
        """Search with a better preconditioner from now on; what has been learnt stays."""
        self._inverse = preconditioner
        if self._search is not None:
            self._search.secants = self._search.secants.on(preconditioner)

    def answer_parts(self) -> None:
        """Read what is asked of a part of the data, which products do not take along, until all of them are asked."""
        while self.asked is not None and self.asked.stride > 1:
            self._answer(self.asked)

    def found(self) -> Mode:
        """The mode, after as many readings as are still needed; a ConvergenceWarning says if it is not converged."""
        while self.asked is not None:
            self._answer(self.asked)
        if self._complaint is not None:
            _warn(*self._complaint)
            self._complaint = None
        assert self._mode is not None
        return self._mode

    def _answer(self, asked: Asked) -> None:
        """By a reading for nothing else."""
        model, spent = self._model, self._model.ledger.products
        if asked.vector is None:
            loss, answer = model.loss_gradient(asked.theta)
        else:
            loss, answer = 0.0, model.newton_product(asked.theta, asked.vector, asked.stride)
        self.told(loss, answer, model.ledger.products - spent)

    def _go_on(self, answer: tuple[float, Tensor] | None) -> None:
        try:
            self.asked = next(self._steps) if answer is None else self._steps.send(answer)
        except StopIteration as ended:
            self.asked, self._mode = None, ended.value

    def _searched(self, guess: Tensor | Mode | None) -> Steps[Mode]:
        objective = self._objective
        search = self._search = yield from _begun(objective, self._inverse, guess)
        search.secants = search.secants.on(self._inverse)
        steps, end = 0, None
        while end is None:
            error = search.measure()
            bound = objective.bound(search.point) if search.log_concave else inf
            tolerance = self._wanted(search.point)
            if self._check and error <= tolerance:
                error = max(error, bound / 2) if bound <= tolerance else (yield from search.checked())
            if min(error, bound) <= tolerance:
                end = _End.CONVERGED
            elif steps == self._max_steps:
                end = _End.MAX_STEPS
            else:
                steps += 1
                self._say(f"linear mode, step {steps}" + (f", error {error:.1%}" if isfinite(error) else ""))
                end = yield from search.advance()
        assert search.best is not None
        if end is not _End.CONVERGED:
            search.point, error = search.best
            error = (yield from search.checked()) if self._check and search.point.finite else error
            end = _End.CONVERGED if self._check and error <= tolerance else end  # the estimate may have been too large
        point = search.point
        bound = objective.bound(point) if search.log_concave else inf
        if end is not _End.CONVERGED:
            self._complaint = tolerance, error, steps, end
        precision = objective.precision
        memory = Memory(
            precision, point.objective - 0.5 * dot(precision * point.theta, point.theta),
            point.gradient - precision * point.theta, search.secants,
        )  # fmt: skip
        return Mode(point.theta, point.objective, error, steps, self._products, end is _End.CONVERGED, bound, memory)

    def _wanted(self, point: _Point) -> float:
        given = self._tolerance
        return given(float(point.theta.double().square().sum())) if callable(given) else given
