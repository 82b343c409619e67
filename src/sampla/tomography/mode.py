"""The image of largest posterior density, by majorisation, minimisation and a memory of one step.

    f(x) = |T x - y|^2 / (2 sigma^2) + lambda sum_i sqrt((D_i x)^2 + e_i) + delta |x|^2 / 2

lies below the quadratic function that touches it at x and has the second derivative Q + T' T / sigma^2, where Q has the
precisions lambda / sqrt((D_i x)^2 + e_i) of the differences. From x, the step v in x + B v to the least of that one,
with B B' = Q^-1, solves

    (I + B' T' T B / sigma^2) v = -B' grad f(x) = r

by conjugate gradients, until a tenth of r is left: more would be in vain (inexact Newton steps, Dembo, Eisenstat and
Steihaug 1982). The image moves to the least of f itself in the plane of B v and its move before, which costs no product
of B (Chouzenoux, Idier and Moussaoui 2011): where edges are, v alone is far too short. r vanishes at the mode, and
|v|^2 <= |r|^2 counts what is missing as a posterior deviation does, whose square is N for N pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from sampla.tomography.differences import DifferencePrior
from sampla.tomography.operators import Operator
from sampla.tomography.tv import gradient

_LEFT = 0.1
"""Of r, when conjugate gradients stop."""


@dataclass(frozen=True)
class RoundedTV:
    """f: what is least at the mode."""

    operator: Operator
    """T, in float64."""
    measurements: Tensor
    """(m,) y."""
    noise_std: float
    """sigma."""
    strength: float
    """lambda."""
    rounding: Tensor
    """(2, H, W) e, as ``gradient`` lays out differences; above 0."""
    anchor: float
    """delta."""

    def prior(self, image: Tensor) -> DifferencePrior:
        """Q and B at an image."""
        widths = (gradient(image).square() + self.rounding).sqrt()
        return DifferencePrior(self.strength / widths.clamp_min(torch.finfo(torch.float64).tiny), self.anchor)

    def seen(self, images: Tensor) -> Tensor:
        """T x / sigma: (K, H, W) -> (K, m)."""
        return self.operator.forward(images.to(self.operator.like)).cpu() / self.noise_std

    def back(self, measurements: Tensor) -> Tensor:
        """T' y / sigma: (K, m) -> (K, H, W)."""
        return self.operator.adjoint(measurements.to(self.operator.like)).cpu() / self.noise_std

    def missed(self, image: Tensor) -> Tensor:
        """(m,) (T x - y) / sigma."""
        return self.seen(image[None])[0] - self.measurements.cpu() / self.noise_std


def towards_mode(
    density: RoundedTV, image: Tensor, steps: int, enough: float, max_products: int
) -> tuple[Tensor, bool]:
    """The image after so many steps, or as soon as |r| <= ``enough`` sqrt(m), and whether it came to that.

    Args:
        density: f.
        image: (H, W) where to begin.
        steps: at most.
        enough: of a measurement's deviation.
        max_products: with T' T, of each step.
    """
    last: list[Tensor] = []
    for _ in range(steps):
        move, missing = _direction(density, image, max_products)
        if missing <= enough * len(density.measurements) ** 0.5:
            return image, True
        moves = torch.stack([move, *last])
        last = [_least(density, image, moves)]
        image = image + last[0]
    return image, False


def _direction(density: RoundedTV, image: Tensor, max_products: int) -> tuple[Tensor, float]:
    """(H, W) B v, and |r|."""
    prior = density.prior(image)
    slope = density.back(density.missed(image)[None]) + prior.precision_product(image[None])
    rest = -prior.root_transpose_product(slope)
    found, direction, size = torch.zeros_like(rest), rest, float(rest.square().sum())
    first = size
    for _ in range(max_products):
        if size <= _LEFT**2 * first:
            break
        ahead = direction + prior.root_transpose_product(density.back(density.seen(prior.root_product(direction))))
        length = size / float((direction * ahead).sum())
        found, rest = found + length * direction, rest - length * ahead
        size, before = float(rest.square().sum()), size
        direction = rest + size / before * direction
    return prior.root_product(found)[0], first**0.5


def _least(density: RoundedTV, image: Tensor, moves: Tensor) -> Tensor:
    """(H, W) the sum of c_j times ``moves`` (J, H, W) that leads to the least of f."""
    _, height, width = density.rounding.shape
    real = torch.ones(2, height, width, dtype=torch.bool)
    real[0, -1], real[1, :, -1] = False, False  # differences, which those of the last row and column are not
    start, e = gradient(image)[real], density.rounding[real]
    edges = torch.stack([gradient(move)[real] for move in moves])
    seen, flat, strength = density.seen(moves), moves.flatten(1), density.strength
    curvature = seen @ seen.mT + density.anchor * flat @ flat.mT
    slope = seen @ density.missed(image) + density.anchor * flat @ image.flatten()

    def widths(c: Tensor) -> tuple[Tensor, Tensor]:
        ahead = start + c @ edges
        return ahead, (ahead.square() + e).sqrt()

    def value(given: np.ndarray) -> tuple[float, np.ndarray]:
        c = torch.from_numpy(given)
        ahead, width = widths(c)
        quadratic = c @ slope + c @ curvature @ c / 2
        bent = strength * edges @ (ahead / width) + slope + curvature @ c
        return float(strength * width.sum() + quadratic), bent.numpy()

    def bend(given: np.ndarray) -> np.ndarray:
        width = widths(torch.from_numpy(given))[1]
        return (curvature + strength * (edges * (e / width**3)) @ edges.mT).numpy()

    whole = np.eye(len(moves))[0]
    found = minimize(value, whole, jac=True, hess=bend, method="trust-exact", options={"gtol": 0.0, "maxiter": 30})
    chosen: Tensor = torch.tensordot(torch.from_numpy(found.x), moves, 1)
    return chosen
