"""EM from posterior samples (docs/method.md, sections 2 and 3): for what a single Krylov space of M cannot serve.

That is a prior with several alphas, noise that is learnt per output or in full, and solvers other than block conjugate
gradients. Every step solves for a few samples, warm-started, with the noise draws kept; where the next step
starts, the path of the last ones tells (steps.py).
"""

from dataclasses import replace
from math import log

import torch
from torch import Tensor

from sampla.features import OutputsAt
from sampla.inference.coordinates import extended, whitened, whitened_start
from sampla.inference.e_step import EStep, FinalProblem, right_hand_side, target_part
from sampla.inference.evidence import effective_dimension, updated_precision
from sampla.inference.exact import ExactPosterior, grown_to_range
from sampla.inference.krylov import KrylovSpace, krylov_space
from sampla.inference.mackay import (
    ALL_MET,
    DETERMINED,
    FINEST,
    LEAST_LEFT,
    change_that_matters,
    is_rounding,
    relative_change,
    tolerance_factor,
    why_noise_is_unknown,
)
from sampla.inference.quadrature import LogError
from sampla.inference.route import SEARCH
from sampla.inference.state import EMState, Task
from sampla.inference.steps import Path
from sampla.inference.trace import EMStep
from sampla.likelihoods import Likelihood
from sampla.model import LinearModel, NoiseDraw
from sampla.priors import BoundPrior
from sampla.solvers import (
    Iterate,
    Jacobi,
    LinearSystem,
    Mode,
    RightHandSide,
    Sketch,
    Solution,
    Start,
    Status,
    linear_mode,
    solve_balanced,
)

_USUAL_SLOPE = 1 / 3
"""d log update / d log alpha near the fixed point, as a rule."""
_EXACTLY = 0.1
"""Part of the tolerance from which steps tell a rate where samples are exact; else the whole of it."""
_SLOWEST = 0.02
"""EM's update of the noise covers a part 1 - used of the way, at least this."""


