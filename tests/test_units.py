"""Targets or inputs in other units: the same fit in those units, however small or large they are."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import sampla
from cases import batches
from sampla.core.params import ParameterLayout
from sampla.inference.infer import startable
from sampla.inference.state import is_sound
from sampla.inference.trace import EMStep

ROUTES = [
    ("isotropic", "scalar", {"solver": "dense"}),
    ("isotropic", "scalar", {"solver": "block-cg"}),
    ("isotropic", "diagonal", {"solver": "block-cg"}),
    ("isotropic", "full", {"solver": "dense"}),
    ("layerwise", "scalar", {"solver": "block-cg"}),
    ("g-prior", "scalar", {"solver": "block-cg"}),
    ("isotropic", "scalar", {"em": sampla.EM(method="samples"), "solver": "block-cg"}),
]


def fitted(likelihood, prior, dtype, inputs_in=1.0, targets_in=1.0, **options):
    """A linear network, no bias where the inputs' unit changes, whose weights follow the units."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 4, dtype=torch.float64, generator=generator)
    weight = torch.randn(3, 4, dtype=torch.float64, generator=generator)
    outputs = x @ weight.T
    targets = outputs + torch.randn(80, 3, dtype=torch.float64, generator=generator)
    if likelihood == "categorical":
        targets = targets.argmax(1)
    network = nn.Linear(4, 3, bias=False, dtype=dtype)
    with torch.no_grad():
        network.weight.copy_(weight * targets_in / inputs_in)
    targets = targets if likelihood == "categorical" else (targets * targets_in).to(dtype)
    la = sampla.LinearisedLaplace(network.eval(), likelihood, prior, seed=1, progress=False, **options)
    inputs = (x * inputs_in).to(dtype)
    return la.fit(batches(inputs, targets, 20)), inputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("unit", [1e-12, 1e-7, 1e9])
