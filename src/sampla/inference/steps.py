"""Where EM's steps lead, over all its hyperparameters at once: alphas and noise.

Where alphas move alone, each has a secant of its own (mackay.py). Noise that is learnt beside them moves with them, and
the two creep along a valley of the evidence: steps of a few per cent, ten and more of them from its end. There EM goes
in cycles. Two plain steps tell the rate at which steps shrink, a third goes to their limit by Aitken's extrapolation;
plain ones follow, which take off what the long one has stirred up. The coordinates are log alpha of every group and the
logarithm of the noise precision, for full noise the matrix logarithm, entry by entry.

Cycles of two plain steps and a long one: Varadhan and Roland, Simple and globally convergent methods for accelerating
the convergence of any EM algorithm, Scandinavian Journal of Statistics 35(2), 2008.
"""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from sampla.inference.mackay import (
    BEYOND,
    BOUNDS,
    CREEPS,
    LONGEST,
    SLOWEST_LEFT,
    accelerated,
    counted,
    distance_that_matters,
)
from sampla.inference.trace import EMStep

_SAME = 1e-5
"""Difference of logarithms up to which a step has begun where the update before it ended: float32 rounds so."""


@dataclass(frozen=True)
class Path:
    """Hyperparameters of EM's steps, as positive numbers (G + n,): alphas, and the noise over its first value."""

    used: list[Tensor]
    updates: list[Tensor]
    counts: Tensor
    """(G + n,) bool: those that EM waits for."""
    gamma: Tensor
    """(G,) effective dimensions of the last step."""
    turned: Tensor
    first: Tensor | None
    """Noise precision of the first step; None: it is not learnt."""
    least: float
    """Length of a step from which it tells a rate: a shorter one may be an error of the samples."""

    @classmethod
    def of(cls, trace: list[EMStep], gamma: Tensor, turned: Tensor, least: float) -> "Path":
        """The path of a trace.

        Args:
            trace: all steps.
            gamma: (G,) effective dimensions of the last one.
            turned: (G,) bool, as for ``change_that_matters``.
            least: length of a step from which it tells a rate.
        """
        known = None if trace[-1].updated_noise_precision is None else trace[0].noise_precision
        first = None if known is None else torch.tensor(known, dtype=torch.float64)

        def point(alpha: list[float], noise: object) -> Tensor:
            here = torch.tensor(alpha, dtype=torch.float64)
            if first is not None:
                over_first = _logarithms(torch.tensor(noise, dtype=torch.float64)) - _logarithms(first)
                here = torch.cat([here, over_first.exp()])
            return here

        used = [point(row.precision, row.noise_precision) for row in trace]
        updates = [point(row.updated_precision, row.updated_noise_precision) for row in trace]
        gamma, turned = gamma.double().cpu(), turned.cpu()
        more = len(used[-1]) - len(gamma)  # the data always say something about their noise
        padded = torch.cat([gamma, gamma.new_full((more,), inf)]), torch.cat([turned, turned.new_zeros(more)])
        counts = counted(used[-1], updates[-1], *padded)
        return cls(used, updates, counts, gamma, turned, first, least)

    def distance(self) -> float:
        """How far the hyperparameters are from their fixed point, relatively, as far as steps tell."""
        if self.first is None:
            return distance_that_matters(self.used, self.updates, self.gamma, self.turned)
        left = self._step(-1)[self.counts].abs()
        return float(left.max()) * min(max(self._reaches()[:2]), 1 / SLOWEST_LEFT)

    def following(self) -> tuple[Tensor, Tensor | None]:
        """(G,) alpha and the noise precision to go on from."""
        if self.first is None:
            return accelerated(self.used, self.updates), None
        step = self._step(-1)
        reach, size = self._reaches()[0], float(step[self.counts].norm())
        if self._plain(len(self.used) - 1) and reach > 1 / (1 - CREEPS) and size > 0:
            times = min(LONGEST, reach, 1 + BEYOND / size)
            step = step.where(~self.counts, step * times)
        ahead = self.used[-1].log() + step
        groups = len(self.gamma)
        return ahead[:groups].exp().clamp(*BOUNDS), _precision(ahead[groups:] + _logarithms(self.first), self.first)

    def _step(self, number: int) -> Tensor:
        return (self.updates[number] / self.used[number]).log()

    def _plain(self, number: int) -> bool:
        """Whether that step has begun where the update before it ended."""
        if number == 0:
            return False
        return bool(((self.used[number] / self.updates[number - 1]).log().abs() <= _SAME).all())

    def _reaches(self) -> list[float]:
        """How many times a plain step it is to their limit, by every two of them in turn, the last two first.

        After a long step it may look too near: what that has stirred up dies away first. Hence the distance goes by two
        estimates.
        """
        found = []
        for number in range(len(self.used) - 1, 0, -1):
            before, step = (self._step(each)[self.counts] for each in (number - 1, number))
            if self._plain(number) and float(before.norm()) > self.least:
                along = float(step @ before)
                rate = float(step @ step) / along if along > 0 else 0.0  # the later one has less of what dies away
                found.append(1 / (1 - rate) if rate < 1 else inf)
        return found or [1.0]


def _logarithms(precision: Tensor) -> Tensor:
    """(n,) the logarithm of a noise precision (), (C,) or (C, C): of a matrix, the upper half of its own."""
    if precision.ndim < 2:
        return precision.log().reshape(-1)
    values, vectors = torch.linalg.eigh(precision)
    matrix: Tensor = (vectors * values.log()) @ vectors.mT
    return matrix[_upper(precision)]


def _precision(logs: Tensor, like: Tensor) -> Tensor:
    """The noise precision of these ``_logarithms``, in the shape of ``like``."""
    if like.ndim < 2:
        return logs.exp().reshape(like.shape)
    matrix = torch.zeros_like(like)
    matrix[_upper(like)] = logs
    precision: Tensor = torch.linalg.matrix_exp(matrix + matrix.triu(1).mT)
    return precision


def _upper(matrix: Tensor) -> Tensor:
    """(C, C) bool, its upper half with the diagonal."""
    return torch.ones_like(matrix, dtype=torch.bool).triu()
