"""Layerwise with a precision for each layer: fixed or to start from, and the posterior it stands for."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import sampla
from cases import Problem, build_tiny
from dense import predictive_covariance
from helpers import class_batches, classifier, laplace

SAMPLES = 400
BY_LAYER = {"0": 1.0, "2": 10.0}
GROUPS = {"head": ["2."], "body": ["0."]}
"""Not in the order of the layers."""

GIVEN: dict[str, Callable[[], sampla.Layerwise]] = {
    "a list": lambda: sampla.Layerwise([1.0, 10.0], learn=False),
    "a tuple": lambda: sampla.Layerwise((1, 10), learn=False),
    "an array": lambda: sampla.Layerwise(np.array([1.0, 10.0]), learn=False),
    "a tensor": lambda: sampla.Layerwise(torch.tensor([1.0, 10.0]), learn=False),
    "a dict": lambda: sampla.Layerwise({"2": 10.0, "0": 1.0}, learn=False),
    "a list for groups of one's own": lambda: sampla.Layerwise([10.0, 1.0], learn=False, groups=GROUPS),
    "a dict for groups of one's own": lambda: sampla.Layerwise({"body": 1.0, "head": 10}, learn=False, groups=GROUPS),
}
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "too few": (lambda: sampla.Layerwise([1.0], learn=False), r"each of 2 groups \('0', '2'\), got 1\. Give one for"),
    "too many": (lambda: sampla.Layerwise([1.0, 2, 3]), r"each of 2 groups \('0', '2'\), got 3\."),
    "one missing": (lambda: sampla.Layerwise({"0": 1.0}), r"each of 2 groups .*, got none for '2'"),
    "a name too many": (lambda: sampla.Layerwise({"0": 1.0, "2": 1.0, "4": 1.0}), "unknown prior group '4'"),
    "not a number": (lambda: sampla.Layerwise(["a", 1.0]), "a positive prior precision, got 'a'"),
    "not positive": (lambda: sampla.Layerwise({"0": 1.0, "2": 0.0}), "prior precision for group '2', got 0\\. Give"),
    "groups of one's own": (lambda: sampla.Layerwise([1.0], groups=GROUPS), r"2 groups \('head', 'body'\), got 1"),
    "isotropic": (lambda: sampla.Isotropic([1.0, 10.0]), r"one prior precision, got \[1.0, 10.0\]. Layerwise takes"),
    "g-prior": (lambda: sampla.GPrior({"0": 1.0}), "one prior precision, got .*Layerwise takes one for each layer"),
    "text": (lambda: sampla.Isotropic("1e"), "a positive prior precision, got '1e'"),
}


@pytest.fixture(scope="module")
def problem() -> Problem:
    return build_tiny("categorical")


@pytest.mark.parametrize(("given", "solver"), [*((given, "dense") for given in GIVEN), ("a list", "block-cg")])
def test_fixed_precisions_give_the_posterior_of_the_dense_reference(problem, given, solver):
    settings = {"solver": solver, "num_samples": SAMPLES, "tolerance": 1e-4}
    la = problem.fit(GIVEN[given](), **settings)
    assert dict(zip(la._inference.prior.names, la.prior_precision_.tolist(), strict=True)) in (
        BY_LAYER,
        {"body": 1.0, "head": 10.0},
    )
    first = problem.model[0].weight.numel() + problem.model[0].bias.numel()
    rest = problem.curvature.shape[0] - first
    precision = torch.cat([torch.full((first,), 1.0), torch.full((rest,), 10.0)]).double()
    inverse = torch.linalg.inv(problem.curvature + precision.diag())
    exact = float((inverse @ problem.curvature).trace())
    found = float(la.effective_dimension_.sum())
    assert found == pytest.approx(exact, rel=1e-6 if solver == "dense" else 0.05)
    expected = predictive_covariance(problem.test_features, inverse).diagonal()
    z = la.predict(problem.test_inputs).variance.flatten() / expected - 1
    assert float(z.abs().max()) < 5 * (2 / SAMPLES) ** 0.5


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_the_groups_is_refused_with_their_names(case):
    make, match = WRONG[case]
    with pytest.raises(ValueError, match=match):
        laplace(classifier(), prior=make()).fit(class_batches())


def test_em_starts_from_them():
    la = laplace(classifier(), prior=sampla.Layerwise([3.0, 7.0]), em=sampla.EM(tolerance=0.5)).fit(class_batches())
    assert la.report_.trace[0]["precision"] == [3.0, 7.0]
    assert la.prior_precision_.tolist() != [3.0, 7.0]


def test_a_checkpoint_belongs_to_its_precisions(tmp_path):
    quick = {"em": sampla.EM(tolerance=0.5)}
    net = classifier()
    first = laplace(net, prior=sampla.Layerwise([3.0, 7.0]), **quick).fit(class_batches(), tmp_path)
    again = laplace(net, prior=sampla.Layerwise(torch.tensor([3.0, 7.0])), **quick).fit(class_batches(), tmp_path)
    assert torch.equal(first.samples_["2.bias"], again.samples_["2.bias"])
    with pytest.raises(ValueError, match="one with other prior"):
        laplace(net, prior=sampla.Layerwise([3.0, 8.0]), **quick).fit(class_batches(), tmp_path)
