"""Patches, calibration, references and the network: each against a naive version or what it must satisfy."""

import sys
from math import log, pi

import numpy as np
import pytest
import torch
from skimage.data import shepp_logan_phantom
from skimage.transform import resize

import dense_tomography
from sampla.tomography import (
    PATCH_SIZES,
    ImagePredictive,
    LinearisedDIP,
    Recipe,
    filtered_back_projection,
    fixed_input,
    noise_seen,
    psnr_ssim,
    ray_transform,
    score,
    solve_tv,
    train,
    tv_reconstruction,
    unet_for,
)
from sampla.tomography.dip import total_variation
from sampla.tomography.tv import gradient, gradient_adjoint, operator_norm
from tomography_case import digit, noisy, parallel, small_dip, small_network

SHAPE = (13, 11)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated(count: int, pixels: int = SHAPE[0] * SHAPE[1]) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws (count, *SHAPE) and the covariance they have."""
    root = torch.eye(pixels).double() + 0.3 * randn(pixels, pixels, seed=1) / pixels**0.5
    return (randn(count, pixels, seed=2) @ root.mT).view(count, *SHAPE), root @ root.mT


@pytest.mark.parametrize("size", PATCH_SIZES)
@pytest.mark.parametrize("count", [4, 40])
def test_patch_log_prob_is_the_textbooks(size, count):
    deviations, _ = correlated(count)
    predictive = ImagePredictive(randn(*SHAPE, seed=3), deviations, 0.3)
    image = randn(*SHAPE, seed=4)
    flat = deviations.flatten(1)
    exact = dense_tomography.patch_log_prob(
        predictive.mean, flat.mT @ flat / count, image, size, 0.3, predictive.shrinkage(size)
    )  # fmt: skip
    torch.testing.assert_close(predictive.patch_log_prob(image, size), exact)
    assert predictive.log_prob_per_pixel(image, size) == pytest.approx(float(exact.mean()) / size**2)
    assert predictive.patch_covariances(size).shape == (len(exact), size**2, size**2)


@pytest.mark.parametrize("size", [2, 5])
def test_shrinkage_is_nearly_the_best_there_is(size):
    """Against a grid of rho with the true covariance known: squared error within a tenth of the best."""
    for count in (4, 16, 100):
        deviations, covariance = correlated(count)
        rho = ImagePredictive(randn(*SHAPE), deviations, 0.0).shrinkage(size)
        flat = deviations.flatten(1)
        moment = flat.mT @ flat / count

        def off(rho: float, moment=moment, covariance=covariance) -> float:
            error = 0.0
            for pixels in dense_tomography.patch_pixels(SHAPE, size):
                rows = torch.tensor([a * SHAPE[1] + b for a, b in pixels])
                each = ((1 - rho) * moment - covariance)[rows][:, rows]
                error += float(each.square().sum() - each.diagonal().square().sum())
            return error

        assert off(rho) < 1.1 * min(off(r) for r in np.linspace(0, 1, 101))
    assert ImagePredictive(randn(*SHAPE), deviations, 0.0).shrinkage(1) == 0


def test_shrinkage_vanishes_with_many_samples():
    found = [ImagePredictive(randn(*SHAPE), correlated(count)[0], 0.0).shrinkage(2) for count in (10, 100, 20_000)]
    assert found[0] > found[1] > found[2]
    assert found[2] < 0.05


def test_stabilised_predictive_adds_a_hundredth_of_the_mean_variance():
    deviations, _ = correlated(8)
    deviations[:, 0, 0] = 0
    predictive = ImagePredictive.stabilised(randn(*SHAPE), deviations)
    assert predictive.floor**2 == pytest.approx(float(predictive.variance.mean()) / 100)
    assert float(predictive.total_std[0, 0]) == pytest.approx(predictive.floor)


def test_inside_and_rank_correlation_of_a_calibrated_predictive():
    spread = torch.linspace(0.5, 3, 10_000).double().view(100, 100)
    truth = spread * randn(100, 100)
    deviations = spread * randn(400, 100, 100, seed=5)
    scores = score(ImagePredictive(torch.zeros(100, 100).double(), deviations, 0.0), truth)
    for k, exact in {1: 0.6827, 2: 0.9545, 3: 0.9973}.items():
        assert abs(scores.inside[k] - exact) < 0.015
    assert 0.4 < scores.rank_correlation < 0.6
    wrong = score(ImagePredictive(torch.zeros(100, 100).double(), deviations / 3, 0.0), truth)
    assert wrong.inside[1] < 0.3
    assert wrong.log_prob[1] < scores.log_prob[1]
    entropy = -float(spread.log().mean()) - (log(2 * pi) + 1) / 2
    assert abs(scores.log_prob[1] - entropy) < 0.03


def test_bad_images():
    predictive = ImagePredictive(torch.zeros(SHAPE).double(), correlated(4)[0], 0.0)
    with pytest.raises(ValueError, match=r"an image of shape \(13, 11\)"):
        predictive.patch_log_prob(torch.zeros(4, 4), 1)
    with pytest.raises(ValueError, match="a patch size from 1 to 11, got 12"):
        predictive.patch_log_prob(torch.zeros(SHAPE), 12)
    with pytest.raises(ValueError, match="finite pixels"):
        predictive.patch_log_prob(torch.full(SHAPE, float("inf")), 1)
    flat = ImagePredictive(torch.zeros(SHAPE).double(), torch.zeros(4, *SHAPE).double(), 0.0)
    with pytest.raises(ValueError, match="positive definite"):
        flat.patch_log_prob(torch.zeros(SHAPE), 2)
    with pytest.raises(ValueError, match="a reference that shows something"):
        psnr_ssim(torch.zeros(SHAPE), torch.zeros(SHAPE))


def test_without_scikit_image(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(ModuleNotFoundError, match=r"sampla\[tomography\]"):
        psnr_ssim(torch.zeros(SHAPE), torch.ones(SHAPE))


def test_tv_reconstruction_solves_its_problem():
    """Feasible, and no image between it and the truth, nor a shrunk one that is feasible, varies less."""
    operator = ray_transform(parallel(), torch.float64)
    image = digit()
    sinogram, std = noisy(operator, image)
    found = tv_reconstruction(operator, sinogram.flatten(), std, steps=3000)

    def misfit(x: torch.Tensor) -> float:
        return float((operator.forward(x[None])[0] - sinogram.flatten()).square().mean().sqrt()) / std

    assert misfit(found) == pytest.approx(1, abs=0.01)
    variation = float(total_variation(found[None]))
    assert variation < float(total_variation(image[None]))
    for seed in range(20):
        other = found + 0.01 * randn(*image.shape, seed=seed)
        assert misfit(other) > 1 or float(total_variation(other[None])) > 0.999 * variation
    assert psnr_ssim(found, image)[0] > psnr_ssim(
        torch.from_numpy(filtered_back_projection(sinogram.numpy(), parallel())), image
    )[0]  # fmt: skip


def test_gradient_has_its_transpose_and_the_operator_its_norm():
    x, slopes = randn(*SHAPE), randn(2, *SHAPE, seed=1)
    assert float((gradient(x) * slopes).sum()) == pytest.approx(float((x * gradient_adjoint(slopes)).sum()))
    assert float(gradient(x).abs().sum()) == pytest.approx(float(total_variation(x[None])))
    operator = ray_transform(parallel(), torch.float64)
    exact = float(torch.linalg.matrix_norm(torch.from_numpy(operator.scipy.toarray()), 2))
    assert operator_norm(operator) == pytest.approx(exact, rel=0.01)


def test_noise_is_seen_between_neighbouring_bins():
    """On 128 pixels, whose sinogram is smooth beside its noise."""
    operator = ray_transform(parallel(128, 12, 191))
    image = torch.from_numpy(resize(shepp_logan_phantom(), (128, 128))).float()
    clean = operator.forward(image[None]).view(12, 191)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    std = 0.05 * float(clean.abs().mean())
    assert 0.9 < noise_seen(clean + std * noise) / std < 1.3
    assert noise_seen(clean[:, :2]) == pytest.approx(1e-3 * float(clean[:, :2].square().mean().sqrt()))


def test_training_reaches_the_noise_and_stops_early():
    operator = ray_transform(parallel())
    sinogram, std = noisy(operator, digit().float())
    network, given = unet_for((16, 16)), fixed_input((16, 16))
    scale = 0.3
    recipe = Recipe(steps=800, learning_rate=5e-3, patience=40, gain=0.02)
    training = train(network, given, operator, sinogram.flatten() / scale, std / scale, recipe)
    assert training.stopped_early
    assert training.steps < 800
    assert 0.7 < training.misfits[-1] < 1.3
    assert not network.training
    assert all(p.grad is None for p in network.parameters())
    image = network(given)[0, 0].detach() * scale
    assert psnr_ssim(image, digit().float())[0] > 18


def test_a_start_from_total_variation_saves_most_steps():
    """With a third of the steps that reach the noise from nothing, an image as good as the one it starts from."""
    operator = ray_transform(parallel())
    image = digit().float()
    sinogram, std = noisy(operator, image)
    y, recipe = sinogram.flatten() / 0.3, Recipe(steps=60, start_steps=200)
    start = solve_tv(operator, y, std / 0.3)
    given = fixed_input((16, 16), image=start.image)
    assert torch.equal(given[0, 0], start.image)
    assert torch.equal(given[0, 1:], fixed_input((16, 16))[0, 1:])
    network = unet_for((16, 16))
    training = train(network, given, operator, y, std / 0.3, recipe, start=start)
    found = network(given)[0, 0].detach()
    misfit = float((operator.forward(found[None])[0] - y).square().mean().sqrt()) / (std / 0.3)
    assert training.final_misfit == pytest.approx(misfit, rel=1e-4)
    assert 0.7 < misfit < 1.15
    assert (training.start_steps, training.steps) == (200, 60)
    assert psnr_ssim(found * 0.3, image)[0] > psnr_ssim(start.image * 0.3, image)[0] - 1


@pytest.mark.parametrize("shape", [(16, 16), (17, 23), (28, 28), (501, 501)])
def test_unet_takes_any_size_that_can_be_halved(shape):
    network = unet_for(shape)
    assert len(network.down) + 1 == (5 if shape == (501, 501) else 3)
    if shape[0] < 100:
        assert network(fixed_input(shape)).shape == (1, 1, *shape)
    else:
        assert 1.8e6 < sum(p.numel() for p in network.parameters()) < 2.2e6


def test_unet_is_the_same_for_the_same_seed_and_leaves_the_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, two, other = unet_for((16, 16), 1), unet_for((16, 16), 1), unet_for((16, 16), 2)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.first[0].weight, other.first[0].weight)


def test_an_image_that_cannot_be_halved():
    with pytest.raises(ValueError, match=r"halved 2 times and keep 2 pixels a side, got 4 x 30 pixels"):
        unet_for((4, 30))
    with pytest.raises(ValueError, match="halved 5 times"):
        unet_for((28, 28), scales=6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s[:, :-1], "276 measurements"),
        (lambda s: torch.where(s > 1, float("nan"), s), "finite measurements"),
        (lambda s: -s, "an object that attenuates"),
        (lambda s: 0 * s, "an object that attenuates"),
    ],
)
def test_bad_sinograms(change, message):
    operator = ray_transform(parallel(), torch.float64)
    sinogram, _ = noisy(operator, digit())
    with pytest.raises(ValueError, match=message):
        small_dip(operator).fit(change(sinogram))


def test_sinograms_of_other_kinds():
    operator = ray_transform(parallel(), torch.float64)
    sinogram, _ = noisy(operator, digit())
    dip = small_dip(operator)
    expected = dip.prepare(sinogram)
    for given in (sinogram.numpy(), sinogram.numpy().astype(">f8"), sinogram.flip(0).numpy()[::-1]):
        found = dip.prepare(given)
        assert torch.equal(found.measurements, expected.measurements)
        assert found.scale == expected.scale
    with pytest.raises(ValueError, match="a sinogram as a tensor or a NumPy array, got list"):
        dip.prepare(sinogram.tolist())
    with pytest.raises(ValueError, match=r"real measurements, got torch\.complex128"):
        dip.prepare(sinogram + 0j)


def test_bad_settings():
    operator = ray_transform(parallel(), torch.float64)
    with pytest.raises(ValueError, match="num_samples of at least 2"):
        LinearisedDIP(operator, num_samples=1)
    with pytest.raises(ValueError, match=r"a network output of shape \(1, 1, 16, 16\)"):
        small_dip(operator, network=torch.nn.Sequential(small_network(), torch.nn.Upsample(scale_factor=2))).fit(
            noisy(operator, digit())[0]
        )
    with pytest.raises(ValueError, match="learning_rate in"):
        Recipe(learning_rate=2.0)


def test_pixels_without_a_truth_are_left_out():
    """A frame of NaN: the scores of what is inside it alone, whatever is outside."""
    spread = torch.linspace(0.5, 3, 900).double().view(30, 30)
    truth, deviations = spread * randn(30, 30), spread * randn(50, 30, 30, seed=5)
    known = truth.clone()
    known[:5], known[-5:], known[:, :5], known[:, -5:] = (float("nan"),) * 4
    wild = torch.zeros(30, 30).double()
    wild[:5] = 1e6
    whole = ImagePredictive(wild, deviations, 0.1)
    inner = ImagePredictive(wild[5:-5, 5:-5], deviations[:, 5:-5, 5:-5], 0.1)
    found, expected = score(whole, known), score(inner, truth[5:-5, 5:-5])
    assert found.psnr == pytest.approx(expected.psnr)
    assert found.inside == expected.inside
    assert found.rank_correlation == pytest.approx(expected.rank_correlation)
    assert found.log_prob[1] == pytest.approx(expected.log_prob[1])
    assert found.log_prob[5] == pytest.approx(whole.patch_log_prob(truth, 5).view(6, 6)[1:-1, 1:-1].mean() / 25)
    assert 0 < found.ssim <= 1
    known[10:20, 10:20] = float("nan")
    assert 10 not in score(whole, known).log_prob
    with pytest.raises(ValueError, match="a reference with pixels that are known"):
        psnr_ssim(wild, torch.full_like(wild, float("nan")))


def test_mean_of_a_region_knows_that_errors_of_neighbours_go_together():
    common = randn(500)[:, None, None].expand(500, *SHAPE)
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[2:5, 3:9] = True
    mean = randn(*SHAPE, seed=3)
    together, apart = (ImagePredictive(mean, d, 0.0).region(mask) for d in (common, randn(500, *SHAPE, seed=4)))
    assert together[0] == apart[0] == pytest.approx(float(mean[mask].mean()))
    assert together[1] == pytest.approx(1, rel=0.1)
    assert apart[1] == pytest.approx(18**-0.5, rel=0.1)
    with pytest.raises(ValueError, match="at least one pixel"):
        ImagePredictive(mean, common, 0.0).region(torch.zeros(SHAPE, dtype=torch.bool))
