"""EM for the price of one Krylov space: gamma for every alpha, and for Gaussian likelihoods the mean too, from M alone.

Works where H = f M + alpha I with one M: one prior group, and no noise to learn or scalar noise, whose precision is the
factor f. A prior with several alphas shifts M by different amounts in different coordinates, and noise by output, or B
at the linear mode, changes M itself: there EM works with posterior samples (sampled_step.py).
"""

from collections.abc import Callable
from dataclasses import replace
from math import inf, log
from time import perf_counter

import torch
from torch import Tensor

from sampla.inference.exact import grown_to_range, unseen_draws
from sampla.inference.krylov import KrylovSpace, krylov_space
from sampla.inference.mackay import has_settled, tolerance_factor
from sampla.inference.quadrature import FixedPoint, Hyper, LogError, Settled, estimated, gamma
from sampla.inference.state import EMState, EMStep, Task
from sampla.likelihoods import Gaussian
from sampla.solvers import Mode, linear_mode
from sampla.solvers._preconditioners import Jacobi, Preconditioner

_FEWEST = 3
"""Iterations before the change of an estimate says anything about its error."""
_AT_ONCE = 8
"""A space of so many iterations grows by one more in a step: it then reaches any size in few steps, and at most an
eighth of its products is too much."""
_FURTHEST_DOWN, _FURTHEST_UP = 10.0, 1e4
"""Factors by which alpha may change before the mode is found again. Downwards the space must resolve smaller
eigenvalues, and the mode's norm may grow as it likes. Upwards gamma is known; |mode|^2 is extrapolated, but it falls
more and more steeply, so that a jump usually ends short of the fixed point; and beyond it a mode costs least, and two
that enclose the fixed point tell it best."""
_AFRESH = 10.0
"""Factor by which alpha must have risen for its mode to be searched from zero: it is small then, and what the search
has learnt about the loss far from zero misleads it."""
_FAR_ENOUGH = 2.0
"""Factor by which alpha must change for the space not to grow before the mode is found again."""
_COARSEST, _SHARE = 0.05, 0.02
"""Relative error of the mode allowed at first, and as a part of the last change of log alpha."""
_OF_TOP = 0.1
"""Least alpha to start from, as a part of the largest eigenvalue of M: modes are cheap there, EM comes down at once,
and one search of the mode far below the fixed point can cost more than all others together (docs/notes/solvers.md)."""
_UNKNOWN = 10.0
"""What the trace says of an alpha that the space cannot reach yet: it may be off by more than so many times itself."""


def start_space(task: Task, target_part: Tensor | None) -> KrylovSpace:
    """The space from the noise's right-hand sides, and for a Gaussian likelihood that of the mean; no product yet."""
    start = task.draw.data_part[: task.em_samples]
    return krylov_space(start if target_part is None else torch.cat([start, target_part]))


def run(task: Task, state: EMState, keep: Callable[[EMState], None]) -> EMState:
    """EM steps until alpha and the noise have settled, or until steps or memory are used up."""
    step = _gaussian_step if state.model.likelihood.is_quadratic else _mode_step
    while not state.settled and len(state.trace) < task.em.max_steps:
        rows = _rows(state.space)
        state = step(task, state)
        keep(state)
        if not state.settled and state.model.likelihood.is_quadratic and _rows(state.space) == rows:
            break  # no memory for a larger space
    return state


def _rows(space: KrylovSpace | None) -> int:
    return 0 if space is None else len(space.basis)


