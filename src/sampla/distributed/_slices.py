"""Vectors of P numbers of which each process holds a slice, where all of them whole would be too much for each.

What is made of the numbers of a vector one by one each process makes of its own slice. Inner products are sums over the
slices, and whole vectors are laid together only where they are needed. A process on its own holds all, and exchanges
nothing.
"""

from dataclasses import dataclass

from torch import Tensor

from sampla.distributed._ranks import Ranks


@dataclass(frozen=True)
class Slices:
    """Which of the P numbers of a vector are this process's, and the way there and back."""

    ranks: Ranks | None = None
    """The processes, which have consecutive slices in their order; None: this one has all."""
    size: int = 0
    """P; of no use without processes."""

    @property
    def count(self) -> int:
        """Into how many slices vectors are cut."""
        return 1 if self.ranks is None else self.ranks.size

    def own(self, vectors: Tensor) -> Tensor:
        """This process's slice of whole vectors, a copy: (..., P) -> (..., p). On its own: what it is given."""
        if self.ranks is None:
            return vectors
        width = self.ranks.width(self.size)
        return vectors[..., width * self.ranks.rank : width * (self.ranks.rank + 1)].clone()

    def whole(self, own: Tensor) -> Tensor:
        """The vectors whose slices the processes give: (k, p) -> (k, P), the same on all of them."""
        return own if self.ranks is None else self.ranks.side_by_side("slices", own, self.size)

    def summed(self, products: Tensor) -> Tensor:
        """What each has summed over its own slice, over all of them; the same on all."""
        return products if self.ranks is None else self.ranks.summed("products", [products], empty=False)[0]
