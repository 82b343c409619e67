"""Passes with vectors on another device than the network: on fake tensors, which compute nothing and refuse to mix.

The numbers are compared on a device that is compiled for it: make test-second-device.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import sampla
from helpers import class_batches, classifier, laplace
from sampla.core.data import Batch, Data
from sampla.features import Features, NetworkFeatures, OutputsAt, ScaledFeatures
from sampla.model import LinearModel

CPU, ELSEWHERE, K = torch.device("cpu"), torch.device("meta"), 3


class FourData(Data):
    """Where the network is, read without looking at values."""

    cut, fixed_order, num_data = True, True, 4

    def __iter__(self) -> Iterator[Batch]:
        yield Batch(torch.empty(4, 5, device=ELSEWHERE), torch.empty(4, 3, device=ELSEWHERE), 0, 4)


def model(composed: str) -> LinearModel:
    layers = nn.Linear(5, 4, device=ELSEWHERE), nn.Tanh(), nn.Linear(4, 3, device=ELSEWHERE)
    network = nn.Sequential(*layers).eval()
    names = [name for name, _ in network.named_parameters()]
    features: Features = NetworkFeatures(network, names, vectors_on=CPU)
    if "scaled" in composed:
        features = ScaledFeatures(features, torch.rand(features.layout.total))
    if "at the mode" in composed:
        features = OutputsAt(features, torch.rand(1, features.layout.total))
    return LinearModel(features, sampla.Gaussian(1.0), FourData())


PASSES = {
    "M v": lambda m, v: m.curvature_product(v),
    "Hessian": lambda m, v: m.newton_product(v[:1], v[1:2]),
    "gradient": lambda m, v: m._loss_gradient(v[:1])[1],
    "noise": lambda m, v: m.draw_noise(0, len(v)).data_part,
    "diagonal": lambda m, v: m.draw_noise(0, len(v)).diagonal,
}


@pytest.mark.parametrize("composed", ["plain", "scaled", "at the mode", "scaled, at the mode"])
@pytest.mark.parametrize("name", PASSES)
def test_a_pass_takes_vectors_to_the_network_and_brings_them_back(name: str, composed: str) -> None:
    with FakeTensorMode():
        here = model(composed)
        assert (here.features.like.device, here.features.device) == (CPU, ELSEWHERE)
        found: Tensor = PASSES[name](here, torch.empty(K, here.num_parameters))
        assert found.device == CPU
        assert found.shape[-1] == here.num_parameters


def test_a_second_moment_is_taken_where_the_network_is() -> None:
    with FakeTensorMode():
        here = model("scaled")
        vectors = torch.empty(K, here.num_parameters)
        for moment in here.noise_moments(vectors[:1], vectors):
            assert moment.shape == ()


def test_vectors_may_be_asked_to_be_where_the_network_is() -> None:
    network, loader = classifier(), class_batches()
    plain, told = (laplace(network, solver="block-cg", vectors_on=on).fit(loader) for on in (None, "cpu"))
    assert laplace(network, vectors_on="cpu").plan(loader).nearby is None
    for name, samples in plain.samples_.items():
        assert torch.equal(told.samples_[name], samples)
