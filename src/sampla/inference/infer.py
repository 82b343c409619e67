"""From features, likelihood, prior and data to posterior samples: EM for the hyperparameters, then the final solve.

    state = e_step.start(state)
    while not settled: state = e_step.step(state)
    K samples by the solver, from what e_step.finish(state) says

An E-step tells what the posterior at the present hyperparameters determines, off Krylov spaces of M (krylov_step.py,
moving_step.py), off the matrix of all outputs (dual_step.py) or off a few posterior samples (sampled_step.py), and
MacKay's updates (mackay.py) make the next hyperparameters of it. The noise draws are kept, so the loop is deterministic
and settles; a new prior precision costs no new pass for the right-hand sides. The final K samples are solved for with
what EM has learnt about M as preconditioner and start.
"""

from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from sampla.core.checks import one_of_each, require, require_known
from sampla.features import ScaledFeatures
from sampla.inference import final
from sampla.inference.dual_step import DualEStep
from sampla.inference.e_step import EStep, FinalProblem
from sampla.inference.krylov_step import KrylovEStep
from sampla.inference.mackay import highest_start, is_rounding, lowest_start
from sampla.inference.moving_step import MovingEStep
from sampla.inference.route import choose_route
from sampla.inference.sampled_step import SampledEStep
from sampla.inference.settings import EM, CurvatureAt
from sampla.inference.state import EMState, Inference, Task, complain_unsettled, is_sound
from sampla.inference.tuning import tune
from sampla.likelihoods import Likelihood
from sampla.model import LinearModel, NoiseDraw
from sampla.priors import BoundPrior, Prior
from sampla.solvers import Solver
from sampla.survey import Survey

__all__ = ["EM", "Inference", "infer"]


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
    updatable: bool = False,
) -> Inference:
    """Posterior samples of a linear model, with its hyperparameters found by EM where they are to be learnt.

    Args:
        model: features, likelihood and data.
        prior: bound to the features' parameters here, with the diagonal of M that the noise pass estimates; its mean
            goes into the features of the model that is returned.
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
        updatable: whether what ``updated`` needs for new data is to be kept.

    Returns:
        The Inference. Warnings say if EM or a solve stopped short.

    Raises:
        ValueError: if EM(method="krylov") is asked for what no single Krylov space serves, or for targets from which
            no noise or prior can be learnt: all zero, or all met by the network.
    """
    require_known(curvature_at, ("network", "linear-mode"), "curvature_at")
    mean = prior.mean_of(model.features.layout)
    mean = None if mean is None else mean.to(model.features.like.device)
    model = model.replaced(features=model.features.about(mean))
    say("checking the data")
    task, state = prepared(
        model, model.survey(), prior, solver, num_samples=num_samples, seed=seed, em=em, curvature_at=curvature_at,
        tolerance=tolerance, max_passes=max_passes, log_evidence=log_evidence, say=say, noise=noise,
    )  # fmt: skip
    task, state = replace(task, keeps=updatable), replace(state, prior=replace(state.prior, mean=mean))
    with one_of_each(stacklevel=5):
        return solved(task, *_learnt(task, state, restore, keep))


def _learnt(
    task: Task, first: EMState, restore: Callable[[EMState], EMState], keep: Callable[[EMState], None]
) -> tuple[FinalProblem, str]:
    """EM from the first or a restored state, and again in full precision where reduced products have misled it."""
    e_step = e_step_of(task, first)
    state = maximised(e_step, restore(first), keep)
    if doubtful(state):
        task.say("EM again in full precision")
        first = replace(first, model=first.model.replaced(exact=True))
        e_step = e_step_of(task, first)
        state = maximised(e_step, first, keep)
    return finished(e_step, state)


def doubtful(state: EMState) -> bool:
    """Whether products in reduced precision have not led EM to where they can be trusted.

    Their noise is a floor under the eigenvalues of M: no prior precision below it is told from zero.
    """
    if not state.model.reduced:
        return False
    if not state.settled or state.space is None:
        return True
    floor = state.model.rounding**2 * float(state.space.spectrum[0].max())
    return bool((state.prior.precision < floor * state.noise_factor).any())


