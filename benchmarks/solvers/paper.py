"""The whole fit as the paper schedules it: every E-step, and every mode, so many epochs of SGD."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, inf, log
from typing import Any

import torch
from experiments.common.command import say
from experiments.common.timing import interleaved
from torch import Tensor

from benchmarks.solvers.contestants import GRID
from benchmarks.solvers.fits import EM_TOLERANCE, SAMPLE_TOLERANCE, Subject
from benchmarks.solvers.problem import SEED, Truth, prior_part
from sampla.inference.infer import EM, infer
from sampla.likelihoods import Categorical
from sampla.linear_batch import LinearBatch
from sampla.model import Ledger, LinearModel
from sampla.priors import GPrior
from sampla.solvers import SGD, BlockCG, LinearSystem, RightHandSide

COLUMNS = 4  # of SGD, which know nothing of one another: passes for each are those of any K, and the run is shorter
EPOCHS = 20  # for an E-step, and for a mode
TARGET = 15.0
_MOMENTUM = 0.9
_TRIAL, _ROUNDS = 10, 3
_STALLED, _FINER = 0.99, 3.0  # an epoch that leaves more error than this is the last at its step; the grid's ratio

Gradient = Callable[[LinearBatch, Tensor], Tensor]
"""Of the data's part of the objective over one minibatch, (K, P) -> (K, P)."""


def of_samples(batch: LinearBatch, vectors: Tensor) -> Tensor:
    """Of 1/2 sum_n |phi_n z|_B^2: the noise sits in the regulariser."""
    return batch.curvature_product(vectors)


def of_mode(batch: LinearBatch, theta: Tensor) -> Tensor:
    """Of the linear model's own loss."""
    return batch.loss_gradient(theta)[1]


@dataclass(frozen=True)
class Descent:
    """Iterate, Nesterov momentum and the geometric average over epochs, all (K, P)."""

    value: Tensor
    velocity: Tensor
    average: Tensor
    epochs: int = 0

    @classmethod
    def at_rest(cls, start: Tensor) -> "Descent":
        """Before the first epoch."""
        return cls(start, torch.zeros_like(start), start)

    def epoch(self, model: LinearModel, gradient: Gradient, alpha: float, pull: Tensor, step: float) -> "Descent":
        """Once through the data: minimise data part + alpha/2 |z|^2 - pull' z by Nesterov's method.

        Costs one product for each column, and none for an error estimate.
        """
        value, velocity, total, count, largest = self.value, self.velocity, torch.zeros_like(self.value), 0, 1
        for batch in model.batches(len(value)):
            size = batch.stop - batch.start
            largest = max(largest, size)
            ahead = value + _MOMENTUM * velocity
            slope = (model.data.num_data / size) * gradient(batch, ahead) + alpha * ahead - pull
            velocity = _MOMENTUM * velocity - step * (size / largest) * slope
            value = value + velocity
            total, count = total + value, count + 1
        average = total / count if self.epochs == 0 else (self.average + total / count) / 2
        return Descent(value, velocity, average, self.epochs + 1)


@dataclass(frozen=True)
class Goal:
    """What the schedule is to reach: the fixed point of EM for its own noise draws, in whitened coordinates."""

    model: LinearModel
    data_part: Tensor
    alpha: float
    truth: Truth
    start: float  # alpha of the first EM step, the library's own

    def rhs(self, alpha: float) -> Tensor:
        """(K, P) b at this alpha."""
        return self.data_part + prior_part(torch.full_like(self.data_part[0], alpha), len(self.data_part))

    def error(self, state: Descent) -> float:
        """The true one of the samples."""
        return self.truth.error(state.average, self.model.curvature_product(state.average))


def paper_schedule(subject: Subject, ours: dict[str, Any], cap: int) -> dict[str, Any]:
    """Run until alpha is within 1 % of its fixed point and the samples at 2 %, or until the ratio is beyond doubt.

    Generous to the paper: step sizes are the best of a grid at the final alpha, choosing them is free, alpha counts as
    found the first time it is within 1 %, and the last solve is told the fixed point and when to lower its step.
    """
    goal, columns = _goal(subject, ours), ours["columns"]
    sample_step, chosen = _best_step(goal, of_samples, goal.rhs(goal.alpha), goal.error)
    zero = torch.zeros_like(goal.data_part[:1])
    mode_step, mode_chosen = _best_step(goal, of_mode, zero, lambda state: _penalised_loss(goal, state))
    run = _Run(goal, sample_step, mode_step, min(cap, ceil((TARGET + 1) * ours["passes"]) + EPOCHS))
    reached = run.find_alpha() and run.sharpen()
    return {
        "reached": reached, "cap": run.cap, "epochs": run.epochs, "mode_epochs": run.mode_epochs,
        "passes": run.epochs + run.halves / 2 + run.mode_epochs / columns, "alphas": run.alphas,
        "fixed_point": goal.alpha, "error": run.error, "chosen": [GRID[chosen], GRID[mode_chosen]],
        "edge": not {chosen, mode_chosen}.isdisjoint({0, len(GRID) - 1}), "timing": _pace(goal.model, columns),
    }  # fmt: skip


