"""From features, likelihood, prior and data to posterior samples: the EM loop around the solver.

E-step: K samples (and the mean) of the posterior at the present hyperparameters, one block solve, warm-started.
M-step: MacKay's updates from the same samples and the mode of the linear model. The noise draws are kept, so the
loop is deterministic and settles; a new prior precision costs no new pass for the right-hand sides.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter
from typing import Any, Literal, TypeAlias
from warnings import warn

import torch
from torch import Tensor

from sampla._checks import ConvergenceWarning, require, require_known
from sampla.evidence import (
    accelerated,
    change_that_matters,
    effective_dimension,
    relative_change,
    updated_precision,
)
from sampla.features import Features, OutputsAt, ScaledFeatures
from sampla.likelihoods import Gaussian, Likelihood
from sampla.model import LinearModel, NoiseDraw
from sampla.noise import PRIOR, standard_normal
from sampla.priors import BoundPrior, Prior
from sampla.solvers import LinearSystem, Mode, RightHandSide, Solution, Solver, linear_mode, solve

CurvatureAt: TypeAlias = Literal["network", "linear-mode"]


@dataclass(frozen=True)
class EM:
    """When the loop stops and how accurate it works.

    Args:
        tolerance: largest relative change of any prior or noise precision at which EM has settled.
        max_steps: EM steps at most.
        solve_tolerance: function-space error of the E-steps (gamma is off by about its square).
        mode_tolerance: relative error of the linear mode.
    """

    tolerance: float = 0.02
    max_steps: int = 30
    solve_tolerance: float = 0.05
    mode_tolerance: float = 0.005

    def __post_init__(self) -> None:
        for name in ("tolerance", "solve_tolerance", "mode_tolerance"):
            require(0 < getattr(self, name) < 1, f"EM {name} in (0, 1)", f"{getattr(self, name)}", "Try 0.02.")
        require(self.max_steps >= 1, "at least one EM step", f"{self.max_steps}", "Fix the prior with learn=False.")


@dataclass(frozen=True)
class EMStep:
    """One row of the trace."""

    precision: list[float]
    """alpha of each prior group that the E-step used."""
    updated_precision: list[float]
    """What MacKay's update made of it; the next step starts from a secant through these."""
    noise_precision: Any
    """The noise precision that the E-step used; None if the likelihood has none."""
    effective_dimension: list[float]
    effective_dimension_error: list[float]
    """Standard error of the estimate; zero when exact."""
    mode_norm: float
    """|mode|_A at the alpha used."""
    change: float
    """Largest |log ratio| of updated to used precisions, over groups in which the data determine anything."""
    passes: int
    solve_error: float
    solve_history: list[float]
    """Error estimate after each pass of the E-step."""
    mode_error: float
    seconds: float


@dataclass
class EMState:
    """All that an interrupted loop needs to go on as if nothing had happened."""

    prior: BoundPrior
    model: LinearModel
    solution: Solution | None = None
    mode: Tensor | None = None
    trace: list[EMStep] = field(default_factory=list)
    settled: bool = False


