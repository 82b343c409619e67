"""Likelihoods that have one target for each output, independent of all others given the outputs."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from sampla.core.checks import require, require_finite
from sampla.likelihoods._base import Likelihood, require_plain

IMPUTE = "Remove or impute them, or leave them out by ignore_nan=True."


class Elementwise(Likelihood):
    """p(y | f) = prod_i p(y_i | f_i), targets of the shape of the outputs; B is diagonal.

    A subclass says ``log_density`` and ``information`` of one output.

    Args:
        ignore_nan: whether targets that are NaN are left out (values that nobody measured); else they are refused.
    """

    observation_axes = ()
    lowest = -torch.inf
    """What no target may be below."""

    def __init__(self, *, ignore_nan: bool = False) -> None:
        self.ignore_nan = bool(ignore_nan)

    @abstractmethod
    def log_density(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Log p(y | f) of each output in nats. Both are in float64: its terms may be far larger than it, as counts."""

    @abstractmethod
    def information(self, outputs: Tensor) -> Tensor:
        """The diagonal of B: Fisher's information about f in y, of the outputs' shape."""

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.observation_log_prob(outputs, targets).reshape(outputs.shape[0], -1).sum(1)

    def observation_log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        known, wide = self.counted(targets), outputs.double()
        filled = targets if known is None else targets.where(known, 1.0)  # any value will do, but a NaN would stay one
        density = self.log_density(wide, filled.to(wide)).to(outputs)
        return density if known is None else density * known

    def counted(self, targets: Tensor) -> Tensor | None:
        return ~targets.isnan() if self.ignore_nan else None

    def curvature_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        return self.information(outputs).to(vectors) * vectors

    def curvature_root_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        return self.information(outputs).to(vectors).sqrt() * vectors

    def check_targets(self, outputs: Tensor, targets: Tensor) -> None:
        require_numbers(targets, tuple(outputs.shape), self.lowest, self.counted(targets), type(self).__name__)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "ignore_nan": self.ignore_nan}


def require_numbers(targets: Tensor, shape: tuple[int, ...], lowest: float, known: Tensor | None, name: str) -> None:
    """Refuse targets that are no numbers of the given shape, at least as large as the lowest.

    Args:
        targets: of n data.
        shape: that they must have.
        lowest: what none may be below.
        known: which are asked about; None: all.
        name: of the likelihood.

    Raises:
        ValueError: saying what was expected.
    """
    require_plain(targets, "targets that are real numbers")
    fix = "Convert them with .float(), or use likelihood='bernoulli' for labels."
    require(targets.dtype != torch.bool, "targets that are real numbers", "booleans", fix)
    require(
        tuple(targets.shape) == shape,
        f"targets of shape {shape}, one for each output",
        f"{tuple(targets.shape)}",
        "Reshape one of them: broadcasting would pair every target with every output.",
    )
    asked = targets if known is None else targets[known]
    require_finite(asked, "targets", IMPUTE)
    least = float(asked.min()) if asked.numel() else lowest
    require(least >= lowest, f"targets of at least {lowest:g} for {name}", f"{least:g}", "Counts are 0, 1, 2, ...")
