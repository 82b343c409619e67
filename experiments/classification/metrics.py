"""Scores of one method on one set of images, each with what it would be without every twentieth part of the images.

The parts are the same for every method, so the standard error of a score, and of the difference of two methods on the
same images, comes from the same numbers by the jackknife (Efron 1982), for averages and for ECE or AUROC alike.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from sampla.metrics import dyadic_log_likelihood, expected_calibration_error

PARTS = 20
ACCURACY, NLL, ECE, BRIER, JOINT_NLL = "accuracy", "NLL", "ECE", "Brier", "joint NLL"
HIGHER_IS_BETTER = (ACCURACY, "AUROC")
_DIGITS = 7
"""Significant digits that are kept."""


@dataclass(frozen=True)
class Prediction:
    """What one method says about n images."""

    probs: Tensor
    """(n, C) probabilities."""
    label_log_prob: Callable[[Tensor], Tensor] | None
    """(n,) labels -> (S, n) log-probability of each label under each of S functions; None without a joint."""

    @property
    def entropy(self) -> Tensor:
        """(n,) in nats."""
        return torch.special.entr(self.probs).sum(-1)


@dataclass(frozen=True)
class Score:
    """A number on a set, and the same number without each of the parts."""

    value: float
    without: list[float]

    @property
    def error(self) -> float:
        """Jackknife standard error."""
        return _spread(self.without)

    def minus(self, other: "Score") -> tuple[float, float]:
        """The difference from another method's score on the same images, and its (paired) standard error."""
        return self.value - other.value, _spread([a - b for a, b in zip(self.without, other.without, strict=True)])


def scores(prediction: Prediction, labels: Tensor, seed: int) -> dict[str, Score]:
    """Accuracy, NLL, ECE (15 bins), Brier score and joint NLL of dyadic groups of ten labels, in nats.

    The joint one is computed within each part, so that no group belongs to two of them.
    """
    probs, right = prediction.probs.double(), prediction.probs.argmax(-1) == labels
    brier = (probs - torch.nn.functional.one_hot(labels, probs.shape[1])).square().sum(-1)
    each = None if prediction.label_log_prob is None else prediction.label_log_prob(labels).double()
    if each is None:
        nll = -probs.gather(1, labels[:, None])[:, 0].clamp_min(torch.finfo(torch.float32).tiny).log()
    else:
        nll = log(len(each)) - each.logsumexp(0)
    found = {
        ACCURACY: jackknife(lambda rows: float(right[rows].double().mean()), len(labels)),
        NLL: jackknife(lambda rows: float(nll[rows].mean()), len(labels)),
        ECE: jackknife(lambda rows: expected_calibration_error(probs[rows], labels[rows]), len(labels)),
        BRIER: jackknife(lambda rows: float(brier[rows].mean()), len(labels)),
    }
    if each is not None:
        found[JOINT_NLL] = _joint_nll(each, seed)
    return found


def auroc(familiar: Tensor, foreign: Tensor) -> Score:
    """How well a score (n,), (m,) tells foreign inputs (larger) from familiar ones; a part goes from both at once."""
    truth = torch.cat([torch.zeros(len(familiar)), torch.ones(len(foreign))])
    values, part = torch.cat([familiar, foreign]), torch.cat([_parts(len(familiar)), _parts(len(foreign))])

    def area(rows: Tensor) -> float:
        return float(roc_auc_score(truth[rows].numpy(), values[rows].numpy()))

    every = torch.arange(len(values))
    return Score(_short(area(every)), [_short(area(every[part != k])) for k in range(PARTS)])


def jackknife(statistic: Callable[[Tensor], float], count: int) -> Score:
    """A statistic of row numbers, over all rows and over all but each part.

    Args:
        statistic: (m,) int64 row numbers -> number.
        count: n rows, at least as many as there are parts.
    """
    every, part = torch.arange(count), _parts(count)
    return Score(_short(statistic(every)), [_short(statistic(every[part != k])) for k in range(PARTS)])


def _joint_nll(each: Tensor, seed: int) -> Score:
    part = _parts(each.shape[1])
    sums, counts = [], []
    for k in range(PARTS):
        groups = dyadic_log_likelihood(each[:, part == k], seed=seed)
        sums.append(-float(groups.sum()))
        counts.append(len(groups))
    total, number = sum(sums), sum(counts)
    without = [_short((total - s) / (number - c)) for s, c in zip(sums, counts, strict=True)]
    return Score(_short(total / number), without)


def _parts(count: int) -> Tensor:
    """(n,) which part each row belongs to: every twentieth row to the same, whatever order the classes come in."""
    if count < 2 * PARTS:
        raise ValueError(f"expected at least {2 * PARTS} images in a set, got {count}: standard errors need them.")
    return torch.arange(count) % PARTS


def _spread(without: list[float]) -> float:
    values = torch.tensor(without, dtype=torch.float64)
    return float(((len(values) - 1) / len(values) * (values - values.mean()).square().sum()).sqrt())


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