def _gaussian_step(task: Task, state: EMState) -> EMState:
    """The space grows by an iteration, or more where it is large; the fixed point of alpha and noise is read off."""
    start, spent = perf_counter(), state.model.ledger.products
    assert state.space is not None
    number = len(state.trace) + 1
    space = _first_space(task, state, number)
    for _ in range(1 + space.iterations // _AT_ONCE):
        space = _grown(task, state, space, number)
    used = float(state.prior.precision[0])
    problem = _fixed_point(task, state, space)
    found = problem.solved(used / state.noise_factor)
    if _needs_exact(task, state, space, found):
        space = grown_to_range(task, state.model, space, unseen_draws(task), f"EM {number}: ")
        problem = replace(problem, space=space)
        found = problem.solved(used / state.noise_factor)
    unknown = ""
    if problem.learn_noise and found.precision_error.truncation < inf:
        unknown = problem.noise_unknown(found.hyper.ratio)
    if unknown:
        found = replace(problem, learn_noise=False, noise_factor=state.noise_factor).solved(used / state.noise_factor)
    hyper, error = found.hyper, max(found.precision_error.truncation, found.noise_error.truncation)
    change = max(abs(log(hyper.precision / used)), abs(log(hyper.noise_factor / state.noise_factor)))
    if found.precision_error.truncation == inf:  # out of reach: the update at its border says nothing, the space grows
        hyper, change = Hyper(used / state.noise_factor, used, state.noise_factor), _UNKNOWN
    prior = state.prior.with_precision(torch.full_like(state.prior.precision, hyper.precision))
    size = float((space.quadrature.nodes + hyper.ratio).reciprocal().square() @ space.quadrature.weights[:, -1])
    row = _row(task, state, space, found, change, error, (hyper.precision * size) ** 0.5, 0.0, start, spent)
    enough = space.complete or space.iterations >= _FEWEST
    return replace(
        state, prior=prior, space=space, noise_factor=hyper.noise_factor, trace=[*state.trace, row],
        settled=has_settled(task.em.tolerance, 0.0, error) and enough and not unknown, noise_unknown=unknown,
        precision_error=found.precision_error, noise_error=found.noise_error,
    )  # fmt: skip


def _first_space(task: Task, state: EMState, number: int) -> KrylovSpace:
    """The space as it is, or the whole of it where the problem is small."""
    assert state.space is not None
    if state.space.exact or not task.route.exact_traces:
        return state.space
    return grown_to_range(task, state.model, state.space, unseen_draws(task), f"EM {number}: ")


def _needs_exact(task: Task, state: EMState, space: KrylovSpace, found: Settled) -> bool:
    """Whether the probes, and not the space, keep the noise from being known to EM's tolerance."""
    if space.exact or not state.model.likelihood.learns_noise or not task.route.exact_if_needed:
        return False
    if has_settled(task.em.tolerance, 0.0, max(found.precision_error.truncation, found.noise_error.truncation)):
        return found.noise_error.standard_error > task.em.tolerance
    return _is_full(task, space)


def _mode_step(task: Task, state: EMState) -> EMState:
    """The mode at the present alpha, and the alpha at which gamma over the mode's size would come back to itself."""
    start, spent = perf_counter(), state.model.ledger.products
    number, factor = len(state.trace) + 1, tolerance_factor(state.last_change, task.em.tolerance)
    state = replace(state, space=_first_space(task, state, number))
    assert state.space is not None
    while state.space.iterations < _FEWEST:  # needed anyway, and it preconditions the first mode
        larger = _grown(task, state, state.space, number)
        if larger is state.space:
            break
        state = replace(state, space=larger)
    if state.prior.guessed:
        state = _started(state)
    used = float(state.prior.precision[0])
    mode = _mode(task, state, _mode_tolerance(task, state), number)
    size = float(mode.value.double().square().sum())
    space = state.space
    assert space is not None
    while True:
        slope = _slope(task, state, space, size)
        problem = replace(_fixed_point(task, state, space), mode_size=(used, size, slope))
        found = problem.solved(used, used / _FURTHEST_DOWN)
        if found.precision_error.truncation <= task.em.tolerance / 2 * factor and space.iterations >= _FEWEST:
            break
        if factor > 1 and found.hyper.ratio < used / _FAR_ENOUGH:  # where the mode is now says little about so far away
            break
        larger = _grown(task, state, space, number)
        if larger is space:
            break
        space = larger
    proposed = min(max(found.hyper.ratio, used / _FURTHEST_DOWN), used * _FURTHEST_UP)
    change = abs(log(proposed / used))
    error = LogError(found.precision_error.standard_error, found.precision_error.truncation + 2 * mode.error)
    settled = has_settled(task.em.tolerance, change, found.precision_error.truncation) and mode.error <= _finest(task)
    norm = (used * size) ** 0.5
    row = _row(task, state, space, found, change, found.precision_error.truncation, norm, mode.error, start, spent)
    return replace(
        state, prior=state.prior.with_precision(torch.full_like(state.prior.precision, proposed)), space=space,
        mode=mode.value, last_mode=mode, objective=mode.objective + (proposed - used) / 2 * size, mode_error=mode.error,
        trace=[*state.trace, row], settled=settled, precision_error=error,
    )  # fmt: skip


def _started(state: EMState) -> EMState:
    """With a first alpha that is not far below the fixed point, where the prior was given none."""
    assert state.space is not None
    least = _OF_TOP * float(state.space.spectrum[0].max())
    return replace(state, prior=state.prior.with_precision(state.prior.precision.clamp_min(least)))


def _fixed_point(task: Task, state: EMState, space: KrylovSpace) -> FixedPoint:
    likelihood, size = state.model.likelihood, 0.0
    if isinstance(likelihood, Gaussian):
        assert task.survey.target is not None
        size = likelihood.weighted(task.survey.target)
    return FixedPoint(
        space, task.em_samples, learn_prior=state.prior.learn, precision=float(state.prior.precision[0]),
        learn_noise=likelihood.learns_noise, target_size=size, noise_factor=state.noise_factor,
        entries=task.survey.entries,
    )  # fmt: skip


def _grown(task: Task, state: EMState, space: KrylovSpace, number: int) -> KrylovSpace:
    """One iteration more, if the space is not whole and memory allows."""
    if space.complete or _is_full(task, space):
        return space
    task.say(f"EM {number}: Krylov space of {len(space.basis) + len(space.following)} vectors")
    return space.grown(state.model)


def _is_full(task: Task, space: KrylovSpace) -> bool:
    return len(space.basis) + len(space.following) > task.route.max_rows


def _mode_tolerance(task: Task, state: EMState) -> float:
    """|mode|^2 need only be known a few times better than alpha was moving."""
    return max(_finest(task), min(_COARSEST, _SHARE * state.trace[-1].change if state.trace else _COARSEST))


def _finest(task: Task) -> float:
    """|mode|^2 is off by about twice the error of the mode at worst, which leaves half of the tolerance."""
    return min(task.em.mode_tolerance, task.em.tolerance / 4)


def _mode(task: Task, state: EMState, tolerance: float, number: int) -> Mode:
    jumped = bool(state.trace) and float(state.prior.precision[0]) > _AFRESH * state.trace[-1].precision[0]
    return linear_mode(
        state.model, state.prior.diagonal, mode_preconditioner(task, state),
        guess=None if jumped else state.last_mode or state.mode, tolerance=tolerance,
        say=lambda text: task.say(f"EM {number}: {text}"),
    )  # fmt: skip


def mode_preconditioner(task: Task, state: EMState) -> Preconditioner:
    """What is near the Hessian at the mode: the Krylov space once there is one, the diagonal before."""
    if state.space is None or state.space.iterations == 0:
        return Jacobi(task.draw.diagonal + state.prior.diagonal)
    return state.space.sketch().at(state.prior.diagonal)


def _slope(task: Task, state: EMState, space: KrylovSpace, size: float) -> float:
    """d log |mode|^2 / d log alpha: by a secant to the last mode found at another alpha.

    At the first mode it is taken for that of gamma: the update is then MacKay's own, which needs no such guess.
    """
    used = float(state.prior.precision[0])
    for row in reversed(state.trace):
        before = row.precision[0]
        if abs(log(used / before)) > 0.02:  # nearer, the modes' errors would hide the change
            old = row.mode_norm**2 / before
            return min(max(log(size / old) / log(used / before), -1.9), 0.0)
    here, there = (float(gamma(space.quadrature, a)[: task.em_samples].mean()) for a in (used, 1.1 * used))
    return log(there / here) / log(1.1)


def _row(
    task: Task, state: EMState, space: KrylovSpace, found: Settled, change: float, error: float, norm: float,
    mode_error: float, start: float, spent: float,
) -> EMStep:  # fmt: skip
    likelihood, used = state.model.likelihood, float(state.prior.precision[0])
    noise = likelihood.noise_precision if isinstance(likelihood, Gaussian) else None
    determined = estimated(space, task.em_samples, gamma, used / state.noise_factor)
    return EMStep(
        precision=[used],
        updated_precision=[found.hyper.precision],
        noise_precision=None if noise is None else (noise * state.noise_factor).tolist(),
        effective_dimension=[determined.value],
        effective_dimension_error=[determined.standard_error],
        mode_norm=norm,
        change=change,
        passes=space.iterations - sum(row.passes for row in state.trace),
        solve_error=min(error, _UNKNOWN),
        solve_history=[],
        mode_error=mode_error,
        seconds=perf_counter() - start,
        products=state.model.ledger.products - spent,
    )
