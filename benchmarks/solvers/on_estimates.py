"""Is the error that a solver states the true one? Random cases with fixed seeds, each solved as a user would."""

import warnings
from typing import Any

import torch
from experiments.common.command import say
from torch import Generator

from benchmarks.solvers.problem import Problem
from benchmarks.solvers.sizes import Run
from benchmarks.solvers.spectra import KINDS, Spectrum, spectrum, spectrum_problem
from sampla.solvers import BlockCG, solve

SOLVERS: dict[str, Any] = {
    "block CG": lambda problem: (BlockCG(), problem.system),
}
"""name -> factory of (solver, system): add a line to try another estimate."""
_SIZE = 300
_COLUMNS = (2, 4, 8, 16, 32)
_TOLERANCES = (0.1, 0.05, 0.02, 0.005)


def run(given: Run) -> None:
    """Fill the store with ``estimate/SOLVER/NUMBER``."""
    for name, factory in SOLVERS.items():
        say(f"estimates: {name}, {given.sizes.estimates} cases")
        for number in range(given.sizes.estimates):
            given.store.once(f"estimate/{name}/{number:03d}", lambda n=number, f=factory: _case(n, f))


def _case(number: int, factory: Any) -> dict[str, Any]:
    """A random spectrum, alpha, K, precision and tolerance."""
    generator = Generator().manual_seed(1000 + number)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    def one_of(choices: Any) -> Any:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    kind = KINDS[number % len(KINDS)]
    condition, alpha = 10 ** uniform(1, 6), 10 ** uniform(-3, 3)
    dtype = one_of((torch.float64, torch.float32))
    columns, tolerance = one_of(_COLUMNS), one_of(_TOLERANCES)
    case = spectrum(kind, condition, _SIZE, 2 * _SIZE, seed=number)
    problem = spectrum_problem(case, alpha, columns, dtype)
    facts = {
        "kind": kind, "condition": condition, "alpha": alpha, "columns": columns, "tolerance": tolerance,
        "dtype": str(dtype).removeprefix("torch."),
    }  # fmt: skip
    return {**facts, **_stated(case, problem, factory, tolerance)}


def _stated(case: Spectrum, problem: Problem, factory: Any, tolerance: float) -> dict[str, Any]:
    solver, system = factory(problem)
    truth = problem.truth.value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = solve(solver, system, problem.rhs(len(truth)), tolerance=tolerance, max_passes=400)
    missing, whole = case.size(found.value.double() - truth), case.size(truth)
    true = float((missing.square().mean() / whole.square().mean()).sqrt())
    return {"status": found.status.name, "passes": found.passes, "stated": found.error, "true": true}
