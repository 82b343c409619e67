"""The letters used everywhere, and the types that cross floors.

N  data (observations)            C  outputs per datum (after flattening, unless said otherwise)
P  parameters of the linear model K  posterior samples (columns solved together)
M  sum_n phi_n' B_n phi_n, the (P, P) curvature of the data; A the prior precision; H = M + A

A stack of K parameter vectors is one tensor of shape (K, P): rows are samples.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor


@dataclass(frozen=True)
class Opaque:
    """A batch that is one object, such as a batch of graphs; it is never cut, the network takes it as it is."""

    content: Any


Inputs: TypeAlias = Tensor | tuple[Any, ...] | Mapping[str, Any] | list[Any] | Opaque
"""What the network is called with: ``model(x)``, ``model(*x)``, ``model(**x)``, or a list or an object."""

Loader: TypeAlias = Iterable[Any]
"""A re-iterable of (inputs, targets) batches, such as a torch DataLoader or a list."""
