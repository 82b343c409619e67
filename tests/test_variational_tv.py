"""Error bars by total variation against a fixed point found with dense float64 matrices."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from dense_tomography import differences, likeliest_spread, smoothed_mode, variational_tv
from sampla import ConvergenceWarning
from sampla.core import checkpoint
from sampla.tomography import MatrixOperator, VariationalTV, ray_transform, reweighting
from sampla.tomography.differences import DifferencePrior
from sampla.tomography.mode import RoundedTV, towards_mode
from tomography_case import SIDE, digit, noisy, parallel

SAMPLES = 256


@pytest.fixture(scope="module")
def scan():
    operator = ray_transform(parallel(), torch.float64)
    sinogram, std = noisy(operator, digit())
    return operator, sinogram, std


@pytest.fixture(scope="module")
def fitted(scan):
    operator, sinogram, _ = scan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reweighting, "_DRAWS", SAMPLES)
        return VariationalTV(operator, num_samples=SAMPLES, progress=False).fit(sinogram)


def fixed_point(scan, strength: float):
    """At lambda per image unit, and the unit of the fit: the best constant image."""
    operator, sinogram, std = scan
    scale = fitted_scale(operator, sinogram)
    return variational_tv(
        torch.from_numpy(operator.scipy.toarray()), sinogram.flatten() / scale, (SIDE, SIDE), strength * scale,
        reweighting._ANCHOR, std / scale, reweighting._SMOOTHING,
    ), scale  # fmt: skip


@pytest.fixture(scope="module")
def dense(scan, fitted):
    """At the weight lambda sigma^2 of the fit, which alone the mode depends on."""
    weight, strength = fitted.strength_ * fitted.noise_std_**2, fitted.strength_
    for _ in range(4):
        found, scale = fixed_point(scan, strength)
        strength = weight / (found.noise_std * scale) ** 2
    assert strength == pytest.approx(fitted.strength_, rel=0.02)
    return found, scale


def fitted_scale(operator, sinogram: Tensor) -> float:
    """Of the best constant image."""
    ones = operator.forward(torch.ones(1, SIDE, SIDE, dtype=torch.float64))[0]
    return float(ones @ sinogram.flatten()) / float(ones @ ones)


def test_the_root_of_the_prior_is_that_of_its_dense_precision():
    shape = (5, 7)
    q = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 9 + 0.1
    between = differences(shape)
    weights = torch.cat([q[0, :-1].flatten(), q[1, :, :-1].flatten()])
    precision = between.mT @ (between * weights[:, None]) + 0.01 * torch.eye(35, dtype=torch.float64)
    prior, identity = DifferencePrior(q, 0.01), torch.eye(35, dtype=torch.float64)
    root = prior.root_product(identity).flatten(1).mT
    assert torch.allclose(root @ root.mT @ precision, identity, atol=1e-9)
    assert torch.allclose(prior.root_transpose_product(identity.view(35, *shape)), root, atol=1e-12)


def test_noise_and_mode_are_those_of_the_fixed_point(fitted, dense):
    found, scale = dense
    assert fitted.settled_
    assert fitted.spread_strength_ == fitted.strength_
    assert fitted.report_.noise_precision == pytest.approx(fitted.noise_std_**-2)
    assert "linear model's mean" not in str(fitted.report_)
    assert fitted.noise_std_ / scale == pytest.approx(found.noise_std, rel=0.01)
    wrong = fitted.reconstruction_.flatten() / scale - found.mode
    assert float(wrong.norm() / found.mode.norm()) < 0.005


def test_the_strength_predicts_left_out_measurements_best(scan, fitted, dense):
    found, _ = dense
    others = [fixed_point(scan, fitted.strength_ * factor)[0].score for factor in (0.5, 0.7, 1.4, 2.0)]
    assert found.score < min(others[0], others[-1]) - 0.005
    assert found.score < min(others) + 0.002
    assert fitted.steps_[-1].score == pytest.approx(found.score, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_plan_counts_what_a_fit_holds(dtype):
    side, samples = 48, 10
    operator = ray_transform(parallel(side, 9, side), dtype)
    plan = VariationalTV(operator, num_samples=samples).plan()
    assert (plan.num_pixels, plan.num_measurements, plan.num_samples) == (side**2, 9 * side, samples)
    assert plan.image_bytes == 11 * 11 * side**2 * 8
    assert plan.space_bytes == 5 * 8 * (9 * side) ** 2
    factor = DifferencePrior(torch.ones(2, side, side, dtype=torch.float64), 1e-4)._lower
    assert 24 * factor.nnz < plan.factor_bytes < 24 * 20 * factor.nnz
    held = {"float32": 2 * (12 + 16), "float64": 2 * 16}[str(dtype).removeprefix("torch.")] * operator.scipy.nnz
    assert plan.operator_bytes == held
    parts = (plan.image_bytes, plan.space_bytes, plan.factor_bytes, plan.operator_bytes)
    assert plan.total_bytes == sum(parts)
    assert f"{sum(parts) / 2**30:.2f} GiB" in str(plan)
    assert f"{samples} samples" in str(plan)


@pytest.mark.parametrize("least", [0.01, 0.3, 1.2, 5.0, 40.0])
def test_the_strength_is_the_least_score_s_wherever_that_lies(least):
    taken = []

    def step(state, **_):
        taken.append(state.strength)
        return replace(state, score=np.log(state.strength / least) ** 2)

    weights = reweighting.Reweighting(None, None, True, 0, 0.01, 80, 10, None, None)  # it asks for no more
    start = reweighting.State(torch.ones(1), None, 5.0, 5.0, 1.0)
    far = weights._far(start, step, [])
    assert 0.4 < far.strength / min(least, 5) < 2.1
    assert weights._ladder(far, step, []).strength == pytest.approx(least)
    assert min(least, 5) / 9 < min(taken), "weak strengths, which cost most, are not to be tried for nothing"


def test_the_samples_have_the_covariance_of_the_fixed_point(fitted, dense):
    found, scale = dense
    draws = fitted.posterior_.deviations.flatten(1) / scale
    covariance, exact = draws.mT @ draws / SAMPLES, found.covariance
    expected = float(((exact.trace() ** 2 + exact.square().sum()) / SAMPLES).sqrt())
    assert float((covariance - exact).norm()) < 1.2 * expected
    assert float(covariance.trace() / exact.trace()) == pytest.approx(1, abs=0.05)
    ratio = covariance.diagonal() / exact.diagonal()
    assert float(ratio.log().std()) < 1.3 * (2 / SAMPLES) ** 0.5


def test_a_covariance_has_the_likeliest_strength_where_the_mode_s_is_weaker(scan, monkeypatch):
    operator, sinogram, _ = scan
    weak = 0.3  # in a scan's own units, as if it predicted best
    monkeypatch.setattr(reweighting, "_DRAWS", SAMPLES)
    weights = []

    def ladder(_, state, *__):
        weights.append(state.at(weak).weight)
        return state.at(weak)

    monkeypatch.setattr(reweighting.Reweighting, "_ladder", ladder)
    fit = VariationalTV(operator, num_samples=SAMPLES, progress=False).fit(sinogram)
    scale = fitted_scale(operator, sinogram)
    assert fit.settled_
    assert [fit.strength_ * scale * (fit.noise_std_ / scale) ** 2] == pytest.approx(weights)
    found, _ = fixed_point(scan, fit.strength_)
    strength, covariance = likeliest_spread(
        torch.from_numpy(operator.scipy.toarray()), (SIDE, SIDE), found, reweighting._ANCHOR
    )
    assert strength > 2 * weak
    assert fit.spread_strength_ * scale == pytest.approx(strength, rel=0.05)
    draws = fit.posterior_.deviations.flatten(1) / scale
    expected = float(((covariance.trace() ** 2 + covariance.square().sum()) / SAMPLES).sqrt())
    assert float((draws.mT @ draws / SAMPLES - covariance).norm()) < 1.2 * expected
    wrong = fit.reconstruction_.flatten() / scale - found.mode
    assert float(wrong.norm() / found.mode.norm()) < 0.005


def test_noise_that_is_given_is_kept(scan, fitted):
    operator, sinogram, std = scan
    known = VariationalTV(operator, noise_std=std, num_samples=4, progress=False).fit(sinogram)
    assert known.noise_std_ == pytest.approx(1)
    assert known.strength_ == pytest.approx(fitted.strength_, rel=0.5)
    spread = torch.full_like(sinogram, 2 * std)
    relative = VariationalTV(operator, noise_std=spread, learn_noise=True, num_samples=4, progress=False).fit(sinogram)
    assert relative.noise_std_ * 2 * std == pytest.approx(fitted.noise_std_, rel=0.03)
    assert relative.strength_ == pytest.approx(fitted.strength_, rel=0.3)


@pytest.mark.parametrize("stronger", [1, 10, 30])
def test_learnt_noise_is_what_the_image_of_a_weight_leaves(scan, fitted, monkeypatch, stronger):
    """At a given lambda it may run away instead, to a flat image, which noise explains."""
    operator, sinogram, _ = scan
    scale = fitted_scale(operator, sinogram)
    weight = stronger * fitted.strength_ * scale * (fitted.noise_std_ / scale) ** 2
    monkeypatch.setattr(reweighting, "_DRAWS", SAMPLES)
    monkeypatch.setattr(reweighting.Reweighting, "_ladder", lambda _, state, *__: state.weighing(weight))
    monkeypatch.setattr(reweighting.Reweighting, "_spread", lambda _, state, *__: state)
    fit = VariationalTV(operator, num_samples=SAMPLES, progress=False).fit(sinogram)
    assert fit.settled_
    assert fit.strength_ * scale * (fit.noise_std_ / scale) ** 2 == pytest.approx(weight)
    missed = float((operator.forward(fit.reconstruction_[None])[0] - sinogram.flatten()).square().sum())
    free = sinogram.numel() - sum(fit.report_.effective_dimension)
    assert fit.noise_std_ == pytest.approx((missed / free) ** 0.5, rel=0.01)
    assert fit.noise_std_ < 0.5 * float(sinogram.std()), "a flat image would leave about that"


def test_a_matrix_in_float32_gives_the_same_image(scan, fitted):
    operator, sinogram, _ = scan
    coarse = VariationalTV(operator.to(torch.float32), num_samples=4, progress=False).fit(sinogram.numpy())
    assert coarse.reconstruction_.dtype == torch.float32
    wrong = coarse.reconstruction_.double() - fitted.reconstruction_
    assert float(wrong.norm() / fitted.reconstruction_.norm()) < 0.01


def test_weights_that_have_not_settled_are_told(scan):
    operator, sinogram, _ = scan
    with pytest.warns(ConvergenceWarning, match="weights of total variation have not settled in 2 steps"):
        found = VariationalTV(operator, num_samples=4, max_steps=2, progress=False).fit(sinogram)
    assert not found.settled_
    assert len(found.steps_) == 2


def test_noise_that_no_solve_can_serve_is_told(scan):
    operator, sinogram, _ = scan
    with warnings.catch_warnings(record=True) as said:  # of the solve, the misfit and the weights
        warnings.simplefilter("always")
        found = VariationalTV(operator, 1e-6, num_samples=4, max_steps=2, max_passes=30, progress=False).fit(sinogram)
    assert not found.settled_
    assert not found.steps_[-1].solved
    assert "far too small?" in str(said[-1].message)
    assert found.misfit_ > 3
    assert any(f"misses the measurements by {found.misfit_:.1f} times their noise" in str(one.message) for one in said)


@pytest.mark.parametrize("settings", [{"num_samples": 1}, {"tolerance": 0.0}, {"max_steps": 0}])
def test_settings_out_of_range_are_refused(scan, settings):
    with pytest.raises(ValueError, match="expected"):
        VariationalTV(scan[0], **settings)


def test_sinograms_that_do_not_fit_are_refused(scan):
    operator, sinogram, _ = scan
    model = VariationalTV(operator, progress=False)
    with pytest.raises(ValueError, match="measurements, got"):
        model.fit(sinogram[:-1])
    with pytest.raises(ValueError, match="that attenuates"):
        model.fit(-np.asarray(sinogram))


def test_a_fit_that_was_stopped_goes_on_to_the_same_bits(scan, tmp_path, monkeypatch):
    operator, sinogram, _ = scan
    asked = {"num_samples": 4, "max_steps": 6, "progress": False}
    with pytest.warns(ConvergenceWarning):
        whole = VariationalTV(operator, **asked).fit(sinogram)
    made = []
    reweighted = reweighting.Reweighting._reweighted

    def stopped(self, *given):
        made.append(given)
        if len(made) == 4:
            raise KeyboardInterrupt
        return reweighted(self, *given)

    monkeypatch.setattr(reweighting.Reweighting, "_reweighted", stopped)
    with pytest.raises(KeyboardInterrupt):
        VariationalTV(operator, **asked).fit(sinogram, checkpoint=tmp_path / "fit")
    with pytest.warns(ConvergenceWarning):
        rest = VariationalTV(operator, **asked).fit(sinogram, checkpoint=tmp_path / "fit")
    assert len(made) == 4 + 3
    assert torch.equal(rest.posterior_.mean, whole.posterior_.mean)
    assert torch.equal(rest.posterior_.deviations, whole.posterior_.deviations)
    assert [step.score for step in rest.steps_] == [step.score for step in whole.steps_]
    with pytest.raises(ValueError, match="one with other seed"):
        VariationalTV(operator, seed=1, **asked).fit(sinogram, checkpoint=tmp_path / "fit")
    turned = ray_transform(replace(parallel(), angles=tuple(-angle for angle in parallel().angles)), torch.float64)
    with pytest.raises(ValueError, match=r"one with other .*operator"):
        VariationalTV(turned, **asked).fit(sinogram, checkpoint=tmp_path / "fit")


def test_what_was_saved_is_loaded(scan, fitted, tmp_path):
    operator = scan[0]
    fitted.save(tmp_path / "new" / "fit")
    loaded = VariationalTV.load(tmp_path / "new" / "fit", operator)
    here, there = loaded.posterior_.predict_image(), fitted.posterior_.predict_image()
    assert torch.equal(here.mean, there.mean)
    assert torch.equal(here.deviations, there.deviations)
    assert loaded.posterior_.pixel_noise == fitted.posterior_.pixel_noise
    assert str(loaded.report_) == str(fitted.report_)
    for name in ("noise_std_", "strength_", "misfit_", "settled_", "steps_", "num_samples", "learn_noise"):
        assert getattr(loaded, name) == getattr(fitted, name), name


def test_what_does_not_belong_to_a_saved_fit_is_refused(scan, fitted, tmp_path):
    operator = scan[0]
    with pytest.raises(ValueError, match="Call fit first"):
        VariationalTV(operator, progress=False).save(tmp_path)
    with pytest.raises(FileNotFoundError, match="found none"):
        VariationalTV.load(tmp_path, operator)
    fitted.save(tmp_path)
    half = MatrixOperator(operator.scipy * 0.5, (SIDE, SIDE), torch.float64)
    with pytest.raises(ValueError, match="whose result differs by 50"):
        VariationalTV.load(tmp_path, half)
    with pytest.raises(ValueError, match=r"an operator of type torch\.float64"):
        VariationalTV.load(tmp_path, operator.to(torch.float32))
    path = tmp_path / "variational.safetensors"
    tensors, facts = checkpoint.load(path)
    checkpoint.save(path, tensors, facts | {"version": 2})
    with pytest.raises(ValueError, match="written by a newer sampla"):
        VariationalTV.load(tmp_path, operator)


@pytest.mark.parametrize("rounding", [1.0, 1e-3])
def test_the_mode_is_where_newtons_steps_lead(scan, rounding):
    operator, sinogram, std = scan
    y, matrix = sinogram.flatten(), torch.from_numpy(operator.scipy.toarray())
    generator = torch.Generator().manual_seed(0)
    e = rounding * (0.1 + torch.rand(2, SIDE, SIDE, generator=generator, dtype=torch.float64))
    strength, start = 0.3 / std, torch.zeros(SIDE, SIDE, dtype=torch.float64)
    density = RoundedTV(operator, y, std, strength, e, reweighting._ANCHOR)
    image, reached = towards_mode(density, start, 200, 1e-6, 1000)
    assert reached
    between = differences((SIDE, SIDE))
    flat = torch.cat([e[0, :-1].flatten(), e[1, :, :-1].flatten()])
    exact = smoothed_mode(matrix, y, std, between, strength, flat, reweighting._ANCHOR)
    assert float((image.flatten() - exact).norm() / exact.norm()) < 1e-6
    early, reached = towards_mode(density, start, 1, 1e-6, 1000)
    assert not reached
    assert float((early.flatten() - exact).norm() / exact.norm()) > 1e-3
