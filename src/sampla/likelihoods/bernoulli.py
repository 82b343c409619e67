"""Binary and multi-label classification."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from sampla.core.checks import require, require_finite
from sampla.likelihoods._base import Likelihood, as_counts, require_plain


class Bernoulli(Likelihood):
    """p(y = 1 | f) = sigmoid(f), every output a label of its own; targets of the shape of the outputs, in [0, 1].

    B = diag(p (1 - p)), root diag(sqrt(p (1 - p))).

    Args:
        ignore_value: a target with this value is left out (a label that nobody gave); None: every one counts.

    Raises:
        ValueError: for a value that is a label, in [0, 1].
    """

    observation_axes = ()
    ignore_value: float | None = None

    def __init__(self, ignore_value: float | None = None) -> None:
        fix = "Use a number that is no label, such as -1."
        free = ignore_value is None or not 0 <= ignore_value <= 1
        require(free, "an ignore_value outside [0, 1]", f"{ignore_value}", fix)
        self.ignore_value = None if ignore_value is None else float(ignore_value)

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.observation_log_prob(outputs, targets).reshape(outputs.shape[0], -1).sum(1)

    def observation_log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        known = self.counted(targets)
        labels = targets if known is None else targets.where(known, 0)  # any label will do where none is asked for
        loss = binary_cross_entropy_with_logits(outputs, labels.to(outputs), reduction="none")
        if known is not None:
            loss = loss * known
        return -loss

    def counted(self, targets: Tensor) -> Tensor | None:
        return None if self.ignore_value is None else as_counts(targets) != self.ignore_value

    def curvature_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        p = outputs.sigmoid()
        return p * (1 - p) * vectors

    def curvature_root_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        p = outputs.sigmoid()
        return (p * (1 - p)).sqrt() * vectors

    def probabilities(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid()

    def class_sums(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        """With a = |f| the entropy is log(1 + exp(-a)) + a sigmoid(-a): two terms of one sign."""
        if not self._keeps(Bernoulli, "probabilities", "class_entropy"):
            return super().class_sums(draws)
        size = draws.abs()
        return draws.sigmoid().sum(-1), (softplus(-size) + size * (-size).sigmoid()).sum(-1)

    def check_targets(self, outputs: Tensor, targets: Tensor) -> None:
        require_plain(targets, "targets in [0, 1] or booleans")
        require(
            targets.shape == outputs.shape,
            f"binary targets of shape {tuple(outputs.shape)}, like the outputs",
            f"{tuple(targets.shape)}",
            "Reshape one of them: broadcasting would pair every target with every output.",
        )
        require_finite(targets, "targets", "Remove or impute them.")
        known = self.counted(targets)
        values = (targets if known is None else targets[known]).to(torch.get_default_dtype())
        if values.numel() == 0:
            return
        low, high = float(values.min()), float(values.max())
        require(
            low >= 0 and high <= 1,
            "labels in [0, 1]",
            f"values from {low:g} to {high:g}",
            "Use 0 and 1, and ignore_value for labels that are missing.",
        )

    def config(self) -> dict[str, Any]:
        return {**super().config(), "ignore_value": self.ignore_value}
