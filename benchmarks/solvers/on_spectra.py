"""Matrices with prescribed spectra: every solver at every condition and alpha, and what ``solve`` itself returns."""

import warnings
from typing import Any

from experiments.common.command import say
from experiments.common.store import Store

from benchmarks.solvers.contestants import TABLE
from benchmarks.solvers.measure import STOP, Contestant, measure
from benchmarks.solvers.problem import Problem
from benchmarks.solvers.sizes import Run
from benchmarks.solvers.spectra import ALPHAS, CONDITIONS, KINDS, spectrum, spectrum_problem
from sampla import ConvergenceWarning
from sampla.solvers import solve

_COLUMNS = 64
_SOLVE_PASSES = 100


def run(given: Run) -> None:
    """Fill the store with rows ``spectra/PROBLEM/SOLVER`` and ``solved/PROBLEM/SOLVER``."""
    for kind in KINDS:
        for condition in CONDITIONS[:: 3 if given.quick else 1]:
            case = spectrum(kind, condition, *given.sizes.spectra)
            for alpha in ALPHAS:
                _one(spectrum_problem(case, alpha, _COLUMNS), given.store)


def _one(problem: Problem, store: Store) -> None:
    say(f"spectra: {problem.name}")
    for entry in (entry for entry in TABLE if "spectra" in entry.parts):
        store.once(
            f"spectra/{problem.name}/{entry.name}",
            lambda e=entry: measure(e.name, problem, e.factory, e.max_steps, lambda _: None),
        )
        if not entry.reference:
            store.once(f"solved/{problem.name}/{entry.name}", lambda e=entry: _solved(problem, e.factory))


def _solved(problem: Problem, factory: Any) -> dict[str, Any] | None:
    """What a user's solve to 2 % says, and what is true of it."""
    try:
        contestant = factory(problem)
        return None if contestant is None else problem.measured_free(lambda: honest(problem, contestant))
    except ValueError:  # the solver refuses such a problem, which the row of the table has told
        return None


def honest(problem: Problem, contestant: Contestant) -> dict[str, Any]:
    """Run ``solve`` to 2 %, with its status and warnings, and the true error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = solve(
                contestant.solver, contestant.system, problem.rhs(contestant.columns),
                tolerance=STOP, max_passes=_SOLVE_PASSES, guess=contestant.guess,
            )  # fmt: skip
        except ArithmeticError as error:
            raised = {"status": "raised", "message": str(error), "warned": True}
            return {**raised, "passes": 0, "stated": None, "true": None}
    said = [str(warning.message) for warning in caught if issubclass(warning.category, ConvergenceWarning)]
    true = problem.truth.first(contestant.columns).error(found.value, found.curvature_value)
    return {
        "status": found.status.name,
        "message": "; ".join(said),
        "warned": bool(said),
        "passes": found.passes,
        "stated": found.error,
        "true": true,
    }
