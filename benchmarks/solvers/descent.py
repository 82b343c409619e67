"""The paper's stochastic gradients as its schedule runs them: one pass an epoch, nothing for an error estimate."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sampla.linear_batch import LinearBatch
from sampla.model import LinearModel

MOMENTUM = 0.9

Gradient = Callable[[LinearBatch, Tensor], Tensor]
"""Of the data's part of the objective over one minibatch, (K, P) -> (K, P)."""


@dataclass(frozen=True)
class Descent:
    """Iterate, Nesterov momentum and the geometric average over epochs, all (K, P)."""

    value: Tensor
    velocity: Tensor
    average: Tensor
    epochs: int = 0

    def restarted(self) -> "Descent":
        """From here on with a new objective: the average starts anew."""
        return replace(self, epochs=0)


def at_rest(start: Tensor) -> Descent:
    """Before the first epoch."""
    return Descent(start, torch.zeros_like(start), start)


def epoch(
    model: LinearModel, gradient: Gradient, alpha: float, pull: Tensor, step_size: float, state: Descent
) -> Descent:
    """Once through the data: minimise data part + alpha/2 |z|^2 - pull' z by Nesterov's method.

    Costs one product for each column.
    """
    value, velocity = state.value, state.velocity
    total, count, largest = torch.zeros_like(value), 0, 1
    for batch in model.batches(len(value)):
        size = batch.stop - batch.start
        largest = max(largest, size)
        ahead = value + MOMENTUM * velocity
        slope = (model.data.num_data / size) * gradient(batch, ahead) + alpha * ahead - pull
        velocity = MOMENTUM * velocity - step_size * (size / largest) * slope
        value = value + velocity
        total, count = total + value, count + 1
    mean = total / count
    average = mean if state.epochs == 0 else (state.average + mean) / 2
    return Descent(value, velocity, average, state.epochs + 1)


def sample_gradient(batch: LinearBatch, vectors: Tensor) -> Tensor:
    """Of 1/2 sum_n |phi_n z|_B^2: the noise sits in the regulariser."""
    return batch.curvature_product(vectors)


def mode_gradient(batch: LinearBatch, theta: Tensor) -> Tensor:
    """Of the linear model's own loss."""
    return batch.loss_gradient(theta)[1]
