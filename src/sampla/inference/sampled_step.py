"""EM from posterior samples (docs/method.md, sections 2 and 3): for what a single Krylov space of M cannot serve.

That is a prior with several alphas, noise that is learnt per output or in full, B at the linear mode, and solvers other
than block conjugate gradients. Every step solves for a few samples, warm-started, with the noise draws kept; the next
alpha comes from a secant through the last two steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import log
from time import perf_counter

import torch
from torch import Tensor

from sampla.core.noise import PRIOR, standard_normal
from sampla.features import Features, OutputsAt
from sampla.inference.evidence import effective_dimension, updated_precision
from sampla.inference.exact import ExactPosterior, grown_to_range
from sampla.inference.krylov import KrylovSpace, krylov_space
from sampla.inference.mackay import (
    ALL_MET,
    DETERMINED,
    LEAST_LEFT,
    accelerated,
    change_that_matters,
    has_settled,
    is_rounding,
    relative_change,
    tolerance_factor,
    why_noise_is_unknown,
)
from sampla.inference.quadrature import LogError
from sampla.inference.state import EMState, EMStep, Task
from sampla.likelihoods import Gaussian, Likelihood
from sampla.model import LinearModel, NoiseDraw
from sampla.priors import BoundPrior
from sampla.solvers import LinearSystem, Mode, RightHandSide, Solution, linear_mode, solve_balanced
from sampla.solvers._preconditioners import Jacobi

_SLOWEST = 0.02
"""EM's update of the noise covers a part 1 - used of the way, at least this."""


def prior_part(task: Task, diagonal: Tensor, num_samples: int) -> Tensor:
    """(K, P) A theta0 = A^(1/2) xi of the right-hand sides."""
    root = diagonal.sqrt()
    return root * standard_normal(task.seed, PRIOR, range(num_samples), 0, tuple(root.shape), root)


def target_part(model: LinearModel) -> Tensor:
    """(1, P) sum_n phi_n' B_n y_n; for a tangent with y_n - f_n + J_n w in place of y_n."""
    return -model.loss_gradient(torch.zeros(1, model.num_parameters).to(model.features.like))[1]


