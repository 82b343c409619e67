"""The final solve of K samples with what EM has learnt, and the numbers read off at the end."""

from dataclasses import replace
from math import hypot, log, nan, pi

import torch
from torch import Tensor

from sampla.core.checks import complain
from sampla.inference.e_step import FinalProblem
from sampla.inference.evidence import LogEvidence, effective_dimension
from sampla.inference.mackay import updated_noise
from sampla.inference.quadrature import Estimate, LogError, estimated, gamma
from sampla.inference.state import EMState, Inference, Kept, Posed, Task
from sampla.solvers import LinearSystem, Mode, RightHandSide, Seen, Solution, Start, solve_balanced

_NOTHING = 1e-9
"""Relative error of gamma that is rounding of the sum."""
_COMBINATIONS = 4
"""Random combinations of the samples' right-hand sides that are kept, to measure the error of the solve by."""
SEEN_PASSES = 4
"""Passes of the final solve whose products are kept for the next one, if new data come."""


def solved(task: Task, problem: FinalProblem) -> Solution:
    """K samples, and the mean of a quadratic likelihood behind them, in the coordinates of the state's model."""
    solution = problem.solution or _in_full_precision(task, problem.system, problem.rhs, problem.start)
    if problem.scale is not None:
        value, image = solution.value * problem.scale, solution.curvature_value / problem.scale
        solution = replace(solution, value=value, curvature_value=image)
    if problem.effective_dimension is not None:
        solution = replace(solution, effective_dimension=problem.effective_dimension)
    return solution


def inference(task: Task, problem: FinalProblem, solution: Solution, unsettled: str) -> Inference:
    """What the fit leaves behind.

    Args:
        task: what was asked.
        problem: that was solved.
        solution: of it.
        unsettled: what keeps EM from having settled; empty if it has, or if nothing was learnt.
    """
    state, count, quadratic = problem.state, task.num_samples, problem.state.model.likelihood.is_quadratic
    if problem.search is not None:
        state = replace(state, mode=problem.search.found())
    dimension, dimension_error, error_of_sum = effective_dimension(solution, count, state.prior)
    unsettled = unsettled or _misled(task, state, dimension, error_of_sum)
    if problem.gamma is not None:
        found, error = problem.gamma, hypot(problem.gamma.standard_error, problem.gamma.truncation)
        error = error if error > _NOTHING * found.value else 0.0
        dimension, dimension_error = torch.full_like(dimension, found.value), torch.full_like(dimension, error)
        error_of_sum = error
    determinant = _determinant(task, problem, solution)
    mode, noise_error = state.mode, state.noise_error
    mean = solution.value[count] if quadratic else None if mode is None else mode.value[0]
    objective, mean_error = (None, nan) if mode is None else (mode.objective, mode.error)
    if quadratic:
        assert mean is not None
        mean_error = float(solution.errors[-1]) if solution.errors is not None else solution.error
        if determinant is not None or state.noise_factor != 1:
            loss, _ = state.model.loss_gradient(solution.value[count:])
            objective = loss + 0.5 * float((state.prior.diagonal * mean.square()).double().sum())
            noise_error = _checked_noise(task, state, loss, solution.value[count:])
    evidence = None
    if determinant is not None and objective is not None:
        assert mean is not None
        excess = _excess(state, solution, mean, mean_error)
        if task.route.moves_curvature:
            excess += float(dimension.sum()) * (mean_error + _away(state, mean)) / 2
        evidence = LogEvidence(
            -objective - determinant.value / 2, determinant.standard_error / 2, determinant.truncation / 2 + excess
        )
    return Inference(
        samples=solution.value[:count] * state.prior.scale,
        mean=None if mean is None else state.prior.from_zero(mean * state.prior.scale),
        prior=state.prior,
        model=state.model,
        solution=solution,
        effective_dimension=dimension,
        effective_dimension_error=dimension_error,
        effective_dimension_sum_error=error_of_sum,
        trace=state.trace,
        settled=not unsettled and (state.settled or not task.route.learns),
        method=task.route.method,
        log_evidence=evidence,
        mean_error=mean_error,
        precision_error=state.precision_error,
        noise_error=noise_error,
        unsettled=unsettled,
        posed=_posed(problem, count),
        kept=_kept(task, problem, state.mode),
    )


def _misled(task: Task, state: EMState, found: Tensor, error: float) -> str:
    """What is open where EM had products in reduced precision, and the samples, which had not, deny its gamma."""
    if not (state.model.reduced and state.trace):
        return ""
    last = state.trace[-1]
    thought, seen = sum(last.effective_dimension), float(found.sum())
    chance = hypot(last.error_of_sum, error)
    if abs(thought - seen) <= 3 * chance + task.em.tolerance * seen:
        return ""
    reason = (
        f"EM, with products in bfloat16, took the data to determine {thought:.4g} parameters, and the samples say "
        f'{seen:.4g}: use precision="full"'
    )
    complain("reduced precision", abs(thought - seen) / max(seen, 1.0), f"Precision too low: {reason}.")
    return reason


