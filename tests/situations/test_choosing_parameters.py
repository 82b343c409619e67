"""parameters= as users write it: a module, its parameters, or something that cannot be meant."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sampla
from helpers import class_batches, classifier, laplace
from sampla.features import select_parameters

HEAD = ["2.weight", "2.bias"]
RIGHT: dict[str, tuple[Callable[[nn.Module], Any], list[str]]] = {
    "a module": (lambda net: net[2], HEAD),
    "modules": (lambda net: [net[0], net[2]], ["0.weight", "0.bias", *HEAD]),
    "the whole": (lambda net: net, ["0.weight", "0.bias", *HEAD]),
    "a list of parameters": (lambda net: list(net[2].parameters()), HEAD),
    "a generator of parameters": (lambda net: net[2].parameters(), HEAD),
    "a parameter": (lambda net: net[2].bias, ["2.bias"]),
    "names and modules": (lambda net: ["0.bias", net[2]], ["0.bias", *HEAD]),
    "a tuple of names": (lambda _: ("2.*",), HEAD),
}
WRONG: dict[str, tuple[Callable[[nn.Module], Any], type[Exception], str]] = {
    "numbers of weights": (
        lambda _: torch.arange(5),
        TypeError,
        r"got a tensor of torch.int64 \(5,\)\. .* whole",
    ),
    "a mask": (lambda _: torch.ones(43, dtype=torch.bool), TypeError, r"a tensor of torch.bool \(43,\).*\['head.\*'\]"),
    "masks": (lambda net: [p > 0 for p in net.parameters()], TypeError, r"list with a tensor of torch.bool \(6, 2\)"),
    "masks by name": (lambda net: {n: p > 0 for n, p in net.named_parameters()}, TypeError, r"\(dict\)"),
    "an array": (lambda _: np.arange(3), TypeError, "ndarray with"),
    "a number": (lambda _: 3, TypeError, r"got 3 \(int\)"),
    "named parameters": (lambda net: net.named_parameters(), TypeError, r"\(tuple\)"),
    "a class": (lambda _: nn.Linear, TypeError, "names, modules or parameters"),
    "another network's module": (
        lambda _: classifier()[2],
        ValueError,
        "got Linear that it does not have.*not from a",
    ),
    "another network's parameters": (lambda _: classifier()[2].parameters(), ValueError, r"got a parameter \(3, 6\)"),
    "a module without any": (lambda net: net[1], ValueError, "at least one parameter to be uncertain about"),
    "none": (lambda _: [], ValueError, "at least one parameter to be uncertain about"),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_modules_and_parameters_choose_as_their_names_would(kind):
    make, names = RIGHT[kind]
    net = classifier()
    la = laplace(net, parameters=make(net)).fit(class_batches())
    same = laplace(net, parameters=names).fit(class_batches())
    assert la.names == same.names == names
    assert la.excluded == same.excluded
    assert torch.equal(la.samples_["2.bias"], same.samples_["2.bias"])


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_meant_is_refused_with_what_can(kind):
    make, error, match = WRONG[kind]
    net = classifier()
    with pytest.raises(error, match=match):
        sampla.LinearisedLaplace(net, parameters=make(net))


def test_a_tied_parameter_is_found_through_either_module():
    net = nn.ModuleDict({"embedding": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    net["head"].weight = net["embedding"].weight
    assert select_parameters(net, net["head"])[0] == select_parameters(net, net["embedding"])[0] == ["embedding.weight"]
