"""Matrices with prescribed spectra: every solver at every condition and alpha, and what ``solve`` itself returns."""

import warnings
from typing import Any

import torch
from experiments.common.command import say
from experiments.common.store import Store

from benchmarks.solvers.contestants import TABLE
from benchmarks.solvers.measure import STOP, Contestant, measure
from benchmarks.solvers.problem import Problem, Run
from benchmarks.solvers.spectra import ALPHAS, CONDITIONS, KINDS, spectrum
from sampla import ConvergenceWarning
from sampla.solvers import BlockCG, solve

_COLUMNS, _SOLVE_PASSES = 64, 100
_ESTIMATE = {"size": 300, "columns": (2, 4, 8, 16, 32), "tolerances": (0.1, 0.05, 0.02, 0.005)}


def spectra(given: Run) -> None:
    """Fill the store with rows ``spectra/PROBLEM/SOLVER`` and ``solved/PROBLEM/SOLVER``."""
    for kind in KINDS:
        for condition in CONDITIONS[:: 3 if given.sizes.quick else 1]:
            case = spectrum(kind, condition, *given.sizes.spectra)
            for alpha in ALPHAS:
                _one(case.problem(alpha, _COLUMNS), given.store)


def _one(problem: Problem, store: Store) -> None:
    say(f"spectra: {problem.name}")
    for entry in (entry for entry in TABLE if "spectra" in entry.parts):
        store.once(f"spectra/{problem.name}/{entry.name}", lambda e=entry: measure(e, problem, lambda _: None))
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
    rhs = problem.rhs(contestant.columns)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = solve(
                contestant.solver, contestant.system, rhs, tolerance=STOP, max_passes=_SOLVE_PASSES,
                guess=contestant.guess,
            )  # fmt: skip
        except ArithmeticError as error:
            raised = {"status": "raised", "message": str(error), "warned": True}
            return {**raised, "passes": 0, "stated": None, "true": None}
    said = [str(warning.message) for warning in caught if issubclass(warning.category, ConvergenceWarning)]
    true = problem.truth.first(contestant.columns).error(found.value, found.curvature_value)
    return {
        "status": found.status.name, "message": "; ".join(said), "warned": bool(said), "passes": found.passes,
        "stated": found.error, "true": true,
    }  # fmt: skip


def estimates(given: Run) -> None:
    """Is the error that a solver states the true one? Rows ``estimate/SOLVER/NUMBER``, random cases, fixed seeds."""
    say(f"estimates: {given.sizes.estimates} cases")
    for number in range(given.sizes.estimates):
        given.store.once(f"estimate/block CG/{number:03d}", lambda n=number: _case(n))


def _case(number: int) -> dict[str, Any]:
    """A random spectrum, alpha, K, precision and tolerance, solved as a user would."""
    generator = torch.Generator().manual_seed(1000 + number)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    def one_of(choices: Any) -> Any:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    kind, size = KINDS[number % len(KINDS)], _ESTIMATE["size"]
    condition, alpha = 10 ** uniform(1, 6), 10 ** uniform(-3, 3)
    dtype = one_of((torch.float64, torch.float32))
    columns, tolerance = one_of(_ESTIMATE["columns"]), one_of(_ESTIMATE["tolerances"])
    case = spectrum(kind, condition, size, 2 * size, seed=number)
    problem = case.problem(alpha, columns, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = solve(BlockCG(), problem.system, problem.rhs(columns), tolerance=tolerance, max_passes=400)
    missing, whole = case.size(found.value.double() - problem.truth.value), case.size(problem.truth.value)
    return {
        "kind": kind, "condition": condition, "alpha": alpha, "columns": columns, "tolerance": tolerance,
        "dtype": str(dtype).removeprefix("torch."), "status": found.status.name, "passes": found.passes,
        "stated": found.error, "true": float((missing.square().mean() / whole.square().mean()).sqrt()),
    }  # fmt: skip
