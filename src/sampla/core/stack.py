"""A matrix of many vectors held as a list of blocks, so that rows can be added without a copy."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sampla.distributed import Slices


class Stack:
    """The rows of an (m, P) matrix V, or a slice (m, p) of them where each of several processes holds one.

    All that a stack is given or gives is of this slice: ``slices`` makes it of whole vectors, and these of it.

    Args:
        parts: (k, p) each, at least one, of one dtype and device; never written to.
        slices: which of the P numbers they are; None: all.

    >>> stack = Stack([torch.zeros(0, 3), torch.eye(3)]).added(torch.ones(1, 3))
    >>> len(stack), stack.combined(torch.tensor([[1.0, 2, 3, 4]]))
    (4, tensor([[5., 6., 7.]]))
    """

    def __init__(self, parts: Sequence[Tensor], slices: Slices | None = None) -> None:
        self.parts, self.slices = tuple(parts), slices or Slices()

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def shape(self) -> tuple[int, int]:
        """(m, p)."""
        return len(self), self.parts[0].shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Of every part."""
        return self.parts[0].dtype

    @property
    def device(self) -> torch.device:
        """Of every part."""
        return self.parts[0].device

    def added(self, rows: Tensor) -> "Stack":
        """These rows and, below them, (k, p) others."""
        return Stack((*self.parts, rows), self.slices)

    def columns(self, span: slice) -> Tensor:
        """(m, w) a few columns, a copy."""
        return torch.cat([part[:, span] for part in self.parts])

    def pieces(self, entries: int) -> Iterator[Tensor]:
        """(m, w) all columns, copies one after the other of so many entries at most, or of one column."""
        width = max(1, entries // max(1, len(self)))
        for start in range(0, max(1, self.shape[1]), width):
            yield self.columns(slice(start, start + width))

    def along(self, vectors: Tensor) -> Tensor:
        """v V', summed over all slices, in the dtype of the vectors: (K, p) -> (K, m)."""
        return self.slices.summed(torch.cat([vectors @ part.mT for part in self.parts], dim=1))

    def combined(self, coefficients: Tensor) -> Tensor:
        """c V, in the dtype of V: (K, m) -> (K, p)."""
        total = self.parts[0].new_zeros(len(coefficients), self.shape[1])
        return self.add_to(total, coefficients)

    def add_to(self, total: Tensor, coefficients: Tensor) -> Tensor:
        """(K, p) total + c V, in place and returned: (K, m) -> (K, p)."""
        each = coefficients.to(total).split([len(part) for part in self.parts], dim=1)
        for few, part in zip(each, self.parts, strict=True):
            total.addmm_(few, part)
        return total
