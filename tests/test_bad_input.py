"""Each mistake is refused with a message that says what was expected, what came and what to do.

Nothing is lost by it: the network is as it was, and what an earlier fit found can still be used.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, one_hot

import sampla
from helpers import (
    NAN,
    Batches,
    class_batches,
    classifier,
    inputs,
    labels,
    laplace,
    refused,
    regression_batches,
    regressor,
    spoiled,
)


class Rereadable:
    """A loader whose passes differ: pass k gives ``passes[k]`` (the last one from then on)."""

    def __init__(self, *passes: Batches) -> None:
        self._passes, self._count = passes, 0

    def __iter__(self) -> Iterator[Any]:
        chosen = self._passes[min(self._count, len(self._passes) - 1)]
        self._count += 1
        return iter(chosen)


# Data


def _augmented() -> Rereadable:
    return Rereadable(*(class_batches(lambda x, k=k: x + 0.1 * k) for k in range(5)))


def _shuffled_with_drop_last() -> Any:
    data = torch.utils.data.TensorDataset(inputs(), labels())
    generator = torch.Generator().manual_seed(0)
    return torch.utils.data.DataLoader(data, batch_size=7, shuffle=True, drop_last=True, generator=generator)


BAD_CLASS_DATA: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "inputs of another width": (
        lambda: class_batches(lambda x: torch.cat([x, x], 1)),
        RuntimeError,
        r"could not be called on inputs of shape and dtype \(8, 4\) float32.*\n.*shapes, dtypes and devices must fit",
    ),
    "inputs in float64": (
        lambda: class_batches(lambda x: x.double()),
        RuntimeError,
        r"\(8, 2\) float64(.|\n)*Convert the inputs to the dtype of the network",
    ),
    "NaN in inputs": (
        lambda: class_batches(spoiled((20, 1), NAN)),
        ValueError,
        r"expected finite inputs \(data from 16\), got 1 NaN or infinite entries of 16. Remove or impute",
    ),
    "one-hot labels": (
        lambda: class_batches(change_y=lambda y: one_hot(y, 3)),
        ValueError,
        r"class targets of shape \(8,\) for logits of shape \(8, 3\).*got \(8, 3\).*not one-hot",
    ),
    "float labels": (
        lambda: class_batches(change_y=lambda y: y.float()),
        ValueError,
        r"expected integer class targets, got torch.float32. Convert them with .long\(\)",
    ),
    "labels from 1": (
        lambda: class_batches(change_y=lambda y: y + 1),
        ValueError,
        r"expected labels in 0..2 for 3 outputs, got labels from \d to 3",
    ),
    "negative labels": (
        lambda: class_batches(change_y=lambda y: y - 1),
        ValueError,
        r"expected labels in 0..2 for 3 outputs, got labels from -1",
    ),
    "fewer targets than inputs": (
        lambda: [(inputs(8), labels(7))],
        ValueError,
        r"expected targets as a tensor with first axis 8, like the inputs, in batch 0 of the loader, got \(7,\)",
    ),
    "no targets": (lambda: list(inputs().split(8)), TypeError, r"expected a pair \(inputs, targets\), got Tensor"),
    "inputs as lists": (
        lambda: [([0.0, 1.0], labels(2))],
        TypeError,
        "expected inputs as a tensor, a tuple or a dict of tensors, got list.*collate_fn",
    ),
    "an empty loader": (list, ValueError, "expected a loader with at least one batch, got an empty one"),
    "empty batches": (lambda: [(inputs(0), labels(0))], ValueError, "first axis of n > 0 data in batch 0"),
    "a generator": (
        lambda: (batch for batch in class_batches()),
        TypeError,
        r"expected a loader that can be read many times.*got generator. Wrap it in list\(...\)",
    ),
    "no loader at all": (lambda: 3, TypeError, "expected a loader that can be read many times.*got int"),
    "random augmentation": (
        _augmented,
        ValueError,
        "different data on a later pass.*24 data both times, but not the same ones.*without random augmentation",
    ),
    "shuffle with drop_last": (
        _shuffled_with_drop_last,
        ValueError,
        "21 data both times, but not the same ones.*without drop_last when it shuffles",
    ),
    "fewer data on a later pass": (
        lambda: Rereadable(class_batches(), class_batches(), class_batches()[:2]),
        ValueError,
        "different data on a later pass.*24 data, then 16",
    ),
    "nothing on a later pass": (
        lambda: Rereadable(class_batches(), class_batches(), []),
        ValueError,
        "24 data, then 0; was it a generator, which can be read only once",
    ),
    "labels that change between passes": (
        lambda: Rereadable(class_batches(), class_batches(), class_batches(change_y=lambda y: 2 - y)),
        ValueError,
        "24 data both times, but not the same ones",
    ),
}


@pytest.mark.parametrize("name", BAD_CLASS_DATA)
def test_data_that_do_not_fit_a_classifier(name: str) -> None:
    make, error, match = BAD_CLASS_DATA[name]
    refused(laplace(classifier()).fit(class_batches()), make(), error, match)


@pytest.mark.parametrize(
    ("likelihood", "change", "match"),
    [
        ("gaussian", lambda y: y[:, 0], r"targets of shape \(8, 1\), like the outputs, got \(8,\).*broadcasting"),
        ("gaussian", spoiled((9, 0), NAN), r"expected finite targets \(data from 8\), got 1 NaN"),
        ("bernoulli", lambda y: (y[:, 0] > 0).float(), r"binary targets of shape \(8, 1\).*got \(8,\).*broadcasting"),
        ("bernoulli", lambda y: 2 * y, r"expected labels in \[0, 1\], got values from -.* to .*. Use 0 and 1"),
        (sampla.Gaussian(torch.ones(2)), None, "expected a noise precision for 1 outputs, got one for 2"),
    ],
)  # fmt: skip
def test_targets_that_do_not_fit_a_likelihood(likelihood: Any, change: Any, match: str) -> None:
    refused(laplace(regressor(), likelihood), regression_batches(change), ValueError, match)


def test_noise_by_output_needs_an_axis_of_outputs() -> None:
    model = nn.Sequential(regressor(), nn.Flatten(0)).eval()
    batches = regression_batches(lambda y: y[:, 0])
    match = r"expected outputs \(n, ..., C\) for diagonal noise, got outputs of shape \(8,\)"
    refused(laplace(model, sampla.Gaussian(structure="diagonal")), batches, ValueError, match)


# Networks


class Net(nn.Module):
    """A linear layer and a function of (layer, x) that does something a posterior cannot stand on."""

    def __init__(self, function: Callable[[nn.Linear, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self._function = nn.Linear(2, 3), function
        self.register_buffer("calls", torch.zeros(()))
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self._function(self.layer, x)


class WrongBackward(torch.autograd.Function):
    """Twice the input, by a backward that says three times."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def setup_context(*_: Any) -> None:
        pass

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        return 3 * grad

    @staticmethod
    def jvp(_: Any, tangent: Tensor) -> Tensor:
        return 2 * tangent


