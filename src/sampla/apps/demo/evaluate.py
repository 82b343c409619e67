"""The network alone against sampla on held-out images: clean, rotated and noisy."""

from dataclasses import dataclass, replace

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from sampla import LinearisedLaplace, Predictive
from sampla.apps.demo.data import ImageSet, noisy, pure_noise, rotated
from sampla.posterior.metrics import dyadic_log_likelihood, expected_calibration_error

NETWORK, MONTE_CARLO, PROBIT = "network alone", "sampla (Monte Carlo)", "sampla (probit)"
EM_WIDTH = "sampla, EM's width"
METHODS = (NETWORK, MONTE_CARLO, PROBIT, EM_WIDTH)
"""All of one fit. EM_WIDTH is the posterior as EM leaves it; the others have the width that leave-one-out prefers."""
ANGLES = tuple(range(15, 181, 15))
"""Degrees."""
NOISE_STDS = (0.1, 0.2, 0.3, 0.5)
"""On pixels in [0, 1]."""
OOD_ANGLE = 90
"""Degrees by which the images are turned that the AUROC calls foreign."""


@dataclass(frozen=True)
class Scores:
    """How good one method's probabilities are on one set."""

    accuracy: float
    nll: float
    """Mean negative log-likelihood of a label, in nats."""
    ece: float
    """Expected calibration error, 15 bins."""
    joint_nll: float | None
    """Mean negative joint log-likelihood of a dyadic group of 10 labels, in nats; None if it has no joint."""


@dataclass(frozen=True)
class SetScores:
    """All methods on one set of images."""

    kind: str
    """clean, rotated or noisy."""
    strength: float
    """Degrees, or the noise's standard deviation; 0 for clean."""
    methods: dict[str, Scores]


@dataclass(frozen=True)
class Answers:
    """What every method says about one set of images."""

    probs: dict[str, Tensor]
    """Method -> (n, C)."""
    predictive: Predictive

    def entropy(self, method: str) -> Tensor:
        """(n,) entropy in nats of a method's probabilities."""
        entropy: Tensor = torch.special.entr(self.probs[method]).sum(-1)
        return entropy

    def foreignness(self, method: str) -> Tensor:
        """(n,) the score in nats by which a method tells foreign inputs: by how much its functions disagree about the
        label, their mutual information with it; the entropy of its probabilities where it has no functions."""
        functions = {MONTE_CARLO: self.predictive, EM_WIDTH: self.predictive.scaled(1.0)}
        return functions[method].mutual_information if method in functions else self.entropy(method)


@dataclass(frozen=True)
class Evaluation:
    """Everything the demo measures."""

    clean: SetScores
    rotated: list[SetScores]
    noisy: list[SetScores]
    auroc: dict[str, dict[str, float]]
    """Foreign set -> method -> area under the ROC curve of ``Answers.foreignness``, foreign against clean."""
    answers: Answers
    """On the clean test images."""


def evaluate(la: LinearisedLaplace, test: ImageSet, seed: int) -> Evaluation:
    """Measure all methods on the clean, rotated and noisy test images.

    Args:
        la: fitted.
        test: held-out images.
        seed: of the noise and of the dyadic pairs, which are the same for every method.
    """

    def answer(images: Tensor) -> Answers:
        return _answer(la.predict(images))

    answers = answer(test.images)
    turned, auroc = [], {}
    for angle in ANGLES:
        theirs = answer(rotated(test.images, angle))
        turned.append(scores("rotated", angle, theirs, test.labels, seed))
        if angle == OOD_ANGLE:
            auroc[f"rotated by {angle} degrees"] = _aurocs(answers, theirs)
    spoiled = [scores("noisy", std, answer(noisy(test.images, std, seed)), test.labels, seed) for std in NOISE_STDS]
    auroc["pure noise"] = _aurocs(answers, answer(pure_noise(test.images, seed)))
    return Evaluation(scores("clean", 0, answers, test.labels, seed), turned, spoiled, auroc, answers)


def _answer(predictive: Predictive) -> Answers:
    """Class probabilities of every method for one set of images."""
    probs = {
        NETWORK: predictive.mean.softmax(-1),
        MONTE_CARLO: predictive.probs,
        PROBIT: replace(predictive, method="probit").probs,
        EM_WIDTH: predictive.scaled(1.0).probs,
    }
    return Answers(probs, predictive)


def scores(kind: str, strength: float, answers: Answers, labels: Tensor, seed: int) -> SetScores:
    """Every method's scores on one set."""
    predictive, at_em = answers.predictive, answers.predictive.scaled(1.0)
    alone = predictive.mean.log_softmax(-1).gather(-1, labels[:, None]).mT  # (1, n)
    joint = {
        NETWORK: _joint_nll(alone, seed),
        MONTE_CARLO: _joint_nll(predictive.sample_log_prob(labels), seed),
        PROBIT: None,
        EM_WIDTH: _joint_nll(at_em.sample_log_prob(labels), seed),
    }
    nll = {
        NETWORK: -float(alone.mean()),
        MONTE_CARLO: -float(predictive.log_prob(labels).mean()),
        PROBIT: -float(replace(predictive, method="probit").log_prob(labels).mean()),
        EM_WIDTH: -float(at_em.log_prob(labels).mean()),
    }
    methods = {
        method: Scores(
            accuracy=float((probs.argmax(-1) == labels).double().mean()),
            nll=nll[method],
            ece=expected_calibration_error(probs, labels),
            joint_nll=joint[method],
        )
        for method, probs in answers.probs.items()
    }
    return SetScores(kind, float(strength), methods)


def _joint_nll(sample_log_prob: Tensor, seed: int) -> float:
    return -float(dyadic_log_likelihood(sample_log_prob, seed=seed).mean())


def _aurocs(familiar: Answers, foreign: Answers) -> dict[str, float]:
    truth = [0] * len(familiar.predictive.mean) + [1] * len(foreign.predictive.mean)
    found = {m: torch.cat([familiar.foreignness(m), foreign.foreignness(m)]) for m in familiar.probs}
    return {method: float(roc_auc_score(truth, each.numpy())) for method, each in found.items()}
