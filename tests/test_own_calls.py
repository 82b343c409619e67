"""``call=``: networks that do not take a batch's inputs as they are."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sampla

PRIOR = sampla.Isotropic(1.0, learn=False)


class GraphNet(nn.Module):
    """Takes three tensors, of which the edges have no row for each datum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.head = nn.Linear(2, 4), nn.Linear(4, 3)
        self.eval()

    def forward(self, x: Tensor, edges: Tensor, batch: Tensor) -> Tensor:
        hidden = self.inner(x).tanh()
        hidden = hidden.index_add(0, edges[1], hidden[edges[0]])
        return self.head(hidden.new_zeros(int(batch.max()) + 1, 4).index_add(0, batch, hidden))


class Whole(nn.Module):
    """The same, taking the object."""

    def __init__(self) -> None:
        super().__init__()
        self.net = GraphNet()
        self.eval()

    def forward(self, data: Any) -> Tensor:
        return called(self.net, data)


def called(net: nn.Module, data: Any) -> Tensor:
    out: Tensor = net(data.x, data.edges, data.batch)
    return out


def graphs(seed: int) -> SimpleNamespace:
    """Three graphs of two nodes each."""
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(seed))
    edges = torch.tensor([[0, 2, 4], [1, 3, 5]])
    return SimpleNamespace(x=x, edges=edges, batch=torch.arange(6) // 2, y=torch.arange(3))


LOADER = [graphs(0), graphs(1)]


def laplace(net: nn.Module, **settings: Any) -> sampla.LinearisedLaplace:
    return sampla.LinearisedLaplace(net, prior=PRIOR, num_samples=2, width="em", progress=False, **settings)


def fit(la: sampla.LinearisedLaplace, **settings: Any) -> sampla.LinearisedLaplace:
    return la.fit(LOADER, unpack=lambda data: (data, data.y), **settings)


def test_a_call_of_ones_own_is_the_network_with_a_forward_that_takes_the_object() -> None:
    own, whole = fit(laplace(GraphNet(), call=called)), fit(laplace(Whole()))
    assert {f"net.{name}" for name in own.names} == set(whole.names)
    ours, theirs = own.predict(graphs(2)), whole.predict(graphs(2))
    assert torch.equal(ours.mean, theirs.mean)
    assert torch.allclose(ours.std, theirs.std, rtol=1e-5)


def test_it_may_choose_and_shape_the_outputs() -> None:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    net = nn.Linear(3, 2).eval()
    la = laplace(net, likelihood=sampla.Gaussian(1.0), call=lambda net, x: net(x)[:, 0])
    assert la.fit([(x, x[:, 0])]).predict(x).std.shape == (8,)


def test_a_posterior_from_a_file_needs_it_again(tmp_path: Path) -> None:
    la = fit(laplace(GraphNet(), call=called))
    la.save(tmp_path / "posterior.safetensors")
    again = sampla.LinearisedLaplace.load(tmp_path / "posterior.safetensors", GraphNet(), call=called)
    assert torch.equal(again.predict(graphs(2)).samples, la.predict(graphs(2)).samples)
    with pytest.raises(RuntimeError, match="could not be called"):
        sampla.LinearisedLaplace.load(tmp_path / "posterior.safetensors", GraphNet()).predict(graphs(2))


def test_a_checkpoint_of_another_call_is_not_gone_on_from(tmp_path: Path) -> None:
    fit(laplace(GraphNet(), call=called), checkpoint=tmp_path)
    with pytest.raises(ValueError, match="another"):
        fit(laplace(GraphNet(), call=lambda net, data: called(net, data) * 2), checkpoint=tmp_path)


def test_a_call_that_fails_is_told_as_such() -> None:
    with pytest.raises(RuntimeError, match=r"called as call\(model, data\) with data a SimpleNamespace"):
        fit(laplace(GraphNet(), call=lambda net, data: net(data.x, data.nothing, data.batch)))


def test_a_call_is_a_function() -> None:
    with pytest.raises(TypeError, match="expected call as a function of the network"):
        laplace(GraphNet(), call="forward")


class Forces(nn.Module):
    """(n, 3) gradients of an energy by the places of objects, which it may have to ask for itself."""

    def __init__(self, asks: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.asks, self.energy = asks, nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1))
        self.eval()

    def forward(self, objects: list[SimpleNamespace]) -> Tensor:
        places = [each.places.requires_grad_() if self.asks else each.places for each in objects]
        energy = self.energy(torch.stack(places)).sum()
        return torch.stack(torch.autograd.grad(energy, places, create_graph=True))


def test_places_that_require_gradients_still_do_inside() -> None:
    def objects(requires: bool) -> list[SimpleNamespace]:
        rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
        return [SimpleNamespace(places=row.clone().requires_grad_(requires)) for row in rows]

    def std(asks: bool, given: list[SimpleNamespace]) -> Tensor:
        la = laplace(Forces(asks), likelihood=sampla.Gaussian(4.0)).fit([(given, torch.zeros(6, 3))])
        assert all(each.places.grad is None for each in given)
        with torch.no_grad():
            return la.predict(given[:2]).std

    assert torch.allclose(std(False, objects(True)), std(True, objects(False)))