class OldStyle(torch.autograd.Function):
    """As functions were written before torch.func."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        return 2 * grad


def _in_train_mode() -> nn.Module:
    model = classifier()
    model[1].train()
    return model


def _counting() -> nn.Module:
    model = Net(lambda layer, x: layer(x) + 0 * model.calls.add_(1))
    return model


_HOLE = inputs()[20, 0]

BAD_NETWORKS: dict[str, tuple[Callable[[], nn.Module], type[Exception], str]] = {
    "train mode": (
        lambda: classifier().train(),
        ValueError,
        r"expected a model in evaluation mode, got 4 module\(s\) in train mode.*Call model.eval\(\) first",
    ),
    "one module in train mode": (_in_train_mode, ValueError, r"got 1 module\(s\) in train mode, such as '1'"),
    "dropout that ignores the mode": (
        lambda: Net(lambda layer, x: layer(dropout(x, 0.5, training=True))),
        ValueError,
        r"expected the same outputs twice for the same inputs \(8, 2\) float32, got different ones.*dropout",
    ),
    "a tuple": (
        lambda: Net(lambda layer, x: (layer(x), x)),
        TypeError,
        "expected the network to return one floating-point tensor, got tuple. Wrap it in a module",
    ),
    "a dict": (lambda: Net(lambda layer, x: {"logits": layer(x)}), TypeError, "got dict. Wrap it in a module"),
    "infinity for one datum": (
        lambda: Net(lambda layer, x: layer(x) / (x[:, :1] - _HOLE).abs()),
        ValueError,
        r"finite network outputs on inputs \(8, 2\) float32 \(data from 16\), got 3 NaN.*scaling of the inputs",
    ),
    "integers": (lambda: Net(lambda layer, x: layer(x).argmax(-1)), TypeError, "one floating-point tensor, got Tensor"),
    "the mean over the batch": (
        lambda: Net(lambda layer, x: layer(x).mean(0)),
        ValueError,
        r"expected outputs with first axis 8, one row per datum, got shape \(3,\).*sum or average over the batch",
    ),
    "data minus the mean over the batch": (
        lambda: Net(lambda layer, x: layer(x - x.mean(0))),
        ValueError,
        "the same outputs for a datum whatever else is in its batch, got a difference of .* batch statistics",
    ),
    "a wrong backward": (
        lambda: Net(lambda layer, x: WrongBackward.apply(layer(x))),
        ValueError,
        r"expected <phi v, u> = <v, phi' u> up to rounding \(1e-05 relative.*Some operation has a wrong derivative",
    ),
    "no forward-mode derivative": (
        lambda: Net(lambda layer, x: OldStyle.apply(layer(x))),
        RuntimeError,
        "has no derivative that torch.func can take in forward and reverse mode.*setup_context, jvp",
    ),
    "a counter in a buffer": (_counting, RuntimeError, "changes one of its buffers in place in evaluation mode"),
    "outputs cut off from the weights": (
        lambda: Net(lambda layer, x: layer(x).detach()),
        ValueError,
        "data that inform at least one parameter, got a curvature of zero everywhere.*do not depend on the chosen",
    ),
}


@pytest.mark.parametrize("name", BAD_NETWORKS)
def test_networks_that_have_no_posterior(name: str) -> None:
    make, error, match = BAD_NETWORKS[name]
    refused(laplace(make()), class_batches(), error, match)


def test_prediction_needs_evaluation_mode_too() -> None:
    la = laplace(classifier()).fit(class_batches())
    la.model.train()
    with pytest.raises(ValueError, match="expected a model in evaluation mode"):
        la.predict(inputs())
    assert la.model.training