def _posed(problem: FinalProblem, count: int) -> Posed:
    """Random combinations of the samples' right-hand sides, in the coordinates of the state's model."""
    rhs, diagonal = problem.rhs, problem.system.diagonal
    generator = torch.Generator().manual_seed(rhs.seed)
    signs = (2 * torch.randint(2, (min(count, _COMBINATIONS), count), generator=generator) - 1).to(diagonal)
    combined = signs @ rhs.data_part[:count] + signs @ rhs.prior_part[:count]
    if problem.scale is not None:
        combined, diagonal = combined / problem.scale, diagonal / problem.scale.square()
    return Posed(signs, combined, diagonal)


def watched(task: Task, problem: FinalProblem) -> FinalProblem:
    """The problem with its products written down, as far as memory allows, where new data may come."""
    if not (task.keeps and task.route.solver_uses_space):
        return problem
    like, blocks = problem.rhs.data_part, SEEN_PASSES * len(problem.rhs.data_part)
    most = task.em.rows_within(like, like.shape[1]) // 2
    return replace(problem, system=replace(problem.system, seen=Seen(min(most, blocks), problem.system.model.slices)))


def _kept(task: Task, problem: FinalProblem, mode: Mode | None) -> Kept | None:
    """What an update with new data needs, in the coordinates of the state's model."""
    if not task.keeps:
        return None
    data_part, system, scale = problem.rhs.data_part[: task.num_samples], problem.system, problem.scale
    most = max(task.num_samples, task.em.rows_within(data_part, data_part.shape[1]))
    sketch = None if system.seen is None else system.seen.sketch(problem.sketch, system.precision, scale, most)
    seeds = task.seeds or ((task.seed, task.num_samples),)
    return Kept(data_part if scale is None else data_part / scale, task.survey, seeds, sketch, mode)


def _in_full_precision(task: Task, system: LinearSystem, rhs: RightHandSide, start: Start | None) -> Solution:
    """The solve with products in full precision, whatever EM had: the error stated is that of the exact system.

    A first solution by products that are off by e would be off by e (lambda / alpha)^(1/2) along an eigenvector of M,
    because a sample is small there as the difference of two large terms (docs/notes/engine.md).
    """
    if system.model.reduced:
        system = replace(system, model=system.model.replaced(exact=True))
        start = None if start is None else replace(start, curvature_exact=False)
    return _solved(task, system, rhs, start, "final samples, ")


def _solved(task: Task, system: LinearSystem, rhs: RightHandSide, start: Start | None, label: str) -> Solution:
    return solve_balanced(
        task.solver, system, rhs, mean_size=task.target_size(system.model.likelihood), tolerance=task.tolerance,
        max_passes=task.max_passes, guess=start, say=lambda text: task.say(label + text),
    )  # fmt: skip


def _determinant(task: Task, problem: FinalProblem, solution: Solution) -> Estimate | None:
    """log det(I + A^-1 M) where the evidence is asked for: from the solver where it tells log det H, else estimated."""
    if not task.route.solver_tells_determinant or solution.log_determinant is None:
        return problem.determinant
    value = solution.log_determinant - float(problem.state.prior.diagonal.double().log().sum())
    return Estimate(value, 0.0, 0.0, value, value)


def _excess(state: EMState, solution: Solution, mean: Tensor, error: float) -> float:
    """By how much an error of the mode may have changed the evidence: |e|_H^2 / 2, relative to |mode|_H or |mode|_A.

    Where B is taken at the mode, the determinant moves with it as well, by gamma / 2 times the relative change of B.
    """
    size = float((state.prior.diagonal * mean.square()).double().sum())
    if state.model.likelihood.is_quadratic:
        size += float(mean.double() @ solution.curvature_value[-1].double())
    return error * error * size / 2  # a product of floats is infinite where a power raises


def _away(state: EMState, mean: Tensor) -> float:
    """|mode - theta|_A / |mode|_A for the theta at which B is taken, where EM has stopped moving it."""
    if state.place is None:
        return 0.0
    away, size = (float((state.prior.diagonal * v.square()).double().sum()) for v in (mean - state.place[0], mean))
    return (away / size) ** 0.5 if size > 0 else 0.0


def _checked_noise(task: Task, state: EMState, loss: float, mean: Tensor) -> LogError | None:
    """The noise precision read off the Krylov space against MacKay's update at the mean itself."""
    likelihood, known = state.model.likelihood, state.noise_error
    learnt = likelihood.learns_noise and likelihood.scalar_noise
    if not learnt or known is None or state.space is None:
        return known
    entries = task.survey.entries
    ratio = float(state.prior.precision[0]) / state.noise_factor
    determined = estimated(state.space, task.em_samples, gamma, ratio).value
    outputs, of_one = task.survey.outputs, likelihood.log_determinant(mean.new_zeros(1, 1))
    if of_one is None:  # log p may have been given up to a constant
        residual = likelihood.weighted(state.model.noise_moments(mean, mean[:0])[0])
    else:
        residual = 2 * loss - outputs * log(2 * pi) + outputs * of_one
    drift = abs(log(updated_noise(entries, determined, residual)))
    if drift > 2 * task.em.tolerance and not state.noise_unknown and (state.settled or not state.space.exact):
        remedy = "use float64, or give the noise" if state.space.exact else "raise EM(max_rows=...), or use float64"
        complain(
            "noise",
            drift,
            f"the noise precision was asked for within {task.em.tolerance:.0%}, and the residuals at the posterior "
            f"mean say {drift:.1%} off: rounding, or too small a Krylov space: {remedy}.",
        )
    return replace(known, truncation=max(known.truncation, drift))
