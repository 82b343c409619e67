"""Error bars of a small reconstruction against the closed form in float64 (dense_tomography.py)."""

import copy
from math import log

import pytest
import torch

import dense
import dense_tomography
from sampla import EM
from sampla.solvers import BlockCG, DenseDual, KrylovDual
from sampla.tomography import MatrixOperator, Recipe, ray_transform
from tomography_case import QUICK, SAMPLES, SIDE, Case, digit, noisy, parallel, small_case, small_dip

EVERY_NINTH = slice(None, None, 9)


@pytest.fixture(scope="module")
def case() -> Case:
    return small_case()


def test_features_are_the_operator_times_the_jacobian(case):
    features = case.dip.posterior_.features
    vectors = torch.randn(3, case.dense.jacobian.shape[1], generator=torch.Generator().manual_seed(0)).double()
    pushed = vectors @ case.dense.jacobian.mT
    torch.testing.assert_close(features.image_jvp(vectors).flatten(1), pushed)
    torch.testing.assert_close(features.jvp(vectors)[:, 0], pushed @ case.dense.operator.mT)
    cotangents = torch.randn(3, 1, len(case.dense.operator), generator=torch.Generator().manual_seed(1)).double()
    expected = cotangents[:, 0] @ case.dense.operator @ case.dense.jacobian
    torch.testing.assert_close(features.vjp(cotangents), expected)


def test_scales_are_those_of_the_diagonal(case):
    """128 probes: the mean over all parameters of the relative error of chi-squared with 128 degrees is zero."""
    features = case.dip.posterior_.features
    exact = (case.dense.operator @ case.dense.jacobian).square().sum(0)
    ratio = features.diagonal(5) / exact
    assert 0.9 < float(ratio.mean()) < 1.1
    assert float((ratio - 1).abs().max()) < 6 * (2 / 128) ** 0.5
    assert not torch.equal(features.diagonal(5), features.diagonal(6))


def test_samples_have_the_covariance_of_the_closed_form(case):
    """Every ninth pixel, all pairs of them, and the trace; K = 300 draws."""
    deviations = case.dip.posterior_.predict_image().deviations.flatten(1)
    assert len(deviations) == SAMPLES
    covariance = case.dense.covariance(*case.hyper) * case.scale**2
    dense.assert_covariance(deviations[:, EVERY_NINTH], covariance[EVERY_NINTH, EVERY_NINTH])


def test_em_finds_the_fixed_point_of_the_closed_form(case):
    alpha, beta = case.hyper
    exact_alpha, exact_beta, exact_gamma = case.dense.em(alpha, beta)
    report = case.dip.report_
    assert report.settled
    assert abs(log(alpha / exact_alpha)) < 4 * report.precision_error[0] + report.precision_error[1]
    assert abs(log(beta / exact_beta)) < 4 * report.noise_error[0] + report.noise_error[1]
    assert abs(log(alpha / exact_alpha)) < 0.05  # 64 probes
    assert abs(log(beta / exact_beta)) < 0.03
    assert abs(report.effective_dimension[0] / exact_gamma - 1) < 0.05


def test_noise_is_that_of_the_simulation(case):
    """The residuals of N measurements leave 1 / sqrt(2 (N - gamma)) of a standard deviation unknown."""
    free = len(case.dense.operator) - case.dip.report_.effective_dimension[0]
    assert abs(log(case.dip.noise_std_ / case.noise_std)) < 4 / (2 * free) ** 0.5


def test_evidence_is_that_of_the_closed_form(case):
    report = case.dip.report_
    exact = case.dense.log_evidence(*case.hyper)
    assert abs(report.log_evidence - exact) < 4 * report.log_evidence_error[0] + report.log_evidence_error[1]


@pytest.mark.parametrize("size", [1, 2, 5, 10])
def test_patch_log_likelihoods_come_near_the_exact_covariances(case, size):
    """With the same shrinkage, which is meant to move the density of large patches: what is left is sampling error."""
    predictive = case.dip.posterior_.predict_image()
    covariance = case.dense.covariance(*case.hyper) * case.scale**2
    exact = dense_tomography.patch_log_prob(
        predictive.mean, covariance, case.image, size, predictive.floor, predictive.shrinkage(size)
    )  # fmt: skip
    found = predictive.patch_log_prob(case.image, size)
    assert found.shape == exact.shape
    assert abs(float(found.sum() - exact.sum())) / (len(exact) * size**2) < 0.1


def test_pixel_noise_is_the_noise_through_one_pixel(case):
    pixel = case.dip.posterior_.pixel_noise
    exact = case.dip.noise_std_ / float(case.dense.operator.square().sum(0).mean()) ** 0.5
    assert abs(pixel / exact - 1) < 0.1
    alone = case.dip.posterior_.predict_noise_only()
    assert torch.equal(alone.mean, case.dip.posterior_.predict_image().mean)
    torch.testing.assert_close(alone.total_std, torch.full_like(alone.mean, pixel))


