"""Functions of the posterior: the network with other weights put into its linearisation, at every call the same."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

import sampla
from cases import randn
from helpers import class_batches, classifier, inputs, laplace


def test_functions_are_the_linearised_network_at_the_samples() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)).double().eval()
    data = [(x.double(), y) for x, y in class_batches()]
    la = laplace(network, num_samples=3, width=0.6).fit(data)
    functions, x = la.functions(), randn(5, 2, seed=4)
    point = {name: p.detach() for name, p in network.named_parameters()}
    jacobian = jacrev(lambda at: functional_call(network, at, x))(point)
    assert len(functions) == 3
    for k, function in enumerate(functions):
        pushed = sum(torch.tensordot(jacobian[n], z[k], dims=z[k].ndim) for n, z in la.samples_.items())
        torch.testing.assert_close(function(x), network(x).detach() + 0.6 * pushed)
    torch.testing.assert_close(functions(x), la.predict(x).samples)


def test_they_are_the_same_at_every_call_and_everywhere() -> None:
    la = laplace(classifier()).fit(class_batches())
    functions, x = la.functions(9), inputs()
    whole = functions(x)
    assert torch.equal(whole, functions(x))
    assert torch.equal(la.functions(9)(x), whole)
    torch.testing.assert_close(functions(x[5:11]), whole[:, 5:11])
    torch.testing.assert_close(functions[2:5](x), whole[2:5])
    torch.testing.assert_close(functions[8](x[:1]), whole[8, :1])
    torch.testing.assert_close(la.functions(3)(x), whole[:3])
    torch.testing.assert_close(whole[:4], la.predict(x).samples)
    torch.testing.assert_close(whole[4:], la.predict(x).sample(5))


def test_more_than_the_samples_are_draws_from_their_gaussian() -> None:
    la = laplace(classifier(), width=0.5).fit(class_batches())
    pred, count = la.predict(inputs(3)), 20_000
    drawn = (la.functions(count + 4)(inputs(3))[4:] - pred.mean).flatten(1)
    expected, found = pred.joint_covariance.view(9, 9), drawn.mT @ drawn / count
    error = (expected.diagonal().outer(expected.diagonal()) + expected.square()).div(count).sqrt()
    assert float(((found - expected) / error).abs().max()) < 5
    assert float((drawn.mean(0) / expected.diagonal().div(count).sqrt()).abs().max()) < 5


@pytest.mark.parametrize("count", [0, -1, 1.5])
def test_numbers_that_make_no_sense(count: float) -> None:
    la = laplace(classifier()).fit(class_batches())
    with pytest.raises(ValueError, match="expected the number of functions as an integer of at least 1"):
        la.functions(count)  # type: ignore[arg-type]


def test_thompson_sampling_finds_the_maximum_of_a_draw() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)).double().eval()
    x = torch.linspace(-1, 1, 30).double()[:, None]
    la = sampla.LinearisedLaplace(network, sampla.Gaussian(4.0), num_samples=4, progress=False)
    la.fit([(x, torch.sin(3 * x))])
    draw = la.functions(1)[0]
    place = x[::8][draw(x[::8]).argmax()].view(1, 1).clone().requires_grad_()  # the best of four places
    optimiser = torch.optim.Adam([place], lr=0.05)
    for _ in range(40):
        optimiser.zero_grad()
        (-draw(place.clamp(-1, 1))).sum().backward()
        optimiser.step()
    assert float(draw(place.clamp(-1, 1)).detach()) >= float(draw(x).max()) - 1e-3
