"""What no file can hold is left out, or refused before any work: a fit never dies after it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sampla
from helpers import laplace

X = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3


class Counted(list):  # type: ignore[type-arg]
    """Batches, and how often they were read."""

    readings = 0

    def __iter__(self) -> Iterator[Any]:
        self.readings += 1
        return super().__iter__()


def data() -> Counted:
    return Counted([(X, Y)])


class Extra(nn.Module):
    def __init__(self, extra: Any) -> None:
        super().__init__()
        self.layer, self.extra = layer(), extra

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x)
        return result

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


def layer() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(2, 3)


def buffered(tensor: Tensor, persistent: bool = True) -> nn.Module:
    model = nn.Sequential(layer())
    model.register_buffer("table", tensor, persistent=persistent)
    return model


def noted() -> nn.Module:
    model = layer()
    model.register_state_dict_post_hook(lambda *given: given[1].__setitem__("note", "text"))
    return model


def packed() -> Tensor:
    kind = getattr(torch, "float4_e2m1fn_x2", torch.uint8)
    return torch.zeros(4, dtype=torch.uint8).view(kind)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "extra state: mapping": lambda: Extra({"version": 3}),
    "extra state: text": lambda: Extra("text"),
    "extra state: any object": lambda: Extra(object()),
    "extra state: array": lambda: Extra(np.arange(3)),
    "extra state: None": lambda: Extra(None),
    "extra state: tensor": lambda: Extra(torch.ones(3)),
    "text in the state_dict": noted,
    "float8": lambda: buffered(torch.ones(4).to(torch.float8_e4m3fn)),
    "float8, scales": lambda: buffered(torch.ones(4).to(torch.float8_e8m0fnu)),
    "float4": lambda: buffered(packed()),
    "uint64": lambda: buffered(torch.ones(4).to(torch.uint64)),
    "sparse": lambda: buffered(torch.eye(3).to_sparse()),
    "sparse rows": lambda: buffered(torch.eye(3).to_sparse_csr()),
    "nested": lambda: buffered(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)),
    "quantised": lambda: buffered(torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)),
    "mkldnn": lambda: buffered(torch.ones(3).to_mkldnn()),
    "expanded, in no file": lambda: buffered(torch.zeros(1).expand(5), persistent=False),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested", "ignore:.*quantiz")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_fit_is_kept_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model, path = NETWORKS[name]().eval(), tmp_path / "posterior.safetensors"
    la = laplace(model, prior="isotropic", solver="block-cg").fit(data(), checkpoint=tmp_path)
    la.save(path)
    again = sampla.LinearisedLaplace.load(path, model)
    assert torch.equal(again.predict(X).std, la.predict(X).std)
    resumed = laplace(model, prior="isotropic", solver="block-cg").fit(data(), checkpoint=tmp_path)
    assert torch.equal(resumed.predict(X).std, la.predict(X).std)


def test_extra_state_that_is_no_tensor_does_not_tell_networks_apart_and_buffers_do(tmp_path: Path) -> None:
    """As the documentation says it."""
    path = tmp_path / "posterior.safetensors"
    laplace(Extra({"version": 3}).eval()).fit(data()).save(path)
    sampla.LinearisedLaplace.load(path, Extra({"version": 4}).eval())
    for other, one in ((torch.eye(3), 2 * torch.eye(3)), (torch.ones(3), torch.zeros(3))):
        laplace(buffered(other.to_sparse()).eval()).fit(data()).save(path)
        with pytest.raises(ValueError, match="the same architecture with other weights"):
            sampla.LinearisedLaplace.load(path, buffered(one.to_sparse()).eval())


SETTINGS: dict[str, Callable[[], dict[str, Any]]] = {
    "seed": lambda: {"seed": np.int64(3)},
    "seed of eight bits": lambda: {"seed": np.uint8(3)},
    "num_samples": lambda: {"num_samples": np.int32(4)},
    "tolerance": lambda: {"tolerance": np.float32(0.05)},
    "max_passes": lambda: {"max_passes": np.int64(90)},
    "ignore_index": lambda: {"likelihood": sampla.Categorical(ignore_index=np.int64(-100))},
    "ignore_index in a tensor": lambda: {"likelihood": sampla.Categorical(ignore_index=torch.tensor(-100))},
    "class_axis": lambda: {"likelihood": sampla.Categorical(class_axis=np.int64(-1))},
    "EM": lambda: {"em": sampla.EM(tolerance=np.float32(0.1), max_steps=np.int64(9), num_samples=np.int32(4))},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_numbers_of_numpy_are_numbers(name: str, tmp_path: Path) -> None:
    def door() -> sampla.LinearisedLaplace:
        return laplace(layer().eval(), **{"prior": "isotropic", "solver": "block-cg"} | SETTINGS[name]())

    la = door().fit(data(), checkpoint=tmp_path)
    la.save(tmp_path / "posterior.safetensors")
    again = sampla.LinearisedLaplace.load(tmp_path / "posterior.safetensors", layer().eval())
    assert torch.equal(again.predict(X).std, la.predict(X).std)
    assert torch.equal(door().fit(data(), checkpoint=tmp_path).predict(X).std, la.predict(X).std)


def test_labels_to_be_ignored_are_numbers_of_any_type(tmp_path: Path) -> None:
    labels = (X[:, :1] > 0).float().where(X[:, 1:] < 1, -1).expand(12, 3)
    for missing in (np.int64(-1), np.float32(-1), torch.tensor(-1)):
        la = laplace(layer().eval(), sampla.Bernoulli(ignore_value=missing)).fit([(X, labels)], checkpoint=tmp_path)
        la.save(tmp_path / "posterior.safetensors")


class Weighted(sampla.Categorical):
    """A likelihood of the user's own, with something in its config."""

    def __init__(self, weight: Any) -> None:
        super().__init__()
        self.weight = weight

    def config(self) -> dict[str, Any]:
        return {**super().config(), "weight": self.weight}


