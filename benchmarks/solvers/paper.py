"""The whole fit as the paper schedules it: every E-step, and every mode, so many epochs of SGD."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, inf, log
from typing import Any

import torch
from experiments.common.command import say
from experiments.common.timing import interleaved
from torch import Tensor

from benchmarks.solvers.contestants import GRID
from benchmarks.solvers.descent import Descent, at_rest, epoch, mode_gradient, sample_gradient
from benchmarks.solvers.fits import EM_TOLERANCE, SAMPLE_TOLERANCE, Subject
from benchmarks.solvers.problem import SEED, Truth, prior_part
from sampla.inference.infer import EM, Inference, infer
from sampla.likelihoods import Categorical
from sampla.model import Ledger, LinearModel
from sampla.priors import GPrior
from sampla.solvers import SGD, BlockCG, LinearSystem, RightHandSide

COLUMNS = 4
"""Columns of SGD know nothing of one another: passes for each are those of any K, and the run is shorter."""
EPOCHS = 20
"""For an E-step, and for a mode."""
TARGET = 15.0
_TRIAL = 10
_STALLED, _FINER = 0.99, 3.0
"""An epoch that leaves more of the error than this is the last at its step size; the grid's ratio."""
_ROUNDS = 3


@dataclass(frozen=True)
class Goal:
    """What the schedule is to reach: the fixed point of EM for its own noise draws."""

    model: LinearModel
    """Whitened."""
    data_part: Tensor
    alpha: float
    truth: Truth
    start: float
    """alpha of the first EM step, the library's own."""

    def rhs(self, alpha: float) -> Tensor:
        """(K, P) b at this alpha."""
        return self.data_part + prior_part(torch.full_like(self.data_part[0], alpha), len(self.data_part))


def paper_schedule(subject: Subject, ours: dict[str, Any], cap: int) -> dict[str, Any]:
    """Run until alpha is within 1 % of its fixed point and the samples at 2 %, or until the ratio is beyond doubt.

    Generous to the paper: step sizes are the best of a grid at the final alpha, choosing them is free, alpha counts as
    found the first time it is within 1 %, and the last solve is told the fixed point and when to lower its step.
    """
    goal = _goal(subject, ours)
    sample_step, chosen = _best_sample_step(goal)
    mode_step, mode_chosen = _best_mode_step(goal)
    cap = min(cap, ceil((TARGET + 1) * ours["passes"]) + EPOCHS)
    run = _Run(goal, sample_step, mode_step, cap)
    reached = run.find_alpha() and run.sharpen()
    columns = ours["columns"]
    return {
        "reached": reached,
        "cap": cap,
        "epochs": run.epochs,
        "mode_epochs": run.mode_epochs,
        "passes": run.epochs + run.halves / 2 + run.mode_epochs / columns,
        "alphas": run.alphas,
        "fixed_point": goal.alpha,
        "error": run.error,
        "chosen": [GRID[chosen], GRID[mode_chosen]],
        "edge": chosen in (0, len(GRID) - 1) or mode_chosen in (0, len(GRID) - 1),
        "timing": _pace(goal.model, columns),
    }


class _Run:
    """The schedule and what it has spent."""

    def __init__(self, goal: Goal, sample_step: float, mode_step: float, cap: int) -> None:
        self._goal, self._steps, self._cap = goal, (sample_step, mode_step), cap
        zero = torch.zeros_like(goal.data_part)
        self._samples, self._mode = at_rest(zero), at_rest(zero[:1])
        self.epochs, self.mode_epochs, self.halves = 0, 0, 0
        self.alphas = [goal.start]
        self.error = inf

    def find_alpha(self) -> bool:
        """EM by SGD; False if the cap comes first."""
        while self.epochs + EPOCHS <= self._cap:
            alpha = self.alphas[-1]
            for _ in range(EPOCHS):
                self._advance_samples(alpha)
                self._advance_mode(alpha)
            z = self._samples.average
            gamma = float((z * self._goal.model.curvature_product(z)).sum(1).mean())
            self.halves += 1
            self.alphas.append(gamma / float(self._mode.average.square().sum()))
            self._samples, self._mode = self._samples.restarted(), self._mode.restarted()
            say(f"paper: {self.epochs} epochs, alpha {self.alphas[-1]:.4g} (fixed point {self._goal.alpha:.4g})")
            if abs(log(self.alphas[-1] / self._goal.alpha)) <= EM_TOLERANCE:
                return True
        return False

    def sharpen(self) -> bool:
        """The samples at the fixed point, until their true error is small; False if the cap comes first.

        A step that brings nothing more, because its noise has been reached, gives way to the next smaller of the grid.
        """
        while self.epochs < self._cap:
            self._advance_samples(self._goal.alpha)
            before, self.error = self.error, _error(self._goal, self._samples)
            if self.error > _STALLED * before:
                self._steps = (self._steps[0] / _FINER, self._steps[1])
            say(f"paper: {self.epochs} epochs, true error of the samples {self.error:.3f}")
            if self.error <= SAMPLE_TOLERANCE:
                return True
        return False

    def _advance_samples(self, alpha: float) -> None:
        goal, rhs = self._goal, self._goal.rhs(alpha)
        self._samples = epoch(goal.model, sample_gradient, alpha, rhs, self._steps[0], self._samples)
        self.epochs += 1

    def _advance_mode(self, alpha: float) -> None:
        zero = torch.zeros_like(self._mode.value)
        self._mode = epoch(self._goal.model, mode_gradient, alpha, zero, self._steps[1], self._mode)
        self.mode_epochs += 1