@dataclass(frozen=True)
class Inference:
    """The posterior of a linear model in the coordinates of its parameters theta."""

    samples: Tensor
    """(K, P) zero-mean posterior samples of theta - mean."""
    mean: Tensor | None
    """(P,) posterior mean of the linear model: exact for Gaussian, the mode found in EM otherwise (None if fixed)."""
    prior: BoundPrior
    model: LinearModel
    solution: Solution
    effective_dimension: Tensor
    effective_dimension_error: Tensor
    trace: list[EMStep]
    settled: bool


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
    say: Callable[[str], None] = lambda _: None,
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
        say: called with one line at every stage.
        restore: may replace the first state by a stored one.
        keep: called with the state after every EM step.

    Returns:
        The Inference. Warnings say if EM or a solve stopped short.
    """
    require_known(curvature_at, ("network", "linear-mode"), "curvature_at")
    say("checking the data")
    survey = model.survey()
    likelihood = model.likelihood
    if isinstance(likelihood, Gaussian) and survey.residual is not None:
        model = model.replaced(likelihood=likelihood.started(survey.residual, survey.entries))
    say("drawing the noise")
    draw = model.draw_noise(seed, num_samples)
    bound = prior.bind(model.features.layout, draw.diagonal)
    draw = NoiseDraw(draw.data_part * bound.scale, draw.diagonal * bound.scale.square())
    model = model.replaced(features=ScaledFeatures(model.features, bound.scale))
    moving = curvature_at == "linear-mode" and not model.likelihood.is_quadratic
    loop = _Loop(
        solver, em, seed, num_samples, survey.entries, max_passes, say, draw, (draw, model.likelihood),
        model.features if moving else None,
    )  # fmt: skip
    state = restore(EMState(bound, model))
    if state.model is not model:
        loop.renoise(state)
    learns = bound.learn or model.likelihood.learns_noise
    while learns and not state.settled and len(state.trace) < em.max_steps:
        state = loop.step(state)
        keep(state)
    if learns and not state.settled:
        _warn_unsettled(em, state.trace)
    loop.looseness = 1.0
    state = loop.at_mode(state, "final: ")
    solution = loop.e_step(state, tolerance)
    gamma, gamma_error = effective_dimension(solution, num_samples, state.prior)
    quadratic = state.model.likelihood.is_quadratic
    mean = solution.value[num_samples] if quadratic else None if state.mode is None else state.mode[0]
    return Inference(
        solution.value[:num_samples] * bound.scale,
        None if mean is None else mean * bound.scale,
        state.prior, state.model, solution, gamma, gamma_error, state.trace, state.settled or not learns,
    )  # fmt: skip


@dataclass
class _Loop:
    """What stays the same over the EM steps of one fit."""

    solver: Solver[Any]
    em: EM
    seed: int
    num_samples: int
    entries: int
    max_passes: int
    say: Callable[[str], None]
    draw: NoiseDraw
    """Of the present likelihood and, if it moves, the present mode."""
    first: tuple[NoiseDraw, Likelihood]
    """The first draw, and the likelihood it belongs to."""
    moving: Features | None
    """The features, where B is to be taken at the linear mode and so moves with it."""
    target_part: Tensor | None = None
    mode_error: float = float("nan")
    looseness: float = 1.0

    def step(self, state: EMState) -> EMState:
        """E-step, mode, M-step."""
        start, number = perf_counter(), len(state.trace) + 1
        self.looseness = _looseness(self.em, state.trace)
        state = self.at_mode(state, f"EM {number}: ")
        solution = self.e_step(state, self.em.solve_tolerance * self.looseness, label=f"EM {number}: samples, ")
        mode, mode_error = self._mode(state, solution, f"EM {number}: ")
        gamma, gamma_error = effective_dimension(solution, self.num_samples, state.prior)
        updated = updated_precision(state.prior, gamma, mode[0]) if state.prior.learn else state.prior.precision
        model, noise_change = self._noise_step(state, solution, mode, float(gamma.sum()))
        change = max(change_that_matters(state.prior, updated, gamma), noise_change)
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
            mode_error=mode_error,
            seconds=perf_counter() - start,
        )
        trace = [*state.trace, row]
        settled = change <= self.em.tolerance and self.looseness == 1
        prior = state.prior.with_precision(updated if settled else _proposed(trace, updated))
        following = EMState(prior, model, solution, mode, trace, settled)
        if model is not state.model:
            self.renoise(following, before=state.model.likelihood)
        return following

    def e_step(self, state: EMState, tolerance: float, label: str = "final samples, ") -> Solution:
        """K samples, and for a quadratic likelihood the mean, as one block of right-hand sides."""
        prior, model = state.prior, state.model
        root = prior.diagonal.sqrt()
        size = (model.num_parameters,)
        prior_part = root * standard_normal(self.seed, PRIOR, range(self.num_samples), 0, size, root)
        data_part = self.draw.data_part
        if model.likelihood.is_quadratic:
            if self.target_part is None:
                self.target_part = -model.loss_gradient(torch.zeros_like(data_part[:1]))[1]
            data_part = torch.cat([data_part, self.target_part])
            prior_part = torch.cat([prior_part, torch.zeros_like(prior_part[:1])])
        rhs = RightHandSide(data_part, prior_part, self.num_samples, self.seed)
        return solve(
            self.solver, self._system(state), rhs, tolerance=tolerance, max_passes=self.max_passes,
            guess=state.solution, say=lambda text: self.say(label + text),
        )  # fmt: skip

    def at_mode(self, state: EMState, label: str) -> EMState:
        """Where B is taken at the linear mode: find the mode at the present alpha, and move B there."""
        if self.moving is None:
            return state
        model = state.model.replaced(features=self.moving)
        found = self._linear_mode(model, state, label)
        self.mode_error = found.error
        moved = replace(state, mode=found.value, model=model.replaced(features=OutputsAt(self.moving, found.value)))
        self.redraw(moved)
        return moved

    def renoise(self, state: EMState, before: Likelihood | None = None) -> None:
        """Right-hand sides for a changed noise: scalar noise only scales them, any other needs a new pass.

        Args:
            state: its likelihood is the new one.
            before: the likelihood that the state's solution belongs to; None if it is the new one already.
        """
        ratio = _scalar_ratio(state.model.likelihood, self.first[1])
        if ratio is None:
            return self.redraw(state)
        draw = self.first[0]
        self.draw, self.target_part = NoiseDraw(draw.data_part * ratio**0.5, draw.diagonal * ratio), None
        if before is not None and state.solution is not None:
            change = _scalar_ratio(state.model.likelihood, before)
            assert change is not None
            curvature_value = state.solution.curvature_value * change
            state.solution = replace(state.solution, curvature_value=curvature_value, reusable=None)
        return None

    def redraw(self, state: EMState) -> None:
        """The right-hand sides again after B has changed, from the same standard normals."""
        self.draw, self.target_part = state.model.draw_noise(self.seed, self.num_samples), None
        if state.solution is not None:  # its M z belongs to the old noise: keep z only as far as it can be checked
            state.solution = replace(
                state.solution, curvature_value=state.model.curvature_product(state.solution.value), reusable=None
            )

    def _system(self, state: EMState) -> LinearSystem:
        return LinearSystem(state.model, state.prior.diagonal, self.draw.diagonal)

    def _mode(self, state: EMState, solution: Solution, label: str) -> tuple[Tensor, float]:
        if state.model.likelihood.is_quadratic:
            return solution.value[self.num_samples :], solution.error
        if self.moving is not None:
            assert state.mode is not None
            return state.mode, self.mode_error
        found = self._linear_mode(state.model, state, label)
        return found.value, found.error

    def _linear_mode(self, model: LinearModel, state: EMState, label: str) -> Mode:
        return linear_mode(
            model, state.prior.diagonal, self.draw.diagonal,
            guess=state.mode, tolerance=self.em.mode_tolerance * self.looseness,
            say=lambda text: self.say(label + text),
        )  # fmt: skip

    def _noise_step(self, state: EMState, solution: Solution, mode: Tensor, gamma: float) -> tuple[LinearModel, float]:
        likelihood = state.model.likelihood
        if not (isinstance(likelihood, Gaussian) and likelihood.learns_noise):
            return state.model, 0.0
        residual, function = state.model.noise_moments(mode, solution.value[: self.num_samples])
        updated = likelihood.updated(residual, function, gamma, self.entries)
        old, new = likelihood.noise_precision, updated.noise_precision
        assert old is not None
        assert new is not None
        if old.ndim == 2:
            old, new = old.diagonal(), new.diagonal()
        return state.model.replaced(likelihood=updated), relative_change(old, new)


def _looseness(em: EM, trace: list[EMStep]) -> float:
    """How many times looser an EM step may work while the hyperparameters still move by much: 1 to 4."""
    change = trace[-1].change if trace else 1.0
    return min(4.0, max(1.0, change / (5 * em.tolerance)))


def _proposed(trace: list[EMStep], updated: Tensor) -> Tensor:
    """Where the next EM step starts: a secant through the last two, where only alpha is learnt."""
    if trace[-1].noise_precision != trace[0].noise_precision:  # the update moves with the noise: no secant
        return updated
    used = [updated.new_tensor(row.precision) for row in trace[-2:]]
    updates = [updated.new_tensor(row.updated_precision) for row in trace[-2:]]
    return accelerated(used, updates)


def _scalar_ratio(new: Likelihood, old: Likelihood) -> float | None:
    """new / old noise precision if both are scalar."""
    if not (isinstance(new, Gaussian) and isinstance(old, Gaussian)) or new.structure != "scalar":
        return None
    assert new.noise_precision is not None
    assert old.noise_precision is not None
    return float(new.noise_precision / old.noise_precision)


def _warn_unsettled(em: EM, trace: list[EMStep]) -> None:
    warn(
        f"EM was asked to settle within {em.tolerance:.0%}, and after {len(trace)} steps the hyperparameters still "
        f"change by {trace[-1].change:.1%} a step: see report_.trace, raise EM(max_steps=...), or fix the prior "
        "with learn=False.",
        ConvergenceWarning,
        stacklevel=3,
    )


def trace_rows(trace: list[EMStep]) -> list[dict[str, Any]]:
    """The trace as plain dicts, for JSON."""
    return [asdict(step) for step in trace]
