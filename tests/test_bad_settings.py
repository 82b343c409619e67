"""Settings, likelihoods of the user's own and questions that make no sense are refused in plain words.

The network is as it was, and what an earlier fit found can still be used.
"""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sampla
from helpers import (
    NAN,
    assert_unchanged,
    class_batches,
    classifier,
    inputs,
    labels,
    laplace,
    refused,
    regression_batches,
    regressor,
    snapshot,
)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"num_samples": 1}, ValueError, "expected num_samples as an integer of at least 2, got 1. 16 to 64 are usual"),
        ({"num_samples": 4.0}, ValueError, "num_samples as an integer of at least 2, got 4.0"),
        ({"seed": -1}, ValueError, "expected seed as an integer of at least 0, got -1"),
        ({"seed": 2**64}, ValueError, r"expected seed as an integer below 2\*\*64, got 18446744073709551616"),
        ({"tolerance": 2.0}, ValueError, r"expected tolerance in \(0, 1\), got 2.0"),
        ({"max_passes": 0}, ValueError, "expected max_passes as an integer of at least 1, got 0"),
        ({"likelihood": "categoricl"}, ValueError, "unknown likelihood 'categoricl'.*Did you mean 'categorical'?"),
        ({"likelihood": sampla.Categorical}, TypeError, r"got the class Categorical: write Categorical\(\)"),
        ({"prior": "gprior"}, ValueError, "unknown prior 'gprior': expected one of .*Did you mean 'g-prior'?"),
        ({"prior": 3}, TypeError, "expected a sampla.Prior or one of 'g-prior', 'isotropic', 'layerwise', got 3"),
        ({"solver": "block_cg"}, ValueError, "unknown solver 'block_cg': expected one of 'auto'.*mean 'block-cg'?"),
        ({"vectors_on": "gpu"}, ValueError, "expected vectors_on as a device that is here, such as 'cpu', got 'gpu'"),
        ({"vectors_on": "meta"}, ValueError, "expected vectors_on as a device with memory, got 'meta'"),
        ({"vectors_on": 3.5}, ValueError, "expected vectors_on as a device that is here.*got 3.5"),
        ({"vectors_on": "cuda:77"}, ValueError, "expected vectors_on as a device that is here.*got 'cuda:77'"),
        ({"vectors_on": "cpu", "solver": "sgd"}, ValueError, r"expected solver='block-cg' with vectors_on, got SGD\("),
        ({"parameters": ["0.wieght"]}, ValueError, "unknown parameter '0.wieght'.*Did you mean '0.weight'?"),
        ({"parameters": []}, ValueError, r"at least one parameter to be uncertain about, got none of 4 \(not selected"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense(settings: dict[str, Any], error: type[Exception], match: str) -> None:
    model = classifier()
    before = snapshot(model)
    with pytest.raises(error, match=match):
        laplace(model, **settings)
    assert_unchanged(model, before)


def test_no_trainable_parameter() -> None:
    match = r"at least one parameter.*got none of 4 \(does not require grad\). Set requires_grad=True on some"
    with pytest.raises(ValueError, match=match):
        laplace(classifier().requires_grad_(False))


def test_not_a_network() -> None:
    with pytest.raises(ValueError, match=r"expected a torch.nn.Module, got function. Pass the trained network"):
        laplace(lambda x: x)


def test_long_lists_of_names_are_cut() -> None:
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(50)))
    with pytest.raises(ValueError, match=re.escape("and 88 more. Did you mean '49.weight'?")):
        sampla.LinearisedLaplace(model, parameters=["49.weigt"])


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: sampla.GPrior(0.0), "expected a positive prior precision, got 0. Give 1 / prior variance"),
        (lambda: sampla.Isotropic(-1.0), "expected a positive prior precision, got -1"),
        (lambda: sampla.GPrior(learn=False), "expected a prior precision to keep with learn=False, got None"),
        (lambda: sampla.GPrior(floor=0.0), r"expected a floor in \(0, 1\], got 0"),
        (lambda: sampla.Gaussian(0.0), "expected a positive noise precision, got 0. Give 1 / variance"),
        (lambda: sampla.Gaussian(torch.tensor([1.0, -2.0])), "expected a positive noise precision, got -2"),
        (lambda: sampla.Gaussian(NAN), "expected finite noise precision, got 1 NaN"),
        (lambda: sampla.Gaussian(torch.tensor([[1.0, 2.0], [2.0, 1.0]])), "symmetric positive definite noise prec"),
        (lambda: sampla.Gaussian(torch.ones(2, 3)), r"expected a square noise precision matrix, got \(2, 3\)"),
        (lambda: sampla.Gaussian(structure="diag"), "unknown noise structure 'diag'.*Did you mean 'diagonal'?"),
        (lambda: sampla.EM(tolerance=0.0), r"expected EM tolerance in \(0, 1\), got 0.0"),
        (lambda: sampla.EM(max_steps=0), "expected EM max_steps as an integer of at least 1, got 0. Fix the prior"),
    ],
)  # fmt: skip
def test_hyperparameters_that_make_no_sense(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize(
    ("groups", "match"),
    [
        ({"first": ["0."]}, r"'2.weight' in exactly one prior group, got none of \['first'\].*every parameter once"),
        ({"first": ["0."], "all": ["0", "2"]}, r"'0.weight' in exactly one prior group, got \['first', 'all'\]"),
    ],
)  # fmt: skip
def test_prior_groups_that_do_not_divide_the_parameters(groups: dict[str, list[str]], match: str) -> None:
    refused(laplace(classifier(), prior=sampla.Layerwise(groups=groups)), class_batches(), ValueError, match)


# Likelihoods of the user's own


class Scaled(sampla.Categorical):
    """A categorical likelihood whose curvature, or its root, is multiplied by a number."""

    def __init__(self, curvature: float = 1.0, root: float = 1.0) -> None:
        self._factors = curvature, root

    def curvature_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        return self._factors[0] * super().curvature_product(outputs, vectors)

    def curvature_root_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        return self._factors[1] * super().curvature_root_product(outputs, vectors)


@pytest.mark.parametrize(
    ("likelihood", "match"),
    [
        (Scaled(curvature=-100.0), "a positive semi-definite curvature from Scaled.curvature_product, got u' B u = -"),
        (Scaled(curvature=NAN), "a positive semi-definite curvature from Scaled.curvature_product, got u' B u = nan"),
        (
            Scaled(root=NAN),
            "expected S of Scaled.curvature_root_product and S' of curvature_root_transpose_produ",
        ),
    ],
)
def test_curvature_that_is_none(likelihood: sampla.Likelihood, match: str) -> None:
    refused(laplace(classifier(), likelihood), class_batches(), ValueError, re.escape(match))


class LaterOn(Scaled):
    """A curvature that goes wrong only after the first look."""

    products = 0

    def curvature_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        self.products += 1
        return (-100.0 if self.products > 1 else 1.0) * super().curvature_product(outputs, vectors)


@pytest.mark.parametrize("solver", ["dense", "block-cg", "sgd"])
def test_curvature_that_becomes_none(solver: str) -> None:
    match = (
        "has no solution: in its first pass it met NaN, infinity or a curvature that is not positive: check the like"
    )
    refused(laplace(classifier(), LaterOn(), solver=solver), class_batches(), ArithmeticError, match)


def test_a_solve_that_stops_short_says_so_and_the_report_too() -> None:
    la = laplace(classifier(), solver="block-cg", max_passes=1, tolerance=1e-4)
    match = (
        r"BlockCG was asked for a relative error of 1.0e-04, reached an estimated .* in 1 passes and stopped at max_p"
    )
    with pytest.warns(sampla.ConvergenceWarning, match=match):
        la.fit(class_batches())
    assert "stopped at max_passes before reaching the tolerance: allow more passes" in str(la.report_)


def test_em_that_does_not_settle_says_so_and_the_report_too() -> None:
    la = laplace(classifier(), prior="isotropic", em=sampla.EM(max_steps=1))
    with pytest.warns(sampla.ConvergenceWarning, match=r"EM was asked to settle within 2%, and after 1 steps.*learn=F"):
        la.fit(class_batches())
    assert "EM has NOT settled in 1 step" in str(la.report_)


# Predictions


@pytest.mark.parametrize("call", ["predict", "save", "samples_", "report_", "prior_precision_", "effective_dimension_"])
def test_results_before_fit(call: str) -> None:
    la = laplace(classifier())
    with pytest.raises(RuntimeError, match=r"not fitted yet: call fit\(loader\) first"):
        getattr(la, call)(inputs()) if call in ("predict", "save") else getattr(la, call)


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        (inputs() * NAN, ValueError, "expected finite inputs, got 48 NaN"),
        (torch.zeros(3, 5), RuntimeError, r"could not be called on inputs of shape and dtype \(3, 5\) float32"),
        (inputs(0), ValueError, r"first axis of n > 0 data in predict, got \(0, 2\) float32"),
        ([1.0, 2.0], TypeError, "predict: expected inputs as a tensor, a tuple or a dict of tensors, got list"),
    ],
)
def test_inputs_that_cannot_be_predicted(x: Any, error: type[Exception], match: str) -> None:
    la = laplace(classifier()).fit(class_batches())
    with pytest.raises(error, match=match):
        la.predict(x)


def test_questions_that_a_predictive_cannot_answer() -> None:
    la = laplace(classifier()).fit(class_batches())
    pred = la.predict(inputs())
    with pytest.raises(ValueError, match=r"unknown predictive method 'probbit'.*Did you mean 'probit'?"):
        la.predict(inputs(), method="probbit")
    with pytest.raises(ValueError, match=r"labels in 0..2 for 3 outputs, got labels from \d to 3"):
        pred.log_prob(labels() + 1)
    with pytest.raises(ValueError, match=r"expected integer group numbers of shape \(24,\), got \(2,\)"):
        pred.joint_log_prob(labels(), group=torch.tensor([0, 1]))
    regression = laplace(regressor(), sampla.Gaussian(4.0)).fit(regression_batches())
    with pytest.raises(TypeError, match=r"Gaussian has no class probabilities: use pred.mean and pred.variance"):
        _ = regression.predict(inputs()).probs
