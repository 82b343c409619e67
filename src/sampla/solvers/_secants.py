"""Limited-memory BFGS: an inverse Hessian made of a preconditioner and the latest secant pairs (Nocedal 1980)."""

from dataclasses import dataclass, replace

from torch import Tensor

from sampla.solvers._preconditioners import Preconditioner

_KEPT = 20
"""Pairs remembered: 40 vectors of P. Ten do as well where tens of products are enough; where hundreds are needed,
twenty save a fifth of them."""


@dataclass(frozen=True)
class Pair:
    """A step s and the change y = H s of the gradient along it, s'y > 0."""

    step: Tensor
    """(1, P)."""
    change: Tensor
    """(1, P)."""
    curvature: float
    """s'y."""


@dataclass(frozen=True)
class Secants:
    """H^-1, near scale P^-1 and exact along the newest pair: every pair makes it
    (I - s y'/s'y) H^-1 (I - y s'/s'y) + s s'/s'y."""

    preconditioner: Preconditioner
    pairs: tuple[Pair, ...] = ()
    scale: float = 1.0
    """Of P^-1: s'y / y'P^-1 y of the newest pair, because P may be built for a curvature far from the present one."""

    def solve(self, gradient: Tensor) -> Tensor:
        """H^-1 g by the two loops of Nocedal: (1, P) -> (1, P)."""
        rest, weights = gradient, []
        for pair in reversed(self.pairs):
            weights.append(dot(pair.step, rest) / pair.curvature)
            rest = rest - weights[-1] * pair.change
        solved = self.scale * self.preconditioner.solve(rest)
        for pair, weight in zip(self.pairs, reversed(weights), strict=True):
            solved = solved + (weight - dot(pair.change, solved) / pair.curvature) * pair.step
        return solved

    def cautious(self) -> "Secants":
        """With at least P^-1 itself where no pair has been.

        A scale below one comes from strong directions, where the loss bends more than P knows; what is left of an
        error lies in the weak ones, where H is little more than A and P is right.
        """
        return replace(self, scale=max(1.0, self.scale))

    def on(self, preconditioner: Preconditioner) -> "Secants":
        """The same pairs on another preconditioner."""
        secants = Secants(preconditioner)
        for pair in self.pairs:
            secants = secants.taught(pair.step, pair.change)
        return secants

    def taught(self, step: Tensor, change: Tensor) -> "Secants":
        """With one more pair; the same if rounding or a concave loss leaves it without positive curvature."""
        curvature, size = dot(step, change), dot(change, self.preconditioner.solve(change))
        if not (0 < curvature < float("inf") and 0 < size < float("inf")):
            return self
        pairs = (*self.pairs, Pair(step, change, curvature))[-_KEPT:]
        return replace(self, pairs=pairs, scale=curvature / size)


def dot(a: Tensor, b: Tensor) -> float:
    """a'b of two (1, P) vectors."""
    return float((a * b).sum())
