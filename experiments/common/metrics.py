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

from sampla.posterior.metrics import dyadic_log_likelihood

PARTS = 20
ACCURACY, NLL, ECE, BRIER, JOINT_NLL, AUROC = "accuracy", "NLL", "ECE", "Brier", "joint NLL", "AUROC"
_BINS = 15
_DIGITS = 7
"""Significant digits that are kept."""


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


@dataclass(frozen=True)
class Prediction:
    """What one method says about n images."""

    probs: Tensor
    """(n, C) probabilities."""
    label_log_prob: Callable[[Tensor], Tensor] | None = None
    """(n,) labels -> (S, n) log-probability of each label under each of S functions; None without a joint."""
    single: Callable[[Tensor], Tensor] | None = None
    """(n,) labels -> (n,) log-probability of each label, where it is not the average over these functions."""


@dataclass(frozen=True)
class Labelled:
    """A prediction beside the truth: what every measure is computed from."""

    probs: Tensor
    """(n, C) probabilities."""
    labels: Tensor
    """(n,) int64."""
    log_prob: Tensor | None = None
    """(S, n) log-probability of each label under each of S functions; None without a joint."""
    seed: int = 0
    """Of the dyadic groups."""
    single: Tensor | None = None
    """(n,) log-probability of each label, where it is not the average over these functions."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def right(self) -> Tensor:
        """(n,) one where the most probable class is the label."""
        return (self.probs.argmax(-1) == self.labels).double()

    @property
    def nll(self) -> Tensor:
        """(n,) minus log-probability of the label."""
        if self.single is not None:
            return -self.single.double()
        if self.log_prob is not None:
            return log(len(self.log_prob)) - self.log_prob.double().logsumexp(0)
        probs = self.probs.double().gather(1, self.labels[:, None])[:, 0]
        return -probs.clamp_min(torch.finfo(torch.float32).tiny).log()

    @property
    def brier(self) -> Tensor:
        """(n,) squared distance from the label's indicator."""
        indicator = torch.nn.functional.one_hot(self.labels, self.probs.shape[1])
        return (self.probs.double() - indicator).square().sum(-1)

    def calibration_error(self, rows: Tensor) -> float:
        """Expected calibration error in equal bins of confidence (Guo et al. 2017), by torchmetrics."""
        from torchmetrics.functional.classification import multiclass_calibration_error  # an extra, slow to import

        probs, labels = self.probs[rows], self.labels[rows]
        return float(multiclass_calibration_error(probs, labels, num_classes=probs.shape[1], n_bins=_BINS))


@dataclass(frozen=True)
class Measure:
    """A column of the tables."""

    score: Callable[[Labelled], Score | None]
    """None where a prediction does not have it."""
    higher: bool = False
    """Whether more is better."""
    digits: int = 4
    factor: float = 1.0
    """What it is shown in units of."""


def joint_nll(said: Labelled) -> Score | None:
    """Of dyadic groups of ten labels, in nats, within each part so that no group belongs to two of them."""
    if said.log_prob is None:
        return None
    part, each = _parts(len(said)), said.log_prob.double()
    groups = [dyadic_log_likelihood(each[:, part == k], seed=said.seed) for k in range(PARTS)]
    sums, counts = [-float(one.sum()) for one in groups], [len(one) for one in groups]
    total, number = sum(sums), sum(counts)
    without = [_short((total - s) / (number - c)) for s, c in zip(sums, counts, strict=True)]
    return Score(_short(total / number), without)


MEASURES = {
    ACCURACY: Measure(lambda said: average(said.right), higher=True, digits=2, factor=100),
    NLL: Measure(lambda said: average(said.nll)),
    ECE: Measure(lambda said: jackknife(said.calibration_error, len(said))),
    BRIER: Measure(lambda said: average(said.brier)),
    JOINT_NLL: Measure(joint_nll),
}
"""Of labelled images, in the order of the tables: add a line for another column."""


def higher_is_better(measure: str) -> bool:
    """Whether more of it is better."""
    return measure == AUROC or MEASURES[measure].higher


def average(each: Tensor) -> Score:
    """The mean of a number of each image."""
    return jackknife(lambda rows: float(each[rows].mean()), len(each))


def auroc(familiar: Tensor, foreign: Tensor) -> Score:
    """How well the entropy of (n, C) probabilities tells foreign inputs from familiar ones; a part goes from both."""
    values = torch.cat([torch.special.entr(probs).sum(-1) for probs in (familiar, foreign)])
    truth = torch.cat([torch.zeros(len(familiar)), torch.ones(len(foreign))])
    part = torch.cat([_parts(len(familiar)), _parts(len(foreign))])

    def area(rows: Tensor) -> float:
        return _short(float(roc_auc_score(truth[rows].numpy(), values[rows].numpy())))

    every = torch.arange(len(values))
    return Score(area(every), [area(every[part != k]) for k in range(PARTS)])


def jackknife(statistic: Callable[[Tensor], float], count: int) -> Score:
    """A statistic of row numbers, over all rows and over all but each part.

    Args:
        statistic: (m,) int64 row numbers -> number.
        count: n rows, at least as many as there are parts.
    """
    every, part = torch.arange(count), _parts(count)
    return Score(_short(statistic(every)), [_short(statistic(every[part != k])) for k in range(PARTS)])


def mean(found: list[Score]) -> Score:
    """Of scores on sets that are cut into the same parts."""
    without = [sum(values) / len(found) for values in zip(*(score.without for score in found), strict=True)]
    return Score(sum(score.value for score in found) / len(found), without)


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
