"""Preconditioned minibatch steps on H d = r, and the step size that they allow."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sampla.core.blocks import dots
from sampla.core.chunks import COLUMNS, ENTRIES
from sampla.core.noise import PROBE, standard_normal
from sampla.linear_batch import LinearBatch
from sampla.model import LinearModel
from sampla.solvers._base import LinearSystem
from sampla.solvers._preconditioners import Preconditioner

_BATCH, _SMALLEST_BATCH, _STEPS = 64, 8, 64
"""Data in a step; fewer where N is small, so that a pass has at least so many steps."""
_STRIDE = 8
"""A pass is read in so many interleaved parts: each is a cross-section of the data, however they are sorted."""
_POWER_BATCHES, _POWER_STEPS = 4, 6
_FAR = 100.0
"""How many times too large a square, in the norm of A, shows that the steps diverge."""
_GROWTH = 3
"""Exponent of the averaging weights: effectively the last half of a run is averaged."""


@dataclass(frozen=True)
class Run:
    """What minibatch steps from d = 0 have found."""

    average: Tensor
    """(K, P)."""
    noise: Tensor
    """(K, P) half the difference between the averages of the third and the last quarter."""
    residual: Tensor
    """(K, P) the mean residual that the second half has still met, r - H_batch d."""
    turn: int
    """Which interleaved part of the data comes next."""


class _Averages:
    """All averages of one run, in place; ``time`` counts full steps."""

    def __init__(self, like: Tensor) -> None:
        self.weighted, self.residual, first, last = (torch.zeros_like(like) for _ in range(4))
        self.quarters, self.weights, self.time = [first, last], [0.0, 0.0], 0.0

    def add(self, value: Tensor, gradient: Tensor, weight: float, progress: float) -> None:
        """Take in a step and where it led; ``progress`` in [0, 1] is how much of the run it ends."""
        self.time += weight
        share = min(1.0, (_GROWTH + 1) * weight / (self.time + _GROWTH))
        self.weighted += share * (value - self.weighted)
        if progress > 0.5:
            part = 0 if progress < 0.75 else 1
            self.quarters[part] += weight * value
            self.residual -= weight * gradient
            self.weights[part] += weight

    def run(self, turn: int) -> Run:
        """What they say; one step or two say nothing about the noise, which is then taken to be all there is."""
        if min(self.weights) == 0:
            return Run(self.weighted, self.weighted, self.residual / max(sum(self.weights), 1e-30), turn)
        first, last = (total / weight for total, weight in zip(self.quarters, self.weights, strict=True))
        return Run(self.weighted, (last - first) / 2, self.residual / sum(self.weights), turn)


def descend(
    system: LinearSystem, inverse: Preconditioner, target: Tensor, step_size: float, passes: float, turn: int
) -> Run | None:
    """Minibatch steps d <- d - eta P^-1 (H_batch d - r) over so many passes; None if they diverged.

    Args:
        system: H.
        inverse: P.
        target: (K, P) r.
        step_size: eta of a full batch; a smaller one takes a smaller step, so that every datum counts the same.
        passes: how much of the data to read.
        turn: which interleaved part of the data comes first.
    """
    model, value = system.model, torch.zeros_like(target)
    averages, goal, seen, full = _Averages(value), passes * model.data.num_data, 0, batch_size(model)
    limit = _FAR * dots(target, target / system.precision).sum()  # |d|_A^2 <= r' H^-1 r <= r' A^-1 r at the solution
    while seen < goal:
        for batch in _minibatches(model, turn, len(target)):
            size = data_in(batch)
            weight = min(1.0, size / full)
            gradient = estimated_product(system, batch, value) - target
            value = value - weight * step_size * inverse.solve(gradient)
            seen += size
            averages.add(value, gradient, weight, seen / goal)
            if seen >= goal:
                break
        turn += 1
        if not bool(dots(value, value * system.precision).sum() <= limit):
            break
    model.ledger.products += len(target) * seen / model.data.num_data
    if seen < goal or not bool(dots(value, value * system.precision).sum() <= limit):
        return None
    return averages.run(turn)


def automatic_step(system: LinearSystem, inverse: Preconditioner, columns: int) -> float:
    """1 / lambda, lambda the largest eigenvalue of P^-1 H_batch over a few minibatches, by power iteration.

    With v = P^-1 u the Rayleigh quotient is v' H v / v' u, and H v is the next u. NaN where it is not positive.
    """
    model, largest = system.model, 0.0
    stride = max(1, model.data.num_data // (_POWER_BATCHES * batch_size(model)))
    probe = standard_normal(0, PROBE, range(1), 0, (model.num_parameters,), system.precision)
    for number, batch in enumerate(_minibatches(model, 0, columns, stride)):
        vector = inverse.solve(probe)
        for _ in range(_POWER_STEPS):
            pushed = estimated_product(system, batch, vector)
            size = float(dots(vector, pushed) / dots(vector, probe))
            probe = pushed / pushed.norm()
            vector = inverse.solve(probe)
        model.ledger.products += _POWER_STEPS * data_in(batch) / model.data.num_data
        if not 0 < size < float("inf"):
            return float("nan")
        largest = max(size, largest)
        if number + 1 == _POWER_BATCHES:
            break
    return 1 / largest


def batch_size(model: LinearModel) -> int:
    """Data in a step."""
    return max(_SMALLEST_BATCH, min(_BATCH, model.data.num_data // _STEPS))


def minibatch_rows(model: LinearModel, columns: int) -> int:
    """Data in a minibatch: as suits products with so many columns, and not (much) more than there are in a step."""
    return ENTRIES // max(min(columns, COLUMNS), ENTRIES // batch_size(model))


def data_in(batch: list[LinearBatch]) -> int:
    """n."""
    return sum(minibatch.stop - minibatch.start for minibatch in batch)


def estimated_product(system: LinearSystem, batch: list[LinearBatch], vectors: Tensor) -> Tensor:
    """H_batch v = (N / n) sum over the batch of phi' B phi v + A v: unbiased for H v."""
    scale = system.model.data.num_data / data_in(batch)
    product = system.precision * vectors
    for minibatch in batch:
        for total, part in zip(product.split(COLUMNS), vectors.split(COLUMNS), strict=True):
            total += scale * minibatch.curvature_product(part)
    return product


def _minibatches(model: LinearModel, turn: int, columns: int, stride: int | None = None) -> Iterator[list[LinearBatch]]:
    """One of the interleaved parts of a pass, in minibatches."""
    full = batch_size(model)
    stride = stride or max(1, min(_STRIDE, model.data.num_data // (2 * full)))
    batch: list[LinearBatch] = []
    for minibatch in model.batches(rows=minibatch_rows(model, columns), stride=stride, offset=turn % stride):
        batch.append(minibatch)
        if data_in(batch) >= full:
            yield batch
            batch = []
    if batch:
        yield batch