class SampledEStep(EStep):
    """gamma and the mean from a few posterior samples, solved for at every step from where the last one ended.

    The right-hand sides follow the likelihood and the mode; they are always those of the state last returned.
    """

    def __init__(self, task: Task, model: LinearModel) -> None:
        """Args: task: what stays the same over the steps. model: that the task's noise was drawn for."""
        super().__init__(task)
        self._first = model.likelihood
        self._features = model.features
        self._draw = task.draw
        self._target: Tensor | None = None  # of the present likelihood, once it is known
        self._exact = task.route.exact_traces and task.route.learns
        self._factor = 1.0  # how many times looser this step may work
        self._last: Iterate | None = None  # the samples of the last step
        self._range: tuple[LinearModel, KrylovSpace] | None = None  # the whole range of M, and whose M that is

    def start(self, state: EMState) -> EMState:
        """With the right-hand sides of a loop that was stopped, if it is one."""
        self._exact = self._exact or self._was_exact(state)
        if self.task.route.moves_curvature and state.mode is not None:
            moved = state.model.replaced(features=OutputsAt(self._features, state.mode.value))
            state = replace(state, model=moved)
            self._draw_for(state.model, self.task.em_samples)  # the start is stored with its M z at this mode
            return state
        if state.model.likelihood is self._first:
            return state
        return self._with_new_noise(state, None)

    def step(self, state: EMState) -> EMState:
        task, em, label = self.task, self.task.em, state.label
        self._factor = 1.0 if task.follows else tolerance_factor(state.last_change, em.tolerance)
        state = self._at_mode(state, label, task.em_samples)
        samples = self._last = self._samples(state, label)
        theta, mode = self._mode(state, samples, label)
        gamma, gamma_error, sum_error = effective_dimension(samples, task.em_samples, state.prior)
        gamma = gamma if task.gamma_factor is None else gamma * task.gamma_factor
        alpha = updated_precision(state.prior, gamma, theta[0]) if state.prior.learn else state.prior.precision
        unknown = self._noise_unknown(state, gamma, sum_error)
        if unknown and not self._exact and task.route.exact_if_needed:
            self._exact = True
            return self.step(state)
        model, noise_change, unknown = self._updated_model(state, samples, theta, float(gamma.sum()), unknown)
        before = turned(state.trace, state.prior.precision)
        change = max(change_that_matters(state.prior.precision, alpha, gamma, before), noise_change)
        row = _row(state, model.likelihood, samples, alpha, gamma, gamma_error, sum_error, theta, mode, change)
        trace, near = [*state.trace, row], self._factor == 1
        path = Path.of(trace, gamma, before, em.tolerance * (_EXACTLY if self._exact else 1))
        ahead = max(change, path.distance())
        trace[-1] = replace(row, ahead=ahead)
        settled = em.has_settled(trace, ahead) and near and not unknown
        if settled and task.follows:  # the samples are those of the hyperparameters used, and may stay
            alpha, model = state.prior.precision, state.model
        prior = state.prior.with_precision(alpha)
        if not settled:
            prior, model = _proposed(path, prior, model, task.follows)
        if mode is not None and model is not state.model:  # what is known of the loss is that of the old noise
            mode = replace(mode, memory=None)
        following = EMState(
            prior, model, _kept(samples), mode, trace, settled,
            stuck=bool(unknown) and change <= em.tolerance and near,
            precision_error=_precision_error(trace, state.prior, ahead) if state.prior.learn else None,
            noise_unknown=unknown,
        )  # fmt: skip
        return following if model is state.model else self._with_new_noise(following, state.model.likelihood)

    def finish(self, state: EMState) -> FinalProblem:
        """The last samples are the start of K; a space in coordinates in which A is the identity tells log det."""
        task, self._factor = self.task, 1.0
        state = self._at_mode(state, "final: ", task.num_samples, check=True)
        if len(self._draw.data_part) < task.num_samples:
            self._draw_for(state.model, task.num_samples)
        rhs = self._right_hand_side(state, task.num_samples)
        system, sketch = self._system(state), self._sketch(state)
        start = extended(state.start, rhs)
        if not (task.route.moves_curvature or (task.follows and state.settled)):  # else it is that of the last step
            state = self.with_mode(state)
        if not (task.keeps and task.em.holds(SEARCH, system.precision, len(system.precision))):
            state = state.without_memory()
        if not task.route.whitened_space:
            last = self._last if task.follows and state.settled and isinstance(self._last, Solution) else None
            solution = last if last is not None and last.status is Status.CONVERGED else None
            return FinalProblem(state, system, rhs, start, sketch=sketch, solution=solution)
        scale = system.precision.rsqrt()
        white = whitened(system, scale)
        seen, unseen = (rhs.data_part[: rhs.num_samples] * scale).tensor_split([task.em_samples])
        space = self.space_for_determinant(krylov_space(seen, white.model.slices), white.model, 1.0, unseen)
        determinant = self.determinant(space, 1.0)
        determined = space.determined(1.0) if space.exact else None
        if not task.route.solver_uses_space:
            return FinalProblem(state, system, rhs, start, None, determinant, determined)
        rhs = RightHandSide(rhs.data_part * scale, rhs.prior_part * scale, rhs.num_samples, rhs.seed)
        white = replace(white, preconditioner=space.sketch().at(white.precision))
        return FinalProblem(
            state, white, rhs, whitened_start(space, rhs, start, scale), scale, determinant, determined,
            sketch=space.sketch(),
        )  # fmt: skip

    def _sketch(self, state: EMState) -> Sketch | None:
        """M itself where EM has found its range, or what an earlier fit has seen of it, in the present noise.

        None where the solver has no use for it.
        """
        sketch, likelihood = self.task.sketch, state.model.likelihood
        if not self.task.route.solver_uses_space:
            return None
        if self._range is not None and not self.task.route.moves_curvature:
            factor = likelihood.factor_over(self._first)
            if factor is not None or self._range[0] is state.model:
                return self._range[1].sketch().times(1.0 if factor is None else factor)
        if sketch is None:
            return None
        return sketch if likelihood is self._first else sketch.times(likelihood.factor_over(self._first) or 1.0)

    def _system(self, state: EMState) -> LinearSystem:
        precision, sketch = state.prior.diagonal, self._sketch(state)
        near = None if sketch is None else sketch.at(precision)
        return LinearSystem(state.model, precision, self._draw.diagonal, near)

    def _right_hand_side(self, state: EMState, num_samples: int) -> RightHandSide:
        if self._target is None:
            self._target = target_part(state.model)
        data_part, seeds = self._draw.data_part[:num_samples], self.task.seeds
        return right_hand_side(self.task.seed, state.prior.diagonal, data_part, self._target, seeds)

    def _samples(self, state: EMState, label: str) -> Iterate:
        """The samples: exact in a small problem, else by the solver, from the last step's."""
        task, em = self.task, self.task.em
        rhs = self._right_hand_side(state, task.em_samples)
        if self._exact:
            return self._exact_posterior(state, label).samples(rhs)
        tolerance = em.solve_tolerance
        if state.model.likelihood.is_quadratic and state.prior.learn:  # |mean|_A depends on weak directions too
            tolerance = min(tolerance, em.mode_tolerance)
        return solve_balanced(
            task.solver, self._system(state), rhs, mean_size=task.target_size(state.model.likelihood),
            tolerance=tolerance * self._factor, max_passes=task.max_passes, guess=state.start,
            say=lambda text: task.say(f"{label}samples, {text}"),
        )  # fmt: skip

    def _exact_posterior(self, state: EMState, label: str = "") -> ExactPosterior:
        """The posterior in the whole range of M, which is found again when M changes by more than a factor."""
        moves = self.task.route.moves_curvature  # then a factor is not all that changes
        factor = None if moves else state.model.likelihood.factor_over(self._first)
        model = state.model if factor is None else state.model.replaced(likelihood=self._first)
        draw = self._draw if factor is None else self.task.draw
        if self._range is None or (factor is None and self._range[0] is not state.model):
            start, unseen = draw.data_part.tensor_split([self.task.em_samples])
            known = self.task.space if self._range is None else None
            space, unseen = (krylov_space(start, model.slices), unseen) if known is None else (known, draw.data_part)
            self._range = state.model, grown_to_range(self.task, model, space, unseen, label)
        space = self._range[1]
        return ExactPosterior(space if factor is None else space.times(factor), state.prior.diagonal)

    def _at_mode(self, state: EMState, label: str, count: int, check: bool = False) -> EMState:
        """Where B is taken at the linear mode: find the mode at the present alpha, and move B there."""
        if not self.task.route.moves_curvature:
            return state
        model = state.model.replaced(features=self._features)
        mode = self._linear_mode(model, state, label, check)
        moved = replace(state, mode=mode, model=model.replaced(features=OutputsAt(self._features, mode.value)))
        return self._redrawn(moved, count)

    def _mode(self, state: EMState, samples: Iterate, label: str) -> tuple[Tensor, Mode | None]:
        """(1, P) the mode, or the mean, which is a column behind the samples."""
        if state.model.likelihood.is_quadratic:
            return samples.value[-1:], None
        found = state.mode if self.task.route.moves_curvature else self._linear_mode(state.model, state, label)
        assert found is not None
        return found.value, found

    def _linear_mode(self, model: LinearModel, state: EMState, label: str, check: bool = False) -> Mode:
        near = self._system(state).preconditioner or Jacobi(self._draw.diagonal + state.prior.diagonal)
        return linear_mode(
            model, state.prior.diagonal, near, guess=state.mode,
            tolerance=self.task.em.mode_tolerance * self._factor, check=check,
            say=lambda text: self.task.say(label + text),
        )  # fmt: skip

    def _with_new_noise(self, state: EMState, before: Likelihood | None) -> EMState:
        """With right-hand sides of the state's likelihood: scalar noise only scales them, any other needs a new pass.

        Args:
            state: its likelihood is the new one.
            before: the likelihood that the state's samples belong to; None if it is the new one already.
        """
        ratio = state.model.likelihood.factor_over(self._first)
        if ratio is None:
            return self._redrawn(state, self.task.em_samples)
        draw = self.task.draw
        self._draw, self._target = NoiseDraw(draw.data_part * ratio**0.5, draw.diagonal * ratio), None
        if before is None or state.start is None:
            return state
        change = state.model.likelihood.factor_over(before)
        assert change is not None
        start = replace(state.start, curvature_value=state.start.curvature_value * change, reusable=None)
        return replace(state, start=start)

    def _redrawn(self, state: EMState, count: int) -> EMState:
        """With so many right-hand sides of a B that has changed, and the samples' own M z of it."""
        self._draw_for(state.model, count)
        if state.start is None:
            return state
        image = state.model.curvature_product(state.start.value)
        return replace(state, start=replace(state.start, curvature_value=image, reusable=None))

    def _draw_for(self, model: LinearModel, count: int) -> None:
        """The right-hand sides again, from the same standard normals; EM needs few of them."""
        self._draw, self._target = model.draw_noise(self.task.seed, count), None

    def _was_exact(self, state: EMState) -> bool:
        """Whether a loop that was stopped had gone over to exact traces: once it has, it stays with them."""
        last = state.trace[-1] if state.trace else None
        exact = last is not None and last.passes == 0 and not any(last.effective_dimension_error)
        return exact and self.task.route.exact_if_needed

    def _noise_unknown(self, state: EMState, gamma: Tensor, error: float) -> str:
        """Why N C - gamma cannot tell the noise; empty if it can, or need not."""
        if not state.model.likelihood.learns_noise:
            return ""
        return why_noise_is_unknown(self.task.survey.entries, float(gamma.sum()), error)

    def _updated_model(
        self, state: EMState, samples: Iterate, mode: Tensor, gamma: float, unknown: str
    ) -> tuple[LinearModel, float, str]:
        """The model with its next noise, by how much that changes, and why it is kept where it cannot be told."""
        likelihood, entries = state.model.likelihood, self.task.survey.entries
        if not likelihood.learns_noise or unknown:
            return state.model, 0.0, unknown
        exact = self._exact and not likelihood.scalar_noise
        columns = self._exact_posterior(state).function_columns() if exact else samples.value[: self.task.em_samples]
        residual, function = state.model.noise_moments(mode, columns)
        target = self.task.survey.target
        assert target is not None
        if bool(is_rounding(residual, target, mode.dtype).any()):
            return state.model, 0.0, ALL_MET
        used = 0.0 if likelihood.scalar_noise else likelihood.used_up(function, entries)
        if exact and used > 1 - LEAST_LEFT:
            return state.model, 0.0, why_noise_is_unknown(entries, entries * used, 0.0)
        updated = likelihood.updated(residual, function, gamma, entries, exact)
        old, new = likelihood.noise_precision, updated.noise_precision
        assert old is not None
        assert new is not None
        if old.ndim == 2:
            old, new, target = old.diagonal(), new.diagonal(), target.diagonal()
        spread = (target.to(new) / (entries / new.numel())).sqrt()
        if bool((new.rsqrt() <= FINEST * spread).any()):
            return state.model, 0.0, ALL_MET
        ahead = 1.0 if exact else 1 / max(1 - used, _SLOWEST)  # EM's own update goes so small a part of the way
        return state.model.replaced(likelihood=updated), relative_change(old, new) * ahead, ""


