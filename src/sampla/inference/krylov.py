"""A block Krylov space of M, with which every prior precision can be served: M does not depend on alpha.

Block Lanczos (Golub and Underwood 1977) with full re-orthogonalisation: V is orthonormal, T = V M V'. Quadratic forms
x' f(M) x of the start vectors x are read off T for every f at once by Gauss quadrature and, because M has no negative
eigenvalue, by Gauss-Radau with a node at zero (Golub and Meurant 2010, chapters 6 and 7). For f(x) = 1 / (x + a), and
so for sums of such with positive weights, log(1 + x / a) / x among them, the first is below the truth (it is Galerkin's
solution) and the second above it (its matrix continues T and is nowhere above M). For 1 / (x + a)^2 that is a theorem
with one start vector only: a block can be on the wrong side, by little. V with T is a sketch of M for preconditioning;
V' (T + alpha)^-1 V b starts a solve.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from sampla.core.blocks import CHUNK, dots, gram, orthonormal
from sampla.core.stack import Stack
from sampla.distributed import Slices
from sampla.solvers import Sketch

_TAIL = 0.25
"""The quantile of the Ritz values that a sketch takes for the level of M outside the space."""
_MOST_MOVED = 2.0
"""Times itself that an eigenvalue may become; one that rounding moves by more is rounding itself."""
_ROUNDING = 4.0
"""Rounding errors by which every eigenvalue is taken to be off, all in the same direction."""


class Multiplies(Protocol):
    """What a space is grown by: a model, whose M it is of, or ``OutputProducts``."""

    def curvature_product(self, vectors: Tensor) -> Tensor:
        """M v: (K, P) -> (K, P)."""


@dataclass(frozen=True)
class Quadrature:
    """x' f(M) x = sum_q w_q f(lambda_q), for each of k vectors x."""

    nodes: Tensor
    """(q,) at least zero, float64."""
    weights: Tensor
    """(q, k) at least zero, float64."""

    def __add__(self, other: "Quadrature") -> "Quadrature":
        """The sum of the two rules, or with ``0.5 *`` their mean."""
        return Quadrature(torch.cat([self.nodes, other.nodes]), torch.cat([self.weights, other.weights]))

    def __rmul__(self, factor: float) -> "Quadrature":
        return Quadrature(self.nodes, factor * self.weights)


