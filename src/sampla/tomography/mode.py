"""A step of reweighted least squares towards the image of largest posterior density.

From x, the correction v in x + B v of the mean under the prior N(0, B B') solves

    (I + B' T' T B / sigma^2) v = B' (T' (y - T x) / sigma^2 - Q x) = r,    Q = (B B')^-1,

by conjugate gradients. What is left of r bounds what is wrong with the image, as a posterior deviation counts it:
|e|^2 = e' (Q + T' T / sigma^2) e <= |r|^2, where a posterior sample has the square N for N pixels.

The prior's weights are those of x, so that this is a step of majorisation and minimisation: the quadratic function that
it minimises lies above the one that is wanted and touches it at x. It falls for every multiple of v below 2.
"""

import torch
from torch import Tensor

from sampla.tomography.differences import DifferencePrior
from sampla.tomography.operators import Operator

_LENGTH = 1.8
"""Times v, a step of the image: half as many are needed as with 1."""


def corrected(
    operator: Operator, prior: DifferencePrior, measurements: Tensor, noise_std: float, image: Tensor,
    error: float, max_products: int,
) -> tuple[Tensor, bool]:  # fmt: skip
    """A step towards the mode, and whether its v is as accurate as asked.

    Args:
        operator: T, in float64.
        prior: B and Q.
        measurements: (m,) y.
        noise_std: sigma.
        image: (H, W) x.
        error: |r| at most.
        max_products: with T' T, at most.
    """

    def back(images: Tensor) -> Tensor:
        return operator.adjoint(images.to(operator.like)).cpu() / noise_std**2

    def curved(white: Tensor) -> Tensor:
        seen = operator.forward(prior.root_product(white).to(operator.like))
        return white + prior.root_transpose_product(back(seen))

    missed = measurements.to(operator.like) - operator.forward(image[None].to(operator.like))
    rest = prior.root_transpose_product(back(missed) - prior.precision_product(image[None]))
    found, direction, size = torch.zeros_like(rest), rest, float(rest.square().sum())
    for _ in range(max_products):
        if size <= error**2:
            break
        ahead = curved(direction)
        length = size / float((direction * ahead).sum())
        found, rest = found + length * direction, rest - length * ahead
        size, before = float(rest.square().sum()), size
        direction = rest + size / before * direction
    return image + _LENGTH * prior.root_product(found)[0], size <= error**2
