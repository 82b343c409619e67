"""Matrices with prescribed spectra: every solver at every condition and alpha, and what ``solve`` itself returns."""

import warnings
from typing import Any

from sampla import ConvergenceWarning
from sampla.solvers import solve
from solver_cases.contestants import TABLE
from solver_cases.measure import STOP, Contestant, measure
from solver_cases.problem import Problem
from solver_cases.settings import Settings
from solver_cases.spectra import ALPHAS, CONDITIONS, KINDS, spectrum, spectrum_problem
from solver_cases.store import Store

_COLUMNS = 64
_SOLVE_PASSES = 100


def run(settings: Settings, store: Store) -> None:
    """Fill the store with rows ``spectra/PROBLEM/SOLVER`` and ``solved/PROBLEM/SOLVER``."""
    for kind in KINDS:
        for condition in CONDITIONS[:: 3 if settings.quick else 1]:
            case = spectrum(kind, condition, *settings.spectra_size)
            for alpha in ALPHAS:
                _one(spectrum_problem(case, alpha, _COLUMNS), settings, store)


def _one(problem: Problem, settings: Settings, store: Store) -> None:
    settings.say(f"spectra: {problem.name}")
    for entry in (entry for entry in TABLE if "spectra" in entry.parts):

        def row(entry: Any = entry) -> dict[str, Any] | None:
            found = measure(entry.name, problem, entry.factory, entry.max_steps, lambda _: None)
            return None if found is None else {**found, "problem": problem.name, "alpha": problem.alpha}

        store.once(f"spectra/{problem.name}/{entry.name}", row)
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