@pytest.mark.parametrize(("prior", "structure", "options"), ROUTES)
def test_targets_in_another_unit_have_the_same_error_bars_in_that_unit(prior, structure, options, unit, dtype):
    one, inputs = fitted(sampla.Gaussian(structure=structure), prior, dtype, **options)
    other, _ = fitted(sampla.Gaussian(structure=structure), prior, dtype, targets_in=unit, **options)
    assert one.report_.settled
    assert other.report_.settled
    ratio = other.prior_precision_ * (1 if prior == "g-prior" else unit**2) / one.prior_precision_
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=2e-3, atol=0)
    torch.testing.assert_close(other.noise_precision_ * unit**2, one.noise_precision_, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(other.predict(inputs).std / unit, one.predict(inputs).std, rtol=2e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("start", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize(("prior", "structure", "options"), ROUTES[:5])
def test_a_first_precision_far_from_the_data_leads_where_another_does(prior, structure, options, start, dtype):
    one, inputs = fitted(sampla.Gaussian(structure=structure), prior, dtype, **options)
    given = {"isotropic": sampla.Isotropic, "layerwise": sampla.Layerwise}[prior](start)
    for unit in (1.0, 1e-7):
        other, _ = fitted(sampla.Gaussian(structure=structure), given, dtype, targets_in=unit, **options)
        assert other.report_.settled
        ratio = other.prior_precision_ * unit**2 / one.prior_precision_
        torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=1e-2, atol=0)
        torch.testing.assert_close(other.noise_precision_ * unit**2, one.noise_precision_, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(other.predict(inputs).std / unit, one.predict(inputs).std, rtol=5e-3, atol=0)


@pytest.mark.parametrize("precision", [0.1, 1e12, 3e30])
def test_a_precision_that_is_kept_is_kept_to_the_bit_beside_noise_that_is_learnt(precision):
    prior = sampla.Isotropic(precision, learn=False)
    la, _ = fitted("gaussian", prior, torch.float64, solver="block-cg", em=sampla.EM(max_steps=4, tolerance=0.5))
    assert la.prior_precision_.tolist() == [precision]


@pytest.mark.parametrize("units", [(1e6, 1e-10), (1e-8, 1e9)])
@pytest.mark.parametrize(("structure", "solver"), [("scalar", "dense"), ("diagonal", "block-cg")])
def test_a_precision_that_is_stopped_is_not_called_settled(structure, solver, units):
    with pytest.warns(sampla.ConvergenceWarning, match="stopped at 1e-30 or 1e30: give inputs, or targets, in units"):
        la, _ = fitted(sampla.Gaussian(structure=structure), "isotropic", torch.float64, *units, solver=solver)
    assert not la.report_.settled


class Whenever(sampla.EM):
    def has_settled(self, trace, ahead, error=0.0):  # noqa: ARG002
        return len(trace) > 4


def test_a_rule_of_ones_own_does_not_settle_what_is_stopped():
    em = Whenever(method="samples", max_steps=6)
    with pytest.warns(sampla.ConvergenceWarning, match="stopped at 1e-30 or 1e30"):
        la, _ = fitted("gaussian", "isotropic", torch.float64, 1e-8, 1e9, solver="block-cg", em=em)
    assert not la.report_.settled


def test_a_precision_at_the_bound_that_is_kept_is_not_said_to_be_stopped():
    la, _ = fitted("gaussian", sampla.Isotropic(1e30, learn=False), torch.float64, solver="block-cg")
    assert la.report_.settled
    assert la.prior_precision_.tolist() == [1e30]


def test_a_mode_that_is_not_finite_is_not_sound():
    prior = sampla.Isotropic(1.0).bind(ParameterLayout(("w",), ((3,),)), torch.ones(3))
    step = EMStep([1.0], [1.0], None, [2.0], [0.0], 1.0, 0.0, 1, 0.0)
    for size, sound in ((1.0, True), (torch.nan, False), (torch.inf, False)):
        state = SimpleNamespace(trace=[replace(step, mode_norm=size)], prior=prior)
        assert is_sound(state) is sound


def test_a_start_stays_where_the_data_overflow():
    prior = sampla.Isotropic(1.0).bind(ParameterLayout(("w",), ((3,),)), torch.ones(3))
    assert startable(prior, torch.full((3,), torch.inf)).precision.tolist() == [1.0]
    assert startable(prior, torch.full((3,), 1e9)).precision.tolist() == pytest.approx([1e9 * 2**-23])
    assert startable(prior, torch.full((3,), 1e-9)).precision.tolist() == pytest.approx([3e-5])


@pytest.mark.parametrize("unit", [1e-9, 1e9])
@pytest.mark.parametrize("curvature_at", ["network", "linear-mode"])
def test_inputs_in_another_unit_leave_a_classifier_as_it_is(unit, curvature_at):
    one, inputs = fitted("categorical", "isotropic", torch.float64, curvature_at=curvature_at)
    other, moved = fitted("categorical", "isotropic", torch.float64, inputs_in=unit, curvature_at=curvature_at)
    ratio = other.prior_precision_ / unit**2 / one.prior_precision_
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=2e-3, atol=0)
    torch.testing.assert_close(other.predict(moved).std, one.predict(inputs).std, rtol=2e-3, atol=0)


def large(likelihood, inputs_in=1.0, targets_in=1.0):
    """More parameters and outputs than exact traces are taken of, in float32."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 500, dtype=torch.float64, generator=generator) / torch.arange(1, 501)
    weight = torch.randn(3, 500, dtype=torch.float64, generator=generator)
    targets = x @ weight.T + torch.randn(200, 3, dtype=torch.float64, generator=generator)
    network = nn.Linear(500, 3, bias=False)
    with torch.no_grad():
        network.weight.copy_(weight * targets_in / inputs_in)
    targets = targets.argmax(1) if likelihood == "categorical" else (targets * targets_in).float()
    la = sampla.LinearisedLaplace(network.eval(), likelihood, "isotropic", seed=1, num_samples=8, progress=False)
    inputs = (x * inputs_in).float()
    return la.fit(batches(inputs, targets, 50)), inputs


@pytest.mark.parametrize(
    ("likelihood", "units"),
    [("gaussian", (1.0, 1e-9)), ("gaussian", (1e10, 1.0)), ("categorical", (1e10, 1.0)), ("categorical", (1e-15, 1.0))],
)
def test_a_krylov_space_in_float32_is_the_same_in_another_unit(likelihood, units):
    one, inputs = large(likelihood)
    other, moved = large(likelihood, *units)
    assert one.report_.method == other.report_.method == "krylov"
    assert one.report_.settled
    assert other.report_.settled
    ratio = other.prior_precision_ * (units[1] / units[0]) ** 2 / one.prior_precision_
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=5e-3, atol=0)
    spread = other.predict(moved).scaled(1.0).std / units[1]
    torch.testing.assert_close(spread, one.predict(inputs).scaled(1.0).std, rtol=2e-2, atol=0)
