"""EM from a prior precision far too large or too small: the same fixed point, that of a dense EM in float64.

Where alpha is far too large the data determine hardly any parameter, and EM must not take that for having settled.
"""

from functools import cache

import pytest
import torch
from torch import nn

import sampla
from cases import batches, build_data
from dense import Evidence, Hyper, categorical_loss, hessians, jacobian
from sampla.inference.mackay import change_that_matters
from sampla.inference.sampled_step import turned
from sampla.inference.trace import EMStep

GROUPS = {"weight": ["weight"], "bias": ["bias"]}


def prior_of(name, precision=None):
    return sampla.Layerwise(precision, groups=GROUPS) if name == "layerwise" else sampla.Isotropic(precision)


@cache
def problem(likelihood):
    """A linear network on three principal components of an image: 12 parameters, all of which the data need."""
    images, digits, statistics = build_data(60)
    flat = images.flatten(1) - images.flatten(1).mean(0)
    inputs = flat @ torch.linalg.svd(flat, full_matrices=False).Vh[:3].mT
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(3, 3).double().eval()
    return model, inputs, digits // 4 if likelihood == "categorical" else statistics + 1.0


@cache
def exact(likelihood, prior, structure, moves=False):
    """alpha and the noise's covariance where the dense EM settles."""
    model, inputs, targets = problem(likelihood)
    features, outputs = jacobian(model, ["weight", "bias"], inputs), model(inputs).detach()
    group = torch.tensor([0] * 9 + [1] * 3) if prior == "layerwise" else torch.zeros(12, dtype=torch.int64)
    start = torch.zeros(int(group.max()) + 1).double()
    if likelihood == "categorical":
        weights = None if moves else hessians(categorical_loss, outputs, targets)
        found = Evidence(features, targets, group, categorical_loss, weights).run(Hyper(start))
        return found.log_precision.exp(), None
    noise = torch.eye(3).double()
    found = Evidence(features, targets, group, structure=structure).run(Hyper(start, noise))
    return found.log_precision.exp(), found.noise


def fitted(likelihood, prior, structure, factor, given=None, **options):
    model, inputs, targets = problem(likelihood)
    right, _ = exact(likelihood, prior, structure, options.get("curvature_at") == "linear-mode")
    noise = sampla.Categorical() if likelihood == "categorical" else sampla.Gaussian(given, structure, learn=True)
    return sampla.LinearisedLaplace(
        model, noise, prior_of(prior, factor * float(right.log().mean().exp())), num_samples=8, width="em",
        progress=False, **options,
    ).fit(batches(inputs, targets, 30))  # fmt: skip


PROBED = {"em": sampla.EM(method="samples", exact_up_to=0), "solver": "block-cg"}
ROUTES = [
    ("categorical", "isotropic", "fixed", {"solver": "dense"}),
    ("categorical", "isotropic", "fixed", {"solver": "block-cg"}),
    ("categorical", "isotropic", "fixed", {"solver": "dense", "curvature_at": "linear-mode"}),
    ("categorical", "isotropic", "fixed", {"solver": "block-cg", "curvature_at": "linear-mode"}),
    ("categorical", "layerwise", "fixed", {"solver": "block-cg"}),
    ("gaussian", "isotropic", "scalar", {"solver": "dense"}),
    ("gaussian", "isotropic", "scalar", {"solver": "block-cg"}),
    ("gaussian", "layerwise", "full", {"solver": "dense"}),
    ("gaussian", "isotropic", "diagonal", {"solver": "block-cg"}),
]


def assert_right(la, likelihood, prior, structure, moves=False):
    right, noise = exact(likelihood, prior, structure, moves)
    assert la.report_.settled
    assert float((la.prior_precision_ / right).log().abs().max()) < 0.04, "EM's tolerance is 2 %"
    if noise is not None:
        found = la.noise_precision_.reshape(-1, 1) if structure == "scalar" else la.noise_precision_
        precision = torch.linalg.inv(noise)
        wanted = precision if structure == "full" else precision.diagonal()[: len(found)].reshape(found.shape)
        assert float((found - wanted).norm() / wanted.norm()) < 0.02


@pytest.mark.parametrize("factor", [1e-5, 1e5, 1e12])
@pytest.mark.parametrize(("likelihood", "prior", "structure", "options"), ROUTES)
def test_em_comes_to_the_fixed_point_from_far_away(likelihood, prior, structure, options, factor):
    la = fitted(likelihood, prior, structure, factor, **options)
    assert_right(la, likelihood, prior, structure, "curvature_at" in options)


@pytest.mark.parametrize("factor", [1e-5, 1e5])
@pytest.mark.parametrize(("prior", "structure"), [("isotropic", "scalar"), ("layerwise", "scalar")])
def test_noise_that_is_learnt_may_start_far_away_too(prior, structure, factor):
    assert_right(fitted("gaussian", prior, structure, 1.0, given=factor), "gaussian", prior, structure)


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_em_by_samples_comes_to_where_it_comes_from_nearby(likelihood):
    """Its gamma has a sampling error, which is the same from every start."""
    structure = "fixed" if likelihood == "categorical" else "scalar"
    near = fitted(likelihood, "isotropic", structure, 3.0, **PROBED).prior_precision_
    for factor in (1e-4, 1e7):
        far = fitted(likelihood, "isotropic", structure, factor, **PROBED)
        assert far.report_.settled
        assert float((far.prior_precision_ / near).log().abs()) < 0.04


def test_a_group_that_falls_holds_em_up_and_one_that_rises_for_ever_does_not():
    old, little = torch.tensor([1.0, 1e6]).double(), torch.tensor([5.0, 0.01]).double()
    falls, rises = torch.tensor([1.0, 5e4]).double(), torch.tensor([1.0, 2e7]).double()
    assert change_that_matters(old, falls, little) > 2
    assert change_that_matters(old, rises, little) == 0
    assert change_that_matters(old, falls, little, turned=torch.tensor([False, True])) == 0


def test_a_group_that_turns_where_the_data_say_nothing_has_settled():
    used, trace = (1e4, 1e6), []
    for gamma in (0.05, 0.001):
        trace.append(EMStep([1.0, used[0]], [1.0, used[1]], None, [5.0, gamma], [0.0, 0.0], 1.0, 0.0, 1, 0.0))
    precision = torch.tensor([1.0, 1e5]).double()
    assert turned(trace, precision).tolist() == [False, True]
    assert turned(trace, precision / 100).tolist() == [False, False], "below all of them it may fall on"
    assert turned([], precision).tolist() == [False, False]
