"""Settings of the wrong kind are refused where they are given, in words."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import sampla
from helpers import class_batches, classifier, inputs, labels, laplace, regression_batches, regressor

SETTINGS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "em by name": ({"em": "fast"}, TypeError, r"expected a sampla.EM, as in EM\(max_steps=50\), got 'fast'"),
    "em, a class": ({"em": sampla.EM}, TypeError, r"got the class EM: write EM\(\)"),
    "em, False": ({"em": False}, TypeError, "expected a sampla.EM.*got False"),
    "solver, a class": ({"solver": sampla.Dense}, TypeError, r"got the class Dense: write Dense\(\)"),
    "prior, a class": ({"prior": sampla.GPrior}, TypeError, r"got the class GPrior: write GPrior\(\)"),
    "max_passes 0": ({"max_passes": 0}, ValueError, "expected max_passes as an integer of at least 1, got 0"),
    "max_passes 2.5": ({"max_passes": 2.5}, ValueError, "expected max_passes as an integer of at least 1, got 2.5"),
    "max_passes True": ({"max_passes": True}, ValueError, "expected max_passes as an integer of at least 1, got True"),
    "tolerance in words": ({"tolerance": "0.1"}, ValueError, r"expected tolerance in \(0, 1\), got '0.1'"),
    "seed None": ({"seed": None}, ValueError, "expected seed as an integer of at least 0, got None"),
    "num_samples 16.0": ({"num_samples": 16.0}, ValueError, "num_samples as an integer of at least 2, got 16.0"),
    "chunks, a number": ({"chunks": 5}, ValueError, r"chunks as \(data, vectors\), at least \(1, 1\), got 5"),
    "log_evidence in words": ({"log_evidence": "no"}, ValueError, "log_evidence True, False or None, got 'no'"),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name: str) -> None:
    settings, error, match = SETTINGS[name]
    with pytest.raises(error, match=match):
        laplace(classifier(), **settings)


EM: dict[str, tuple[dict[str, Any], str]] = {
    "steps": ({"max_steps": 2.5}, "expected EM max_steps as an integer of at least 1, got 2.5"),
    "samples": ({"num_samples": "8"}, "expected EM num_samples as an integer of at least 2, got '8'"),
    "rows": ({"max_rows": 8}, "expected EM max_rows as an integer of at least 16, got 8"),
    "tolerance": ({"solve_tolerance": "tight"}, r"expected EM solve_tolerance in \(0, 1\), got 'tight'"),
}


@pytest.mark.parametrize("name", EM)
def test_settings_of_em(name: str) -> None:
    settings, match = EM[name]
    with pytest.raises(ValueError, match=match):
        sampla.EM(**settings)


def test_a_checkpoint_that_is_no_path() -> None:
    la = laplace(classifier())
    with pytest.raises(TypeError, match="expected checkpoint as the path of a folder, or None, got 123"):
        la.fit(class_batches(), checkpoint=123)  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers() -> None:
    la = laplace(classifier(), num_samples=np.int64(4), seed=np.int32(1), tolerance=np.float32(0.1))
    assert la.fit(class_batches()).predict(inputs()).samples.shape == (4, 24, 3)


PREDICT: dict[str, tuple[dict[str, Any], str]] = {
    "no draws": ({"num_draws": 0}, "expected num_draws as an integer of at least 1, got 0"),
    "negative draws": ({"num_draws": -5}, "expected num_draws as an integer of at least 1, got -5"),
    "half a draw": ({"num_draws": 0.5}, "expected num_draws as an integer of at least 1, got 0.5"),
    "a typing error": ({"method": "montecarlo"}, "unknown predictive method 'montecarlo'.*Did you mean 'monte-carlo'"),
}


@pytest.mark.parametrize("name", PREDICT)
def test_predictions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, match = PREDICT[name]
    la = laplace(classifier()).fit(class_batches())
    assert la._posterior is not None
    monkeypatch.setattr(la._posterior.features, "linearise", None)  # refused before any product
    with pytest.raises(ValueError, match=match):
        la.predict(inputs(), **settings)


FORMS: dict[str, Callable[[torch.Tensor], Any]] = {"NumPy": lambda y: y.numpy(), "a list": lambda y: y.tolist()}


@pytest.mark.parametrize("form", FORMS)
def test_targets_in_another_form(form: str) -> None:
    given = FORMS[form]
    classes = laplace(classifier()).fit(class_batches()).predict(inputs())
    numbers = laplace(regressor(), sampla.Gaussian(4.0)).fit(regression_batches()).predict(inputs())
    group, y = torch.arange(24) % 5, inputs()[:, :1]
    for prediction, targets in ((classes, labels()), (numbers, y)):
        assert torch.allclose(prediction.log_prob(given(targets)), prediction.log_prob(targets))
        joint = prediction.joint_log_prob(given(targets), given(group))
        assert torch.allclose(joint, prediction.joint_log_prob(targets, group))
        assert torch.isfinite(torch.tensor(prediction.best_scale(given(targets))))


@pytest.mark.parametrize("targets", [None, "classes", [[1], [2, 3]], np.array(["a"])])
def test_targets_that_are_none(targets: Any) -> None:
    prediction = laplace(classifier()).fit(class_batches()).predict(inputs())
    with pytest.raises(TypeError, match="expected targets as a tensor, a NumPy array or a list of numbers, got"):
        prediction.log_prob(targets)
