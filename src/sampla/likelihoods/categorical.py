"""Classification with one of C classes: of a whole input, of every pixel, of every place in a sequence."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sampla.core.checks import require
from sampla.likelihoods._base import Likelihood, as_counts, require_plain

_LARGE = 2**16
"""Outputs of a batch from which each vector is best finished while the caches still hold it."""


class Categorical(Likelihood):
    """p(y | f) = softmax(f)_y, logits (n, ..., C, ...), targets the same without the class axis, integers in
    [0, C) of any type.

    B = diag(p) - p p' = S S' with S = diag(sqrt p) - p sqrt(p)', both products in O(C).

    Args:
        class_axis: where the classes are, counted from the end: -1 for (n, C) and (n, length, vocabulary), -3 for
            images (n, C, H, W).
        ignore_index: a target with this number is left out (padding, pixels without a label); None: every one counts.
        weight: (C,) by which the loss of each class was multiplied, as torch.nn.CrossEntropyLoss(weight=...) has it.
            They count as they are: a class of weight 2 as if each of its data had been seen twice.
        label_smoothing: which part of a label was spread over all classes in training, as the same loss has it.

    The last two are about the loss alone: probabilities and their scores are of labels as they are. B is multiplied by
    (1 - label_smoothing) weight_y + label_smoothing mean(weight).

    Raises:
        ValueError: for an axis that is not counted from the end, or a number to be ignored that is not whole; for
            weights that are not positive, or smoothing outside [0, 1).
    """

    class_axis: int = -1
    observation_axes = (-1,)
    ignore_index: int | None = None
    class_weight: Tensor | None = None
    """(C,), float64; not ``weight``, which classes derived from this one have used for numbers of their own."""
    label_smoothing: float = 0.0

    def __init__(
        self,
        class_axis: int = -1,
        ignore_index: int | None = None,
        *,
        weight: Tensor | Sequence[float] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        fix = "Use -1 for classes last, -3 for images (n, C, H, W)."
        require(class_axis < 0, "a class axis counted from the end", f"{class_axis}", fix)
        whole = ignore_index is None or int(ignore_index) == ignore_index
        require(whole, "ignore_index as an integer", f"{ignore_index}", "-100 is usual.")
        self.class_axis, self.observation_axes = int(class_axis), (int(class_axis),)
        self.ignore_index = None if ignore_index is None else int(ignore_index)
        self.class_weight = None if weight is None else torch.as_tensor(weight, dtype=torch.float64, device="cpu")
        self.label_smoothing = float(label_smoothing)
        least = 1.0 if self.class_weight is None else float(self.class_weight.min())
        fix = "Give one number for each class; leave data out by ignore_index."
        fits = self.class_weight is None or self.class_weight.ndim == 1
        require(0 < least < torch.inf and fits, "positive class weights (C,)", f"{weight}", fix)
        smoothed = 0 <= self.label_smoothing < 1
        require(smoothed, "label_smoothing in [0, 1)", f"{label_smoothing}", "It is that of the training loss.")

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.observation_log_prob(outputs, targets).reshape(targets.shape[0], -1).sum(1)

    def observation_log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        logits = outputs.movedim(self.class_axis, -1).flatten(0, -2)
        known, labels = self._known(targets), as_counts(targets).flatten()
        if known is not None:  # any class will do where none is asked for
            labels = labels.where(known.flatten(), 0)
        loss = cross_entropy(logits, labels, reduction="none")
        if known is not None:
            loss = loss * known.flatten()
        return -loss.view(targets.shape)

    def observation_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """With l_c = -log p_c: (1 - e) w_y l_y + e mean_c w_c l_c, of label smoothing e and weights w."""
        if self.class_weight is None and self.label_smoothing == 0:
            return super().observation_loss(outputs, targets)
        each, smoothing = outputs.log_softmax(self.class_axis).movedim(self.class_axis, -1), self.label_smoothing
        known, labels = self._known(targets), as_counts(targets)
        labels = labels if known is None else labels.where(known, 0)
        if self.class_weight is not None:
            each = each * self.class_weight.to(each)
        own = each.take_along_dim(labels.unsqueeze(-1), -1).squeeze(-1)
        loss = -(1 - smoothing) * own - smoothing * each.mean(-1)
        return loss if known is None else loss * known

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.class_weight is None and self.label_smoothing == 0:
            return -self.log_prob(outputs, targets)
        return super().loss(outputs, targets)

    def curvature_weights(self, targets: Tensor) -> Tensor | None:
        if self.class_weight is None:
            return self.counted(targets)
        known, labels, weight = self._known(targets), as_counts(targets), self.class_weight.to(targets.device)
        weight = (1 - self.label_smoothing) * weight + self.label_smoothing * weight.mean()
        found = weight[labels if known is None else labels.where(known, 0)]
        return (found if known is None else found * known).unsqueeze(self.class_axis)

    def counted(self, targets: Tensor) -> Tensor | None:
        known = self._known(targets)
        return None if known is None else known.unsqueeze(self.class_axis)

    def curvature_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        p = self.probabilities(outputs).to(vectors)
        result = p * vectors
        return result.addcmul_(p, result.sum(self.class_axis, keepdim=True), value=-1)

    def curvature_root_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        root = self.probabilities(outputs).to(vectors).sqrt()
        return _mapped(vectors, lambda v: (v - root * self._along(root, v)) * root)

    def curvature_root_transpose_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        p = self.probabilities(outputs).to(vectors)
        root = p.sqrt()
        return _mapped(vectors, lambda v: (v - self._along(p, v)) * root)

    def _along(self, a: Tensor, b: Tensor) -> Tensor:
        """Inner products over the classes, their axis kept."""
        products: Tensor = torch.linalg.vecdot(a, b, dim=self.class_axis)
        return products.unsqueeze(self.class_axis)

    def probabilities(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(self.class_axis)

    def class_sums(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        """With e = exp(f - max f) and Z = sum e the entropy is log Z - sum e (f - max f) / Z: one logarithm a draw."""
        if not self._keeps(Categorical, "probabilities", "class_entropy"):
            return super().class_sums(draws)
        axis = self.class_axis - 1  # the last axis of draws is that of the draws: a softmax along it would be slow
        below = draws - draws.detach().amax(axis, keepdim=True)
        each = below.exp()
        total = each.sum(axis, keepdim=True)
        inverse = total.reciprocal()
        entropy = total.log() - (each * below).sum(axis, keepdim=True) * inverse
        return (each * inverse).sum(-1), entropy.sum(-1).squeeze(self.class_axis)

    def log_prob_of_draws(self, draws: Tensor, targets: Tensor) -> Tensor:
        if not self._keeps(Categorical, "log_prob", "observation_log_prob"):
            return super().log_prob_of_draws(draws, targets)
        known, labels, axis = self._known(targets), as_counts(targets), self.class_axis - 1
        if known is not None:
            labels = labels.where(known, 0)
        places = labels.unsqueeze(self.class_axis).unsqueeze(-1)
        chosen = draws.take_along_dim(places, axis) - draws.logsumexp(axis, keepdim=True)
        each = chosen.squeeze(axis) if known is None else chosen.squeeze(axis) * known.unsqueeze(-1)
        return each.reshape(len(targets), -1, draws.shape[-1]).sum(1).mT

    def check_targets(self, outputs: Tensor, targets: Tensor) -> None:
        require_plain(targets, "integer class targets")
        shape, fits = tuple(outputs.shape), outputs.ndim > -self.class_axis
        expected = shape[: outputs.ndim + self.class_axis] + shape[outputs.ndim + self.class_axis :][1:]
        require(
            fits and tuple(targets.shape) == expected,
            f"class targets of shape {expected} for logits of shape {shape} (classes on axis {self.class_axis})",
            f"{tuple(targets.shape)}",
            "Targets are class numbers, not one-hot vectors; class_axis=-3 is for images (n, C, H, W).",
        )
        integer = not targets.is_floating_point() and targets.dtype != torch.bool
        require(integer, "integer class targets", str(targets.dtype), "Convert them with .long().")
        known, labels = self._known(targets), as_counts(targets)
        asked = labels if known is None else labels[known]
        if asked.numel() == 0:
            return
        low, high, classes = int(asked.min()), int(asked.max()), shape[self.class_axis]
        told = classes if self.class_weight is None else len(self.class_weight)
        require(told == classes, f"weights of {classes} classes", f"{told}", "Give one for each output.")
        require(
            low >= 0 and high < classes,
            f"labels in 0..{classes - 1} for {classes} outputs",
            f"labels from {low} to {high}",
            "Check the encoding of the labels, ignore_index and the number of outputs of the network.",
        )

    def config(self) -> dict[str, Any]:
        told: dict[str, Any] = {"class_axis": self.class_axis, "ignore_index": self.ignore_index}
        if self.class_weight is not None:
            told["weight"] = self.class_weight.tolist()
        if self.label_smoothing:
            told["label_smoothing"] = self.label_smoothing
        return {**super().config(), **told}

    def _known(self, targets: Tensor) -> Tensor | None:
        return None if self.ignore_index is None else as_counts(targets) != self.ignore_index


def _mapped(vectors: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """function of K vectors; one by one into one new tensor where there are many outputs (docs/notes/engine.md)."""
    if vectors[0].numel() < _LARGE:
        return function(vectors)
    result = torch.empty_like(vectors)
    for each, out in zip(vectors, result, strict=True):
        out.copy_(function(each))
    return result
