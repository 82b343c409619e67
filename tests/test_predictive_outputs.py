"""Covariances, totals, draws and quantiles of outputs against what the samples say one by one; parts, types, views."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch.distributions import Bernoulli, Categorical, MultivariateNormal

import sampla
from cases import DIAGONAL_NOISE, FULL_NOISE, randn

NOISE = {"scalar": 3.0, "diagonal": DIAGONAL_NOISE, "full": FULL_NOISE}
COVARIANCE = {
    "scalar": torch.eye(3).double() / 3,
    "diagonal": torch.diag(1 / DIAGONAL_NOISE),
    "full": torch.linalg.inv(FULL_NOISE),
}
NUM_FUNCTIONS, NUM_DATA = 6, 5


def predictive(likelihood=None, shape=(3,), **options):
    mean, deviations = randn(NUM_DATA, *shape, seed=1), 0.8 * randn(NUM_FUNCTIONS, NUM_DATA, *shape, seed=2)
    options = {"joint_width": 0.7, **options}
    return sampla.Predictive(mean, deviations, likelihood or sampla.Gaussian(3.0), **options)


def covariance_of(pred):
    """(n C, n C) by a loop over the samples."""
    flat = [(f - pred.mean).flatten() for f in pred.samples]
    return sum(torch.outer(f, f) for f in flat) / len(flat)


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_covariances_within_and_between_inputs(shape):
    pred = predictive(shape=shape)
    whole = covariance_of(pred)
    torch.testing.assert_close(pred.joint_covariance, whole.view(NUM_DATA, *shape, NUM_DATA, *shape))
    size = pred.mean[0].numel()
    blocks = torch.stack([whole[n * size : (n + 1) * size, n * size : (n + 1) * size] for n in range(NUM_DATA)])
    torch.testing.assert_close(pred.covariance, blocks.view(NUM_DATA, *shape, *shape))
    between = pred[1:3].covariance_with(pred[3:]).reshape(2 * size, 2 * size)
    torch.testing.assert_close(between, whole[size : 3 * size, 3 * size :])
    with pytest.raises(ValueError, match=r"expected predictions with 6 samples, got 2. Both must be of one posterior"):
        pred.covariance_with(sampla.Predictive(pred.mean, pred.deviations[:2], pred.likelihood))


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_totals_add_the_noise_of_each_output(noise, shape):
    pred = predictive(sampla.Gaussian(NOISE[noise]), shape)
    own = (pred.samples - pred.mean).square().mean(0)
    torch.testing.assert_close(pred.variance_total, own + COVARIANCE[noise].diagonal())
    torch.testing.assert_close(pred.std_total.square(), pred.variance_total)


def test_totals_of_images_have_scalar_noise_and_classes_have_none():
    pred = predictive(sampla.Gaussian(4.0), (2, 2, 2))
    torch.testing.assert_close(pred.variance_total - pred.variance, torch.full_like(pred.mean, 0.25))
    with pytest.raises(TypeError, match=r"Categorical has no noise that is added to the outputs: use pred.variance"):
        _ = predictive(sampla.Categorical()).std_total


def test_draws_have_the_covariance_of_the_samples_and_are_the_same_functions_everywhere():
    pred, count = predictive(), 40_000
    drawn = (pred.sample(count, seed=5) - pred.mean).flatten(1)
    expected, found = covariance_of(pred), drawn.mT @ drawn / count
    error = (expected.diagonal().outer(expected.diagonal()) + expected.square()).div(count).sqrt()
    assert float(((found - expected) / error).abs().max()) < 5
    torch.testing.assert_close(pred[2:4].sample(7), pred.sample(7)[:, 2:4])
    torch.testing.assert_close(pred.sample(9)[:4], pred.sample(4))
    assert not torch.allclose(pred.sample(3, seed=1), pred.sample(3, seed=2))
    assert torch.equal(pred.sample(3), pred.sample(3, seed=0))


def test_the_draws_are_those_that_probabilities_are_averaged_over():
    pred = predictive(sampla.Categorical(), num_draws=30, width=0.7)
    torch.testing.assert_close(pred.probs, pred.sample(30).softmax(-1).mean(0))


def test_quantiles_are_those_of_the_normal_distribution():
    pred = predictive(sampla.Gaussian(FULL_NOISE))
    for q in (0.05, 0.5, 0.9):
        expected = norm.ppf(q, pred.mean.numpy(), pred.std.numpy())
        np.testing.assert_allclose(pred.quantile(q), expected)
    both = pred.quantile([0.1, 0.9], total=True)
    assert both.shape == (2, NUM_DATA, 3)
    np.testing.assert_allclose(both[1], norm.ppf(0.9, pred.mean.numpy(), pred.std_total.numpy()))
    with pytest.raises(ValueError, match=r"expected probabilities in \(0, 1\), got 1.5"):
        pred.quantile(1.5)


INDICES = [
    slice(1, 4),
    [4, 0],
    torch.tensor([3, 3]),
    np.array([2]),
    torch.arange(NUM_DATA) % 2 == 0,
    (torch.arange(NUM_DATA) % 2).byte(),
    -2,
    np.int64(3),
    torch.tensor(-1),
    [],
    slice(5, 9),
]


@pytest.mark.parametrize("index", INDICES)
def test_parts_are_the_predictive_at_these_inputs(index):
    pred = predictive(sampla.Categorical(), solve_error=randn(NUM_DATA), targets=torch.arange(NUM_DATA) % 3)
    taken = index if isinstance(index, slice) or len(np.shape(index)) else [int(index)]
    taken = np.array(taken, int) if isinstance(taken, list) else taken
    taken = taken.bool() if isinstance(taken, torch.Tensor) and taken.dtype == torch.uint8 else taken  # a mask of old
    part, rows = pred[index], torch.from_numpy(np.arange(NUM_DATA)[taken])
    assert len(part) == len(rows)
    for name in ("mean", "probs", "std", "mutual_information", "solve_error", "targets"):
        torch.testing.assert_close(getattr(part, name), getattr(pred, name)[rows])
    torch.testing.assert_close(part.samples, pred.samples[:, rows])
    assert (part.width, part.joint_width, part.likelihood) == (pred.width, pred.joint_width, pred.likelihood)


def test_a_predictive_goes_through_its_data_and_ends():
    pred = predictive()
    assert [len(each) for each in pred] == [1] * NUM_DATA == [1] * len(pred)
    torch.testing.assert_close(torch.cat([each.std for each in pred]), pred.std)
    with pytest.raises(IndexError, match="datum 5 of 5"):
        pred[NUM_DATA]
    with pytest.raises(TypeError, match="expected a slice, list or mask of data, got several"):
        pred[0, 1]
    for nothing in (torch.tensor(True), torch.zeros(2, 2, dtype=torch.long), 1.0):
        with pytest.raises(TypeError, match="expected one number, or a slice, list or mask of data on one axis"):
            pred[nothing]


def test_parts_put_together_are_the_whole():
    pred = predictive(sampla.Categorical(), targets=torch.arange(NUM_DATA) % 3)
    joined = sampla.Predictive.cat([pred[:2], pred[2:]])
    for name in ("mean", "deviations", "probs", "targets"):
        torch.testing.assert_close(getattr(joined, name), getattr(pred, name))
    one_without = sampla.Predictive.cat([pred[:2], predictive(sampla.Categorical())])
    assert one_without.targets is None
    with pytest.raises(ValueError, match="expected predictions to put together, got none"):
        sampla.Predictive.cat([])
    for other in (pred.scaled(2.0), predictive(shape=(4,)), predictive(seed=3)):
        with pytest.raises(ValueError, match="Predictions of one posterior go together"):
            sampla.Predictive.cat([pred, other])
    noises = predictive(sampla.Gaussian(1.0)), predictive(sampla.Gaussian(100.0))
    for together in (sampla.Predictive.cat, lambda both: both[0].covariance_with(both[1])):
        with pytest.raises(ValueError, match="Predictions of one posterior go together"):
            together(noises)


def test_types_and_devices_are_asked_for_as_of_tensors():
    pred = predictive(sampla.Gaussian(FULL_NOISE), solve_error=randn(NUM_DATA), targets=torch.arange(NUM_DATA))
    single = pred.to(torch.float32)
    assert single.mean.dtype == single.deviations.dtype == single.solve_error.dtype == single.std_total.dtype
    assert (single.mean.dtype, single.targets.dtype) == (torch.float32, torch.int64)
    torch.testing.assert_close(single.std_total.double(), pred.std_total, rtol=1e-6, atol=0)
    assert pred.to("cpu", dtype=torch.float32).mean.dtype == torch.float32
    assert pred.to("meta").deviations.is_meta


def test_arrays():
    found = predictive(sampla.Categorical()).numpy()
    assert sorted(found) == ["entropy", "mean", "mutual_information", "probs", "samples", "std"]
    pred = predictive(sampla.Gaussian(FULL_NOISE))
    found = sampla.Predictive(pred.mean.requires_grad_(), pred.deviations, pred.likelihood).numpy()
    assert sorted(found) == ["mean", "samples", "std", "std_total"]
    assert all(isinstance(each, np.ndarray) for each in found.values())
    np.testing.assert_array_equal(found["mean"], pred.mean.detach())


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_the_distribution_of_a_target_has_its_density(noise, shape):
    pred = predictive(sampla.Gaussian(NOISE[noise]), shape, width=0.7)
    targets, blocks = randn(NUM_DATA, *shape, seed=3), torch.eye(shape[0] if len(shape) > 1 else 1).double()
    found = pred.distribution()
    noise_alone = torch.kron(blocks, COVARIANCE[noise].contiguous())
    covariance = pred.covariance.flatten(1).view(NUM_DATA, *noise_alone.shape) + noise_alone
    expected = MultivariateNormal(pred.mean.flatten(1), covariance)
    torch.testing.assert_close(found.log_prob(targets.flatten(1)), expected.log_prob(targets.flatten(1)))
    torch.testing.assert_close(found.log_prob(targets.flatten(1)), pred.log_prob(targets))
    torch.testing.assert_close(found.variance.view_as(pred.mean), pred.variance_total)


def test_the_distribution_of_classes():
    pred, labels = predictive(sampla.Categorical()), torch.arange(NUM_DATA) % 3
    assert isinstance(pred.distribution(), Categorical)
    torch.testing.assert_close(pred.distribution().log_prob(labels), pred.log_prob(labels))
    images = predictive(sampla.Categorical(class_axis=-3), (3, 2, 2))
    torch.testing.assert_close(images.distribution().probs, images.probs.movedim(1, -1))
    yes = predictive(sampla.Bernoulli())
    assert isinstance(yes.distribution(), Bernoulli)
    torch.testing.assert_close(yes.distribution().mean, yes.probs)


@pytest.mark.parametrize("width", [0.0, 2.0])
def test_the_derivative_of_a_deviation_is_finite_where_there_is_none(width):
    """Of functions without width, and of outputs that the posterior says nothing of: zero, as of what is constant."""
    deviations = randn(NUM_FUNCTIONS, NUM_DATA, 3, seed=2)
    deviations[:, 0] = 0
    deviations.requires_grad_()
    pred = sampla.Predictive(randn(NUM_DATA, 3), deviations, sampla.Gaussian(3.0), joint_width=width)
    (gradient,) = torch.autograd.grad(pred.std.sum(), deviations)
    root = deviations.detach().square().mean(0).sqrt()
    expected = width * deviations.detach() / (NUM_FUNCTIONS * root.where(root > 0, 1))
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(pred.std.detach(), width * root)


@pytest.mark.parametrize("group", [[-1] * NUM_DATA, [0, 0, -1, 1, 1]])
def test_groups_begin_at_zero(group):
    pred, targets = predictive(), randn(NUM_DATA, 3)
    with pytest.raises(ValueError, match=r"expected group numbers 0 .. G - 1, got -1. Leave out data of no group"):
        pred.joint_log_prob(targets, torch.tensor(group))
    kept = torch.tensor([0, 0, 1, 1, 1])
    small = kept.to(torch.int8)
    assert torch.equal(pred.joint_log_prob(targets, small), pred.joint_log_prob(targets, kept))
