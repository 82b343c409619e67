"""A mode of the linear model, and what is kept of the search for it."""

from dataclasses import dataclass, field
from math import inf

import torch
from torch import Tensor

from sampla.linear_batch import Asked
from sampla.model import LinearModel
from sampla.solvers._preconditioners import Jacobi, Preconditioner
from sampla.solvers._secants import Pair, Secants, dot


@dataclass(frozen=True)
class Mode:
    """theta*, and how close."""

    value: Tensor
    """(1, P)."""
    objective: float
    """F(value)."""
    error: float
    """Estimate of |value - theta*|_H / |theta*|_A: sqrt(g' H^-1 g) / |value|_A with the gradient g at value and the
    secants' H^-1. As |.|_H >= |.|_A, the relative error of |theta*|_A^2 is about twice this.
    Within a factor of two in nine of ten cases tried; a quarter of the truth at worst, with a diagonal preconditioner
    on badly scaled features."""
    steps: int
    products: float
    """What it cost (a loss gradient is one product)."""
    converged: bool
    bound: float
    """|value - theta*|_A / |theta*|_A is at most this: F is strongly convex, hence |value - theta*|_A <= |g|_{A^-1}.
    Up to the rounding of g, and infinite if log_prob was seen not to be concave or g is too large to tell."""
    memory: "Memory | None" = field(default=None, repr=False)
    """To go on from, when A has changed: the data part of everything learnt stays true."""


@dataclass(frozen=True)
class Memory:
    """What a mode knows about the loss: a new A then costs no product to begin with."""

    precision: Tensor
    """(P,) the A of the pairs."""
    loss: float
    gradient: Tensor
    """(1, P) of the loss alone, at the mode."""
    secants: Secants

    @classmethod
    def of(cls, precision: Tensor, loss: float, gradient: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> "Memory":
        """The memory that was kept as these tensors and numbers: see ``pairs``."""
        kept = tuple(Pair(step, change, dot(step, change)) for step, change in pairs)
        return cls(precision, loss, gradient, Secants(Jacobi(precision), kept))

    @property
    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Steps and the changes of the gradient along them, (1, P) each; all that ``moved`` needs of the secants."""
        return [(pair.step, pair.change) for pair in self.secants.pairs]

    def moved(self, precision: Tensor, preconditioner: Preconditioner) -> Secants:
        """The secants for another A: (H + dA) s = y + dA s."""
        moved = Secants(preconditioner)
        for pair in self.secants.pairs:
            moved = moved.taught(pair.step, pair.change + (precision - self.precision) * pair.step)
        return moved


class AtZero:
    """A companion that learns the loss and its gradient at theta = 0, where a first search starts, whatever A is."""

    def __init__(self, model: LinearModel) -> None:
        self.asked: Asked | None = Asked(torch.zeros(1, model.num_parameters).to(model.features.like))
        self._known: tuple[Tensor, float, Tensor] | None = None

    def told(self, loss: float, answer: Tensor, products: float) -> None:
        """Keep it (``Companion.told``)."""
        assert self.asked is not None
        self._known, self.asked = (self.asked.theta, loss, answer), None

    def mode(self, precision: Tensor) -> Mode | None:
        """To start a search from; None if nothing came by that took it along."""
        if self._known is None:
            return None
        theta, loss, gradient = self._known
        memory = Memory(precision, loss, gradient, Secants(Jacobi(precision)))
        return Mode(theta, loss, inf, 0, 0.0, False, inf, memory)
