"""A matrix of many vectors held as a list of blocks, so that rows can be added without a copy."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Stack:
    """The rows of an (m, P) matrix V.

    Args:
        parts: (k, P) each, at least one, of one dtype and device; never written to.

    >>> stack = Stack([torch.zeros(0, 3), torch.eye(3)]).added(torch.ones(1, 3))
    >>> len(stack), stack.combined(torch.tensor([[1.0, 2, 3, 4]]))
    (4, tensor([[5., 6., 7.]]))
    """

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = tuple(parts)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def shape(self) -> tuple[int, int]:
        """(m, P)."""
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
        """These rows and, below them, (k, P) others."""
        return Stack((*self.parts, rows))

    def columns(self, span: slice) -> Tensor:
        """(m, w) a few columns, a copy."""
        return torch.cat([part[:, span] for part in self.parts])

    def along(self, vectors: Tensor) -> Tensor:
        """v V', in the dtype of the vectors: (K, P) -> (K, m)."""
        return torch.cat([vectors @ part.mT for part in self.parts], dim=1)

    def combined(self, coefficients: Tensor) -> Tensor:
        """c V, in the dtype of V: (K, m) -> (K, P)."""
        total = self.parts[0].new_zeros(len(coefficients), self.shape[1])
        return self.add_to(total, coefficients)

    def add_to(self, total: Tensor, coefficients: Tensor) -> Tensor:
        """(K, P) total + c V, in place and returned: (K, m) -> (K, P)."""
        each = coefficients.to(total).split([len(part) for part in self.parts], dim=1)
        for few, part in zip(each, self.parts, strict=True):
            total.addmm_(few, part)
        return total