def test_known_noise_is_kept_and_weighs_each_detector(case):
    """Ten times the noise on half of the bins: the reference with whitened rows."""
    spread = torch.full(case.sinogram.shape, case.noise_std).double()
    spread[:, ::2] *= 10
    dip = small_dip(case.operator, noise_std=spread, num_samples=SAMPLES)
    dip.fit(case.sinogram)
    assert dip.noise_std_ == pytest.approx(1.0)
    weights = 1 / spread.flatten()
    posterior = dip.posterior_
    jacobian = dense_tomography.image_jacobian(dip.network, list(posterior.features.layout.names), dip.input_)
    reference = dense_tomography.ImageModel(
        jacobian, case.dense.operator * weights[:, None], dip.prior_.scale, weights * case.sinogram.flatten()
    )
    alpha, beta = dip.report_.prior_precision[0], float(dip.report_.noise_precision)
    covariance = reference.covariance(alpha, beta) * posterior.scale**2
    deviations = posterior.predict_image().deviations.flatten(1)
    dense.assert_covariance(deviations[:, EVERY_NINTH], covariance[EVERY_NINTH, EVERY_NINTH])


def test_relative_noise_is_learnt_as_a_factor(case):
    spread = torch.linspace(1, 3, case.sinogram.shape[1]).double().expand(case.sinogram.shape)
    noise = torch.randn(case.sinogram.shape, generator=torch.Generator().manual_seed(4)).double()
    clean = case.operator.forward(case.image[None])[0].view(case.sinogram.shape)
    dip = small_dip(case.operator, noise_std=spread, learn_noise=True, num_samples=2)
    dip.fit(clean + 0.05 * spread * noise)
    assert abs(log(dip.noise_std_ / 0.05)) < 0.25


def test_block_cg_gives_the_images_of_the_exact_solver():
    """The same draws: in the norm of the measurements 2 % would be allowed elsewhere, which is 7 % of an image here."""
    operator = ray_transform(parallel(), torch.float64)
    sinogram, _ = noisy(operator, digit())
    settings = {"num_samples": 8, "recipe": QUICK}
    exact, found = (
        small_dip(operator, solver=solver, **settings).fit(sinogram).posterior_.predict_image().deviations
        for solver in (DenseDual(), BlockCG())
    )
    assert float((found - exact).norm() / exact.norm()) < 0.03


def test_same_seed_same_answer():
    operator = ray_transform(parallel(views=3), torch.float64)
    sinogram, _ = noisy(operator, digit())
    settings = {"num_samples": 2, "recipe": Recipe(steps=20, start_steps=10)}
    first, again, other = (small_dip(operator, seed=seed, **settings).fit(sinogram) for seed in (0, 0, 1))
    assert torch.equal(first.reconstruction_, again.reconstruction_)
    one, two = (dip.posterior_.predict_image().samples for dip in (first, again))
    assert torch.equal(one, two)
    assert not torch.equal(other.reconstruction_, first.reconstruction_)


@pytest.fixture(scope="module")
def fits(case):
    """In float64, and the same network and scan in float32."""
    single = MatrixOperator(case.operator.scipy, (SIDE, SIDE))
    kept = {"recipe": Recipe(steps=1, learning_rate=1e-12, start_steps=0), "num_samples": SAMPLES}
    network = copy.deepcopy(case.dip.network)
    double = small_dip(case.operator, network=network, **kept).fit(case.sinogram)
    return double, small_dip(single, network=copy.deepcopy(network).float(), **kept).fit(case.sinogram.float())


@pytest.fixture(scope="module")
def exact_models(fits, case):
    """The closed form at the network of each."""
    return [dense_model(dip, case) for dip in fits]


def dense_model(dip, case):
    names = list(dip.posterior_.features.layout.names)
    jacobian = dense_tomography.image_jacobian(copy.deepcopy(dip.network).double(), names, dip.input_.double())
    measured = case.sinogram.flatten() / dip.posterior_.scale
    return dense_tomography.ImageModel(jacobian, case.dense.operator, dip.prior_.scale.double(), measured)


