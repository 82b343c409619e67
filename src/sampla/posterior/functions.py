"""Functions drawn from the posterior, which stay the same functions wherever they are asked for."""

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor

from sampla.core.checks import require_count
from sampla.posterior.averages import mixing

Push = Callable[[Any, Tensor], tuple[Tensor, Tensor]]
"""Inputs and vectors (k, P) to outputs (n, *out) and (k, n, *out) J(x) v."""


class Function:
    """f_k(x) = f(x) + s J(x) z_k for one z_k: the network linearised at its weights, with other weights put in.

    Args:
        push: of the posterior.
        vector: (P,) s z_k.
    """

    def __init__(self, push: Push, vector: Tensor) -> None:
        self._push, self._vector = push, vector

    def __call__(self, x: Any) -> Tensor:
        """(n, *out) values at inputs as ``predict`` takes them; of inputs that require gradients the graph is kept."""
        mean, pushed = self._push(x, self._vector[None])
        return mean + pushed[0]


class Functions:
    """Several of them; indexing and iteration give one.

    Args:
        push: of the posterior.
        vectors: (k, P) s z_k.
    """

    def __init__(self, push: Push, vectors: Tensor) -> None:
        self._push, self._vectors = push, vectors

    def __call__(self, x: Any) -> Tensor:
        """(k, n, *out) values of all at the same inputs, as for one."""
        mean, pushed = self._push(x, self._vectors)
        return mean + pushed

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._vectors)

    @overload
    def __getitem__(self, which: int) -> Function: ...

    @overload
    def __getitem__(self, which: slice) -> "Functions": ...

    def __getitem__(self, which: int | slice) -> "Function | Functions":
        """Return one function, or those of a slice."""
        chosen = self._vectors[which]
        return Functions(self._push, chosen) if isinstance(which, slice) else Function(self._push, chosen)


def drawn_functions(push: Push, samples: Tensor, width: float, num_functions: int | None, seed: int = 0) -> Functions:
    """Functions of the posterior: its K samples, and mixtures of them where more are asked for.

    Args:
        push: of the posterior.
        samples: (K, P) z_k.
        width: s.
        num_functions: how many; None: K.
        seed: of the mixtures sum_k xi_k z_k / sqrt(K), each from the Gaussian that the K samples define; they are the
            functions of ``Predictive.sample``.

    Raises:
        ValueError: for less than one.
    """
    count = len(samples) if num_functions is None else num_functions
    require_count(count, "the number of functions", 1, "Leave it out for all K samples.")
    vectors = samples[:count]
    if count > len(samples):
        more = mixing(seed, len(samples), count - len(samples), samples).mT @ samples
        vectors = torch.cat([samples, more])
    return Functions(push, width * vectors)
