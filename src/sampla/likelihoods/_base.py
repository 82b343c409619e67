"""What a likelihood must say; write one by subclassing and giving the three abstract methods."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp

from sampla.core.checks import require


def require_plain(targets: Tensor, expected: str) -> None:
    """Refuse targets that are sparse, nested or complex, of which nothing else can be asked.

    Raises:
        ValueError: saying which they are.
    """
    sparse = not targets.is_nested and targets.layout != torch.strided
    kinds = {
        "nested ones": (targets.is_nested, "Pad them with torch.nested.to_padded_tensor by a number to be ignored."),
        "sparse ones": (sparse, "Call .to_dense() on them."),
        "complex ones": (targets.is_complex(), "Use their real and imaginary parts as outputs of their own."),
    }
    for kind, (found, remedy) in kinds.items():
        require(not found, expected, kind, remedy)


def as_counts(targets: Tensor) -> Tensor:
    """Integers and booleans as int64, in which every number to be ignored can be told from every label."""
    return targets if targets.is_floating_point() or targets.is_complex() else targets.long()


class Likelihood(ABC):
    """p(y | f) for one datum with outputs f = (*out), all data independent given f.

    ``outputs`` is (n, *out); ``vectors`` is a stack (K, n, *out). B_n = -d2 log p(y_n | f_n) / df df' must not
    depend on y_n and must be positive semi-definite (for other likelihoods use the Fisher matrix instead).
    """

    is_quadratic = False
    """True if log_prob is quadratic in f with B independent of f: the mean then solves a linear system."""
    class_axis: int | None = None
    """The axis of the outputs, counted from the end, along which probabilities add up to one; None: no such axis."""
    learns_noise = False
    """True if EM is to update parameters of the likelihood."""

    @abstractmethod
    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(n,) log p(y_n | f_n) in nats, summed over the inner axes of one datum; differentiable by autograd."""

    @abstractmethod
    def curvature_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        """B u for each of K vectors: (K, n, *out) -> (K, n, *out)."""

    @abstractmethod
    def curvature_root_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        """S xi with S S' = B for each of K vectors: (K, n, *out) -> (K, n, *out)."""

    def curvature_root_transpose_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        """S' u for each of K vectors: (K, n, *out) -> (K, n, *out); by autograd unless overridden."""
        transpose = vjp(lambda xi: self.curvature_root_product(outputs, xi), torch.zeros_like(vectors))[1]
        product: Tensor = transpose(vectors)[0]
        return product.detach()

    def check_targets(self, outputs: Tensor, targets: Tensor) -> None:
        """Refuse targets that do not belong to these outputs; only their number is checked unless overridden.

        Raises:
            ValueError: saying what was expected of the targets.
        """
        count = outputs.shape[0]
        require(targets.shape[:1] == (count,), f"{count} targets", f"{tuple(targets.shape)}", "Give one per datum.")

    def counted(self, targets: Tensor) -> Tensor | None:
        """Which outputs count, ones and zeros that broadcast to (n, *out); None: all of them.

        What does not count (padding, pixels without a label) must be left out of ``log_prob`` too.
        """
        return None

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Class probabilities of given outputs.

        Raises:
            TypeError: if the likelihood is not about classes.
        """
        raise TypeError(f"{type(self).__name__} has no class probabilities: use pred.mean and pred.variance instead.")

    def config(self) -> dict[str, Any]:
        """What ``from_config`` needs beside tensors to rebuild a built-in likelihood; JSON only."""
        return {"name": type(self).__name__}
