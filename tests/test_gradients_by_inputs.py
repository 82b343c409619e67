"""Derivatives of predictions by x against torch.func.jacrev of the explicit Jacobian, in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

import sampla
from cases import randn
from networks import Cube

FIXED = sampla.GPrior(1.0, learn=False)


class Own(nn.Module):
    """Has no forward mode: products are taken in double reverse mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(Cube.apply(self.first(x)))


class Energy(nn.Module):
    """Forces: gradients of an energy by the inputs, taken in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            place = x if x.requires_grad else x.requires_grad_()
            return torch.autograd.grad(self.inner(place).sum(), place, create_graph=True)[0]


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"plain": plain, "double reverse": Own, "forces": Energy}


def fitted(name: str, **options: Any) -> tuple[sampla.LinearisedLaplace, nn.Module]:
    torch.manual_seed(0)
    network = NETWORKS[name]().double().eval()
    x, y = randn(20, 2, seed=1), randn(20, 2, seed=2)
    options = {"prior": FIXED, "num_samples": 5, "progress": False, "width": 0.7, **options}
    return sampla.LinearisedLaplace(network, sampla.Gaussian(4.0), **options).fit([(x, y)]), network


def reference(
    network: nn.Module, samples: dict[str, Tensor], width: float
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Outputs and standard deviations at one x (2,), by the Jacobian itself."""
    point = {name: p.detach() for name, p in network.named_parameters()}

    def outputs(at: dict[str, Tensor], x: Tensor) -> Tensor:
        if isinstance(network, Own):
            first = functional_call(network.first, {n[6:]: p for n, p in at.items() if n.startswith("first")}, x)
            return functional_call(network.last, {n[5:]: p for n, p in at.items() if n.startswith("last")}, first**3)
        if isinstance(network, Energy):
            inner = {name.removeprefix("inner."): p for name, p in at.items()}
            return jacrev(lambda place: functional_call(network.inner, inner, place).sum())(x)
        return functional_call(network, at, x)

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        jacobian = jacrev(outputs)(point, x)
        draws = sum(torch.einsum("c...,k...->kc", jacobian[name], samples[name]) for name in point)
        return outputs(point, x), width * (draws**2).mean(0).sqrt()

    return both


@pytest.mark.parametrize("name", NETWORKS)
def test_mean_and_std_are_differentiated_by_x(name: str) -> None:
    la, network = fitted(name)
    exact, at = reference(network, la.samples_, 0.7), randn(4, 2, seed=5)
    x = at.clone().requires_grad_()
    pred = la.predict(x)
    for what, found in enumerate((pred.mean, pred.std)):
        for row in range(len(at)):
            torch.testing.assert_close(found[row].detach(), exact(at[row])[what])
            expected = jacrev(lambda place, what=what: exact(place)[what])(at[row])
            for out in range(2):
                (gradient,) = torch.autograd.grad(found[row, out], x, retain_graph=True)
                torch.testing.assert_close(gradient[row], expected[out])
                assert not gradient[torch.arange(4) != row].any()


@pytest.mark.parametrize("name", NETWORKS)
def test_functions_and_what_follows_are_differentiated_by_x(name: str) -> None:
    """Against central differences of the same quantity without a graph."""
    la, _ = fitted(name)
    at, step = randn(3, 2, seed=5), 1e-5 * randn(3, 2, seed=6)
    functions, labels = la.functions(7), randn(3, 2, seed=7)
    quantities: dict[str, Callable[[Tensor], Tensor]] = {
        "a draw": lambda x: functions[6](x).sum(),
        "all draws": lambda x: (functions(x) * randn(7, 3, 2, seed=8)).sum(),
        "log density": lambda x: la.predict(x).log_prob(labels).sum(),
        "improvement": lambda x: la.predict(x).sample(9).amax(2).clamp_min(0.1).mean(),
        "covariance": lambda x: la.predict(x).joint_covariance.flatten()[5],
    }
    for quantity in quantities.values():
        x = at.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(quantity(x), x)
        difference = (quantity(at + step) - quantity(at - step)) / 2
        torch.testing.assert_close((gradient * step).sum(), difference, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_changes_where_no_gradient_is_asked_for(name: str) -> None:
    la, network = fitted(name)
    at = randn(40, 2, seed=5)
    plain, x = la.predict(at), at.clone().requires_grad_()
    with torch.no_grad():
        quiet = la.predict(x)
    for found in (plain, quiet):
        assert not found.mean.requires_grad
        assert not found.deviations.requires_grad
    assert torch.equal(plain.mean, quiet.mean)
    assert torch.equal(plain.deviations, quiet.deviations)
    traced = la.predict(x)
    torch.testing.assert_close(traced.deviations.detach(), plain.deviations)
    assert torch.equal(traced.mean.detach(), plain.mean)
    traced.std.sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in network.parameters())


def test_inputs_of_several_tensors_and_a_graph_before_them() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = plain()

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.inner(a + 2 * b)

    torch.manual_seed(0)
    network, at = Sum().double().eval(), randn(6, 2, seed=1)
    la = sampla.LinearisedLaplace(network, sampla.Gaussian(4.0), prior=FIXED, num_samples=4, progress=False)
    la.fit([({"a": at, "b": at}, at)])
    x = at.clone().requires_grad_()
    of_one = torch.autograd.grad(la.predict({"a": at, "b": x**2}).std.sum(), x)[0]
    b = (at**2).requires_grad_()
    expected = torch.autograd.grad(la.predict({"a": at, "b": b}).std.sum(), b)[0] * 2 * at
    torch.testing.assert_close(of_one, expected)