@dataclass(frozen=True)
class KrylovSpace:
    """span{X, M X, M^2 X, ...} as far as it has been built, in the coordinates of the features.

    The small matrices are on the CPU, wherever the vectors are: they are worked on a number at a time.
    """

    basis: Stack
    """(m, P) V, orthonormal rows; a part for every multiplication, behind an empty one. Where the data are spread over
    processes each holds a slice of these and of the next rows; vectors that come or go are whole."""
    gram: Tensor
    """(m, m) T = V M V', float64."""
    following: Tensor
    """(j, P) the next rows, orthonormal to V, which M has not multiplied yet; none when the space is invariant."""
    coupling: Tensor
    """(i, j) M maps the last i rows of the basis onto themselves, earlier ones, and these times the next rows."""
    start: Tensor
    """(m, k) V X'; (j, k) before the first product."""
    widths: tuple[int, ...]
    """How many rows each multiplication added."""
    exact: int = 0
    """Where the space is known to hold the whole range of M: of how many start vectors, the first ones, distributed as
    N(0, M), the quadratic forms are replaced by their expectation, the trace of M f(M). Else zero."""

    @property
    def iterations(self) -> int:
        """How often M has been applied."""
        return len(self.widths)

    @property
    def complete(self) -> bool:
        """Whether the space is invariant: what is read off it is then exact for its start vectors."""
        return len(self.following) == 0

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """(m,) Ritz values, and (m, m) their vectors in the basis, float64."""
        values, vectors = torch.linalg.eigh(self.gram)
        return values.clamp_min(0), vectors

    @cached_property
    def gauss(self) -> Quadrature:
        """Below the truth for f(x) = 1 / (x + a) and its mixtures."""
        values, vectors = self.spectrum
        if self.exact:
            return self._traces(values - self.rounding)
        return Quadrature(values, (vectors.mT @ self.start).square())

    @cached_property
    def gauss_radau(self) -> Quadrature:
        """Above the truth for the same f: T is continued by one block that gives it the eigenvalue zero.

        The block is D = C' (T^-1)_last C with C the coupling: the Schur complement D - C' T^-1 C of the continued
        matrix is zero then.
        """
        values, vectors = self.spectrum
        if self.exact:
            return self._traces(values + self.rounding)
        if self.complete:
            return self.gauss
        floor = torch.finfo(self.basis.dtype).eps * values.max()
        corner = vectors[len(self.gram) - len(self.coupling) :]
        last = (corner / values.clamp_min(floor)) @ corner.mT
        size, added = len(self.gram), self.coupling.shape[1]
        whole = pad(self.gram, (0, added, 0, added))
        whole[size - len(self.coupling) : size, size:] = self.coupling
        whole[size:, size - len(self.coupling) : size] = self.coupling.mT
        whole[size:, size:] = self.coupling.mT @ last @ self.coupling
        nodes, continued = torch.linalg.eigh((whole + whole.mT) / 2)
        return Quadrature(nodes.clamp_min(0), (continued[:size].mT @ self.start).square())

    @cached_property
    def quadrature(self) -> Quadrature:
        """The mean of the two rules, whose errors have opposite signs; where the space is whole, its own rule."""
        if self.exact:
            return self._traces(self.spectrum[0])
        return 0.5 * self.gauss + 0.5 * self.gauss_radau

    @property
    def rounding(self) -> Tensor:
        """(m,) how far rounding of the products may have moved each eigenvalue of M.

        The error of S' phi v is relative to the root of the largest eigenvalue, and so is that of taking it back: v' M
        v is off by about their product with |S' phi v|, the root of its own size. Measured: less than one epsilon.
        """
        values, error = self.spectrum[0], _ROUNDING * torch.finfo(self.basis.dtype).eps
        return error * values.max().sqrt() * torch.maximum(values.sqrt(), error * values.max().sqrt())

    def _traces(self, nodes: Tensor) -> Quadrature:
        """E d' f(M) d = tr M f(M) with these eigenvalues of M, behind it the start vectors that stand for themselves.

        Eigenvalues that rounding may have moved bracket the trace, as the two quadratures do elsewhere. A target's
        weight is its eigenvalue times the square of a coordinate of y, which does not move.
        """
        nodes, values = nodes.clamp_min(0), self.spectrum[0]
        weights = (self.spectrum[1].mT @ self.start).square()
        weights *= (nodes / values.clamp_min(torch.finfo(values.dtype).tiny)).clamp_max(_MOST_MOVED)[:, None]
        weights[:, : self.exact] = nodes[:, None]
        return Quadrature(nodes, weights)

    def widened(self, vectors: Tensor) -> "KrylovSpace":
        """An invariant space to go on from what of these vectors (K, P) it does not hold; as it is if it holds them.

        A block of k vectors does not reach eigenvectors that share their eigenvalue with k others. M maps the space
        onto itself, and so its complement: nothing couples the two.
        """
        slices = self.basis.slices
        rest, lengths = slices.own(vectors).clone(), dots(vectors, vectors).sqrt()
        self.basis.add_to(rest, -gram(self.basis, rest).mT)
        self.basis.add_to(rest, -gram(self.basis, rest).mT)
        following, _ = orthonormal(rest, lengths, slices)
        if len(following):
            self.basis.add_to(following, -gram(self.basis, following).mT)
            following, _ = orthonormal(following, slices=slices)
        return replace(self, following=following, coupling=self.coupling.new_zeros(self.widths[-1], len(following)))

    def closed(self, exact: int) -> "KrylovSpace":
        """The space as the whole range of M; what would follow is rounding."""
        nothing = self.coupling.new_zeros(self.widths[-1], 0)
        return replace(self, following=self.following[:0], coupling=nothing, exact=exact)

    def times(self, factor: float) -> "KrylovSpace":
        """The space of M times a factor."""
        root = factor**0.5
        return replace(self, gram=self.gram * factor, coupling=self.coupling * factor, start=self.start * root)

    def before(self) -> "KrylovSpace":
        """The space one iteration ago: the change since then says how far quadratic forms have settled."""
        size = len(self.gram) - self.widths[-1]
        previous = self.widths[-2]
        return replace(
            self,
            basis=Stack(self.basis.parts[:-1], self.basis.slices),
            gram=self.gram[:size, :size],
            following=self.basis.parts[-1],
            coupling=self.gram[size - previous : size, size:],
            start=self.start[:size],
            widths=self.widths[:-1],
            exact=0,
        )

    def sketch(self) -> Sketch:
        """M on this space, for preconditioning, with the lowest quarter of the Ritz values as the level outside.

        Outside of the whole range of M there is nothing, and nothing at all of an M that is zero.
        """
        values, vectors = self.spectrum
        level = 0.0 if self.exact or not len(values) else float(values.quantile(_TAIL))
        return Sketch(self.basis, (vectors * values) @ vectors.mT, level, bool(self.exact))

    def determined(self, ratio: float) -> Tensor:
        """(P,) the diagonal of (M + ratio)^-1 M, where the space holds the whole range of M."""
        values, vectors = self.spectrum
        share, turned = (values / (values + ratio)).to(self.following.device), vectors.mT.to(self.following.device)
        own = torch.cat([share @ (turned @ part.double()).square() for part in self.basis.pieces(CHUNK)])
        return self.basis.slices.whole(own[None])[0]

    def galerkin(self, right: Tensor, precision: Tensor) -> tuple[Tensor, Tensor]:
        """The best z in the space for (M + diag(precision)) z = b, and M z; no pass: (K, P) -> (K, P), (K, P)."""
        slices = self.basis.slices
        inner = self.gram + gram(self.basis, self.basis, slices.own(precision)).cpu()
        coordinates = torch.linalg.solve(inner, gram(self.basis, slices.own(right)).cpu())
        ahead = self.coupling.mT @ coordinates[len(coordinates) - len(self.coupling) :]
        image = self.basis.combined((self.gram @ coordinates).mT).addmm_(ahead.mT.to(right), self.following)
        return slices.whole(self.basis.combined(coordinates.mT)), slices.whole(image)

    def grown(self, model: Multiplies) -> Self:
        """One more application of M, for as many products as there are following rows."""
        basis = self.basis.added(self.following)
        added, size = len(self.following), len(basis)
        inner, following, coupling = _continued(basis, [self.following], model)
        whole = pad(self.gram, (0, added, 0, added))
        whole[:, size - added :] = inner
        whole[size - added :, :] = inner.mT
        start = self.start if self.iterations == 0 else pad(self.start, (0, 0, 0, added))
        return replace(
            self, basis=basis, gram=(whole + whole.mT) / 2, following=following, coupling=coupling,
            start=start, widths=(*self.widths, added),
        )  # fmt: skip


