"""K stacked parameter vectors: one flat (K, P) tensor, or a named view of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class ParameterLayout:
    """Names and shapes of the parameters, in the order in which they lie in a flat vector of P."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    complex: frozenset[str] = frozenset()
    """Names of complex parameters, which are held as two reals each: their last axis, of 2."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries of each parameter tensor."""
        return tuple(prod(shape) for shape in self.shapes)

    @property
    def total(self) -> int:
        """P, the number of parameters."""
        return sum(self.sizes)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Named views (K, *shape) of a flat (K, P) tensor; nothing is copied."""
        ends = list(accumulate(self.sizes))
        starts = [0, *ends[:-1]]
        rows = flat.shape[0]
        return {
            name: flat[:, start:end].view(rows, *shape)
            for name, shape, start, end in zip(self.names, self.shapes, starts, ends, strict=True)
        }

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """The same as the network has them: complex where it does."""
        views = self.views(flat)
        return {name: torch.complex(v[..., 0], v[..., 1]) if name in self.complex else v for name, v in views.items()}

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The inverse of ``views``: one new (K, P) tensor."""
        return torch.cat([tensors[name].reshape(len(tensors[name]), -1) for name in self.names], dim=1)

    def tensor_index(self, device: torch.device) -> Tensor:
        """(P,) int64: for each parameter the number of the tensor it belongs to."""
        counts = torch.tensor(self.sizes, device=device)
        return torch.repeat_interleave(torch.arange(len(self.sizes), device=device), counts)


class Lying(Protocol):
    """Where the parameters lie in a vector of P."""

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Named views of K vectors."""

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The inverse of ``views``."""


def side_by_side(lying: Lying, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One tensor a name, copied to where those of one vector of P lie."""
    one = lying.flatten({name: each[None] for name, each in tensors.items()})
    return {name: each[0] for name, each in lying.views(one).items()}


def row_dot(a: Tensor, b: Tensor) -> Tensor:
    """(K,) inner products of matching rows of two (K, P) tensors."""
    products: Tensor = torch.linalg.vecdot(a, b)
    return products
