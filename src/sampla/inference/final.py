"""The final solve of K samples with what EM has learnt, and the numbers read off at the end."""

from dataclasses import replace
from math import log, pi

import torch
from torch import Tensor

from sampla.core.checks import complain, unheard
from sampla.features import ScaledFeatures
from sampla.inference.evidence import LogEvidence, effective_dimension
from sampla.inference.exact import grown_to_range
from sampla.inference.krylov import KrylovSpace, krylov_space
from sampla.inference.krylov_step import mode_preconditioner
from sampla.inference.mackay import updated_noise
from sampla.inference.quadrature import LogError, estimated, gamma, log_determinant
from sampla.inference.sampled_step import prior_part
from sampla.inference.state import EMState, Inference, Task
from sampla.likelihoods import Gaussian
from sampla.model import LinearModel
from sampla.solvers import LinearSystem, RightHandSide, Solution, Start, linear_mode, solve_balanced
from sampla.solvers._preconditioners import Sketch

_FEWEST = 3
"""Iterations before the change of an estimate says anything about its error."""
_SHARE = 0.5
"""Truncation error of the log determinant allowed, in standard errors."""


def right_hand_side(task: Task, diagonal: Tensor, data_part: Tensor) -> RightHandSide:
    prior = torch.zeros_like(data_part)
    prior[: task.num_samples] = prior_part(task, diagonal, task.num_samples)
    return RightHandSide(data_part, prior, task.num_samples, task.seed)


def final_solve(task: Task, system: LinearSystem, rhs: RightHandSide, guess: Start | None) -> Solution:
    """K samples; what products in reduced precision have found is finished with products in full precision.

    So the error stated is that of the exact system, whatever the cheaper products were worth.
    """
    if not system.model.reduced:
        return _solved(task, system, rhs, guess, "final samples, ")
    exactly = replace(system, model=system.model.replaced(exact=True))
    if not task.route.solver_uses_space:  # a start would save it nothing
        return _solved(task, exactly, rhs, None, "final samples, ")
    with unheard():  # where it ends is of no importance: the solve in full precision says how far it came
        rough = _solved(task, system, rhs, guess, "final samples in reduced precision, ")
    guess = Start(rough.value, rough.curvature_value, curvature_exact=False)
    found = _solved(task, exactly, rhs, guess, "final samples in full precision, ")
    return replace(found, passes=rough.passes + found.passes, history=rough.history + found.history)


def _solved(task: Task, system: LinearSystem, rhs: RightHandSide, guess: Start | None, label: str) -> Solution:
    return solve_balanced(
        task.solver, system, rhs, mean_size=task.mean_size(system.model.likelihood), tolerance=task.tolerance,
        max_passes=task.max_passes, guess=guess, say=lambda text: task.say(label + text),
    )  # fmt: skip


def extended(start: Start | None, rhs: RightHandSide) -> Start | None:
    """EM's few samples as the start of K: zero for the samples that EM did not have."""
    if start is None:
        return None
    means = len(rhs.data_part) - rhs.num_samples
    known = len(start.value) - means

    def placed(rows: Tensor) -> Tensor:
        whole = torch.zeros_like(rhs.data_part)
        whole[:known] = rows[:known]
        whole[rhs.num_samples :] = rows[known:]
        return whole

    return Start(
        placed(start.value), placed(start.curvature_value), curvature_exact=start.curvature_exact,
        reusable=start.reusable,
    )  # fmt: skip


def scaled(sketch: Sketch, factor: float) -> Sketch:
    return Sketch(sketch.basis, sketch.gram * factor, sketch.tail * factor)


def galerkin(space: KrylovSpace, rhs: RightHandSide, precision: Tensor, factor: float) -> Start:
    """(f M + A) z = b in the space of M: (M + A / f) z = b / f."""
    value, image = space.galerkin(rhs.total / factor, precision / factor)
    return Start(value, image * factor)


def with_mode(task: Task, state: EMState) -> EMState:
    """The linear mode where nothing has needed it yet."""
    found = linear_mode(
        state.model, state.prior.diagonal, mode_preconditioner(task, state), tolerance=task.em.mode_tolerance,
        say=lambda text: task.say("evidence: " + text),
    )  # fmt: skip
    return replace(state, mode=found.value, objective=found.objective, mode_error=found.error)


def settled_space(task: Task, space: KrylovSpace, model: LinearModel, ratio: float, draws: Tensor) -> KrylovSpace:
    """The space, grown until the log determinant depends less on its iterations than on its probes.

    Where the problem is small it is grown to the whole range of M, with draws that it has not seen.
    """
    if not space.exact and task.route.exact_traces:
        return grown_to_range(task, model, space, draws, "log evidence: ")
    while not space.complete and len(space.basis) + len(space.following) <= task.route.max_rows:
        if space.iterations >= _FEWEST:
            found = estimated(space, task.em_samples, log_determinant, ratio)
            if found.truncation <= _SHARE * found.standard_error:
                break
        task.say(f"log evidence: Krylov space of {len(space.basis) + len(space.following)} vectors")
        space = space.grown(model)
    return space