@pytest.mark.parametrize("weight", [np.float32(3), torch.ones(2), np.arange(4), {"a": [torch.tensor(1)]}])
def test_numbers_of_a_likelihood_of_your_own(weight: Any, tmp_path: Path) -> None:
    path = tmp_path / "posterior.safetensors"
    for _ in range(2):  # the second goes on from the first
        la = laplace(layer().eval(), Weighted(weight)).fit(data(), checkpoint=tmp_path)
    la.save(path)
    again = sampla.LinearisedLaplace.load(path, layer().eval(), likelihood=Weighted(weight))
    assert torch.equal(again.predict(X).std, la.predict(X).std)


def test_what_no_file_can_hold_is_refused_before_any_work() -> None:
    expected = r"expected numbers, text, lists and mappings of them in Weighted.config\(\)\['weight'\], got object"
    with pytest.raises(TypeError, match=expected):
        laplace(layer().eval(), Weighted(object()))
    with pytest.raises(ValueError, match=r"expected ignore_index as an integer, got 0.5"):
        sampla.Categorical(ignore_index=0.5)  # type: ignore[arg-type]
    broken = layer().eval()
    broken.register_state_dict_post_hook(lambda *_: 1 / 0)
    with pytest.raises(RuntimeError, match=r"expected a network whose state_dict\(\) can be taken, got ZeroDivision"):
        laplace(broken)


def test_what_cannot_be_written_is_said_and_the_fit_is_there(tmp_path: Path) -> None:
    la = laplace(layer().eval()).fit(data())
    la._posterior.facts["strange"] = object()  # type: ignore[union-attr]
    with pytest.raises(TypeError, match=r"in facts\['fit'\]\['strange'\], got object"):
        la.save(tmp_path / "posterior.safetensors")
    assert list(tmp_path.iterdir()) == []
    assert la.predict(X).std.isfinite().all()
