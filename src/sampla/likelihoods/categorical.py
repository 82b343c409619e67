"""Classification with one of C classes."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sampla._checks import require
from sampla.likelihoods._base import Likelihood


class Categorical(Likelihood):
    """p(y | f) = softmax(f)_y, logits (n, ..., C) with the classes last, targets (n, ...) integers in [0, C).

    B = diag(p) - p p' = S S' with S = diag(sqrt p) - p sqrt(p)', both products in O(C).
    """

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none")
        return -loss.view(targets.shape[0], -1).sum(1)

    def curvature_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        p = outputs.softmax(-1)
        weighted = p * vectors
        return weighted - p * weighted.sum(-1, keepdim=True)

    def curvature_root_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        p = outputs.softmax(-1)
        weighted = p.sqrt() * vectors
        return weighted - p * weighted.sum(-1, keepdim=True)

    def curvature_root_transpose_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        p = outputs.softmax(-1)
        return p.sqrt() * (vectors - (p * vectors).sum(-1, keepdim=True))

    def probabilities(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(-1)

    def check_targets(self, outputs: Tensor, targets: Tensor) -> None:
        shape = tuple(outputs.shape)
        require(
            outputs.ndim >= 2 and targets.shape == outputs.shape[:-1],
            f"class targets of shape {shape[:-1]} for logits of shape {shape} (classes last)",
            f"{tuple(targets.shape)}",
            "Targets are class numbers, not one-hot vectors.",
        )
        integer = not targets.is_floating_point() and targets.dtype != torch.bool
        require(integer, "integer class targets", str(targets.dtype), "Convert them with .long().")
        low, high = int(targets.min()), int(targets.max())
        require(
            low >= 0 and high < shape[-1],
            f"labels in 0..{shape[-1] - 1} for {shape[-1]} outputs",
            f"labels from {low} to {high}",
            "Check the encoding of the labels and the number of outputs of the network.",
        )
