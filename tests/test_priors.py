"""Priors: how parameters are grouped and scaled, and how well the g-prior knows the diagonal of M."""

import pytest
import torch
from scipy.stats import norm
from torch import nn

import sampla
from cases import FIXED_PRIORS, LIKELIHOODS, NUM_TRAIN, batches, linear_model, randn
from dense import curvature
from sampla.core.params import ParameterLayout

LAYOUT = ParameterLayout(("body.0.weight", "body.0.bias", "head.weight"), ((2, 3), (2,), (4,)))
DIAGONAL = randn(12).square() + 0.1
BLOCK = 32  # data whose noisy gradients are summed before they are squared


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_estimated_diagonal_is_within_its_stated_error(problems, likelihood):
    """K squared Gaussians a block: variance 2 sum_b d_b^2 / K, which is (2 / (blocks K)) d^2 for equal blocks."""
    problem, num_samples = problems[likelihood], 500
    features = sampla.NetworkFeatures(problem.model, problem.names)
    model = linear_model(features, problem.case.make(), problem.loader)
    estimate = model.draw_noise(3, num_samples).diagonal
    parts = zip(problem.features.split(BLOCK), problem.weights.split(BLOCK), strict=True)
    blocks = torch.stack([curvature(j, b).diagonal() for j, b in parts])  # (blocks, P)
    exact, spread = blocks.sum(0), (2 * blocks.square().sum(0) / num_samples).sqrt()
    torch.testing.assert_close(exact, problem.curvature.diagonal())
    alive = exact > 1e-12 * exact.max()
    z = ((estimate - exact) / spread)[alive].abs()
    assert float(z.max()) < norm.isf(1e-4 / 2 / len(z))
    assert 0.005 < float((z > 2).double().mean()) < 0.15
    stated = (2 / (-(-NUM_TRAIN // BLOCK) * num_samples)) ** 0.5
    assert float((spread / exact)[alive].median()) < 2 * stated


def test_the_diagonal_estimate_has_no_bias_from_sample_count():
    """Averaged over many seeds with K = 2, the estimate is the diagonal itself."""
    x = randn(70, 4)
    model = linear_model(sampla.DesignMatrix(4), sampla.Gaussian(1.0), [(x, x[:, :1])])
    mean = torch.stack([model.draw_noise(seed, 2).diagonal for seed in range(400)]).mean(0)
    blocks = torch.stack([part.square().sum(0) for part in x.split(BLOCK)])
    spread = (2 * blocks.square().sum(0) / 800).sqrt()
    assert float(((mean - blocks.sum(0)) / spread).abs().max()) < 4


def test_isotropic_has_one_group_and_no_scale():
    bound = sampla.Isotropic(3.0).bind(LAYOUT, DIAGONAL)
    torch.testing.assert_close(bound.diagonal, torch.full((12,), 3.0).double())
    torch.testing.assert_close(bound.scale, torch.ones(12).double())


def test_layerwise_groups_weight_and_bias_of_a_layer():
    bound = sampla.Layerwise(3.0).bind(LAYOUT, DIAGONAL)
    assert bound.names == ("body.0", "head")
    assert bound.group.tolist() == [0] * 8 + [1] * 4
    torch.testing.assert_close(bound.group_sum(torch.ones(12)), torch.tensor([8.0, 4.0]).double())
    changed = bound.with_precision(torch.tensor([1.0, 5.0]).double())
    torch.testing.assert_close(changed.diagonal, torch.tensor([1.0] * 8 + [5.0] * 4).double())


def test_layerwise_takes_groups_of_ones_own():
    bound = sampla.Layerwise(groups={"biases": ["body.0.bias"], "rest": ["body.0.weight", "head"]}).bind(
        LAYOUT, DIAGONAL
    )
    assert set(bound.names) == {"biases", "rest"}
    assert bound.group.bincount().tolist() == [10, 2]
    with pytest.raises(ValueError, match=r"'head.weight' in exactly one prior group"):
        sampla.Layerwise(groups={"body": ["body"]}).bind(LAYOUT, DIAGONAL)


def test_g_prior_scales_the_diagonal_of_the_curvature_to_one():
    bound = sampla.GPrior().bind(LAYOUT, DIAGONAL)
    torch.testing.assert_close(bound.scale.square() * DIAGONAL, torch.ones(12).double())


def test_g_prior_floor_is_relative_to_the_parameters_own_tensor():
    """A nearly dead parameter gets the width of the floor; rescaling a whole tensor changes nothing else."""
    diagonal = DIAGONAL.clone()
    diagonal[1] = 1e-9
    bound = sampla.GPrior(floor=0.01).bind(LAYOUT, diagonal)
    assert float(bound.scale[1] ** -2) == pytest.approx(0.01 * float(diagonal[:6].mean()))
    rescaled = sampla.GPrior(floor=0.01).bind(LAYOUT, torch.cat([100 * diagonal[:6], diagonal[6:]]))
    torch.testing.assert_close(rescaled.scale, torch.cat([bound.scale[:6] / 10, bound.scale[6:]]))


def test_g_prior_takes_dead_tensors_out_and_lists_them():
    diagonal = DIAGONAL.clone()
    diagonal[6:8] = 0
    bound = sampla.GPrior().bind(LAYOUT, diagonal)
    assert bound.dead == ("body.0.bias",)
    assert bound.scale[6:8].tolist() == [0, 0]


@pytest.mark.parametrize("prior", [sampla.Isotropic, sampla.Layerwise, sampla.GPrior])
def test_a_prior_is_not_learnt_from_data_that_say_nothing(prior):
    with pytest.raises(ValueError, match="data that inform at least one parameter"):
        prior().bind(LAYOUT, torch.zeros(12))
    if prior is not sampla.GPrior:
        assert prior(2.0, learn=False).bind(LAYOUT, torch.zeros(12)).precision[0] == 2


@pytest.mark.parametrize("solver", ["dense", "block-cg", None])
def test_the_posterior_of_data_that_say_nothing_is_the_prior(solver):
    network = nn.Linear(300, 2, bias=False).eval()
    data = batches(torch.zeros(40, 300), torch.randn(40, 2, generator=torch.Generator().manual_seed(0)), 20)
    prior, options = sampla.Isotropic(4.0, learn=False), {} if solver is None else {"solver": solver}
    la = sampla.LinearisedLaplace(network, "gaussian", prior, num_samples=200, progress=False, **options).fit(data)
    x = torch.eye(300)[:50]
    assert float(la.predict(x).scaled(1.0).std.mean()) == pytest.approx(0.5, rel=0.02)


class HalfDead(nn.Module):
    """One layer whose output is never used."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        return self.used(x) + 0 * self.unused(x)


@pytest.mark.parametrize("prior", FIXED_PRIORS)
@pytest.mark.parametrize("solver", ["dense", "block-cg"])
def test_a_dead_layer_keeps_its_prior_or_is_taken_out(prior, solver):
    """Without data, a layer's posterior is its prior; the g-prior, which has none to give, leaves it out."""
    la = sampla.LinearisedLaplace(
        HalfDead().double().eval(), sampla.Gaussian(1.0), FIXED_PRIORS[prior](4.0, learn=False),
        num_samples=4, solver=solver, progress=False,
    )  # fmt: skip
    la.fit([(randn(20, 3), randn(20, 2, seed=1))])
    draws = la.samples_["unused.weight"]
    if prior == "g-prior":
        assert la.report_.dead_parameters == ["unused.weight", "unused.bias"]
        assert not bool(draws.any())
    else:
        precision = la.prior_precision_[-1]
        z = draws * precision.sqrt()  # standard normal if the posterior is the prior
        assert abs(float(z.square().mean()) - 1) < 4 * (2 / z.numel()) ** 0.5


@pytest.mark.parametrize("prior", ["isotropic", "layerwise", "g-prior"])
def test_em_survives_a_dead_layer(prior):
    la = sampla.LinearisedLaplace(
        HalfDead().double().eval(),
        sampla.Gaussian(1.0),
        prior,
        num_samples=8,
        progress=False,
        em=sampla.EM(max_steps=200),
    )
    la.fit([(randn(40, 3), randn(40, 3) @ randn(3, 2, seed=1))])
    assert bool(la.prior_precision_.isfinite().all())
    assert la.report_.settled
