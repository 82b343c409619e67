"""What users get wrong unseen: outputs that are not what the likelihood takes them for, targets that are the inputs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from warnings import warn

import torch
from torch import Tensor

from sampla.likelihoods import (
    Bernoulli,
    Categorical,
    HeteroscedasticGaussian,
    Likelihood,
    NegativeBinomial,
    Poisson,
)

_CERTAIN = 1e-6
"""Probabilities nearer than this to 0 or 1 are moved there before they become logits."""
_CLEARLY = 0.02
"""Nats per label by which another reading of the outputs has to be the better one, where their range says little."""


@dataclass(frozen=True)
class Reading:
    """Something else that outputs may be, where the likelihood wants ``wants``."""

    layer: str
    """What the network then ends in."""
    what: str
    """How its outputs look."""
    seen: str
    """By what that is seen."""
    wants: str
    but: str
    """What the likelihood does with them instead."""
    remedy: str
    fits: Callable[[Tensor, Likelihood], bool]
    """Whether outputs may be that."""
    undone: Callable[[Tensor], Tensor] | None = None
    """Makes of them what the likelihood wants; None: ``fits`` says all. Else the targets must be likelier then."""
    least: float = 0.0
    """By how many nats per label they must be."""


def _within(outputs: Tensor) -> bool:
    return bool(((outputs >= 0) & (outputs <= 1)).all())


def _softmax(outputs: Tensor, likelihood: Likelihood) -> bool:
    axis = likelihood.class_axis
    if axis is None or outputs.shape[axis] < 2 or not _within(outputs):
        return False
    off = (outputs.double().sum(axis) - 1).abs().max()
    return float(off) <= 100 * torch.finfo(outputs.dtype).eps


def _logit(probabilities: Tensor) -> Tensor:
    return probabilities.logit(_CERTAIN)


def _log(outputs: Tensor) -> Tensor:
    return outputs.clamp_min(torch.finfo(outputs.dtype).tiny).log()


def _with_log_variances(outputs: Tensor) -> Tensor:
    mean, variance = outputs.chunk(2, -1)
    return torch.cat([mean, _log(variance)], -1)


_PROBABILITIES, _OFF = "probabilities", "Take the last layer off"
_SOFTMAX = "it takes the softmax once more, so that predictions stay near equal ones and error bars mean nothing"
_SIGMOID = "it takes the sigmoid once more, so that predictions stay near 1/2 and error bars mean nothing"
_RATES = Reading(
    "Softplus, ReLU or exp", "rates", "none below 0, and as such they fit", "their logarithms",
    "it takes the exponential", f"{_OFF}, or return its logarithm.", lambda f, _: bool((f >= 0).all()), _log, _CLEARLY,
)  # fmt: skip
_READINGS: dict[type[Likelihood], tuple[Reading, ...]] = {
    Categorical: (
        Reading(
            "Softmax", _PROBABILITIES, "all within [0, 1], and their sum is 1", "the logits", _SOFTMAX,
            f"{_OFF}, or put LogSoftmax in its place: log-probabilities are logits.", _softmax,
        ),
        Reading(
            "Sigmoid", _PROBABILITIES, "all within [0, 1], and as such they fit", "the logits", _SOFTMAX,
            f"{_OFF}; if a datum may have several labels, take likelihood='bernoulli' with it off.",
            lambda f, _: _within(f), _logit, _CLEARLY,
        ),
    ),
    Bernoulli: (
        Reading(
            "Sigmoid", _PROBABILITIES, "all within [0, 1], and as such they fit", "the logits", _SIGMOID, f"{_OFF}.",
            lambda f, _: _within(f), _logit,
        ),
        Reading(
            "LogSigmoid", "log-probabilities", "none above 0, and as such they fit", "the logits",
            "it takes the sigmoid, which makes at most 1/2 of them", f"{_OFF}.",
            lambda f, _: bool((f <= 0).all()), lambda f: _logit(f.exp()), _CLEARLY,
        ),
    ),
    Poisson: (_RATES,),
    NegativeBinomial: (_RATES,),
    HeteroscedasticGaussian: (
        Reading(
            "Softplus or exp", "variances", "none below 0 in the second half, and as such they fit", "their logarithms",
            "it takes the exponential", f"{_OFF}, or return its logarithm.",
            lambda f, _: bool((f.chunk(2, -1)[1] >= 0).all()), _with_log_variances, _CLEARLY,
        ),
    ),
}  # fmt: skip


class OutputWatch:
    """Notices, in one pass over the outputs, that they look like something else than the likelihood wants.

    Args:
        likelihood: of the outputs.
    """

    def __init__(self, likelihood: Likelihood) -> None:
        self._likelihood, self._labels = likelihood, 0
        known = [readings for kind, readings in _READINGS.items() if isinstance(likelihood, kind)]
        self._gains = {reading: 0.0 for readings in known for reading in readings}
        """How much more likely the targets are by each reading that is still possible, in nats."""

    def see(self, outputs: Tensor, targets: Tensor) -> None:
        """The next outputs."""
        self._gains = {r: gain for r, gain in self._gains.items() if r.fits(outputs, self._likelihood)}
        if not self._gains:
            return
        self._labels += targets.numel()
        own: float | None = None
        for reading in self._gains:
            if reading.undone is not None:
                own = self._log_prob(outputs.double(), targets) if own is None else own
                self._gains[reading] += self._log_prob(reading.undone(outputs.double()), targets) - own

    def warn(self) -> None:
        """Say it once, at the end of the pass, of the first reading that fits; without data none has been seen to."""
        if not self._labels:
            return
        for reading, gain in self._gains.items():
            if reading.undone is not None and not gain > reading.least * self._labels:
                continue
            kind = type(self._likelihood).__name__
            warn(
                f"the network's outputs look like {reading.what} ({reading.seen}): it seems to end in {reading.layer}. "
                f"{kind} wants {reading.wants}: of {reading.what} {reading.but}. {reading.remedy}",
                UserWarning,
                stacklevel=6,
            )
            return

    def _log_prob(self, outputs: Tensor, targets: Tensor) -> float:
        return float(self._likelihood.log_prob(outputs, targets).sum())


class CopyWatch:
    """Notices, in one pass, class labels that are the tokens at the same place: those of a language model, not shifted.

    Args:
        likelihood: of the targets.
    """

    def __init__(self, likelihood: Likelihood) -> None:
        self._likelihood, self._possible = likelihood, likelihood.class_axis is not None
        self._range: list[int] = []

    def see(self, inputs: Sequence[Any], targets: Tensor) -> None:
        """The next inputs and targets."""
        if not self._possible or targets.ndim < 2 or targets.is_floating_point():
            self._possible = False
            return
        counted = self._likelihood.counted(targets)
        asked = torch.ones_like(targets, dtype=torch.bool) if counted is None else counted.reshape(targets.shape) != 0
        labels = targets[asked]
        alike = [each for each in inputs if isinstance(each, Tensor) and each.shape == targets.shape]
        self._possible = any(not each.is_floating_point() and bool((each[asked] == labels).all()) for each in alike)
        if self._possible and labels.numel():
            self._range += [int(labels.min()), int(labels.max())]

    def warn(self) -> None:
        """Say it once, at the end of the pass."""
        if self._possible and len(set(self._range)) > 1:
            warn(
                "every target is the input at the same place, so that the posterior is about copying. The labels of a "
                "language model have to be shifted by one place, which those of Hugging Face's collators are not: "
                "fit(loader, unpack=sampla.integrations.huggingface.next_tokens).",
                UserWarning,
                stacklevel=6,
            )
