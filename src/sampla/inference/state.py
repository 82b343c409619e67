"""What stays the same over a fit, what the loop over hyperparameters remembers, and what it leaves behind."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sampla.core.checks import complain
from sampla.inference.evidence import LogEvidence
from sampla.inference.krylov import KrylovSpace
from sampla.inference.mackay import out_of_bounds
from sampla.inference.quadrature import LogError
from sampla.inference.route import Route
from sampla.inference.settings import EM
from sampla.inference.trace import EMStep
from sampla.likelihoods import Likelihood
from sampla.model import LinearModel, NoiseDraw
from sampla.priors import BoundPrior
from sampla.solvers import Mode, Sketch, Solution, Solver, Start
from sampla.survey import Survey

_FALLING = 0.2
"""Change of a late EM step by which the noise is on its way to zero, as a rule: the model explains all the targets."""
_LARGEST_PERCENTAGE = 10.0
"""An error of a logarithm from which it is not given as a percentage."""


Seeds: TypeAlias = tuple[tuple[int, int], ...]
"""Seeds of the prior's noise, each with the number of samples that it is of, in their order."""


@dataclass(frozen=True)
class EMState:
    """All that an interrupted loop needs to go on as if nothing had happened."""

    prior: BoundPrior
    model: LinearModel
    start: Start | None = None
    """The samples of the last E-step, from which the next solve starts."""
    mode: Mode | None = None
    """The linear mode last found, where the likelihood is not quadratic: that of the hyperparameters before the last
    update."""
    trace: list[EMStep] = field(default_factory=list)
    settled: bool = False
    stuck: bool = False
    """Whether further steps would bring nothing: the Krylov space may not grow, or the noise stays unknown."""
    space: KrylovSpace | None = None
    """Of M as it was at the first noise precision, or of the present B where that moves."""
    place: Tensor | None = None
    """(1, P) theta at whose outputs J theta B is taken, where it follows the mode; None: at the network's."""
    noise_factor: float = 1.0
    """Present noise precision over the first, where the Krylov space serves every noise precision."""
    precision_error: LogError | None = None
    noise_error: LogError | None = None
    noise_unknown: str = ""
    """Why the noise precision was kept where it should have been learnt; empty if it was learnt."""

    @property
    def last_change(self) -> float:
        """By how much the last step changed the hyperparameters; one before the first."""
        return self.trace[-1].change if self.trace else 1.0

    @property
    def label(self) -> str:
        """What the next step calls itself where progress is reported."""
        return f"EM {len(self.trace) + 1}: "

    def without_memory(self) -> "EMState":
        """Without what the search for modes has learnt, which is large: no mode is to be found any more."""
        return self if self.mode is None else replace(self, mode=replace(self.mode, memory=None))


@dataclass(frozen=True)
class Task:
    """What stays the same over the steps of one fit."""

    solver: Solver[Any]
    em: EM
    seed: int
    num_samples: int
    survey: Survey
    draw: NoiseDraw
    """The right-hand sides' data parts at the first likelihood, in the coordinates of the prior's scale."""
    tolerance: float
    max_passes: int
    route: Route
    say: Callable[[str], None]
    keeps: bool = False
    """Whether what an update with new data needs is kept."""
    seeds: Seeds = ()
    """Of the prior's noise, where the samples have been drawn at several times; empty: ``seed`` is of all."""
    sketch: Sketch | None = None
    """Of M, from before new data were added to them."""
    space: KrylovSpace | None = None
    """Of M, where the range of what it was before is in it already: to be grown to the whole range."""
    gamma_factor: Tensor | None = None
    """(G,) what the samples' gamma is multiplied by: a better estimate of the old data's over what the samples told of
    it, whose errors are the same."""

    @property
    def follows(self) -> bool:
        """Whether this follows a fit to fewer data: the hyperparameters are all but right then."""
        return bool(self.seeds)

    @property
    def em_samples(self) -> int:
        """How many right-hand sides EM works with."""
        return min(self.em.num_samples, self.num_samples)

    def target_size(self, likelihood: Likelihood) -> float:
        """sum_n y_n' B_n y_n of a Gaussian likelihood: |phi mean|_B^2 is at most about this. Zero for others."""
        return 0.0 if self.survey.target is None else likelihood.weighted(self.survey.target)


@dataclass(frozen=True)
class Posed:
    """What is kept of the final linear system, to measure the error of its solution later.

    The right-hand sides cannot be drawn again: a loader that shuffles gives another draw on every pass.
    """

    signs: Tensor
    """(k, K) of 1 and -1."""
    combined: Tensor
    """(k, P) sum_k s_k b_k of the K samples' right-hand sides, with these signs."""
    diagonal: Tensor
    """(P,) an estimate of the diagonal of M, for preconditioning."""


@dataclass(frozen=True)
class Kept:
    """What is kept of a fit so that new data can be added to it, in the coordinates of the model."""

    data_part: Tensor
    """(K, P) of the samples' right-hand sides, and of the mean's behind them where there is one."""
    survey: Survey
    seeds: Seeds
    sketch: Sketch | None
    """Of M, from all that it has been multiplied with; None where that would take much memory."""
    mode: Mode | None = None
    """The linear mode, with what its search has learnt of the loss where that takes little memory; None where it is
    the mean of the samples' system, or has not been wanted."""