def _continued(basis: Stack, rows: Sequence[Tensor], model: Multiplies) -> tuple[Tensor, Tensor, Tensor]:
    """What M makes of some rows W of a basis V: V M W', what V lacks of it as the next rows, and W M on these."""
    slices = basis.slices
    products = [model.curvature_product(slices.whole(part)) for part in rows]
    rest = products[0] if len(products) == 1 else torch.cat(products)
    del products
    lengths, rest = dots(rest, rest).sqrt(), slices.own(rest)
    inner = gram(basis, rest).cpu()  # (m, j)
    basis.add_to(rest, -inner.mT)
    basis.add_to(rest, -gram(basis, rest).mT)
    following, coupling = orthonormal(rest, lengths, slices)
    del rest
    basis.add_to(following, -gram(basis, following).mT)  # short remainders are mostly rounding otherwise,
    following, again = orthonormal(following, slices=slices)  # and have become shorter now
    return inner, following, (again @ coupling).mT.cpu()


def krylov_space_beside(known: Sketch, added: Multiplies, draws: int) -> KrylovSpace:
    """The space of M + N begun from the whole range of M, where M is known: no product but those with N.

    Args:
        known: M, with all of its range.
        added: N.
        draws: how many start vectors there are to be, of which it says nothing: the space serves once it is ``exact``.
    """
    basis, size = known.basis, len(known.basis)
    inner, following, coupling = _continued(basis, [part for part in basis.parts if len(part)], added)
    whole = known.gram.cpu() + (inner + inner.mT) / 2
    return KrylovSpace(basis, whole, following, coupling, whole.new_zeros(size, draws), (size,))


def krylov_space(start: Tensor, slices: Slices | None = None) -> KrylovSpace:
    """The space before the first product, from start vectors X (k, P), which are whole; its own are as slices say."""
    slices = slices or Slices()
    following, factor = orthonormal(slices.own(start), slices=slices)
    empty = torch.zeros(0, 0, dtype=torch.float64)
    return KrylovSpace(
        Stack([start.new_empty(0, following.shape[1])], slices),
        empty,
        following,
        empty.new_zeros(0, len(following)),
        factor.double().cpu(),
        (),
    )
