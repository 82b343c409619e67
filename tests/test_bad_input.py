"""Each mistake is refused with a message that says what was expected, what came and what to do.

Nothing is lost by it: the network is as it was, and what an earlier fit found can still be used.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import dropout, one_hot
from torch.utils.checkpoint import checkpoint

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
        "data on a later pass.*its datum 0, inputs and target together, is none of the 24.*random augmentation",
    ),
    "shuffle with drop_last": (
        _shuffled_with_drop_last,
        ValueError,
        "its datum .*, inputs and target together, is none of the 21.*without drop_last when it shuffles",
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
        "its datum 0, inputs and target together, is none of the 24 of the first",
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


class WrongOldStyle(torch.autograd.Function):
    """The same as functions were written before torch.func."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        return 3 * grad


class Once(torch.autograd.Function):
    """A square whose backward is not for differentiating."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * grad


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
        r"one floating-point tensor, got tuple with {0: \(8, 3\) float32, 1: \(8, 2\) float32}\. Choose one with",
    ),
    "a dict": (
        lambda: Net(lambda layer, x: {"mean": layer(x), "scale": x, "steps": 3}),
        TypeError,
        r"got dict with {'mean': \(8, 3\) float32, 'scale': \(8, 2\) float32, 'steps': int}. Choose one with output=",
    ),
    "infinity for one datum": (
        lambda: Net(lambda layer, x: layer(x) / (x[:, :1] - _HOLE).abs()),
        ValueError,
        r"finite network outputs on inputs \(8, 2\) float32 \(data from 16\), got 3 NaN.*scaling of the inputs",
    ),
    "integers": (
        lambda: Net(lambda layer, x: layer(x).argmax(-1)),
        TypeError,
        r"one floating-point tensor as the network's output, got \(8,\) int64. Choose another one with output=",
    ),
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
    "an operation without derivatives": (
        lambda: nn.Sequential(classifier(), Net(lambda _, x: torch.cdist(x, x.new_ones(2, 3)))).eval(),
        RuntimeError,
        r"neither way .*Forward mode: _cdist_forward has no forward derivative in module '1' \(Net\)\. "
        r"Double reverse mode: _cdist_backward has no derivative in module '1' \(Net\)\. Write that operation",
    ),
    "a function that may be differentiated once": (
        lambda: Net(lambda layer, x: Once.apply(layer(x))),
        RuntimeError,
        r"an autograd.Function has no setup_context in the network itself \(Net\)\. Double reverse mode: an "
        r"autograd.Function may be differentiated once only in the network itself \(Net\)",
    ),
    "a wrong backward in double reverse mode": (
        lambda: Net(lambda layer, x: WrongOldStyle.apply(layer(x))),
        ValueError,
        r"expected phi v to be the change of the outputs .*Some operation has a wrong derivative",
    ),
    "a reentrant checkpoint": (
        lambda: nn.Sequential(Net(lambda layer, x: checkpoint(layer, x, use_reentrant=True))).eval(),
        RuntimeError,
        r"use_reentrant=True, in module '0' \(Net\), cannot be differentiated twice.*use_reentrant=False",
    ),
    "infinity that the outputs hide": (
        lambda: nn.Sequential(nn.Identity(), Net(lambda layer, x: layer(1 / (x - _HOLE))), nn.Sigmoid()).eval(),
        ArithmeticError,
        r"first in what module '1.layer' \(Linear\) is given, for datum 20\.",
    ),
    "a root at zero": (
        lambda: Net(lambda layer, x: (layer(x - _HOLE) * (x[:, :1] != _HOLE)).abs().sqrt()),
        ArithmeticError,
        "All activations are finite: it may be a derivative that is not",
    ),
    "infinity that a module returns": (
        lambda: nn.Sequential(nn.Identity(), Net(lambda _, x: 1 / (x - _HOLE)), nn.Linear(2, 3)).eval(),
        ValueError,
        r"\(data from 16\), got 3 NaN.*first in what module '1' \(Net\) returns, for datum 20\.",
    ),
    "outputs cut off from the weights": (
        lambda: Net(lambda layer, x: layer(x).detach()),
        ValueError,
        "data that inform at least one parameter, got a curvature of zero everywhere.*do not depend on the chosen",
    ),
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # the reentrant checkpoint's
@pytest.mark.parametrize("solver", ["dense", "block-cg"])
@pytest.mark.parametrize("name", BAD_NETWORKS)
def test_networks_that_have_no_posterior(name: str, solver: str) -> None:
    make, error, match = BAD_NETWORKS[name]
    refused(laplace(make(), solver=solver), class_batches(), error, match)


def _astray() -> nn.Module:
    model = classifier()
    model.register_buffer("table", torch.ones(2, device="meta"))
    return model


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda: nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3, device="meta")),
            "all its weights and buffers on one device, got '0.bias' on cpu, '1.bias' on meta. Move it with model.to",
        ),
        (_astray, "on one device, got '2.bias' on cpu, 'table' on meta"),
        (lambda: nn.Linear(2, 3, device="meta"), "got 'bias' on meta.*A model on 'meta' has no weights yet"),
    ],
)
def test_weights_must_be_in_one_place(make: Callable[[], nn.Module], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        laplace(make().eval()).fit(class_batches())


def test_a_prediction_that_is_not_finite_says_where_it_comes_from() -> None:
    model = nn.Sequential(nn.Linear(2, 4), Net(lambda _, x: x.log()), nn.Linear(4, 3)).eval()
    with torch.no_grad():
        model[0].weight.fill_(1.0), model[0].bias.fill_(30.0)
    la = laplace(model).fit(class_batches())
    x = torch.zeros(5, 2)
    x[3] = -20
    with pytest.raises(ValueError, match=r"first in what module '1' \(Net\) returns, for datum 3\. Check the scaling"):
        la.predict(x)


def test_prediction_needs_evaluation_mode_too() -> None:
    la = laplace(classifier()).fit(class_batches())
    la.model.train()
    with pytest.raises(ValueError, match="expected a model in evaluation mode"):
        la.predict(inputs())
    assert la.model.training


def test_one_input_without_the_axis_of_the_data_is_refused() -> None:
    """Outputs have none either then, and their numbers would pass for as many data."""
    la = laplace(classifier()).fit(class_batches())
    with pytest.raises(ValueError, match=r"one row per datum, got \(3,\). Inputs have the data on their first axis"):
        la.predict(inputs()[0])
    assert len(la.predict(inputs()[0][None])) == 1


@pytest.mark.parametrize("prior", [sampla.Isotropic(1.0, learn=False), "isotropic"])
@pytest.mark.parametrize(
    ("likelihood", "missing"),
    [(sampla.Categorical(ignore_index=-1), -torch.ones(24, dtype=torch.long)),
     (sampla.Gaussian(2.0, ignore_nan=True), torch.full((24, 3), float("nan"))),
     (sampla.Poisson(ignore_nan=True), torch.full((24, 3), float("nan")))],
)  # fmt: skip
def test_targets_of_which_none_counts_are_refused(likelihood: Any, missing: Tensor, prior: Any) -> None:
    """With a given prior the posterior would be that prior, and nothing would say so."""
    with pytest.raises(ValueError, match=r"expected targets of which at least one counts, got none: all are left out"):
        sampla.LinearisedLaplace(classifier(), likelihood, prior, progress=False).fit([(inputs(), missing)])