@dataclass(frozen=True)
class Inference:
    """The posterior of a linear model in the coordinates of its parameters theta.

    Where the prior has a mean, the parameters of ``model.features`` are theta less that."""

    samples: Tensor
    """(K, P) zero-mean posterior samples of theta - mean."""
    mean: Tensor | None
    """(P,) posterior mean of the linear model: exact for Gaussian, the mode found in EM otherwise (None if fixed)."""
    prior: BoundPrior
    model: LinearModel
    solution: Solution
    effective_dimension: Tensor
    effective_dimension_error: Tensor
    effective_dimension_sum_error: float
    """Standard error of the sum over the groups, whose own errors are not independent."""
    trace: list[EMStep]
    settled: bool
    method: str
    """How the hyperparameters were found: "krylov", "samples" or "fixed"."""
    log_evidence: LogEvidence | None
    mean_error: float
    """Relative error of the mean, estimated; NaN where there is none."""
    precision_error: LogError | None
    """Relative errors of alpha, where they are known."""
    noise_error: LogError | None
    posed: Posed
    unsettled: str = ""
    """What keeps EM from having settled; empty if it has."""
    kept: Kept | None = None
    """For new data; None where it was not asked for."""

    @property
    def mean_from_prior(self) -> Tensor | None:
        """(P,) the mean less the prior's, as the parameters of ``model.features`` have it."""
        prior = self.prior.mean
        return self.mean if self.mean is None or prior is None else (self.mean.double() - prior).to(self.mean)


def complain_unsettled(task: Task, state: EMState) -> str:
    """Say that EM stopped before it had settled; returns what is open, for the report."""
    steps, reason = len(state.trace), what_is_open(task, state)
    complain(
        "EM",
        state.trace[-1].change,
        f"EM was asked to settle within {task.em.tolerance:.0%}, and after {steps} steps {reason}. See report_.trace; "
        "with learn=False the prior is kept as it is given.",
    )
    return reason


def is_stopped(state: EMState) -> bool:
    """Whether a precision to learn has come to the end of what numbers are taken for."""
    last, learnt = state.trace[-1], state.prior.learnt.cpu()
    found = torch.tensor([last.updated_precision, last.effective_dimension], dtype=torch.float64)
    return out_of_bounds(*found[:, learnt])


def is_sound(state: EMState) -> bool:
    """Whether the last step may be the end of EM, whatever rule says so."""
    return isfinite(state.trace[-1].mode_norm) and not is_stopped(state)


def what_is_open(task: Task, state: EMState) -> str:
    """What keeps EM from having settled, with its number, and what helps: the first thing that applies."""
    last, most, space = state.trace[-1], task.route.max_rows, state.space
    if state.noise_unknown:
        rank = task.route.largest_rank
        sampled = last.effective_dimension_error[0] > 0
        exactly = f", EM(exact_up_to={rank}, max_rows={rank}) for exact traces" if sampled else ""
        return (
            f"the noise is not known, because {state.noise_unknown}: give Gaussian(noise_precision=1 / std**2), fewer "
            f"parameters=[...]{exactly}, or more data"
        )
    if is_stopped(state):
        return (
            "the prior's precision is stopped at 1e-30 or 1e30: give inputs, or targets, in units "
            "in which their numbers are nearer to one"
        )
    if not isfinite(last.mode_norm):
        return "the mode of the linear model is not finite at its precision: give the prior a larger first precision"
    moves = last.change > task.em.tolerance
    if last.moving is not None and 2 * last.moving > task.em.tolerance:
        return (
            f"the curvature at the linear mode still moves, and the prior's precision with it by {last.moving:.1%}: "
            "raise EM(max_steps=...)"
        )
    truncation = last.truncation or 0.0
    if space is not None and truncation > task.em.tolerance / 2 and not (last.mode_error and moves):
        wide = f"the Krylov space of {len(space.basis)} vectors"
        if space.complete:
            kind = str(space.basis.dtype).removeprefix("torch.")
            remedy = "use float64" if kind != "float64" else "give the noise or the prior's precision"
            return f"rounding of {kind} leaves the hyperparameters open by {_percent(truncation)}: {remedy}"
        full = len(space.basis) + len(space.following) > most
        more = f"EM(max_rows=...), it is full with {most}" if full else "EM(max_steps=...)"
        return f"{wide} leaves the hyperparameters open by {_percent(truncation)}: raise {more}"
    if moves:
        falling = state.model.likelihood.learns_noise and last.change > _FALLING
        remedy = ", or give Gaussian(noise_precision=1 / std**2) if the noise only ever falls" if falling else ""
        return f"the hyperparameters still change by {last.change:.1%} a step: raise EM(max_steps=...){remedy}"
    if last.ahead is not None and last.ahead > task.em.tolerance:
        return (
            f"the hyperparameters creep, and are about {_percent(last.ahead)} from where they are going: raise "
            "EM(max_steps=...)"
        )
    if last.mode_error <= min(task.em.mode_tolerance, task.em.tolerance / 4):
        return "it has not settled by EM.has_settled, a rule of your own: raise EM(max_steps=...), or change the rule"
    return (
        f"the linear mode is known to {last.mode_error:.2%} only, of which alpha needs more: raise EM(max_steps=...), "
        "or use float64 where rounding stops the search"
    )


def _percent(error: float) -> str:
    return f"{error:.1%}" if error < _LARGEST_PERCENTAGE else "more than ten times"
