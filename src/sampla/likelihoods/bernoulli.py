"""Binary and multi-label classification."""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from sampla._checks import require, require_finite
from sampla.likelihoods._base import Likelihood


class Bernoulli(Likelihood):
    """p(y = 1 | f) = sigmoid(f), every output a label of its own; targets of the shape of the outputs, in [0, 1].

    B = diag(p (1 - p)), root diag(sqrt(p (1 - p))).
    """

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = binary_cross_entropy_with_logits(outputs, targets.to(outputs), reduction="none")
        return -loss.reshape(loss.shape[0], -1).sum(1)

    def curvature_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        p = outputs.sigmoid()
        return p * (1 - p) * vectors

    def curvature_root_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        p = outputs.sigmoid()
        return (p * (1 - p)).sqrt() * vectors

    def probabilities(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid()

    def check_targets(self, outputs: Tensor, targets: Tensor) -> None:
        require(
            targets.shape == outputs.shape,
            f"binary targets of shape {tuple(outputs.shape)}, like the outputs",
            f"{tuple(targets.shape)}",
            "Reshape one of them: broadcasting would pair every target with every output.",
        )
        require_finite(targets, "targets", "Remove or impute them.")
        values = targets.to(torch.get_default_dtype())
        low, high = float(values.min()), float(values.max())
        require(low >= 0 and high <= 1, "labels in [0, 1]", f"values from {low:g} to {high:g}", "Use 0 and 1.")