class _Run:
    """The schedule and what it has spent."""

    def __init__(self, goal: Goal, sample_step: float, mode_step: float, cap: int) -> None:
        self._goal, self._sample_step, self._mode_step, self.cap = goal, sample_step, mode_step, cap
        self._zero = torch.zeros_like(goal.data_part)
        self._samples, self._mode = Descent.at_rest(self._zero), Descent.at_rest(self._zero[:1])
        self.epochs, self.mode_epochs, self.halves = 0, 0, 0
        self.alphas, self.error = [goal.start], inf

    def find_alpha(self) -> bool:
        """EM by SGD; False if the cap comes first."""
        model = self._goal.model
        while self.epochs + EPOCHS <= self.cap:
            alpha = self.alphas[-1]
            for _ in range(EPOCHS):
                self._advance_samples(alpha)
                self._mode = self._mode.epoch(model, of_mode, alpha, self._zero[:1], self._mode_step)
                self.mode_epochs += 1
            z = self._samples.average
            gamma = float((z * model.curvature_product(z)).sum(1).mean())
            self.halves += 1
            self.alphas.append(gamma / float(self._mode.average.square().sum()))
            self._samples, self._mode = (replace(state, epochs=0) for state in (self._samples, self._mode))
            say(f"paper: {self.epochs} epochs, alpha {self.alphas[-1]:.4g} (fixed point {self._goal.alpha:.4g})")
            if abs(log(self.alphas[-1] / self._goal.alpha)) <= EM_TOLERANCE:
                return True
        return False

    def sharpen(self) -> bool:
        """The samples at the fixed point, until their true error is small; False if the cap comes first.

        A step that brings nothing more, because its noise has been reached, gives way to the next smaller of the grid.
        """
        while self.epochs < self.cap:
            self._advance_samples(self._goal.alpha)
            before, self.error = self.error, self._goal.error(self._samples)
            if self.error > _STALLED * before:
                self._sample_step /= _FINER
            say(f"paper: {self.epochs} epochs, true error of the samples {self.error:.3f}")
            if self.error <= SAMPLE_TOLERANCE:
                return True
        return False

    def _advance_samples(self, alpha: float) -> None:
        goal = self._goal
        self._samples = self._samples.epoch(goal.model, of_samples, alpha, goal.rhs(alpha), self._sample_step)
        self.epochs += 1


def _goal(subject: Subject, ours: dict[str, Any]) -> Goal:
    """EM to a fifth of a per cent, samples to a tenth, for the few columns of the schedule."""
    say("paper: the fixed point of EM for its draws")
    model = LinearModel(subject.features, Categorical(), subject.batches, Ledger())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = infer(
            model, GPrior(), BlockCG(), num_samples=COLUMNS, seed=SEED, tolerance=0.001,
            em=EM(tolerance=0.002, solve_tolerance=0.01, mode_tolerance=0.002, num_samples=COLUMNS, method="samples"),
            log_evidence=False,
        )  # fmt: skip
    value, pushed = (of[:COLUMNS].double() for of in (found.solution.value, found.solution.curvature_value))
    data_part = found.model.draw_noise(SEED, COLUMNS).data_part
    truth = Truth(value, pushed, found.solution.error, "block CG")
    return Goal(found.model, data_part, float(found.prior.precision[0]), truth, ours["steps"][0]["alpha"])


def _best_step(goal: Goal, gradient: Gradient, pull: Tensor, judged: Callable[[Descent], float]) -> tuple[float, int]:
    """The step size of the grid that is best after a few epochs from zero, and its number."""
    zero, precision = torch.zeros_like(pull), torch.full_like(pull[0], goal.alpha)
    system = LinearSystem(goal.model, precision, torch.ones_like(precision))
    automatic = SGD().init(system, RightHandSide(pull, zero, len(pull), SEED), None).step_size
    found = []
    for factor in GRID:
        state = Descent.at_rest(zero)
        for _ in range(_TRIAL):
            state = state.epoch(goal.model, gradient, goal.alpha, pull, automatic * factor)
        value = judged(state)
        found.append(inf if value != value else value)
    best = min(range(len(GRID)), key=found.__getitem__)
    say(f"paper: step size for {gradient.__name__}: number {best} of the grid, " + ", ".join(f"{v:.3g}" for v in found))
    return automatic * GRID[best], best


def _penalised_loss(goal: Goal, state: Descent) -> float:
    loss = goal.model.loss_gradient(state.average)[0]
    return loss + 0.5 * goal.alpha * float(state.average.square().sum())


def _pace(model: LinearModel, columns: int) -> dict[str, float]:
    """Median seconds of a pass of the library, an epoch of SGD on as many columns, and an epoch for the mode."""
    vectors = torch.randn(columns, model.num_parameters, generator=torch.Generator().manual_seed(SEED))
    zero, samples = torch.zeros_like(vectors), Descent.at_rest(vectors)
    mode = Descent.at_rest(zero[:1])
    jobs: dict[str, Callable[[], Any]] = {
        "pass": lambda: model.curvature_product(vectors),
        "epoch": lambda: samples.epoch(model, of_samples, 1.0, zero, 1e-12),
        "mode_epoch": lambda: mode.epoch(model, of_mode, 1.0, zero[:1], 1e-12),
    }
    say(f"timing a pass and an epoch, {_ROUNDS} rounds")
    return interleaved(jobs, least=_ROUNDS, most=_ROUNDS)