def prepared(
    model: LinearModel,
    survey: Survey,
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
) -> tuple[Task, EMState]:
    """The noise drawn, the prior bound and the route chosen: all that comes before the first EM step.

    Args: as for ``infer``, and survey: of the model.
    """
    require(
        survey.targets > 0, "targets of which at least one counts", "none: all are left out",
        f"{type(model.likelihood).__name__} does so by NaN or ignore_index: check what stands for a missing one.",
    )  # fmt: skip
    if survey.residual is not None:
        _require_informative(model.likelihood, survey, prior.learn, model.features.like.dtype)
        model = model.replaced(likelihood=model.likelihood.started(survey.residual, survey.entries))
    say("measuring what fits best")
    tune(model, num_samples)
    say("drawing the noise")
    started, like = model, model.features.like
    drawn = noise(lambda: started.draw_noise(seed, num_samples))
    draw = NoiseDraw(drawn.data_part.to(like.device), drawn.diagonal.to(like.device))  # what was kept is on the CPU
    bound = startable(prior.bind(model.features.layout, draw.diagonal), draw.diagonal)
    draw = NoiseDraw(draw.data_part * bound.scale, draw.diagonal * bound.scale.square())
    model = model.replaced(features=ScaledFeatures(model.features, bound.scale))
    route = choose_route(model, bound, solver, em, survey.numbers, curvature_at=curvature_at, log_evidence=log_evidence)
    if not (route.learns and route.e_step == "krylov"):  # samples by reduced products are no good, in EM neither
        model = model.replaced(exact=True)
    return Task(solver, em, seed, num_samples, survey, draw, tolerance, max_passes, route, say), EMState(bound, model)


def startable(prior: BoundPrior, diagonal: Tensor) -> BoundPrior:
    """The prior with no alpha to learn that is lost in rounding, or so large that the data determine nothing at all.

    Args:
        prior: where EM is to start.
        diagonal: (P,) an estimate of the diagonal of M, in the coordinates of theta.
    """
    trace = prior.group_sum(diagonal * prior.scale.square())
    sizes = prior.group_sum(torch.ones_like(diagonal))
    least, most = lowest_start(trace, sizes, torch.finfo(diagonal.dtype).eps), highest_start(trace)
    inside = torch.minimum(torch.maximum(prior.precision, least.to(prior.precision)), most.to(prior.precision))
    moved = prior.learnt & (trace > 0) & trace.isfinite() & (inside != prior.precision)
    return prior.with_precision(torch.where(moved, inside, prior.precision)) if bool(moved.any()) else prior


def e_step_of(task: Task, state: EMState) -> EStep:
    """The E-step of the task's route; the state has the model that the noise was drawn for."""
    if task.route.e_step == "samples":
        return SampledEStep(task, state.model)
    if task.route.e_step == "outputs":
        return DualEStep(task, state.model)
    kind = MovingEStep if task.route.moves_curvature else KrylovEStep
    return kind(task, state.model)


def maximised(e_step: EStep, state: EMState, keep: Callable[[EMState], None] = lambda _: None) -> EMState:
    """EM steps until everything learnt has settled, until more steps would bring nothing, or until they are used up.

    Args:
        e_step: how each step learns what the data determine.
        state: to start from, or to go on from.
        keep: called with the state after every step.
    """
    state, task = e_step.start(state), e_step.task
    while task.route.learns and not (state.settled or state.stuck) and len(state.trace) < task.em.max_steps:
        start, spent = perf_counter(), state.model.ledger.products
        state = e_step.step(state)
        row = replace(state.trace[-1], seconds=perf_counter() - start, products=state.model.ledger.products - spent)
        state = replace(state, trace=[*state.trace[:-1], row], settled=state.settled and is_sound(state))
        keep(state)
    return state


def with_samples(e_step: EStep, state: EMState) -> tuple[EStep, EMState]:
    """EM by samples from where EM by a Krylov space has come to its end; its steps count anew."""
    task, likelihood = e_step.task, state.model.likelihood.scaled(state.noise_factor)
    following = EMState(state.prior, state.model.replaced(likelihood=likelihood))
    return SampledEStep(replace(task, route=replace(task.route, e_step="samples")), state.model), following


def finished(e_step: EStep, state: EMState) -> tuple[FinalProblem, str]:
    """What is left to solve with the hyperparameters of the state, and what keeps these from having settled.

    The state itself stays behind: what the search for modes has learnt is large, and the final solve needs the memory.
    """
    unsettled = "" if state.settled or not e_step.task.route.learns else complain_unsettled(e_step.task, state)
    return e_step.finish(state), unsettled


def solved(task: Task, problem: FinalProblem, unsettled: str) -> Inference:
    """K samples with the hyperparameters of the problem; a warning says if these have not settled."""
    problem = final.watched(task, problem)
    return final.inference(task, problem, final.solved(task, problem), unsettled)


def _require_informative(likelihood: Likelihood, survey: Survey, learns_prior: bool, dtype: torch.dtype) -> None:
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
    if likelihood.noise_is_known:
        return
    exactly = is_rounding(survey.residual, survey.target, dtype)
    which = f" for output {', '.join(map(str, exactly.nonzero().flatten()[:12].tolist()))}" if len(exactly) > 1 else ""
    require(
        not bool(exactly.any()),
        "targets that differ from the network's outputs, to learn the noise from",
        f"residuals of zero up to the rounding of {str(dtype).removeprefix('torch.')}{which}",
        f"{give}, or data that the network was not made from.",
    )
