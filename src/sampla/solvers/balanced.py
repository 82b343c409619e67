"""Posterior samples and the mean in one block, in which the mean counts as much as a sample.

In function space a mean may be hundreds of times as long as a sample, where data are precise. The error of the block
over its size would then be that of the mean, and samples that are a third off would pass for exact. Columns of a linear
system may be scaled as one likes, so the mean's is solved at a sample's length.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sampla.core.params import row_dot
from sampla.solvers._base import LinearSystem, RightHandSide, Solution, Solver, Start, solve

_MOST, _LEAST = 1e2, 1e-8
"""Limits of the factor, for means of next to no length."""


def solve_balanced(
    solver: Solver[Any],
    system: LinearSystem,
    rhs: RightHandSide,
    *,
    mean_size: float,
    tolerance: float,
    max_passes: int,
    guess: Start | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Solution:
    """As ``solve``, with every mean scaled to the length of a sample.

    Args:
        solver: any Solver.
        system: H.
        rhs: K samples, and means behind them, which have no prior part.
        mean_size: |phi mean|_B^2 at most, from the targets; used where the guess tells no better.
        tolerance: relative error |phi(z - z*)|_B / |phi z*|_B asked for.
        max_passes: products with M per column at most.
        guess: where to start, such as the solution of a nearby system.
        say: called with one line before each pass.
    """
    count = rhs.num_samples
    options: dict[str, Any] = {"tolerance": tolerance, "max_passes": max_passes, "say": say}
    if count == len(rhs.data_part):
        return solve(solver, system, rhs, guess=guess, **options)
    factor = _factors(system, rhs, guess, mean_size)[:, None].to(rhs.data_part)
    given = [rhs.data_part] if guess is None else [rhs.data_part, guess.value, guess.curvature_value]
    means = [block[count:].clone() for block in given]
    for block in given:
        block[count:] *= factor  # in place, and back below: a block of K vectors is much memory
    try:
        found = solve(solver, system, rhs, guess=guess, **options)
        # copies, where a solver that has nothing to do hands the guess's own tensors back
        value, curvature_value = (
            block.clone() if any(block is each for each in given) else block
            for block in (found.value, found.curvature_value)
        )
        value[count:] /= factor
        curvature_value[count:] /= factor
    finally:
        for block, before in zip(given, means, strict=True):
            block[count:] = before
    return replace(found, value=value, curvature_value=curvature_value)


def _factors(system: LinearSystem, rhs: RightHandSide, guess: Start | None, mean_size: float) -> Tensor:
    """For each mean: a sample's length |phi z|_B over its own, as far as they are known."""
    count = rhs.num_samples
    diagonal = system.diagonal.double()
    sample = float((diagonal / (diagonal + system.precision.double())).sum())  # gamma is at most this
    means = torch.full((len(rhs.data_part) - count,), mean_size, dtype=torch.float64, device=diagonal.device)
    if guess is not None:
        sizes = row_dot(guess.value, guess.curvature_value).double()
        known = sizes[:count][sizes[:count] > 0]
        sample = float(known.mean()) if len(known) else sample
        means = torch.where(sizes[count:] > 0, sizes[count:], means)
    ratio = torch.where(means > 0, sample / means.clamp_min(torch.finfo(torch.float64).tiny), torch.ones_like(means))
    return ratio.sqrt().clamp(_LEAST, _MOST)
