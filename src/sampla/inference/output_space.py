"""A block Krylov space of G = S' phi phi' S, whose vectors have one number for each output: where N C is far below P.

G (N C, N C) and M = phi' S S' phi (P, P) have the same eigenvalues but zero. With x standard normal, d = phi' S x is a
draw from N(0, M), and for every f

    d' f(M) d = x' G f(G) x.

So the space of G from x tells what the space of M from d does, and a thousand of its vectors take no memory. For f(l) =
1 / (l + a) and its mixtures l f(l) is a constant minus such a mixture: the two quadratures change sides.
"""

from dataclasses import fields
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from sampla.core.stack import Stack
from sampla.inference.krylov import KrylovSpace, Quadrature, krylov_space

Space = TypeVar("Space", bound=KrylovSpace)


class OutputSpace(KrylovSpace):
    """With the quadratures of M's space: weights l w, and the lower rule where there is the upper one."""

    @cached_property
    def gauss(self) -> Quadrature:
        """Below the truth for the f of M's space."""
        return _of_parameters(self._outputs.gauss_radau)

    @cached_property
    def gauss_radau(self) -> Quadrature:
        """Above the truth for the same f."""
        return _of_parameters(self._outputs.gauss)

    @cached_property
    def _outputs(self) -> KrylovSpace:
        """The same space, for functions of G itself."""
        return _as(KrylovSpace, self)

    @cached_property
    def quadrature(self) -> Quadrature:
        return 0.5 * self.gauss + 0.5 * self.gauss_radau

    @property
    def images(self) -> Stack:
        """(m, N C) V G, by Lanczos' recurrence."""
        basis = torch.cat(self.basis.parts)
        images = self.gram.to(basis) @ basis
        images[len(basis) - len(self.coupling) :] += self.coupling.to(basis) @ self.following
        return Stack([images])


def output_space(start: Tensor) -> OutputSpace:
    """The space before the first product, from x (k, N C), float64."""
    return as_output_space(krylov_space(start))


def as_output_space(space: KrylovSpace) -> OutputSpace:
    """The same numbers, taken for those of a space of G."""
    return _as(OutputSpace, space)


def _as(kind: type[Space], space: KrylovSpace) -> Space:
    return kind(**{one.name: getattr(space, one.name) for one in fields(KrylovSpace)})


def _of_parameters(rule: Quadrature) -> Quadrature:
    return Quadrature(rule.nodes, rule.weights * rule.nodes[:, None])
