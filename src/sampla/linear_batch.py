"""A few data of the linear model: the place where features and likelihood meet."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sampla.core.noise import DATA, standard_normal
from sampla.features import Linearisation, Origin, displaced, predicted
from sampla.likelihoods import Likelihood


@dataclass(frozen=True)
class Asked:
    """What a search for the mode asks of the data: the loss at theta with its gradient, or its Hessian's product."""

    theta: Tensor
    """(1, P)."""
    vector: Tensor | None = None
    """(1, P); None: the gradient is asked for."""
    stride: int = 1
    """The Hessian is to be estimated from every stride-th minibatch."""

    @property
    def rows(self) -> Tensor:
        """(1 or 2, P) theta and the vector."""
        return self.theta if self.vector is None else torch.cat([self.theta, self.vector])


class Companion(Protocol):
    """What goes along with products: it is answered in the same reading of the data, at the price of a block's row."""

    asked: Asked | None
    """What it wants to know; None: nothing any more."""

    def told(self, loss: float, answer: Tensor, products: float) -> None:
        """Take the answer, and ask the next.

        Args:
            loss: at theta.
            answer: (1, P) its gradient, or its Hessian times the vector.
            products: what that has cost.
        """


@dataclass(frozen=True)
class LinearBatch:
    """A few data with their features."""

    features: Linearisation
    likelihood: Likelihood
    targets: Tensor
    start: int
    stop: int
    first_output: int
    """Position of the first output among all outputs of the pass: the key of its noise."""
    origin: Origin | None = None
    """``Features.origin``."""
    weights: Tensor | None = None
    """(n,) how often each datum counts; None: once."""

    def weighted(self, values: Tensor, power: float = 1.0) -> Tensor:
        """Values (..., n, *out) times the weights of their data, or a power of them, and zero where none counts."""
        known = self.likelihood.curvature_weights(self.targets)
        if known is not None:
            values = values * (known.to(values) if power == 1 else known.to(values).pow(power))
        if self.weights is None:
            return values
        inner = self.features.outputs.ndim - 1
        return values * self.weights.to(values).pow(power).view(-1, *[1] * inner)

    def curvature_product(self, vectors: Tensor) -> Tensor:
        """sum_n phi_n' B_n phi_n v over the batch: (K, P) -> (K, P)."""
        return self.features.product(
            vectors, lambda outputs, pushed: self.weighted(self.likelihood.curvature_product(outputs, pushed))
        )

    def noise(self, seed: int, samples: range) -> Tensor:
        """S_n xi_n for the batch, (K, n, *out), with xi keyed by the position of the outputs."""
        outputs = self.features.outputs
        xi = standard_normal(seed, DATA, samples, self.first_output, tuple(outputs.shape), outputs)
        return self.root_product(xi)

    def root_product(self, vectors: Tensor) -> Tensor:
        """S_n xi for the batch, weights included: (K, n, *out) -> (K, n, *out)."""
        return self.weighted(self.likelihood.curvature_root_product(self.features.outputs, vectors), 0.5)

    def root_transpose_product(self, vectors: Tensor) -> Tensor:
        """S_n' u for the batch, weights included: (K, n, *out) -> (K, n, *out)."""
        return self.likelihood.curvature_root_transpose_product(self.features.outputs, self.weighted(vectors, 0.5))

    def noise_gradient(self, seed: int, samples: range) -> Tensor:
        """sum_n phi_n' S_n xi_n over the batch, (K, P)."""
        return self.features.vjp(self.noise(seed, samples))

    def loss_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The loss at phi theta, or of the tangent, and its gradient, both in theta: (1, P) -> (), (1, P)."""
        losses: list[Tensor] = []

        def slope(outputs: Tensor, pushed: Tensor) -> Tensor:
            loss, cotangent = self._slope(predicted(outputs, pushed, self.origin))
            losses.append(loss)
            return cotangent

        gradient = self.features.product(displaced(theta, self.origin), slope)
        return losses[-1], gradient

    def _slope(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and its gradient in the outputs f of the linear model: (1, n, *out) -> (), (1, n, *out)."""
        at = at.detach().requires_grad_()
        with torch.enable_grad():
            each = self.likelihood.loss(at[0], self.targets)
            loss = (each if self.weights is None else each * self.weights.to(each)).sum()
            (cotangent,) = torch.autograd.grad(loss, at)
        return loss.detach(), cotangent

    def product_and_answer(self, vectors: Tensor, asked: int) -> tuple[Tensor, Tensor]:
        """``curvature_product`` of the first vectors, and in the same block what a companion asks.

        Args:
            vectors: (K + 1 or K + 2, P), ending with theta and, if there is one, the vector.
            asked: how many rows these are, 1 or 2.

        Returns:
            (K + 1, P) the product, and the answer behind it; () the loss at theta.
        """
        count = len(vectors) - asked
        losses: list[Tensor] = []
        theta, other = displaced(vectors[count : count + 1], self.origin), vectors[count + 1 :]

        def cotangents(outputs: Tensor, pushed: Tensor) -> Tensor:
            at = predicted(outputs, pushed[count : count + 1], self.origin)
            loss, slope = self._slope(at)
            losses.append(loss)
            curved = [(outputs, pushed[:count]), (at[0], pushed[count + 1 :])]
            first, last = (
                [self.weighted(self.likelihood.curvature_product(f, v))] if len(v) else [] for f, v in curved
            )
            return torch.cat([*first, slope, *last])

        found = self.features.product(torch.cat([vectors[:count], theta, other]), cotangents)
        return torch.cat([found[:count], found[-1:]]), losses[-1]

    def newton_product(self, theta: Tensor, vector: Tensor) -> Tensor:
        """sum_n phi_n' B(phi_n theta) phi_n v over the batch: (1, P), (1, P) -> (1, P)."""
        moved, pushed = self.features.jvp(torch.cat([displaced(theta, self.origin), vector])).split(1)
        at = predicted(self.features.outputs, moved, self.origin)[0]
        return self.features.vjp(self.weighted(self.likelihood.curvature_product(at, pushed)))