@dataclass
class SampledEM:
    """The right-hand sides as they follow the likelihood and the mode, and the steps made with them."""

    task: Task
    draw: NoiseDraw
    """Of the present likelihood and, if it moves, the present mode."""
    first: Likelihood
    """The likelihood that the task's draw belongs to."""
    moving: Features | None
    """The features, where B is to be taken at the linear mode and so moves with it."""
    target: Tensor | None = None
    """(1, P) of the present likelihood, once it is known."""
    factor: float = 1.0
    space: KrylovSpace | None = None
    """The whole range of M, where E-steps are exact."""
    space_of: LinearModel | None = None
    """Whose M that is."""
    exact: bool = False
    """Whether they are: from the start in a small problem, or since the noise asked for it."""

    def run(self, state: EMState, keep: Callable[[EMState], None]) -> EMState:
        """EM steps until everything learnt has settled, or until the steps are used up."""
        task = self.task
        self.exact = task.route.exact_traces
        stuck = False
        while not state.settled and not stuck and len(state.trace) < task.em.max_steps:
            state = self.step(state)
            keep(state)
            stuck = bool(state.noise_unknown) and state.trace[-1].change <= task.em.tolerance and self.factor == 1
        self.factor = 1.0
        return state

    def step(self, state: EMState) -> EMState:
        """E-step, mode, M-step."""
        task, em, number = self.task, self.task.em, len(state.trace) + 1
        start, spent = perf_counter(), state.model.ledger.products
        self.factor = tolerance_factor(state.last_change, em.tolerance)
        state = self.at_mode(state, f"EM {number}: ")
        tolerance = em.solve_tolerance
        if state.model.likelihood.is_quadratic and state.prior.learn:  # |mean|_A depends on weak directions too
            tolerance = min(tolerance, em.mode_tolerance)
        solution = self._solution(state, tolerance * self.factor, f"EM {number}: ")
        mode, found = self._mode(state, solution, f"EM {number}: ")
        gamma, gamma_error = effective_dimension(solution, task.em_samples, state.prior)
        updated = updated_precision(state.prior, gamma, mode[0]) if state.prior.learn else state.prior.precision
        unknown = self._noise_unknown(state, gamma, gamma_error)
        if unknown and not self.exact and task.route.exact_if_needed:
            self.exact = True
            return self.step(state)
        model, noise_change, kept = self._noise_step(state, solution, mode, float(gamma.sum()), unknown)
        unknown = unknown or kept
        change = max(change_that_matters(state.prior.precision, updated, gamma), noise_change)
        likelihood = state.model.likelihood
        row = EMStep(
            precision=state.prior.precision.tolist(),
            updated_precision=updated.tolist(),
            noise_precision=likelihood.noise_precision.tolist() if isinstance(likelihood, Gaussian) else None,  # type: ignore[union-attr]
            effective_dimension=gamma.tolist(),
            effective_dimension_error=gamma_error.tolist(),
            mode_norm=float((state.prior.diagonal * mode[0].square()).sum()) ** 0.5,
            change=change,
            passes=solution.passes,
            solve_error=solution.error,
            solve_history=solution.history,
            mode_error=solution.error if found is None else found.error,
            seconds=perf_counter() - start,
            products=state.model.ledger.products - spent,
        )
        trace = [*state.trace, row]
        settled = has_settled(em.tolerance, change) and self.factor == 1 and not unknown
        prior = state.prior.with_precision(updated if settled else _proposed(trace, updated))
        shift = 0.5 * float(((prior.diagonal - state.prior.diagonal) * mode[0].square()).double().sum())
        following = EMState(
            prior, model, solution, mode, found, trace, settled,
            precision_error=_precision_error(trace, state.prior) if state.prior.learn else None,
            objective=None if found is None else found.objective + shift, mode_error=row.mode_error,
            noise_unknown=unknown,
        )  # fmt: skip
        if model is not state.model:
            self.renoise(following, before=state.model.likelihood)
        return following

    def right_hand_side(self, state: EMState, num_samples: int) -> RightHandSide:
        """K samples, and for a quadratic likelihood the mean, as one block."""
        data_part, prior = self.draw.data_part[:num_samples], prior_part(self.task, state.prior.diagonal, num_samples)
        if state.model.likelihood.is_quadratic:
            if self.target is None:
                self.target = target_part(state.model)
            data_part = torch.cat([data_part, self.target])
            prior = torch.cat([prior, torch.zeros_like(prior[:1])])
        return RightHandSide(data_part, prior, num_samples, self.task.seed)

    def e_step(self, state: EMState, num_samples: int, tolerance: float, label: str) -> Solution:
        """The block solve, from the last step's solution."""
        task = self.task
        return solve_balanced(
            task.solver, LinearSystem(state.model, state.prior.diagonal, self.draw.diagonal),
            self.right_hand_side(state, num_samples), mean_size=task.mean_size(state.model.likelihood),
            tolerance=tolerance, max_passes=task.max_passes, guess=state.solution,
            say=lambda text: task.say(label + text),
        )  # fmt: skip

    def at_mode(self, state: EMState, label: str) -> EMState:
        """Where B is taken at the linear mode: find the mode at the present alpha, and move B there."""
        if self.moving is None:
            return state
        model = state.model.replaced(features=self.moving)
        found = self._linear_mode(model, state, label)
        moved = replace(
            state, mode=found.value, last_mode=found, objective=found.objective, mode_error=found.error,
            model=model.replaced(features=OutputsAt(self.moving, found.value)),
        )  # fmt: skip
        self.redraw(moved)
        return moved

    def taken_up(self, state: EMState, mode: Tensor) -> EMState:
        """A restored state with B at its mode again, and the right-hand sides that the stopped loop had there."""
        assert self.moving is not None
        state = replace(state, model=state.model.replaced(features=OutputsAt(self.moving, mode)))
        self.redraw(replace(state, solution=None))
        return state

    def renoise(self, state: EMState, before: Likelihood | None = None) -> None:
        """Right-hand sides for a changed noise: scalar noise only scales them, any other needs a new pass.

        Args:
            state: its likelihood is the new one.
            before: the likelihood that the state's solution belongs to; None if it is the new one already.
        """
        ratio = scalar_ratio(state.model.likelihood, self.first)
        if ratio is None:
            return self.redraw(state)
        draw = self.task.draw
        self.draw, self.target = NoiseDraw(draw.data_part * ratio**0.5, draw.diagonal * ratio), None
        if before is not None and state.solution is not None:
            change = scalar_ratio(state.model.likelihood, before)
            assert change is not None
            curvature_value = state.solution.curvature_value * change
            state.solution = replace(state.solution, curvature_value=curvature_value, reusable=None)
        return None

    def redraw(self, state: EMState, num_samples: int | None = None) -> None:
        """The right-hand sides again after B has changed, from the same standard normals; EM needs few of them."""
        count = num_samples or self.task.em_samples
        self.draw, self.target = state.model.draw_noise(self.task.seed, count), None
        if num_samples is not None:
            return
        if state.solution is not None:  # its M z belongs to the old noise: keep z only as far as it can be checked
            state.solution = replace(
                state.solution, curvature_value=state.model.curvature_product(state.solution.value), reusable=None
            )

    def _mode(self, state: EMState, solution: Solution, label: str) -> tuple[Tensor, Mode | None]:
        if state.model.likelihood.is_quadratic:
            return solution.value[-1:], None
        found = self._linear_mode(state.model, state, label) if self.moving is None else state.last_mode
        assert found is not None
        return found.value, found

    def _linear_mode(self, model: LinearModel, state: EMState, label: str) -> Mode:
        return linear_mode(
            model, state.prior.diagonal, Jacobi(self.draw.diagonal + state.prior.diagonal),
            guess=state.last_mode or state.mode, tolerance=self.task.em.mode_tolerance * self.factor,
            say=lambda text: self.task.say(label + text),
        )  # fmt: skip

    def _noise_unknown(self, state: EMState, gamma: Tensor, gamma_error: Tensor) -> str:
        """Why N C - gamma cannot tell the noise; empty if it can, or need not."""
        if not state.model.likelihood.learns_noise:
            return ""
        error = float(gamma_error.square().sum().sqrt())
        return why_noise_is_unknown(self.task.survey.entries, float(gamma.sum()), error)

    def _noise_step(
        self, state: EMState, solution: Solution, mode: Tensor, gamma: float, unknown: str
    ) -> tuple[LinearModel, float, str]:
        """The model with its next noise, by how much that changes, and why it is kept where it cannot be told."""
        likelihood, entries = state.model.likelihood, self.task.survey.entries
        if not (isinstance(likelihood, Gaussian) and likelihood.learns_noise) or unknown:
            return state.model, 0.0, unknown
        exact = self.exact and likelihood.structure != "scalar"
        columns = self._exactly(state).function_columns() if exact else solution.value[: self.task.em_samples]
        residual, function = state.model.noise_moments(mode, columns)
        target = self.task.survey.target
        assert target is not None
        if bool(is_rounding(residual, target, mode.dtype).any()):
            return state.model, 0.0, ALL_MET
        used = 0.0 if likelihood.structure == "scalar" else likelihood.used_up(function, entries)
        if exact and used > 1 - LEAST_LEFT:
            return state.model, 0.0, why_noise_is_unknown(entries, entries * used, 0.0)
        updated = likelihood.updated(residual, function, gamma, entries, exact)
        old, new = likelihood.noise_precision, updated.noise_precision
        assert old is not None
        assert new is not None
        if old.ndim == 2:
            old, new = old.diagonal(), new.diagonal()
        ahead = 1.0 if exact else 1 / max(1 - used, _SLOWEST)  # EM's own update goes so small a part of the way
        return state.model.replaced(likelihood=updated), relative_change(old, new) * ahead, ""

    def _solution(self, state: EMState, tolerance: float, label: str) -> Solution:
        """The E-step: exact in a small problem, else by the solver."""
        if not self.exact:
            return self.e_step(state, self.task.em_samples, tolerance, label + "samples, ")
        return self._exactly(state, label).solution(self.right_hand_side(state, self.task.em_samples))

    def _exactly(self, state: EMState, label: str = "") -> ExactPosterior:
        """The posterior in the whole range of M, which is found again when M changes by more than a factor."""
        factor = scalar_ratio(state.model.likelihood, self.first)
        model = state.model if factor is None else state.model.replaced(likelihood=self.first)
        draw = self.draw if factor is None else self.task.draw
        if self.space is None or (factor is None and self.space_of is not state.model):
            start, unseen = draw.data_part.tensor_split([self.task.em_samples])
            self.space = grown_to_range(self.task, model, krylov_space(start), unseen, label)
            self.space_of = state.model
        space = self.space if factor is None else self.space.times(factor)
        return ExactPosterior(space, state.prior.diagonal)


def _proposed(trace: list[EMStep], updated: Tensor) -> Tensor:
    """Where the next EM step starts: a secant through the last two, where only alpha is learnt."""
    if trace[-1].noise_precision != trace[0].noise_precision:  # the update moves with the noise: no secant
        return updated
    used = [updated.new_tensor(row.precision) for row in trace[-2:]]
    updates = [updated.new_tensor(row.updated_precision) for row in trace[-2:]]
    return accelerated(used, updates)


def _precision_error(trace: list[EMStep], prior: BoundPrior) -> LogError | None:
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
    return LogError(max(errors), last.change) if errors else None


def scalar_ratio(new: Likelihood, old: Likelihood) -> float | None:
    """new / old noise precision if both are scalar."""
    if not (isinstance(new, Gaussian) and isinstance(old, Gaussian)) or new.structure != "scalar":
        return None
    assert new.noise_precision is not None
    assert old.noise_precision is not None
    return float(new.noise_precision / old.noise_precision)
