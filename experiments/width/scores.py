"""What is scored of one fit: every measure for every width, from the predictions that are kept."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.common.images import CLEAN
from experiments.common.metrics import Labelled, Score, average, joint_nll
from experiments.common.store import Arrays
from experiments.width.data import NOISE, TURNED
from sampla.laplace.choices import chosen_likelihood
from sampla.likelihoods import Gaussian
from sampla.posterior.metrics import expected_calibration_error
from sampla.posterior.predictive import Predictive

ALONE, EM, RULE, BEST = "alone", "EM", "rule", "best"
"""The widths that are compared: 0, 1, those that the rule finds, and the best one on the clean test set."""
GRID = (0.0, *np.geomspace(0.02, 12, 24).tolist())
SETS = (CLEAN, NOISE, TURNED)
_GROUP = 3


def scores(arrays: Arrays) -> dict[str, Any]:
    """NLL, joint NLL and ECE on the clean test set, NLL on the shifted ones, and the two best widths.

    Args:
        arrays: ``mean`` and ``deviations`` of each set, ``targets``, ``likelihood``, ``noise``, and the rule's
            ``widths``: of marginal probabilities, of joint predictions.
    """
    said = {name: _predictive(arrays, name) for name in SETS}
    targets = torch.from_numpy(arrays["targets"])
    marginal, joint = (float(width) for width in arrays["widths"])
    clean = {s: _likelihoods(said[CLEAN].scaled(s), targets) for s in {*GRID, 1.0, marginal, joint}}
    best, best_joint = (min(GRID, key=lambda s, m=m: clean[s][m].value) for m in (0, 1))
    widths = {ALONE: 0.0, EM: 1.0, RULE: marginal, BEST: best}
    nll = {way: clean[s][0] for way, s in widths.items()}
    joints = {way: clean[s][1] for way, s in (widths | {RULE: joint, BEST: best_joint}).items()}
    found: dict[str, Any] = {
        "best width": best, "best joint width": best_joint,
        "NLL": _values(nll), "NLL error": nll[RULE].minus(nll[ALONE])[1],
        "joint NLL": _values(joints), "joint NLL error": joints[RULE].minus(joints[ALONE])[1],
        "NLL curve": [clean[s][0].value for s in GRID], "joint NLL curve": [clean[s][1].value for s in GRID],
    }  # fmt: skip
    if arrays["likelihood"] != "gaussian":
        found["ECE"] = {way: _ece(said[CLEAN].scaled(s), targets) for way, s in widths.items()}
    for name in (NOISE, TURNED):
        found[f"NLL, {name}"] = {
            w: -float(said[name].scaled(s).log_prob(targets).double().mean()) for w, s in widths.items()
        }
    return found


def _values(found: dict[str, Score]) -> dict[str, float]:
    return {way: score.value for way, score in found.items()}


def _predictive(arrays: Arrays, name: str) -> Predictive:
    kind = str(arrays["likelihood"])
    likelihood = Gaussian(float(arrays["noise"])) if kind == "gaussian" else chosen_likelihood(kind)
    mean, deviations = (torch.from_numpy(arrays[f"{name}/{part}"]) for part in ("mean", "deviations"))
    if kind == "gaussian":  # under a shift deviations may exceed the noise by more than float32 has digits
        mean, deviations = mean.double(), deviations.double()
    return Predictive(mean, deviations, likelihood)


def _likelihoods(said: Predictive, targets: Tensor) -> tuple[Score, Score]:
    """NLL of a datum, and joint NLL: of ten labels in dyadic groups, for regression of three neighbours."""
    if isinstance(said.likelihood, Gaussian):
        joint = -said.joint_log_prob(targets, torch.arange(len(targets)) // _GROUP).double()
        return average(-said.log_prob(targets).double()), average(joint)
    labels = targets if targets.dim() == 1 else targets[:, 0]
    each = Labelled(targets, labels.long(), said.sample_log_prob(targets))
    joint = joint_nll(each)
    assert joint is not None
    return average(each.nll), joint


def _ece(said: Predictive, targets: Tensor) -> float:
    probs = said.probs
    if targets.dim() == 2:  # Bernoulli: one output, two classes
        probs, targets = torch.cat([1 - probs, probs], 1), targets[:, 0].long()
    return expected_calibration_error(probs, targets)


def neighbours(x: Tensor) -> Tensor:
    """An order of (n, D) inputs along their first principal component, without the rest of a last group of three."""
    centred = x.flatten(1).double()
    centred = centred - centred.mean(0)
    along = centred @ torch.linalg.svd(centred, full_matrices=False)[2][0]
    return along.argsort()[: len(x) // _GROUP * _GROUP]
