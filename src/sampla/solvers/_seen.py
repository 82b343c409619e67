"""What M has been multiplied with, written down while a system is solved: a sketch of M for the next system.

When data are added to a fit, M becomes M + N with a small N. Every vector v whose M v is known says something about the
new system: rows W with W M W' make a sketch (Morgan, GMRES with deflated restarting, 2002; Parks et al., Recycling
Krylov subspaces for sequences of linear systems, 2006). EM's Krylov space is one, the search directions of the final
solve are another, which together hold about twice as much of the spectrum as the first alone.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sampla.core.blocks import gram
from sampla.core.stack import Stack
from sampla.distributed import Slices
from sampla.solvers._preconditioners import Sketch

_TAIL = 0.25
"""The quantile of the Ritz values that is taken for the level of M outside."""
_DEPENDENT = 1e-7
"""Eigenvalues of W W', rows of length one, that are so small a part of the largest are rounding."""


@dataclass
class Seen:
    """Vectors and their products with H = M + A, up to a number of rows; the first ones."""

    most: int
    """Rows at most: beyond them nothing is written down."""
    slices: Slices = field(default_factory=Slices)
    """Where processes hold a slice each of what is written down."""
    vectors: list[Tensor] = field(default_factory=list)
    products: list[Tensor] = field(default_factory=list)

    def see(self, vectors: Tensor, products: Tensor) -> Tensor:
        """Write down H v of (k, P) vectors, none of which may be changed afterwards, and return it."""
        if sum(map(len, self.vectors)) + len(vectors) <= self.most:
            self.vectors.append(self.slices.own(vectors))
            self.products.append(self.slices.own(products))
        return products

    def sketch(self, known: Sketch | None, precision: Tensor, scale: Tensor | None, most: int) -> Sketch | None:
        """A sketch of M from these vectors and a sketch that was known before; None if there is nothing to make it of.

        Args:
            known: of M in the coordinates of these vectors.
            precision: (P,) the diagonal of A in these coordinates.
            scale: (P,) unit of these coordinates, to leave them: v becomes v * scale; None: they stay.
            most: rows of the sketch at most, those of the largest Ritz values.
        """
        if not self.vectors and known is None:
            return None
        if known is not None and known.whole and scale is None:  # nothing is left to be learnt
            return known
        rows = Stack([*(known.basis.parts if known is not None else ()), *self.vectors], self.slices)
        count = 0 if known is None else len(known.basis)
        core = torch.zeros(len(rows), len(rows), dtype=torch.float64)
        if known is not None:
            core[:count, :count] = known.gram.cpu()
        if self.vectors:
            vectors, products = Stack(self.vectors, self.slices), Stack(self.products, self.slices)
            weighted = gram(rows, vectors, self.slices.own(precision))
            core[:, count:] = (gram(rows, products) - weighted).cpu()  # M v = H v - A v
            core[count:, :count] = core[:count, count:].mT
        if scale is not None:
            own = self.slices.own(scale)
            rows = Stack([part * own for part in rows.parts], self.slices)
        return _orthonormalised(rows, (core + core.mT) / 2, most)


def _orthonormalised(rows: Stack, core: Tensor, most: int) -> Sketch:
    """The sketch that rows W (m, P) with any W W', and W M W', make: its leading Ritz vectors."""
    inner = gram(rows, rows).cpu()
    unit = inner.diagonal().clamp_min(torch.finfo(inner.dtype).tiny).rsqrt()
    sizes, turned = torch.linalg.eigh(inner * unit[:, None] * unit)
    kept = sizes > _DEPENDENT * sizes.max()
    turn = unit[:, None] * turned[:, kept] / sizes[kept].sqrt()
    values, vectors = torch.linalg.eigh(turn.mT @ core @ turn)
    values = values.clamp_min(0)
    tail = float(values.quantile(_TAIL))
    values, vectors = values[-most:], vectors[:, -most:]
    few = max(map(len, rows.parts))  # at a time: the sketch is never one tensor
    basis = Stack([rows.combined(each) for each in (turn @ vectors).mT.split(few)], rows.slices)
    return Sketch(basis, values.diag(), tail)
