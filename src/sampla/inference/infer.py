"""From features, likelihood, prior and data to posterior samples: EM for the hyperparameters, then the final solve.

E-step: what the posterior at the present hyperparameters determines, read off one Krylov space of M (krylov_step.py) or
off a few posterior samples (sampled_step.py). M-step: MacKay's updates. The noise draws are kept, so the loop is
deterministic and settles; a new prior precision costs no new pass for the right-hand sides. The final K samples are
solved with what EM has learnt about M as preconditioner and starting point.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from sampla.core.checks import one_of_each, require, require_known
from sampla.features import Features, ScaledFeatures
from sampla.inference import krylov_step
from sampla.inference.evidence import LogEvidence
from sampla.inference.exact import unseen_draws
from sampla.inference.final import (
    extended,
    final_solve,
    galerkin,
    inference,
    right_hand_side,
    scaled,
    settled_space,
    whitened_solve,
    whitened_space,
    with_mode,
)
from sampla.inference.mackay import is_rounding
from sampla.inference.quadrature import estimated, log_determinant
from sampla.inference.route import choose_route
from sampla.inference.sampled_step import SampledEM, target_part
from sampla.inference.settings import EM, CurvatureAt, LinearModelKind
from sampla.inference.state import EMState, EMStep, Inference, Task, complain_unsettled, trace_rows
from sampla.inference.tuning import tune
from sampla.likelihoods import Gaussian
from sampla.model import LinearModel, NoiseDraw, Survey
from sampla.priors import Prior
from sampla.solvers import LinearSystem, Solver

__all__ = ["EM", "CurvatureAt", "EMState", "EMStep", "Inference", "LinearModelKind", "infer", "trace_rows"]


def infer(
    model: LinearModel,
    prior: Prior,
    solver: Solver[Any],
    *,
    num_samples: int,
    seed: int,
    em: EM,
    curvature_at: CurvatureAt = "network",
    tolerance: float = 0.02,
    max_passes: int = 200,
    log_evidence: bool | None = None,
    say: Callable[[str], None] = lambda _: None,
    noise: Callable[[Callable[[], NoiseDraw]], NoiseDraw] = lambda draw: draw(),
    restore: Callable[[EMState], EMState] = lambda state: state,
    keep: Callable[[EMState], None] = lambda _: None,
) -> Inference:
    """Posterior samples of a linear model, with its hyperparameters found by EM where they are to be learnt.

    Args:
        model: features, likelihood and data.
        prior: bound to the features' parameters here, with the diagonal of M that the noise pass estimates.
        solver: for H Z = B.
        num_samples: K.
        seed: of all noise.
        em: when and how the loop stops.
        curvature_at: where the outputs lie at which B is taken: "network" for f(w, x_n), "linear-mode" for
            phi_n theta*, found again whenever A changes. No difference for a Gaussian likelihood.
        tolerance: function-space error of the final samples.
        max_passes: of each solve.
        log_evidence: whether to estimate log p(y); None: if there is something to learn and the solver's own work
            tells, as that of block conjugate gradients and of the dense solver does.
        say: called with one line at every stage.
        noise: given what draws the noise, gives it, or what it has kept of the same draw.
        restore: may replace the first state by a stored one.
        keep: called with the state after every EM step.

    Returns:
        The Inference. Warnings say if EM or a solve stopped short.

    Raises:
        ValueError: if EM(method="krylov") is asked for what no single Krylov space serves, or for targets from which
            no noise or prior can be learnt: all zero, or all met by the network.
    """
    require_known(curvature_at, ("network", "linear-mode"), "curvature_at")
    say("checking the data")
    survey = model.survey()
    likelihood = model.likelihood
    if isinstance(likelihood, Gaussian) and survey.residual is not None:
        _require_informative(likelihood, survey, prior.learn, model.features.like.dtype)
        model = model.replaced(likelihood=likelihood.started(survey.residual, survey.entries))
    say("measuring what fits best")
    tune(model, num_samples)
    say("drawing the noise")
    started, like = model, model.features.like
    drawn = noise(lambda: started.draw_noise(seed, num_samples))
    draw = NoiseDraw(drawn.data_part.to(like.device), drawn.diagonal.to(like.device))  # what was kept is on the CPU
    bound = prior.bind(model.features.layout, draw.diagonal)
    draw = NoiseDraw(draw.data_part * bound.scale, draw.diagonal * bound.scale.square())
    model = model.replaced(features=ScaledFeatures(model.features, bound.scale))
    route = choose_route(model, bound, solver, em, survey.numbers, curvature_at=curvature_at, log_evidence=log_evidence)
    task = Task(solver, em, seed, num_samples, survey, draw, tolerance, max_passes, route, say)
    state = EMState(bound, model)
    with one_of_each(stacklevel=5):
        if route.e_step == "krylov":
            return _with_krylov(task, state, restore, keep)
        return _with_samples(task, state, restore, keep, model.features if route.moves_curvature else None)


def _require_informative(likelihood: Gaussian, survey: Survey, learns_prior: bool, dtype: torch.dtype) -> None:
    """Refuse targets from which no noise or prior can be learnt: both would run to infinity."""
    assert survey.residual is not None
    assert survey.target is not None
    give = "Give the noise, Gaussian(noise_precision=1 / std**2)"
    require(
        bool((survey.target != 0).any()) or not (likelihood.learns_noise or learns_prior),
        "targets that are not all zero, to learn the noise and the prior's precision from",
        "zeros only",
        f"{give}, and the prior, GPrior(precision=..., learn=False): the error bars then tell what these data say.",
    )
    if likelihood.noise_precision is not None:
        return
    exactly = is_rounding(survey.residual, survey.target, dtype)
    which = f" for output {', '.join(map(str, exactly.nonzero().flatten()[:12].tolist()))}" if len(exactly) > 1 else ""
    require(
        not bool(exactly.any()),
        "targets that differ from the network's outputs, to learn the noise from",
        f"residuals of zero up to the rounding of {str(dtype).removeprefix('torch.')}{which}",
        f"{give}, or data that the network was not made from.",
    )


_Restore = Callable[[EMState], EMState]
_Keep = Callable[[EMState], None]


def _with_krylov(task: Task, state: EMState, restore: _Restore, keep: _Keep) -> Inference:
    quadratic = state.model.likelihood.is_quadratic
    target = target_part(state.model) if quadratic else None
    if task.route.one_space:
        state.space = krylov_step.start_space(task, target)
    state = restore(state)
    if task.route.learns:
        state = krylov_step.run(task, state, keep)
        if not state.settled:
            state = replace(state, unsettled=complain_unsettled(task, state))
    factor = state.noise_factor
    ratio = float(state.prior.precision[0]) / factor
    if task.route.log_evidence and state.space is not None:
        state = replace(state, space=settled_space(task, state.space, state.model, ratio, unseen_draws(task)))
        if not quadratic and state.mode is None:
            state = with_mode(task, state)
    state = replace(state, last_mode=None)  # what the search for modes has learnt is of no more use, and large
    model, likelihood = state.model, state.model.likelihood
    if factor != 1 and isinstance(likelihood, Gaussian):
        model = model.replaced(likelihood=likelihood.scaled(factor))
    data_part = task.draw.data_part if factor == 1 else task.draw.data_part * factor**0.5
    if target is not None:
        data_part = torch.cat([data_part, target * factor])
    rhs = right_hand_side(task, state.prior.diagonal, data_part)
    system = LinearSystem(model, state.prior.diagonal, task.draw.diagonal * factor)
    guess = None
    if state.space is not None and task.route.solver_uses_space:
        system = replace(system, preconditioner=scaled(state.space.sketch(), factor).at(state.prior.diagonal))
        guess = galerkin(state.space, rhs, state.prior.diagonal, factor)
    solution = final_solve(task, system, rhs, guess)
    if state.space is not None and state.space.exact:
        solution = replace(solution, effective_dimension=state.space.determined(ratio))
    final = replace(state, model=model, solution=solution)
    determinant = None
    if task.route.log_evidence and state.space is not None:
        found = estimated(state.space, task.em_samples, log_determinant, ratio)
        determinant = LogEvidence(found.value, found.standard_error, found.truncation)
    return inference(task, final, determinant)


def _with_samples(task: Task, state: EMState, restore: _Restore, keep: _Keep, moving: Features | None) -> Inference:
    first = state.model
    loop = SampledEM(task, task.draw, first.likelihood, moving)
    state = restore(state)
    if moving is not None and state.mode is not None:
        state = loop.taken_up(state, state.mode)
    elif state.model is not first:
        loop.renoise(state)
    if task.route.learns:
        state = loop.run(state, keep)
        if not state.settled:
            state = replace(state, unsettled=complain_unsettled(task, state))
    state = replace(loop.at_mode(state, "final: "), last_mode=None)
    if len(loop.draw.data_part) < task.num_samples:
        loop.redraw(state, task.num_samples)
    rhs = loop.right_hand_side(state, task.num_samples)
    system = LinearSystem(state.model, state.prior.diagonal, loop.draw.diagonal)
    guess = extended(state.solution, rhs)
    space = None
    if task.route.whitened_space:
        if not state.model.likelihood.is_quadratic and state.mode is None:
            state = with_mode(task, state)
        space = whitened_space(task, system, rhs)
    if space is not None and task.route.solver_uses_space:
        solution = whitened_solve(task, system, rhs, guess, space)
    else:
        solution = final_solve(task, system, rhs, guess)
    if space is not None and space.exact:
        solution = replace(solution, effective_dimension=space.determined(1.0))
    determinant = None
    if task.route.log_evidence and solution.log_determinant is not None:
        determinant = LogEvidence(solution.log_determinant - float(state.prior.diagonal.double().log().sum()), 0.0, 0.0)
    elif space is not None:
        found = estimated(space, task.em_samples, log_determinant, 1.0)
        determinant = LogEvidence(found.value, found.standard_error, found.truncation)
    return inference(task, replace(state, solution=solution), determinant)
