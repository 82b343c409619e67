"""Networks that take gradients in their forward: forces, fields, equations of physics."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import dense
import sampla
from helpers import assert_unchanged, laplace, snapshot

ATOMS = 3


class Energy(nn.Module):
    """(n, 3) places of three atoms on a line -> their energy, (n, 1), of pairwise distances; and what is made of it."""

    def __init__(self, returns: str = "forces", create: bool | None = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pair = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1))
        self.returns, self.create = returns, create

    def energy(self, x: Tensor) -> Tensor:
        first, second = torch.triu_indices(ATOMS, ATOMS, 1)
        return self.pair((x[:, first] - x[:, second]).square()[..., None]).sum(1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.requires_grad_()
        energy = self.energy(x)
        create = self.training if self.create is None else self.create
        forces = -torch.autograd.grad(energy.sum(), x, create_graph=create)[0]
        if self.returns == "energy and forces":
            return torch.cat([energy, forces], 1)
        return forces[:, 1:2] if self.returns == "the middle one" else forces


class Detached(Energy):
    """The same with a copy of the places of its own."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return super().forward(x.detach())


class Equation(nn.Module):
    """u'' + u of a network u(x), as a physics-informed network returns it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.u = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.requires_grad_()
        u = self.u(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (output_curvature,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        return output_curvature + u


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "forces": (Energy, 3),
    "energy and forces": (lambda: Energy("energy and forces"), 3),
    "with a copy of the places": (Detached, 3),
    "an equation": (Equation, 1),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_covariance_of_forces_is_exact(name: str) -> None:
    make, width = NETWORKS[name]
    model = make().double().eval()
    x = torch.randn(14, width, dtype=torch.float64)
    y = torch.randn_like(model(x.clone()).detach())
    before, kept = snapshot(model), x.clone()
    la = laplace(
        model, sampla.Gaussian(4.0), prior=sampla.Isotropic(2.0, learn=False), num_samples=4000, solver="dense"
    )
    la.fit(list(zip(x.split(5), y.split(5), strict=True)))
    prediction = la.predict(x)
    assert_unchanged(model, before)
    assert torch.equal(x, kept)
    assert not x.requires_grad  # though the network sets that
    J = dense.jacobian(model, la.names, x.clone())
    C, P = J.shape[1:]
    H = dense.curvature(J, 4 * torch.eye(C).double().expand(len(x), C, C)) + 2 * torch.eye(P)
    covariance = torch.einsum("ncp,pq,mdq->ncmd", J, torch.linalg.inv(H), J).flatten(2).flatten(0, 1)
    found = prediction.deviations.flatten(1)
    found = found.mT @ found / len(found)
    size = covariance.diagonal().sqrt()
    error = (found - covariance) / (size[:, None] * size[None, :])
    assert error.abs().max() < 5 / 4000**0.5  # a correlation from 4,000 samples is known to 1.6 %
    assert torch.allclose(prediction.mean, model(x.clone()).detach())


CUT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "create_graph=self.training": (lambda: Energy(create=None), "pass create_graph=True in evaluation mode too"),
    "create_graph=False": (lambda: Energy(create=False), "got none. The network takes gradients by torch.autogr"),
    "an energy in the graph, forces not": (
        lambda: Energy("energy and forces", create=None), "neither way.*pass create_graph=True"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CUT)
def test_forces_outside_of_the_graph_are_explained(name: str) -> None:
    make, match = CUT[name]
    model, x = make().eval(), torch.randn(12, 3)
    with pytest.raises((ValueError, RuntimeError), match=match):
        laplace(model, sampla.Gaussian(4.0)).fit([(x, torch.zeros_like(model(x.clone())))])


def _symmetric(count: int) -> Tensor:
    """Three atoms at equal distances, not quite so in floating point."""
    step = torch.linspace(0.3, 1.7, count)[:, None]
    return 0.37 + torch.cat([-step, torch.zeros_like(step), step], 1)


def test_forces_that_are_zero_by_symmetry_are_no_wrong_derivative() -> None:
    model = Energy("the middle one").eval()
    x = torch.cat([_symmetric(10), torch.randn(10, 3)])
    la = laplace(
        model, sampla.Gaussian(4.0), prior=sampla.Isotropic(1.0, learn=False), num_samples=2000, solver="dense"
    )
    variance = la.fit([(part, torch.zeros(10, 1)) for part in x.split(10)]).predict(x).variance[:, 0]
    J = dense.jacobian(model.double(), la.names, x.double())
    covariance = torch.linalg.inv(dense.curvature(J, torch.full((20, 1, 1), 4.0).double()) + torch.eye(J.shape[2]))
    expected = torch.einsum("ncp,pq,ncq->n", J, covariance, J)
    assert float(variance[:10].max()) < 1e-6 * float(variance[10:].min())
    assert torch.allclose(variance[10:].double(), expected[10:], rtol=0.2)


class Even(nn.Module):
    """The force of an energy E(x) + E(-x), which is zero at x = 0 whatever the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.requires_grad_()
        return -torch.autograd.grad((self.energy(x) + self.energy(-x)).sum(), x, create_graph=True)[0]


def test_inputs_that_are_all_zero_are_moved_too() -> None:
    x = torch.zeros(12, 3)
    la = laplace(Even().eval(), sampla.Gaussian(4.0), prior=sampla.Isotropic(1.0, learn=False)).fit([(x, x.clone())])
    assert la.predict(x).variance.max() < 1e-12
    assert la.predict(x + 0.5).variance.min() > 1e-4


class Halved(torch.autograd.Function):
    """The identity with half of its derivative."""

    @staticmethod
    def forward(_: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: object, gradient: Tensor) -> Tensor:
        return gradient / 2


def test_a_wrong_derivative_shows_on_symmetric_data_too() -> None:
    class Wrong(Energy):
        def forward(self, x: Tensor) -> Tensor:
            return Halved.apply(super().forward(x))

    with pytest.raises(ValueError, match="Some operation has a wrong derivative"):
        laplace(Wrong("the middle one").eval(), sampla.Gaussian(4.0)).fit([(_symmetric(10), torch.zeros(10, 1))])