def _row(
    state: EMState, updated: Likelihood, samples: Iterate, alpha: Tensor, gamma: Tensor, gamma_error: Tensor,
    sum_error: float, theta: Tensor, mode: Mode | None, change: float,
) -> EMStep:  # fmt: skip
    noise, solve = state.model.likelihood.noise_precision, samples if isinstance(samples, Solution) else None
    following = updated.noise_precision if updated.learns_noise else None
    error = 0.0 if solve is None else solve.error  # exact samples are not solved for
    return EMStep(
        precision=state.prior.precision.tolist(),
        updated_precision=alpha.tolist(),
        noise_precision=None if noise is None else noise.tolist(),
        updated_noise_precision=None if following is None else following.tolist(),
        effective_dimension=gamma.tolist(),
        effective_dimension_error=gamma_error.tolist(),
        effective_dimension_sum_error=sum_error,
        mode_norm=float((state.prior.diagonal * theta[0].square()).sum()) ** 0.5,
        change=change,
        passes=0 if solve is None else solve.passes,
        mode_error=error if mode is None else mode.error,
        solve_error=error,
        solve_history=[] if solve is None else solve.history,
    )


def turned(trace: list[EMStep], precision: Tensor) -> Tensor:
    """(G,) which groups' alpha rose in an earlier step, from below the present one, where the data said nothing."""
    found = torch.zeros_like(precision, dtype=torch.bool)
    for row in trace:
        used, updated, gamma = (
            precision.new_tensor(each) for each in (row.precision, row.updated_precision, row.effective_dimension)
        )
        found |= (used < precision) & (updated > used) & (gamma <= DETERMINED)
    return found


