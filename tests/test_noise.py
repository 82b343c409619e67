"""Noise is a function of (seed, stream, sample, position): nothing about the run can change a draw."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch.utils.data import DataLoader, Dataset, TensorDataset

import sampla
from cases import PRIORS, batches, linear_model, randn
from dense import assert_covariance, curvature
from sampla.core.noise import DATA, PRIOR, standard_normal
from sampla.solvers import LinearSystem, RightHandSide, solve

LIKE = torch.empty(0, dtype=torch.float64)


def draw(start, count, samples=range(3), seed=5, stream=DATA):
    return standard_normal(seed, stream, samples, start, (count,), LIKE)


@pytest.mark.parametrize("cuts", [[0, 40], [0, 1, 2, 40], [0, 7, 9, 23, 40], [0, 4, 8, 40]])
def test_a_draw_does_not_depend_on_how_positions_are_split(cuts):
    pieces = [draw(start, stop - start) for start, stop in pairwise(cuts)]
    assert torch.equal(torch.cat(pieces, 1), draw(0, 40))


def test_a_draw_does_not_depend_on_the_other_samples_or_the_order_of_asking():
    later, earlier = draw(10, 5, range(2, 3)), draw(0, 5, range(1))
    whole = draw(0, 15, range(4))
    assert torch.equal(later[0], whole[2, 10:])
    assert torch.equal(earlier[0], whole[0, :5])


@pytest.mark.parametrize("change", [{"seed": 6}, {"stream": PRIOR}, {"samples": range(3, 6)}, {"start": 4000}])
def test_streams_seeds_samples_and_positions_are_independent(change):
    one = draw(0, 4000)
    other = draw(**{"start": 0, "count": 4000, **change})
    correlation = (one * other).mean() * one.numel() ** 0.5  # standard normal if independent
    assert abs(float(correlation)) < 4
    assert not torch.equal(one, other)


def test_draws_are_standard_normal():
    values = draw(0, 20_000).flatten().numpy()
    assert kstest(values, "norm").pvalue > 1e-3
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        spread = np.sqrt({1: 1, 2: 2, 3: 15, 4: 96}[power] / len(values))  # var of x^p for a standard normal
        assert abs((values**power).mean() - moment) < 4 * spread


def test_dtype_and_shape_follow_the_request():
    single = standard_normal(0, DATA, range(2), 0, (3, 2), torch.empty(0, dtype=torch.float32))
    assert single.shape == (2, 3, 2)
    assert single.dtype == torch.float32
    assert torch.equal(single, standard_normal(0, DATA, range(2), 0, (3, 2), LIKE).float())


@pytest.mark.parametrize("prior", ["isotropic", "g-prior"])
def test_posterior_samples_do_not_depend_on_the_batch_size(problems, prior):
    """The g-prior's diagonal is estimated from blocks of data that must not follow the loader's batches."""
    problem = problems["bernoulli"]
    prior = PRIORS[prior](1.0, learn=False)
    reference = problem.fit(prior, num_samples=3, loader=batches(problem.inputs, problem.targets, 150))
    for size in (7, 64):
        la = problem.fit(prior, num_samples=3, loader=batches(problem.inputs, problem.targets, size))
        for name, samples in la.samples_.items():
            torch.testing.assert_close(samples, reference.samples_[name], rtol=1e-9, atol=1e-11)


def shuffled(x, y, **options):
    return DataLoader(
        TensorDataset(x, y), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(0), **options
    )


@pytest.fixture
def regression():
    return randn(90, 5), randn(90, 1, seed=1)


def test_a_shuffled_loader_gives_a_valid_draw(regression):
    model = linear_model(sampla.DesignMatrix(5), sampla.Gaussian(2.0), shuffled(*regression))
    expected = curvature(regression[0][:, None], torch.full((90, 1, 1), 2.0).double())
    assert_covariance(model.draw_noise(3, 4000).data_part, expected)
    assert not model.data.fixed_order


def test_a_shuffled_loader_converges_to_the_same_solution(regression):
    x, _ = regression
    model = linear_model(sampla.DesignMatrix(5), sampla.Gaussian(2.0), shuffled(*regression))
    noise, precision = model.draw_noise(3, 4), torch.ones(5).double()
    rhs = RightHandSide(noise.data_part, precision * randn(4, 5, seed=2), 4, 3)
    found = solve(sampla.BlockCG(), LinearSystem(model, precision, noise.diagonal), rhs, tolerance=1e-8)
    exact = torch.linalg.solve(2 * x.mT @ x + torch.eye(5), rhs.total.mT).mT
    assert float((x @ (found.value - exact).mT).norm() / (x @ exact.mT).norm()) < 1e-7


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_em_settles_on_a_shuffled_loader(problems, likelihood):
    problem = problems["categorical" if likelihood == "categorical" else "gaussian-scalar"]
    la = problem.fit(
        "g-prior", likelihood=likelihood, num_samples=8, solver=sampla.BlockCG(),
        loader=shuffled(problem.inputs, problem.targets),
    )  # fmt: skip
    assert la.report_.settled


class Augmented(Dataset):
    """Adds fresh noise to an image whenever it is read."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return randn(4, seed=index) + 0.01 * torch.rand(4), torch.tensor(index % 3)


def test_random_augmentation_is_noticed():
    model = linear_model(sampla.DesignMatrix(4, 3), sampla.Categorical(), DataLoader(Augmented(), batch_size=10))
    with pytest.raises(ValueError, match=r"different data on a later pass .*without random augmentation"):
        model.draw_noise(0, 2)


def test_shuffling_with_drop_last_is_noticed(regression):
    model = linear_model(sampla.DesignMatrix(5), sampla.Gaussian(2.0), shuffled(*regression, drop_last=True))
    with pytest.raises(ValueError, match="without drop_last when it shuffles"):
        model.draw_noise(0, 2)
