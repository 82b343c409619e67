"""Exact traces where the problem is small: a Krylov space that holds the whole range of M.

The rank of M is at most R = min(N C, P). A space that holds its whole range has all its eigenvalues but zero, so that

    gamma(a) = sum_i l_i / (l_i + a),    log det(I + M / a) = sum_i log(1 + l_i / a)

need no probes. That is where it matters: noise is learnt from N C - gamma, and with few data the sampling error of
gamma is as large as that.

An invariant block Krylov space need not be whole: of an eigenvalue that comes more often than the block has vectors it
misses some eigenvectors (a last layer with C outputs has every eigenvalue C times). A draw d ~ N(0, M) that the space
has not seen lies in it with probability zero unless it is whole; what sticks out of such draws is where it goes on.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sampla.core.blocks import CHUNK, gram
from sampla.inference.krylov import KrylovSpace
from sampla.inference.state import Task
from sampla.model import LinearModel
from sampla.solvers import Iterate, RightHandSide

_DRAWS = 8
"""Fresh draws that tell whether the space is whole."""
_REFINEMENTS = 2
"""Woodbury's is a difference of numbers |M| / A times as large as z: each repetition on the residual gains as much."""


def grown_to_range(task: Task, model: LinearModel, space: KrylovSpace, draws: Tensor, label: str) -> KrylovSpace:
    """The space, grown until it holds the whole range of M.

    Args:
        task: what is asked of the fit.
        model: in whose coordinates M is meant; its products are taken in full precision.
        space: of this M, however far it has been built; its first start vectors are ``task.em_samples`` draws.
        draws: (k, P), k >= 0, draws from N(0, M) that the space has not seen.
        label: of what is said before every product.
    """
    model, most, again = model.replaced(exact=True), task.route.largest_rank, 0
    while True:
        while not space.complete and len(space.basis) < most:
            task.say(f"{label}Krylov space of {len(space.basis) + len(space.following)} of {most} vectors")
            space = space.grown(model)
        if space.iterations == 0:  # M is zero
            return space
        if len(space.basis) < most:
            if len(draws) == 0:
                again += 1
                draws = model.draw_noise((task.seed + 1_000_003 * again) % 2**63, _DRAWS).data_part
            space, draws = space.widened(draws), draws[:0]
        if space.complete or len(space.basis) >= most:
            return space.closed(task.em_samples)


def unseen_draws(task: Task) -> Tensor:
    """The noise's right-hand sides that EM's space does not start from."""
    return task.draw.data_part[task.em_samples :]


@dataclass(frozen=True)
class ExactPosterior:
    """H = M + A with M = V' T V on all of its range, for any diagonal A: no pass, but (m, m) algebra.

    With T = R R' and C = V A^-1 V', Woodbury's H^-1 = A^-1 - A^-1 V' K V A^-1, K = R (I + R' C R)^-1 R'.
    """

    space: KrylovSpace
    """The whole range of M."""
    precision: Tensor
    """(P,) the diagonal of A, in the coordinates of the space."""

    @cached_property
    def _core(self) -> tuple[Tensor, Tensor]:
        """C and K."""
        values, vectors = self.space.spectrum
        root = vectors * values.sqrt()
        inner = gram(self.space.basis, self.space.basis, self._own_precision.reciprocal()).cpu()
        inverse = torch.linalg.inv(torch.eye(len(root)).to(root) + root.mT @ inner @ root)
        core = root @ inverse @ root.mT
        return inner, (core + core.mT) / 2

    def samples(self, rhs: RightHandSide) -> Iterate:
        """H^-1 B, and the diagonal of H^-1 M."""
        slices = self.space.basis.slices
        total = rest = slices.own(rhs.total)
        value = torch.zeros_like(total)
        for _ in range(1 + _REFINEMENTS):
            value = value + self._inverse(rest)
            image = self._curvature(value)
            rest = total - image - self._own_precision * value
        determined = slices.whole(self._determined()[None])[0]
        return Iterate(slices.whole(value), slices.whole(image), effective_dimension=determined, curvature_exact=False)

    def function_columns(self) -> Tensor:
        """(m, P) vectors z whose mean of phi z z' phi' is phi H^-1 phi', as that of posterior samples is on average.

        In the range of M, V H^-1 V' = C^(1/2) (I + C^(1/2) T C^(1/2))^-1 C^(1/2).
        """
        values, vectors = torch.linalg.eigh(self._core[0])
        root = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
        inner = root @ self.space.gram @ root
        values, vectors = torch.linalg.eigh((inner + inner.mT) / 2)
        columns = root @ vectors * (1 + values.clamp_min(0)).rsqrt()
        basis = self.space.basis
        return basis.slices.whole(basis.combined(columns.mT * len(columns) ** 0.5))

    @cached_property
    def _own_precision(self) -> Tensor:
        """(p,) the diagonal of A in this process's slice, of which all below is."""
        return self.space.basis.slices.own(self.precision)

    def _inverse(self, vectors: Tensor) -> Tensor:
        start = vectors / self._own_precision
        inside = gram(self.space.basis, start).cpu()
        return start - self.space.basis.combined((self._core[1] @ inside).mT) / self._own_precision

    def _curvature(self, vectors: Tensor) -> Tensor:
        return self.space.basis.combined((self.space.gram @ gram(self.space.basis, vectors).cpu()).mT)

    def _determined(self) -> Tensor:
        core, basis = self._core[1].to(self.precision.device), self.space.basis
        parts = (part.double() for part in basis.pieces(CHUNK))
        return torch.cat([((core @ part) * part).sum(0) for part in parts]) / self._own_precision.double()