def _kept(samples: Iterate) -> Start:
    """What the next solve starts from."""
    return Start(
        samples.value, samples.curvature_value, curvature_exact=samples.curvature_exact, reusable=samples.reusable
    )


def _proposed(path: Path, updated: BoundPrior, model: LinearModel, follows: bool) -> tuple[BoundPrior, LinearModel]:
    """Where the next EM step starts: as the path leads.

    A first step that follows a fit to fewer data has none before it; the usual slope takes alpha further.

    Args:
        path: that EM has gone.
        updated: prior with the alpha that MacKay's update has made.
        model: with the noise that it has made.
        follows: whether this follows a fit to fewer data.
    """
    if len(path.used) == 1:
        used = path.used[0][: len(updated.precision)].to(updated.precision)
        further = used * (updated.precision / used) ** (1 / (1 - _USUAL_SLOPE))
        return updated.with_precision(further) if follows else updated, model
    alpha, noise = path.following()
    if noise is not None:
        model = model.replaced(likelihood=model.likelihood.with_noise(noise))
    kept = updated.with_precision(torch.where(updated.learnt, alpha.to(updated.precision), updated.precision))
    return kept, model


def _precision_error(trace: list[EMStep], prior: BoundPrior, ahead: float) -> LogError | None:
    """What the samples leave open of alpha: the error of log gamma over 1 - d log update / d log alpha.

    The slope of the update is read off the last step that moved alpha by more than the noise of the steps; one that
    says nothing counts as a half.
    """
    last, errors = trace[-1], []
    known = zip(last.effective_dimension, last.effective_dimension_error, prior.learnt.tolist(), strict=True)
    for g, (gamma, error, learnt) in enumerate(known):
        if gamma <= DETERMINED or not learnt:  # the data determine nothing here, or nothing depends on them
            continue
        slope = 0.5
        for before in reversed(trace[:-1]):
            moved = log(last.precision[g] / before.precision[g])
            if abs(moved) > 0.1:
                slope = log(last.updated_precision[g] / before.updated_precision[g]) / moved
                break
        errors.append(error / gamma / max(1 - slope, 0.1))
    return LogError(max(errors), ahead) if errors else None