class TestOverTheMeasurements:
    """The default up to 8,000 measurements: EM and evidence from the eigenvalues of their matrix, without probes."""

    @pytest.mark.parametrize("kind", [0, 1], ids=["float64", "float32"])
    def test_fixed_point_and_evidence_are_those_of_the_closed_form(self, fits, exact_models, kind):
        report, exactly = fits[kind].report_, exact_models[kind]
        alpha, beta = report.prior_precision[0], float(report.noise_precision)
        exact_alpha, exact_beta, exact_gamma = exactly.em(alpha, beta)
        bound = (1e-8, 1e-4)[kind]  # float32 measurements
        assert report.method == "outputs"
        assert report.settled
        assert report.status == "reached the tolerance"
        assert alpha == pytest.approx(exact_alpha, rel=bound)
        assert beta == pytest.approx(exact_beta, rel=bound)
        assert report.effective_dimension[0] == pytest.approx(exact_gamma, rel=bound)
        assert report.log_evidence == pytest.approx(exactly.log_evidence(alpha, beta), abs=1000 * bound)

    @pytest.mark.parametrize("kind", [0, 1], ids=["float64", "float32"])
    def test_samples_have_the_covariance_of_the_closed_form(self, fits, exact_models, kind):
        dip = fits[kind]
        alpha, beta = dip.report_.prior_precision[0], float(dip.report_.noise_precision)
        covariance = exact_models[kind].covariance(alpha, beta) * dip.posterior_.scale**2
        deviations = dip.posterior_.predict_image().deviations
        assert deviations.dtype == (torch.float64, torch.float32)[kind]
        deviations = deviations.double().flatten(1)
        dense.assert_covariance(deviations[:, EVERY_NINTH], covariance[EVERY_NINTH, EVERY_NINTH])

    def test_float32_gives_the_same_images(self, fits):
        """Scales by other rounding aside; samples with the same seed."""
        double, single = (dip.posterior_.predict_image().deviations.double() for dip in fits)
        assert float((single - double).norm() / double.norm()) < 1e-3

    def test_it_takes_the_dense_solver(self, case):
        with pytest.raises(ValueError, match=r"DenseDual\(\) or KrylovDual\(\) for EM\(method='outputs'\).*BlockCG"):
            small_dip(case.operator, solver=BlockCG(), em=EM(method="outputs")).fit(case.sinogram)


@pytest.fixture(scope="module")
def by_space(case):
    """What is done with more than 2,000 measurements, with 64 probes here."""
    kept = {"recipe": Recipe(steps=1, learning_rate=1e-12, start_steps=0), "num_samples": SAMPLES}
    network, em = copy.deepcopy(case.dip.network), EM(method="outputs", num_samples=64)
    return small_dip(case.operator, network=network, solver=KrylovDual(), em=em, **kept).fit(case.sinogram)


@pytest.fixture(scope="module")
def exact_model(by_space, case):
    return dense_model(by_space, case)


class TestKrylovSpaceOverTheMeasurements:
    """Against the closed form."""

    def test_the_plan_tells_of_vectors_instead_of_a_matrix(self, by_space):
        assert "Krylov spaces of vectors of" in str(by_space.plan_)
        assert "matrices" not in str(by_space.plan_)

    def test_fixed_point_and_evidence_are_those_of_the_closed_form(self, by_space, exact_model):
        report, exactly = by_space.report_, exact_model
        alpha, beta = report.prior_precision[0], float(report.noise_precision)
        exact_alpha, exact_beta, exact_gamma = exactly.em(alpha, beta)
        assert report.method == "outputs"
        assert report.settled
        assert abs(log(alpha / exact_alpha)) < 4 * report.precision_error[0] + report.precision_error[1]
        assert abs(log(beta / exact_beta)) < 4 * report.noise_error[0] + report.noise_error[1]
        error = report.effective_dimension_error[0]
        assert report.effective_dimension[0] == pytest.approx(exact_gamma, abs=4 * error)
        assert 0 < error < 0.1 * exact_gamma
        evidence, spread = exactly.log_evidence(alpha, beta), report.log_evidence_error
        assert abs(report.log_evidence - evidence) < 4 * spread[0] + spread[1]

    def test_samples_have_the_covariance_of_the_closed_form(self, by_space, exact_model):
        alpha, beta = by_space.report_.prior_precision[0], float(by_space.report_.noise_precision)
        covariance = exact_model.covariance(alpha, beta) * by_space.posterior_.scale**2
        deviations = by_space.posterior_.predict_image().deviations.flatten(1)
        assert by_space.report_.status == "reached the tolerance"
        dense.assert_covariance(deviations[:, EVERY_NINTH], covariance[EVERY_NINTH, EVERY_NINTH])


def test_a_trained_network_is_taken_as_it_is():
    """The same posterior as of the fit that trained it, and not a weight moves."""
    operator = ray_transform(parallel(views=6), torch.float64)
    sinogram, _ = noisy(operator, digit())
    first = small_dip(operator, num_samples=2, recipe=QUICK).fit(sinogram)
    network = copy.deepcopy(first.network)
    before = copy.deepcopy(network.state_dict())
    again = small_dip(operator, num_samples=2, network=network).fit(sinogram.numpy(), trained_on=first.input_)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert torch.equal(again.reconstruction_, first.reconstruction_)
    one, two = (dip.posterior_.predict_image().samples for dip in (first, again))
    torch.testing.assert_close(one, two)
    assert again.training_.final_misfit == pytest.approx(first.training_.final_misfit)
