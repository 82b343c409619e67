"""More posterior samples after a fit, at the hyperparameters that it has found."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sampla.core.checks import require
from sampla.inference.e_step import right_hand_side
from sampla.inference.evidence import effective_dimension
from sampla.inference.state import Inference, Kept, Posed
from sampla.model import LinearModel
from sampla.solvers import LinearSystem, RightHandSide, Solution, Solver, Status, solve_balanced

_STEP = 0x9E3779B97F4A7C15
"""Odd, so that every number of samples has a seed of its own: 2**64 over the golden ratio."""


def more_samples(
    inference: Inference | None,
    solver: Solver[Any],
    count: int,
    *,
    seed: int,
    tolerance: float,
    max_passes: int,
    say: Callable[[str], None] = lambda _: None,
) -> Inference:
    """The same posterior with ``count`` samples more; those that there are stay as they are.

    The noise of the new ones has a seed of its own, made of the fit's and of how many samples there are. They cost the
    noise pass and a solve, no EM: the prior, the noise and the place of the curvature are the fit's.

    Args:
        inference: what the fit, or an earlier call, has left behind; None, of a posterior from a file, is refused.
        solver: of the fit.
        count: how many more.
        seed: of the fit.
        tolerance: function-space error of the new samples.
        max_passes: of their solve.
        say: called with one line at every stage.

    Returns:
        The Inference of all samples: its solution's error is the root mean square of both, its status the worse one,
        its passes those of the solve that took more.

    Raises:
        ValueError: for no fit.
    """
    fix = "A file holds no training data: fit once more, with the larger num_samples."
    require(
        inference is not None, "a posterior that was fitted in this process", "one from a file, or moved by to()", fix
    )
    assert inference is not None
    own = inference.model
    model = LinearModel(own.features, own.likelihood, own.data, own.ledger, own.chunks, exact=True)
    present, precision = len(inference.samples), inference.prior.diagonal
    fresh = (seed + present * _STEP) % 2**64
    with model.data.kept_meanwhile():
        say("drawing the noise")
        draw = model.draw_noise(fresh, count)
        rhs = right_hand_side(fresh, precision, draw.data_part, None)
        system = LinearSystem(model, precision, inference.posed.diagonal)
        found = solve_balanced(
            solver, system, rhs, mean_size=0.0, tolerance=tolerance, max_passes=max_passes,
            say=lambda text: say("more samples, " + text),
        )  # fmt: skip
    solution = _joined(inference.solution, found, present, count)
    dimension, error = inference.effective_dimension, inference.effective_dimension_error
    error_of_sum = inference.effective_dimension_sum_error
    if bool((error > 0).any()):  # sampled: more samples know it better
        dimension, error, error_of_sum = effective_dimension(solution, present + count, inference.prior)
    return replace(
        inference, samples=torch.cat([inference.samples, found.value * inference.prior.scale]), solution=solution,
        effective_dimension=dimension, effective_dimension_error=error, effective_dimension_sum_error=error_of_sum,
        posed=_posed(inference.posed, rhs), kept=_kept(inference.kept, rhs),
    )  # fmt: skip


def _joined(first: Solution, second: Solution, present: int, count: int) -> Solution:
    """Both solutions as one: samples, then what there was behind them (the mean)."""

    def between(old: Tensor, new: Tensor) -> Tensor:
        return torch.cat([old[:present], new.to(old), old[present:]])

    errors = None
    if first.errors is not None and second.errors is not None:
        errors = between(first.errors, second.errors)
    mean_square = (present * first.error**2 + count * second.error**2) / (present + count)
    worse = first if first.status is not Status.CONVERGED else second
    longer = max(first, second, key=lambda each: each.passes)
    return replace(
        first, value=between(first.value, second.value), errors=errors, error=mean_square**0.5, status=worse.status,
        curvature_value=between(first.curvature_value, second.curvature_value), passes=longer.passes,
        history=longer.history,
    )  # fmt: skip


def _kept(kept: Kept | None, rhs: RightHandSide) -> Kept | None:
    """What an update needs, with the new samples' behind those that there were."""
    if kept is None:
        return None
    seeds = (*kept.seeds, (rhs.seed, rhs.num_samples))
    return replace(kept, data_part=torch.cat([kept.data_part, rhs.data_part]), seeds=seeds)


def _posed(kept: Posed, rhs: RightHandSide) -> Posed:
    """The random combinations of right-hand sides, with the new samples' added to each."""
    generator = torch.Generator().manual_seed(rhs.seed % 2**63)
    signs = (2 * torch.randint(2, (len(kept.signs), rhs.num_samples), generator=generator) - 1).to(kept.signs)
    combined = kept.combined + signs @ rhs.data_part + signs @ rhs.prior_part
    return replace(kept, signs=torch.cat([kept.signs, signs], dim=1), combined=combined)