def _goal(subject: Subject, ours: dict[str, Any]) -> Goal:
    """EM to a fifth of a per cent, samples to a tenth, for the few columns of the schedule."""
    say("paper: the fixed point of EM for its draws")
    model = LinearModel(subject.features, Categorical(), subject.batches, Ledger())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: Inference = infer(
            model, GPrior(), BlockCG(), num_samples=COLUMNS, seed=SEED, tolerance=0.001,
            em=EM(tolerance=0.002, solve_tolerance=0.01, mode_tolerance=0.002, num_samples=COLUMNS, method="samples"),
            log_evidence=False,
        )  # fmt: skip
    data_part = found.model.draw_noise(SEED, COLUMNS).data_part
    solution = found.solution
    truth = Truth(
        solution.value[:COLUMNS].double(), solution.curvature_value[:COLUMNS].double(), solution.error, "block CG"
    )
    return Goal(found.model, data_part, float(found.prior.precision[0]), truth, ours["steps"][0]["alpha"])


def _best_sample_step(goal: Goal) -> tuple[float, int]:
    """By the true error after a few epochs from zero."""
    precision = torch.full_like(goal.data_part[0], goal.alpha)
    system = LinearSystem(goal.model, precision, torch.ones_like(precision))
    rhs = RightHandSide(goal.rhs(goal.alpha), torch.zeros_like(goal.data_part), COLUMNS, SEED)
    automatic = SGD().init(system, rhs, None).step_size

    def after(step: float) -> float:
        state = at_rest(torch.zeros_like(goal.data_part))
        for _ in range(_TRIAL):
            state = epoch(goal.model, sample_gradient, goal.alpha, rhs.total, step, state)
        return _error(goal, state)

    return _least([automatic * factor for factor in GRID], after, "samples")


def _best_mode_step(goal: Goal) -> tuple[float, int]:
    """By the penalised loss after a few epochs from zero."""
    zero = torch.zeros_like(goal.data_part[:1])
    precision = torch.full_like(zero[0], goal.alpha)
    system = LinearSystem(goal.model, precision, torch.ones_like(precision))
    automatic = SGD().init(system, RightHandSide(zero, zero, 1, SEED), None).step_size

    def after(step: float) -> float:
        state = at_rest(zero)
        for _ in range(_TRIAL):
            state = epoch(goal.model, mode_gradient, goal.alpha, zero, step, state)
        loss = goal.model.loss_gradient(state.average)[0]
        return loss + 0.5 * goal.alpha * float(state.average.square().sum())

    return _least([automatic * factor for factor in GRID], after, "mode")


def _least(steps: list[float], after: Callable[[float], float], words: str) -> tuple[float, int]:
    found = [after(step) for step in steps]
    found = [inf if value != value else value for value in found]
    best = min(range(len(steps)), key=found.__getitem__)
    say(f"paper: step size for the {words}: number {best} of the grid, " + ", ".join(f"{v:.3g}" for v in found))
    return steps[best], best


def _error(goal: Goal, state: Descent) -> float:
    return goal.truth.error(state.average, goal.model.curvature_product(state.average))


def _pace(model: LinearModel, columns: int) -> dict[str, float]:
    """Median seconds of a pass of the library, an epoch of SGD on as many columns, and an epoch for the mode."""
    vectors = torch.randn(columns, model.num_parameters, generator=torch.Generator().manual_seed(SEED))
    zero, none = torch.zeros_like(vectors), torch.zeros_like(vectors[:1])
    jobs: dict[str, Callable[[], Any]] = {
        "pass": lambda: model.curvature_product(vectors),
        "epoch": lambda: epoch(model, sample_gradient, 1.0, zero, 1e-12, at_rest(vectors)),
        "mode_epoch": lambda: epoch(model, mode_gradient, 1.0, none, 1e-12, at_rest(none)),
    }
    say(f"timing a pass and an epoch, {_ROUNDS} rounds")
    return interleaved(jobs, least=_ROUNDS, most=_ROUNDS)