def whitened_space(task: Task, system: LinearSystem, rhs: RightHandSide) -> KrylovSpace:
    """The space of A^(-1/2) M A^(-1/2), where A is the identity."""
    white = system.precision.rsqrt()
    model = system.model.replaced(features=ScaledFeatures(system.model.features, white))
    start, unseen = (rhs.data_part[: rhs.num_samples] * white).tensor_split([task.em_samples])
    return settled_space(task, krylov_space(start), model, 1.0, unseen)


def whitened_solve(
    task: Task, system: LinearSystem, rhs: RightHandSide, guess: Start | None, space: KrylovSpace
) -> Solution:
    """The final solve in coordinates in which A is the identity and the space is a sketch of M."""
    white = system.precision.rsqrt()
    one = torch.ones_like(white)
    model = system.model.replaced(features=ScaledFeatures(system.model.features, white))
    inner = LinearSystem(model, one, system.diagonal * white.square(), space.sketch().at(one))
    right = RightHandSide(rhs.data_part * white, rhs.prior_part * white, rhs.num_samples, rhs.seed)
    value, image = space.galerkin(right.total, one)
    if guess is not None:
        known = guess.value.any(dim=1)
        value[known], image[known] = guess.value[known] / white, guess.curvature_value[known] * white
    solution = final_solve(task, inner, right, Start(value, image))
    return replace(solution, value=solution.value * white, curvature_value=solution.curvature_value / white)


def inference(task: Task, state: EMState, determinant: LogEvidence | None) -> Inference:
    assert isinstance(state.solution, Solution)
    solution, count, quadratic = state.solution, task.num_samples, state.model.likelihood.is_quadratic
    if determinant is not None and not quadratic and state.mode is None:  # nothing was learnt that needed it
        state = with_mode(task, state)
    dimension, dimension_error = effective_dimension(solution, count, state.prior)
    mean = solution.value[count] if quadratic else None if state.mode is None else state.mode[0]
    objective, noise_error = state.objective, state.noise_error
    mean_error = state.mode_error
    if quadratic:
        mean_error = float(solution.errors[-1]) if solution.errors is not None else solution.error
        if determinant is not None or state.noise_factor != 1:
            loss, _ = state.model.loss_gradient(solution.value[count:])
            assert mean is not None
            objective = loss + 0.5 * float((state.prior.diagonal * mean.square()).double().sum())
            noise_error = _checked_noise(task, state, loss)
    evidence = None
    if determinant is not None and objective is not None:
        assert mean is not None
        excess = _excess(state, mean, mean_error, moves=task.route.moves_curvature, determined=float(dimension.sum()))
        evidence = LogEvidence(
            -objective - determinant.value / 2, determinant.standard_error / 2, determinant.truncation / 2 + excess
        )
    return Inference(
        solution.value[:count] * state.prior.scale,
        None if mean is None else mean * state.prior.scale,
        state.prior, state.model, solution, dimension, dimension_error, state.trace,
        state.settled or not task.route.learns, task.route.method, evidence, mean_error, state.precision_error,
        noise_error, state.unsettled,
    )  # fmt: skip


def _excess(state: EMState, mean: Tensor, error: float, *, moves: bool, determined: float) -> float:
    """By how much an error of the mode may have changed the evidence: |e|_H^2 / 2, relative to |mode|_H or |mode|_A.

    Where B is taken at the mode, the determinant moves with it, by gamma / 2 times the relative change of B.
    """
    size = float((state.prior.diagonal * mean.square()).double().sum())
    if state.model.likelihood.is_quadratic:
        assert state.solution is not None
        size += float(mean.double() @ state.solution.curvature_value[-1].double())
    elif state.trace:  # alpha has moved since the mode was found
        error = (error**2 + state.trace[-1].change ** 2 / 2) ** 0.5
    return error**2 * size / 2 + (error * determined / 2 if moves else 0.0)


def _checked_noise(task: Task, state: EMState, loss: float) -> LogError | None:
    """The noise precision read off the Krylov space against MacKay's update at the mean itself."""
    likelihood, known = state.model.likelihood, state.noise_error
    learnt = isinstance(likelihood, Gaussian) and likelihood.learns_noise and likelihood.structure == "scalar"
    if not learnt or known is None or state.space is None:
        return known
    assert isinstance(likelihood, Gaussian)
    assert likelihood.noise_precision is not None
    entries = task.survey.entries
    ratio = float(state.prior.precision[0]) / state.noise_factor
    determined = estimated(state.space, task.em_samples, gamma, ratio).value
    outputs = task.survey.outputs
    residual = 2 * loss - outputs * log(2 * pi) + outputs * float(likelihood.noise_precision.log())
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
