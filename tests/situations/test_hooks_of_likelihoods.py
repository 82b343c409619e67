"""Likelihoods of the user's own whose hooks mean something else than sampla takes them for."""

from typing import Any

import pytest
import torch
from torch import Tensor

import sampla
from helpers import class_batches, classifier, laplace, refused, regression_batches, regressor


class Weighted(sampla.Categorical):
    """Class weights by way of ``counted``."""

    def counted(self, targets: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.5, 2.0])[targets][:, None]


class Chosen(sampla.Categorical):
    """A choice of data by way of ``counted``, as numbers or as yes and no."""

    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()
        self.kind = kind

    def counted(self, targets: Tensor) -> Tensor:
        return (targets != 1).to(self.kind)[:, None]

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().log_prob(outputs, targets) * (targets != 1)


class OneForAll(sampla.Categorical):
    def counted(self, targets: Tensor) -> Tensor:
        return torch.ones(len(targets) + 1, 1)


class Gappy(sampla.Gaussian):
    """A Gaussian without the targets above a half."""

    def counted(self, targets: Tensor) -> Tensor:
        return targets < 0.5


class Eager(sampla.Categorical):
    learns_noise = True


class Halved(sampla.Gaussian):
    """The root of another curvature."""

    def curvature_root_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        return 0.7 * super().curvature_root_product(outputs, vectors)


class Claimed(sampla.Categorical):
    is_quadratic = True


class Poisson(sampla.Likelihood):
    """Counts of rate exp(f), which needs nothing else."""

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (targets * outputs - outputs.exp()).sum(1)

    def curvature_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        return outputs.exp() * vectors

    def curvature_root_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        return (outputs / 2).exp() * vectors


class Sideways(Poisson):
    """Probabilities that add up to nothing, and an axis along which they should."""

    class_axis = -1

    def probabilities(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid() / 3


class Concave(Poisson):
    """The sign of the second derivative of log p, not of its negative."""

    def curvature_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        return -super().curvature_product(outputs, vectors)


class OwnGaussian(sampla.Likelihood):
    """Unit noise around f, by the three methods and the flag."""

    is_quadratic = True

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return -0.5 * (targets - outputs).square().sum(1)

    def curvature_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:  # noqa: ARG002
        return vectors * 1.0

    curvature_root_product = curvature_product


REFUSED: dict[str, tuple[sampla.Likelihood, str]] = {
    "class weights": (Weighted(), r"ones and zeros from Weighted.counted, got (0.5|2). .*weights of classes or"),
    "another shape": (OneForAll(), r"OneForAll.counted of a shape that broadcasts to .* \(8, 3\), got \(9, 1\)"),
    "not quadratic": (Claimed(), "quadratic in the outputs, since Claimed.is_quadratic is True, got one whose"),
}  # fmt: skip
REFUSED_REGRESSION: dict[str, tuple[sampla.Likelihood, str]] = {
    "missing targets": (Gappy(4.0), "targets for .* a likelihood with residuals, got Gappy.counted that leaves"),
    "missing targets, and noise to be learnt": (
        Gappy(),
        "targets for .* a likelihood with residuals, got Gappy.counted",
    ),
    "another root, noise learnt": (Halved(), "S S' = B from Halved.curvature_root_product"),
    "another root": (Halved(4.0), r"S S' = B from Halved.curvature_root_product.*got \|S' u\|\^2 = .* and u' B u = "),
    "another axis": (Sideways(), "Sideways.probabilities that add up to one along class_axis -1, got a sum off by"),
    "concave": (Concave(), r"a positive semi-definite curvature from Concave.curvature_product, got u' B u = -"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_hooks_for_classes(name: str) -> None:
    refused(laplace(classifier(), REFUSED[name][0]), class_batches(), ValueError, REFUSED[name][1])


@pytest.mark.parametrize("name", REFUSED_REGRESSION)
def test_hooks_for_regression(name: str) -> None:
    refused(
        laplace(regressor(), REFUSED_REGRESSION[name][0]), regression_batches(), ValueError, REFUSED_REGRESSION[name][1]
    )


def test_noise_that_em_does_not_learn() -> None:
    match = (
        "residuals and with_noise of a likelihood with learns_noise=True, got Eager without residuals and with_noise"
    )
    with pytest.raises(ValueError, match=match):
        laplace(classifier(), Eager())


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32])
def test_a_choice_of_data_is_that_of_the_data_alone(kind: torch.dtype) -> None:
    batches = class_batches()
    chosen = [(x[y != 1], y[y != 1]) for x, y in batches]
    x, options = batches[0][0], {"solver": "dense", "prior": sampla.Isotropic(1.0, learn=False), "num_samples": 4000}
    found = laplace(classifier(), Chosen(kind), **options).fit(batches).predict(x).variance
    expected = laplace(classifier(), **options).fit(chosen).predict(x).variance
    assert torch.allclose(found, expected, rtol=0.15)  # 4,000 samples know each variance to 2.2 %


GOOD: dict[str, tuple[Any, Any]] = {
    "counts": (Poisson(), lambda y: (y.abs() * 4).round()),
    "unit noise": (OwnGaussian(), None),
    "unit noise around large targets": (OwnGaussian(), lambda y: y * 1e6),
    "a Gaussian with fixed noise": (type("Named", (sampla.Gaussian,), {})(4.0), None),
    "a Gaussian whose noise is learnt": (type("Named", (sampla.Gaussian,), {})(), lambda y: y + torch.randn_like(y)),
}


@pytest.mark.parametrize("name", GOOD)
def test_likelihoods_that_mean_what_they_say(name: str) -> None:
    likelihood, change = GOOD[name]
    la = laplace(regressor(), likelihood).fit(regression_batches(change))
    assert bool((la.predict(torch.zeros(2, 2)).variance > 0).all())
