"""What is assigned to a setting after a fit is for the next one: answers about this fit stay as they are."""

import json
from dataclasses import replace

import pytest
import torch

import sampla
from helpers import class_batches, classifier, laplace
from sampla.inference.report import FitReport

OTHERS = {
    "curvature_at": "linear-mode", "seed": 9, "em": sampla.EM(mode_tolerance=0.5), "tolerance": 0.9, "max_passes": 1,
    "model": classifier(5), "likelihood": sampla.Bernoulli(), "linear_model": "tangent", "width": 0.1,
}  # fmt: skip


def answers(la):
    """Of everything that works on the data of the fit, or with its seed."""
    batches = class_batches()
    left, changed = la.leave_one_out(batches), la.influence(batches, batches[0])
    return left.log_prob, left.leverage, changed.change, la.predict(batches[0][0], certificate=True).solve_error


def test_no_setting_that_is_assigned_after_a_fit_changes_what_is_said_of_it():
    first, second = (laplace(classifier(), solver="block-cg").fit(class_batches()) for _ in range(2))
    for name, value in OTHERS.items():
        assert hasattr(second, name)
        setattr(second, name, value)
    for one, other in zip(answers(first), answers(second), strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def test_they_count_in_the_next_fit():
    la = laplace(classifier()).fit(class_batches())
    before = la.leave_one_out(class_batches()).leverage
    la.curvature_at = "linear-mode"
    after = la.fit(class_batches()).leave_one_out(class_batches()).leverage
    assert not torch.equal(before, after)
    asked = laplace(classifier(), curvature_at="linear-mode").fit(class_batches())
    assert torch.equal(asked.leave_one_out(class_batches()).leverage, after)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_report_of_numbers_that_are_not_finite_is_valid_json(value):
    report = replace(
        laplace(classifier()).fit(class_batches()).report_, solve_error=value, solve_history=[1.0, value],
        precision_error=[value, value], log_evidence_error=[0.1, value], noise_precision=value,
    )  # fmt: skip
    text = json.dumps(report.to_dict(), allow_nan=False)
    written = json.loads(text)
    assert written["solve_error"] is None
    assert written["solve_history"] == [1.0, None]
    again = FitReport.from_dict(written)
    assert again.solve_error != again.solve_error, "NaN"
    assert "samples" in str(again)
    assert "error" in again.summary
