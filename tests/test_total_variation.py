"""Total variation against an interior-point method in float64, in any unit, and what it says where it fails."""

from functools import cache

import pytest
import torch

import dense_tomography
from sampla.core.checks import ConvergenceWarning
from sampla.tomography import MatrixOperator, psnr_ssim, ray_transform, solve_tv, tv_reconstruction
from tomography_case import digit, noisy, parallel


@cache
def posed() -> tuple[MatrixOperator, torch.Tensor, float]:
    operator = ray_transform(parallel(), torch.float64)
    sinogram, std = noisy(operator, digit())
    return operator, sinogram.flatten(), std


@cache
def optimum() -> tuple[torch.Tensor, float]:
    operator, y, std = posed()
    radius = len(y) ** 0.5 * std
    return dense_tomography.least_total_variation(torch.from_numpy(operator.scipy.toarray()), y, radius, (16, 16))


def variation(image: torch.Tensor) -> float:
    return float(image.diff(dim=0).abs().sum() + image.diff(dim=1).abs().sum())


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-5])
def test_total_variation_is_the_least_there_is(tolerance):
    """Within the gap that it states, which is within what was asked; and the same image."""
    operator, y, std = posed()
    best, least = optimum()
    found = solve_tv(operator, y, std, tolerance=tolerance)
    misfit = float((operator.forward(found.image[None])[0] - y).square().mean().sqrt()) / std
    assert found.converged
    assert found.misfit == pytest.approx(misfit, abs=1e-9)
    assert misfit <= 1 + tolerance
    assert found.gap <= tolerance
    assert abs(variation(found.image) / least - 1) <= found.gap + 3 * tolerance * float(misfit > 1)
    if tolerance < 1e-4:
        assert float((found.image - best).abs().max()) < 1e-3
        assert variation(found.image) == pytest.approx(least, rel=2e-5)


def test_unit_of_attenuation_and_of_length_does_not_matter():
    """Attenuation of .03 and pixels of .15, as scans have them: the same image up to its scale, in as many steps."""
    operator, y, std = posed()
    first = solve_tv(operator, y, std)
    for attenuation, length in ((1e-3, 1.0), (0.03, 0.15), (1e4, 30.0)):
        other = MatrixOperator(operator.scipy * length, (16, 16), torch.float64)
        found = solve_tv(other, y * attenuation * length, std * attenuation * length)
        assert found.steps == first.steps
        torch.testing.assert_close(found.image / attenuation, first.image, rtol=1e-6, atol=1e-6)


def test_price_is_what_a_smaller_misfit_costs():
    operator, y, std = posed()
    size = len(y) ** 0.5
    less, more = (variation(solve_tv(operator, y, std * f, tolerance=1e-6, steps=50_000).image) for f in (0.99, 1.01))
    price = solve_tv(operator, y, std, tolerance=1e-6, steps=50_000).price
    assert price == pytest.approx((less - more) / (0.02 * std * size), rel=0.01)


def test_float32_gives_the_same_image():
    operator, y, std = posed()
    best, _ = optimum()
    found = solve_tv(operator.to(torch.float32), y.float(), std)
    assert found.converged
    assert psnr_ssim(found.image, best)[0] > 50


def test_it_says_that_it_did_not_converge():
    operator, y, std = posed()
    found = solve_tv(operator, y, std, steps=30)
    assert not found.converged
    assert found.gap > 1e-3 or found.misfit > 1.001
    assert "did not converge in 30 steps" in found.status
    with pytest.warns(ConvergenceWarning, match="did not converge in 30 steps"):
        tv_reconstruction(operator, y, std, steps=30)


def test_measurements_that_no_image_meets_so_exactly():
    """More measurements than pixels, and a hundredth of their noise: the misfit says so."""
    operator, y, _ = posed()
    rows = torch.from_numpy(operator.scipy.toarray())
    least = float((rows @ (torch.linalg.pinv(rows) @ y) - y).square().mean().sqrt())
    found = solve_tv(operator, y, least / 10, steps=2000)
    assert not found.converged
    assert found.misfit > 9.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"measurements": torch.ones(3)}, "276 measurements in one row"),
        ({"noise_std": 0.0}, "a positive noise_std"),
        ({"steps": 0}, "at least one step"),
    ],
)
def test_bad_arguments(change, message):
    operator, y, std = posed()
    with pytest.raises(ValueError, match=message):
        solve_tv(**{"operator": operator, "measurements": y, "noise_std": std, **change})
