"""Classes in an order, such as grades: one output and thresholds between them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sampla.core.checks import require, require_finite
from sampla.likelihoods._base import Likelihood, as_counts, require_plain


class Ordinal(Likelihood):
    """p(y <= c | f) = sigmoid(t_c - f), proportional odds (McCullagh 1980); outputs (n, ..., 1), targets (n, ...).

    C classes 0 .. C - 1 have C - 1 thresholds t between them. B is Fisher's information, sum_c (dp_c / df)^2 / p_c.
    Probabilities are (n, ..., C). (``predict(method="probit")`` is not for them.)

    Args:
        thresholds: (C - 1,) increasing, in units of the output: those that the network was trained with.
        ignore_index: a target with this number is left out; None: every one counts.

    Raises:
        ValueError: for thresholds that do not increase.
    """

    class_axis = -1
    observation_axes = (-1,)
    takes_probit = False

    def __init__(self, thresholds: Tensor | Sequence[float], *, ignore_index: int | None = None) -> None:
        self.thresholds = torch.as_tensor(thresholds, dtype=torch.float64, device="cpu").detach()
        fix = "Give the numbers that training found, one less than there are classes."
        require_finite(self.thresholds, "thresholds", fix)
        vector = self.thresholds.ndim == 1 and len(self.thresholds) > 0
        increasing = vector and bool((self.thresholds.diff() > 0).all())
        require(increasing, "increasing thresholds (C - 1,)", f"{self.thresholds.tolist()}", fix)
        self.ignore_index = None if ignore_index is None else int(ignore_index)

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.observation_log_prob(outputs, targets).reshape(outputs.shape[0], -1).sum(1)

    def observation_log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        known, labels = self._known(targets), as_counts(targets)
        labels = labels if known is None else labels.where(known, 0)
        found = self._log_probabilities(outputs).take_along_dim(labels.unsqueeze(-1), -1).squeeze(-1)
        return found if known is None else found * known

    def counted(self, targets: Tensor) -> Tensor | None:
        known = self._known(targets)
        return None if known is None else known.unsqueeze(-1)

    def curvature_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        return self._information(outputs).to(vectors) * vectors

    def curvature_root_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        return self._information(outputs).to(vectors).sqrt() * vectors

    def probabilities(self, outputs: Tensor) -> Tensor:
        return self._log_probabilities(outputs).exp()

    def _log_probabilities(self, outputs: Tensor) -> Tensor:
        """Log of s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)), of the sigmoid s, a = t_c - f and b = t_(c-1) - f."""
        t = self.thresholds.to(outputs)
        above, below, none = logsigmoid(t - outputs), logsigmoid(outputs - t), torch.zeros_like(outputs)
        between = torch.cat([t.new_zeros(1), (-(-t.diff()).exp()).log1p(), t.new_zeros(1)])
        return torch.cat([above, none], -1) + torch.cat([none, below], -1) + between

    def _information(self, outputs: Tensor) -> Tensor:
        t, none = self.thresholds.to(outputs), torch.zeros_like(outputs)
        slopes = torch.cat([none, (t - outputs).sigmoid()], -1) - torch.cat([(outputs - t).sigmoid(), none], -1)
        return (self.probabilities(outputs) * slopes.square()).sum(-1, keepdim=True)

    def check_targets(self, outputs: Tensor, targets: Tensor) -> None:
        require_plain(targets, "integer class targets")
        shape, classes = tuple(outputs.shape), len(self.thresholds) + 1
        one = len(shape) > 1 and shape[-1] == 1
        require(one, "outputs (n, ..., 1) for ordered classes", f"{shape}", "The thresholds are the likelihood's.")
        given = tuple(targets.shape)
        require(given == shape[:-1], f"class targets of shape {shape[:-1]}", f"{given}", "They are class numbers.")
        integer = not targets.is_floating_point() and targets.dtype != torch.bool
        require(integer, "integer class targets", str(targets.dtype), "Convert them with .long().")
        known, labels = self._known(targets), as_counts(targets)
        asked = labels if known is None else labels[known]
        low, high = (int(asked.min()), int(asked.max())) if asked.numel() else (0, 0)
        fix = "There is one threshold less than there are classes."
        fits = low >= 0 and high < classes
        require(fits, f"labels in 0..{classes - 1}", f"labels from {low} to {high}", fix)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "thresholds": self.thresholds.tolist(), "ignore_index": self.ignore_index}

    def _known(self, targets: Tensor) -> Tensor | None:
        return None if self.ignore_index is None else as_counts(targets) != self.ignore_index
