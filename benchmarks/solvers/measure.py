"""One solver on one problem, pass by pass: the true error beside the solver's own estimate."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isnan
from time import perf_counter
from typing import Any

from benchmarks.solvers.problem import Problem
from sampla.solvers import LinearSystem, Solver, Start
from sampla.solvers._base import SLACK

LEVELS = (0.1, 0.02, 0.001)  # true errors whose passes are reported
STOP = 0.02  # the tolerance at which a user's solve would stop
_CURVE = ("passes", "true", "estimate", "seconds")  # what is kept of every step
_HEAT = 3  # steps that every contestant of a race is given
Say = Callable[[str], None]


@dataclass(frozen=True)
class Contestant:
    """A solver ready to start; of a reference the stated error is no promise of the library."""

    solver: Solver[Any]
    system: LinearSystem
    columns: int  # K
    free: float = 0.0  # products per sample in each step that serve only the error estimate and are not counted
    spent: float | None = None  # passes per sample already spent; None: what the factory was seen to spend
    elsewhere: float = 0.0  # passes per sample that EM has spent anyway and that are not counted here, but told
    guess: Start | None = None  # what the solve starts from, with its M z; None: zero
    reference: bool = False


Factory = Callable[[Problem], Contestant | list[Contestant] | None]
"""Several contestants race, and the best one is reported: a grid of step sizes, the smallest first. None: does not
apply here."""


@dataclass(frozen=True)
class Entry:
    """A line of the table: where it takes part, with how many steps; a reference is for comparison only."""

    name: str
    factory: Factory
    parts: tuple[str, ...]
    max_steps: int = 60
    reference: bool = False


class Watch:
    """A solve driven step by step."""

    def __init__(self, problem: Problem, contestant: Contestant, spent: float = 0.0) -> None:
        self._problem, self._contestant = problem, contestant
        self._spent = spent if contestant.spent is None else contestant.spent
        self._rhs, self._truth = problem.rhs(contestant.columns), problem.truth.first(contestant.columns)
        before, start = problem.products, perf_counter()
        self._state = contestant.solver.init(contestant.system, self._rhs, contestant.guess)
        self._passes = self._spent + (problem.products - before) / contestant.columns
        self.seconds = perf_counter() - start
        self.curve: list[dict[str, float]] = []
        self.status = "on its way"
        self._stopped: dict[str, float] | None = None

    def advance(self, steps: int, say: Say) -> "Watch":
        """So many more steps, or fewer if all levels are reached or nothing more can be."""
        for _ in range(steps):
            if self.status not in ("on its way", "converged") or self._done():
                break
            self._step(say)
        return self

    def _step(self, say: Say) -> None:
        contestant, solver, problem = self._contestant, self._contestant.solver, self._problem
        before, start = problem.products, perf_counter()
        state = solver.step(contestant.system, self._rhs, self._state)
        estimate, proved, first = solver.error(state), False, self.status == "on its way"
        if estimate <= STOP and first:  # as the library's own loop does before it stops
            state = solver.certify(contestant.system, self._rhs, state, STOP)
            estimate, proved = solver.error(state), solver.proved(state) <= SLACK * STOP
        seconds = perf_counter() - start
        if isnan(estimate):
            self.status = "broke down"
            return
        self._state = state
        self._passes += (problem.products - before) / contestant.columns - contestant.free
        self.seconds += seconds
        found = problem.measured_free(lambda: solver.solution(contestant.system, self._rhs, state))
        true = self._truth.error(found.value, found.curvature_value)
        row = {"passes": self._passes, "true": true, "estimate": estimate, "seconds": seconds}
        self.curve.append(row)
        say(f"pass {self._passes:5.1f}  true error {true:.2e}  estimate {estimate:.2e}  {seconds:.1f} s")
        if estimate <= STOP and proved and first:
            self.status, self._stopped = "converged", row
        elif solver.stagnated(state) and first:
            self.status = "stagnated"

    def _done(self) -> bool:
        if not self.curve:
            return False
        stated = self.status == "converged" or self._contestant.reference
        return stated and (min(row["true"] for row in self.curve) <= LEVELS[-1] or self.curve[-1]["true"] == 0)

    def passes_to(self, level: float) -> float | None:
        """Passes until the true error was at most this, what was spent before included."""
        return next((row["passes"] for row in self.curve if row["true"] <= level), None)

    @property
    def last(self) -> float:
        """The true error reached; infinite for a solve that broke down."""
        return inf if self.status == "broke down" or not self.curve else self.curve[-1]["true"]

    def row(self, name: str) -> dict[str, Any]:
        """All of it as plain JSON."""
        return {
            "solver": name, "columns": self._contestant.columns, "reference": self._contestant.reference,
            "spent": self._spent, "elsewhere": self._contestant.elsewhere,
            "status": "max passes" if self.status == "on its way" else self.status, "stopped": self._stopped,
            "to": {str(level): self.passes_to(level) for level in LEVELS},
            "last": self.curve[-1] if self.curve else None, "seconds": self.seconds, "steps": len(self.curve),
            "curve": {key: [float(f"{row[key]:.4g}") for row in self.curve] for key in _CURVE},
        }  # fmt: skip


def measure(entry: Entry, problem: Problem, say: Say) -> dict[str, Any] | None:
    """Build the contestant, count what that spends, and watch it; None where it does not apply, or refuses.

    Choosing the best of a race is not counted as spent.
    """

    def speak(text: str) -> None:
        say(f"{entry.name}: {text}")

    before, start = problem.products, perf_counter()
    try:
        built = entry.factory(problem)
        if built is None:
            return None
        found = {"building_seconds": perf_counter() - start, "problem": problem.name, "alpha": problem.alpha}
        if isinstance(built, list):
            watch, chosen = race([Watch(problem, contestant) for contestant in built], entry.max_steps, speak)
            return watch.row(entry.name) | found | {"chosen": chosen, "of": len(built)}
        spent = (problem.products - before) / built.columns
        return Watch(problem, built, spent).advance(entry.max_steps, speak).row(entry.name) | found
    except ValueError as refusal:  # such as a dual solver that would need too large a kernel
        speak(f"does not apply, {refusal}")
        return None


def race(watches: list[Watch], max_steps: int, say: Say) -> tuple[Watch, int]:
    """All go a few steps; the best so far and the one before it in the list go on to the end.

    The list is in order of step size: the next smaller step is slower at first and settles lower. Who is first at the
    stop level wins, or else who is lowest at the end; its number is told.
    """
    for watch in watches:
        watch.advance(min(_HEAT, max_steps), lambda _: None)

    def standing(number: int) -> float:
        return inf if isnan(watches[number].last) else watches[number].last

    leader = min(range(len(watches)), key=standing)
    finalists = [leader, leader - 1] if leader > 0 else [leader]
    for number in finalists:
        watches[number].advance(max_steps - _HEAT, lambda text, n=number: say(f"({n}) {text}"))
    best = min(finalists, key=lambda n: (watches[n].passes_to(STOP) or inf, standing(n)))
    return watches[best], best
