"""Targets of every type: the same posterior whatever holds the labels, or what to do about it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sampla
from helpers import classifier, inputs, labels, laplace, regressor

PRIOR = sampla.Isotropic(1.0, learn=False)


def _fitted(model: nn.Module, likelihood: Any, targets: Any, solver: str = "dense") -> tuple[float, Any]:
    la = laplace(model, likelihood, prior=PRIOR, solver=solver).fit([(inputs(), targets)])
    return float(la.effective_dimension_), la


def _with_holes(missing: int) -> Tensor:
    return labels().where(torch.arange(24) % 3 > 0, missing)


INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32]


@pytest.mark.parametrize("likelihood", [sampla.Categorical(), sampla.Categorical(ignore_index=-100)])
@pytest.mark.parametrize("dtype", INTEGERS[1:], ids=str)
def test_class_numbers_of_any_integer_type(dtype: torch.dtype, likelihood: sampla.Categorical) -> None:
    expected, la = _fitted(classifier(), likelihood, labels())
    found, other = _fitted(classifier(), likelihood, labels().to(dtype))
    assert found == expected
    pred = la.predict(inputs())
    assert torch.equal(other.predict(inputs()).log_prob(labels().to(dtype)), pred.log_prob(labels()))


@pytest.mark.parametrize("dtype", INTEGERS[1:], ids=str)
@pytest.mark.parametrize("ignored", [255, -1, -100, 7])
def test_a_number_to_be_ignored_that_the_type_may_not_hold(dtype: torch.dtype, ignored: int) -> None:
    """uint8 has no -100: torch would compare with 156 instead, and leave a label of that number out."""
    info = torch.iinfo(dtype)
    held = info.min <= ignored <= info.max
    targets = _with_holes(ignored) if held else labels()
    expected, _ = _fitted(classifier(), sampla.Categorical(ignore_index=ignored), targets)
    found, _ = _fitted(classifier(), sampla.Categorical(ignore_index=ignored), targets.to(dtype))
    assert found == expected


def test_a_label_is_not_taken_for_the_number_to_be_ignored() -> None:
    """156 is what -100 becomes in uint8."""
    likelihood = sampla.Categorical(ignore_index=-100)
    counted = likelihood.counted(torch.tensor([156, 3], dtype=torch.uint8))
    assert counted is not None
    assert counted.all()
    one = sampla.Bernoulli(ignore_value=-255).counted(torch.ones(1, 1, dtype=torch.uint8))
    assert one is not None
    assert one.all()


@pytest.mark.parametrize("change", [torch.Tensor.bool, torch.Tensor.int, torch.Tensor.byte, torch.Tensor.numpy])
@pytest.mark.parametrize("likelihood", [sampla.Bernoulli(), sampla.Bernoulli(ignore_value=-1)])
def test_binary_labels_of_any_type(change: Callable[[Tensor], Any], likelihood: sampla.Bernoulli) -> None:
    y = (labels() > 0).long()[:, None]
    expected, _ = _fitted(regressor(), likelihood, y.float())
    found, la = _fitted(regressor(), likelihood, change(y))
    assert found == expected
    assert la.predict(inputs()).log_prob(torch.as_tensor(change(y))).shape == (24,)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int64, ">i4"])
def test_labels_in_numpy(dtype: Any) -> None:
    y = labels().numpy().astype(dtype)
    y.flags.writeable = False
    expected, _ = _fitted(classifier(), "categorical", labels())
    assert _fitted(classifier(), "categorical", y)[0] == expected


@pytest.mark.parametrize("solver", ["dense", "block-cg"])
def test_counts_as_targets_of_a_regression(solver: str) -> None:
    y = labels()[:, None]
    expected, _ = _fitted(regressor(), sampla.Gaussian(4.0), y.float(), solver)
    assert _fitted(regressor(), sampla.Gaussian(4.0), y.to(torch.uint8), solver)[0] == expected


NESTED = torch.nested.nested_tensor([torch.zeros(1, dtype=torch.long)] * 24, layout=torch.jagged)
REFUSED: dict[str, tuple[Any, Callable[[], nn.Module], Any, str]] = {
    "float classes": ("categorical", classifier, labels().float(), r"integer class targets, got torch.float32.*\.long"),
    "boolean classes": ("categorical", classifier, labels() > 0, r"integer class targets, got torch.bool.*\.long"),
    "complex classes": ("categorical", classifier, labels() + 0j, "integer class targets, got complex ones"),
    "sparse classes": ("categorical", classifier, labels().to_sparse(), r"a dense tensor .*sparse_coo.*to_dense\(\)"),
    "nested classes": ("categorical", classifier, NESTED, "a dense tensor .* got a nested one. Pad it"),
    "classes of a small type that are too large": (
        "categorical", classifier, labels().to(torch.uint8) + 254,
        "labels in 0..2 for 3 outputs, got labels from 0 to 255",
    ),
    "boolean numbers": (
        "gaussian", regressor, labels()[:, None] > 0, r"real numbers, got booleans. Convert them with .float\(\)",
    ),
    "complex numbers": (
        "gaussian", regressor, labels()[:, None] + 0j, "real numbers, got complex ones. Use their real and imaginary",
    ),
    "sparse numbers": ("gaussian", regressor, torch.eye(24, 1).to_sparse(), r"a dense tensor .*sparse_coo.*to_dense"),
    "complex probabilities": ("bernoulli", regressor, labels()[:, None] + 0j, r"in \[0, 1\] or booleans, got complex"),
    "a dict of targets": ("gaussian", regressor, {"y": torch.zeros(24, 1)}, "targets as a tensor.*got dict"),
    "a list of numbers": ("categorical", classifier, labels().tolist(), "targets as a tensor.*got list"),
    "one number": ("categorical", classifier, torch.tensor(1), r"first axis 24, like the inputs.*got \(\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_targets_that_are_no_targets(name: str) -> None:
    likelihood, make, targets, match = REFUSED[name]
    with pytest.raises(ValueError, match=match):
        laplace(make(), likelihood).fit([(inputs(), targets)])


@pytest.mark.parametrize(
    ("likelihood", "make", "targets", "match"),
    [
        ("categorical", classifier, labels().to_sparse(), "integer class targets, got sparse ones. Call .to_dense"),
        ("categorical", classifier, NESTED, "integer class targets, got nested ones. Pad them"),
        (sampla.Gaussian(1.0), regressor, labels()[:, None] > 0, "real numbers, got booleans"),
        (sampla.Gaussian(1.0), regressor, labels()[:, None] + 1j, "real numbers, got complex ones"),
        (sampla.Gaussian(1.0), regressor, torch.eye(24, 1).to_sparse(), "real numbers, got sparse ones"),
        ("bernoulli", regressor, torch.eye(24, 1).to_sparse(), r"in \[0, 1\] or booleans, got sparse ones"),
    ],
)  # fmt: skip
def test_the_same_for_a_log_density(
    likelihood: Any, make: Callable[[], nn.Module], targets: Tensor, match: str
) -> None:
    y = labels() if isinstance(likelihood, str) and likelihood == "categorical" else (labels()[:, None] > 0).float()
    pred = laplace(make(), likelihood).fit([(inputs(), y)]).predict(inputs())
    with pytest.raises(ValueError, match=match):
        pred.log_prob(targets)
