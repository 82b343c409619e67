"""sampla.integrations.botorch: a joint Gaussian that can be sampled and differentiated."""

import pytest
import torch
from torch import Tensor, nn

import sampla

pytest.importorskip("botorch")
pytestmark = pytest.mark.filterwarnings("default", "error::sampla.ConvergenceWarning")  # botorch has some of its own

from botorch.acquisition import LogExpectedImprovement, qLogExpectedImprovement  # noqa: E402
from botorch.acquisition.objective import ScalarizedPosteriorTransform  # noqa: E402
from botorch.optim import optimize_acqf  # noqa: E402

from sampla.integrations.botorch import LaplaceModel  # noqa: E402

NOISE = torch.tensor([0.04, 0.09], dtype=torch.float64)


def fitted(outputs: int) -> sampla.LinearisedLaplace:
    torch.manual_seed(0)
    x = torch.rand(20, 2, dtype=torch.float64)
    net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, outputs)).double().eval()
    likelihood = sampla.Gaussian(1 / NOISE[:outputs])
    y = torch.stack([x[:, 0].sin(), x[:, 1].cos()], 1)[:, :outputs]
    prior = sampla.Isotropic(1.0, learn=False)
    return sampla.LinearisedLaplace(net, likelihood, prior, num_samples=8, width=1.5, progress=False).fit([(x, y)])


POINTS = torch.rand(3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("noisy", [False, True])
def test_it_is_the_joint_gaussian_of_the_predictions(outputs: int, noisy: bool) -> None:
    la = fitted(outputs)
    found = LaplaceModel(la, outputs).posterior(POINTS, observation_noise=noisy)
    assert found.mean.shape == found.variance.shape == (3, 4, outputs)
    for batch, points in enumerate(POINTS):
        pred = la.predict(points)
        size = 4 * outputs
        expected = pred.joint_covariance.reshape(size, size) + noisy * NOISE[:outputs].repeat(4).diag()
        covariance = found.distribution.covariance_matrix[batch]
        assert torch.allclose(covariance, expected, rtol=1e-4, atol=1e-5 * float(expected.diagonal().mean()))
        assert torch.allclose(found.mean[batch], pred.mean)


@pytest.mark.parametrize("outputs", [1, 2])
def test_draws_have_that_covariance(outputs: int) -> None:
    torch.manual_seed(0)
    found = LaplaceModel(fitted(outputs), outputs).posterior(POINTS)
    draws = found.rsample(torch.Size([4000]))
    assert draws.shape == (4000, 3, 4, outputs)
    centred = (draws - found.mean)[:, 1].flatten(1)
    expected = found.distribution.covariance_matrix[1]
    error = (centred.mT @ centred / 4000 - expected).norm() / expected.norm()
    assert error < 0.1


def test_gradients_are_those_of_differences() -> None:
    model = LaplaceModel(fitted(1))
    assert torch.autograd.gradcheck(lambda x: model.posterior(x).variance, POINTS[:1].clone().requires_grad_())
    best = torch.tensor(0.5, dtype=torch.float64)
    single = POINTS[:, :1].clone().requires_grad_()
    assert torch.autograd.gradcheck(LogExpectedImprovement(model, best_f=best), single)


def test_acquisition_functions_are_maximised() -> None:
    torch.manual_seed(0)
    model, bounds = LaplaceModel(fitted(1)), torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    several = qLogExpectedImprovement(model, best_f=torch.tensor(0.5, dtype=torch.float64))
    found, value = optimize_acqf(several, bounds, q=2, num_restarts=2, raw_samples=16, options={"maxiter": 5})
    everywhere = several(torch.rand(64, 2, 2, dtype=torch.float64))
    assert found.shape == (2, 2)
    assert value > everywhere.quantile(0.9)


def test_outputs_are_chosen_and_weighted() -> None:
    model, single = LaplaceModel(fitted(2), 2), POINTS[:, :2]
    both, second = model.posterior(single), model.posterior(single, output_indices=[1])
    assert torch.allclose(second.mean, both.mean[..., 1:])
    assert torch.allclose(second.variance, both.variance[..., 1:], rtol=1e-3)
    weights = torch.tensor([1.0, -2.0], dtype=torch.float64)
    weighted = model.posterior(single, posterior_transform=ScalarizedPosteriorTransform(weights))
    assert torch.allclose(weighted.mean, both.mean @ weights[:, None])


def test_points_in_another_type_come_back_in_it() -> None:
    la = fitted(1)
    assert LaplaceModel(la).posterior(POINTS.float()).mean.dtype == torch.float32


def test_no_spread_is_a_gaussian_too() -> None:
    la = fitted(1)
    none = sampla.LinearisedLaplace(la.model, la.likelihood, la.prior, num_samples=2, width=0.0, progress=False)
    found = LaplaceModel(none.fit([(POINTS[0], POINTS[0, :, :1])])).posterior(POINTS.float())
    assert bool((found.variance > 0).all())
    assert float(found.variance.max()) < 1e-5  # gpytorch has a least one


def test_the_number_of_outputs_is_checked() -> None:
    with pytest.raises(ValueError, match=r"expected a network with 1 outputs.*num_outputs"):
        LaplaceModel(fitted(2)).posterior(POINTS)


def test_noise_may_be_given() -> None:
    given = torch.full((3, 4, 1), 0.5, dtype=torch.float64)
    plain, noisy = (LaplaceModel(fitted(1)).posterior(POINTS, observation_noise=noise) for noise in (False, given))
    difference: Tensor = noisy.variance - plain.variance
    assert torch.allclose(difference, given)
