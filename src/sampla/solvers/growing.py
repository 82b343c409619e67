"""Growing subsets as a warm start: the same right-hand sides with M from an eighth, a quarter, half of the data.

Each level costs its share of a pass per iteration and starts from the one before. The solution on n data is off by
about sqrt(gamma / n) of itself, so this helps only where even a part of the data is many times the effective dimension;
else a cold start needs fewer passes in all (docs/notes/solvers.md, benchmarks/solvers.md).
"""

from collections.abc import Callable
from dataclasses import replace
from math import isnan
from typing import Any

from sampla.core.checks import require
from sampla.solvers._base import LinearSystem, RightHandSide, Solver, Start


def growing_guess(
    solver: Solver[Any],
    system: LinearSystem,
    rhs: RightHandSide,
    *,
    strides: tuple[int, ...] = (8, 4, 2),
    iterations: int = 4,
    say: Callable[[str], None] = lambda _: None,
) -> Start:
    """A start for ``solve`` from nested parts of the data.

    Args:
        solver: an iterative solver, such as BlockCG.
        system: H of all data.
        rhs: B of all data, known from the pass that drew the noise.
        strides: the parts, every so many minibatches of the data, the smallest part first.
        iterations: on each part.
        say: called with one line before each iteration.

    Returns:
        The iterate on the largest part; its M Z is that part's, which ``solve`` replaces at the cost of a pass.

    Raises:
        ValueError: if the loader's order is not fixed (a part must be the same data every time), or strides are wrong.
    """
    rising = list(strides) == sorted(strides, reverse=True) and min(strides, default=0) >= 2
    require(rising, "falling strides of at least 2", f"{strides}", "The default is (8, 4, 2).")
    require(
        system.model.data.fixed_order,
        "a loader with a fixed order, so that a part of the data is the same part every time",
        "a shuffled one",
        "Use a loader that does not shuffle.",
    )
    found: Start | None = None
    system = replace(system, preconditioner=solver.preconditioner(system))
    for stride in strides:
        part = replace(system, stride=stride)
        if found is not None:
            found = replace(found, curvature_value=system.model.curvature_product(found.value, stride))
        state = solver.init(part, rhs, found)
        for number in range(1, iterations + 1):
            say(f"1/{stride} of the data, pass {number}")
            following = solver.step(part, rhs, state)
            if isnan(solver.error(following)):  # the solve on all data will meet it again, and say so
                break
            state = following
        found = replace(solver.solution(part, rhs, state), curvature_exact=False)
    assert found is not None
    return found
