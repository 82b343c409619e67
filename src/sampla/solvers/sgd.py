"""The paper's solver: stochastic gradients with Nesterov momentum and averaging (Antoran et al. 2023, section 4).

Here as the reference that the others are measured against; its step size comes from a power iteration.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from sampla.core.checks import require
from sampla.core.noise import PROBE, standard_normal
from sampla.core.params import row_dot
from sampla.linear_batch import LinearBatch
from sampla.solvers._base import Iterate, LinearSystem, RightHandSide, Solver, Start, error_bound, jacobi_root


@dataclass(frozen=True)
class SGDState:
    """Iterate, momentum and average, all (K, P)."""

    value: Tensor
    velocity: Tensor
    average: Tensor
    step_size: float
    epoch: int = 0
    curvature: Tensor | None = None
    """(K, P) M times the average."""
    bound: float = float("inf")
    largest_batch: int = 1


@dataclass(frozen=True)
class SGD(Solver[SGDState]):
    """Minibatch gradient descent on the sample-then-optimise objective; one step of the loop is one epoch.

    Args:
        objective: "regulariser" puts the noise into the regulariser, once: 1/2 |phi z|_B^2 + 1/2 |z - theta_n|_A^2
            (low variance); "targets" regenerates noisy targets for every datum: 1/2 |phi z - eps|_B^2 + 1/2
            |z - theta0|_A^2, and needs a loader with a fixed order.
        momentum: Nesterov's.
        step_size: None: 1 / (2 lambda), lambda the largest eigenvalue of a minibatch's estimate of H.
        power_iterations: for lambda.

    A constant step leaves noise that no change from epoch to epoch shows, so each epoch is followed by one product with
    M: the error stated is a rigorous bound from the residual of the average, often several times the true error.
    """

    objective: Literal["regulariser", "targets"] = "regulariser"
    momentum: float = 0.9
    step_size: float | None = None
    power_iterations: int = 10

    def init(self, system: LinearSystem, rhs: RightHandSide, guess: Start | None) -> SGDState:
        require(
            self.objective == "regulariser" or system.model.data.fixed_order,
            "a loader with a fixed order for objective='targets', whose noise is keyed by position",
            "a shuffled one",
            "Use objective='regulariser' (the default), or a loader that does not shuffle.",
        )
        start = torch.zeros_like(rhs.data_part) if guess is None else guess.value
        step_size = self.step_size or self._automatic_step(system, len(start))
        return SGDState(start, torch.zeros_like(start), start, step_size)

    def _automatic_step(self, system: LinearSystem, columns: int) -> float:
        """1 / (2 lambda) by power iteration on a few minibatches: what one noisy step can amplify most."""
        largest = 0.0
        for number, batch in enumerate(system.model.batches(columns)):
            vector = standard_normal(0, PROBE, range(1), 0, (system.model.num_parameters,), system.precision)
            for _ in range(self.power_iterations):
                vector = vector / vector.norm()
                pushed = _scaled_product(system, batch, vector)
                size, vector = float((vector * pushed).sum()), pushed
            largest = max(size, largest)
            if number == 3:
                break
        return 0.5 / largest if largest > 0 else float("nan")  # NaN: the first step breaks down and is reported

    def step(self, system: LinearSystem, rhs: RightHandSide, state: SGDState) -> SGDState:
        value, velocity = state.value, state.velocity
        total, count, largest = torch.zeros_like(value), 0, state.largest_batch
        for batch in system.model.batches(len(value)):
            largest = max(largest, batch.stop - batch.start)
            step_size = state.step_size * (batch.stop - batch.start) / largest  # every datum counts the same
            ahead = value + self.momentum * velocity
            gradient = _scaled_product(system, batch, ahead) - self._pull(system, rhs, batch)
            velocity = self.momentum * velocity - step_size * gradient
            value = value + velocity
            total, count = total + value, count + 1
        system.model.ledger.products += len(value)
        state = replace(state, value=value, velocity=velocity, largest_batch=largest)
        return self._averaged(system, rhs, state, total / count)

    def _averaged(self, system: LinearSystem, rhs: RightHandSide, state: SGDState, epoch_mean: Tensor) -> SGDState:
        """Geometric average over epochs, weight 1/2 on the newest: forgets the way there, keeps the noise down."""
        average = epoch_mean if state.epoch == 0 else (state.average + epoch_mean) / 2
        curvature = system.model.curvature_product(average)
        residual = rhs.total - curvature - system.precision * average
        size = row_dot(average, curvature).clamp_min(0).sqrt()  # |phi z|_B
        bound = error_bound(system, residual * jacobi_root(system), size)
        return replace(state, average=average, curvature=curvature, epoch=state.epoch + 1, bound=bound)

    def _pull(self, system: LinearSystem, rhs: RightHandSide, batch: LinearBatch) -> Tensor:
        """What the gradient is compared with: all of b, or this batch's share of its data part."""
        if self.objective == "regulariser":
            return rhs.total
        pull = rhs.prior_part.clone()
        if rhs.num_samples > 0:
            noise = batch.noise_gradient(rhs.seed, range(rhs.num_samples))
            pull[: rhs.num_samples] += _weight(system, batch) * noise
        pull[rhs.num_samples :] += rhs.data_part[rhs.num_samples :]
        return pull

    def error(self, state: SGDState) -> float:
        return state.bound if bool(state.value.isfinite().all()) else float("nan")

    def solution(self, system: LinearSystem, rhs: RightHandSide, state: SGDState) -> Iterate:
        curvature = state.curvature
        curvature = system.model.curvature_product(state.average) if curvature is None else curvature
        return Iterate(state.average, curvature)


def _weight(system: LinearSystem, batch: LinearBatch) -> float:
    return system.model.data.num_data / (batch.stop - batch.start)


def _scaled_product(system: LinearSystem, batch: LinearBatch, vectors: Tensor) -> Tensor:
    """An unbiased estimate of H v from one minibatch."""
    return _weight(system, batch) * batch.curvature_product(vectors) + system.precision * vectors
