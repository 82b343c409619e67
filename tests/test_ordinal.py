"""Ordered classes: probabilities by differences of sigmoids, B as an exact expectation, fits, files, messages."""

from typing import Any

import pytest
import torch
from torch import Tensor

import dense
import sampla
from cases import randn
from test_target_distributions import Network

THRESHOLDS = torch.tensor([-1.0, 0.2, 1.7], dtype=torch.float64)


def reference(f: Tensor) -> Tensor:
    """(..., 1) -> (..., 4)."""
    cumulative = (THRESHOLDS - f).sigmoid()
    ends = torch.zeros_like(f), torch.ones_like(f)
    return torch.cat([ends[0], cumulative, ends[1]], -1).diff(dim=-1)


def fisher(outputs: Tensor) -> Tensor:
    """(n, 1, 1) expectation over the classes of the Hessian of -log p."""
    found = []
    for f in outputs:
        each = [torch.func.hessian(lambda g, c=c: -reference(g)[c].log())(f) for c in range(4)]
        found.append((reference(f)[:, None, None] * torch.stack(each)).sum(0))
    return torch.stack(found)


def test_probabilities_log_prob_and_b() -> None:
    likelihood, outputs = sampla.Ordinal(THRESHOLDS), 2 * randn(6, 1)
    torch.testing.assert_close(likelihood.probabilities(outputs), reference(outputs))
    targets = torch.tensor([0, 1, 2, 3, 1, 0])
    expected = reference(outputs)[torch.arange(6), targets].log()
    torch.testing.assert_close(likelihood.log_prob(outputs, targets), expected)
    ones = torch.ones(1, 6, 1).double()
    torch.testing.assert_close(likelihood.curvature_product(outputs, ones)[0], fisher(outputs)[:, 0])
    root = likelihood.curvature_root_product(outputs, ones)[0]
    torch.testing.assert_close(root.square(), fisher(outputs)[:, 0])
    some = sampla.Ordinal(THRESHOLDS, ignore_index=-1).log_prob(outputs, targets.where(targets != 1, -1))
    torch.testing.assert_close(some, expected.where(targets != 1, 0))


@pytest.mark.parametrize("far", [-60.0, 60.0])
def test_far_away_everything_is_finite(far: float) -> None:
    likelihood, leaf = sampla.Ordinal(THRESHOLDS), torch.full((4, 1), far, requires_grad=True)
    value = likelihood.log_prob(leaf, torch.arange(4))
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    assert bool(value.isfinite().all() & gradient.isfinite().all())
    assert bool(likelihood.curvature_root_product(leaf.detach(), torch.ones(1, 4, 1)).isfinite().all())


def test_a_fit_has_the_dense_covariance_and_averages_probabilities(tmp_path: Any) -> None:
    network, x = Network(1).eval(), randn(20, 2, seed=3)
    targets = torch.arange(20) % 4
    targets[::5] = -1
    names = [name for name, _ in network.named_parameters()]
    jacobian, curved = dense.jacobian(network, names, x), fisher(network(x).detach())
    exact = dense.curvature(jacobian, curved * (targets >= 0)[:, None, None]) + 2.0 * torch.eye(jacobian.shape[-1])
    options = {"prior": sampla.Isotropic(2.0, learn=False), "progress": False, "width": "em", "num_samples": 2000}
    likelihood = sampla.Ordinal(THRESHOLDS, ignore_index=-1)
    la = sampla.LinearisedLaplace(network, likelihood, **options).fit([(x, targets)])
    samples = torch.cat([la.samples_[each].flatten(1) for each in names], 1)
    dense.assert_covariance(samples, torch.linalg.inv(exact))
    pred = la.predict(x, num_draws=50)
    torch.testing.assert_close(pred.probs, reference(pred.sample(50)).mean(0))
    asked = targets.clamp_min(0)
    torch.testing.assert_close(pred.log_prob(asked), pred.probs.gather(-1, asked[:, None])[:, 0].log())
    torch.testing.assert_close(pred.distribution().log_prob(asked), pred.log_prob(asked))
    assert pred.probs.shape == (20, 4)
    assert pred.entropy.shape == pred.mutual_information.shape == (20,)
    la.save(tmp_path / "posterior.safetensors")
    again = sampla.LinearisedLaplace.load(tmp_path / "posterior.safetensors", network)
    torch.testing.assert_close(again.predict(x, num_draws=50).probs, pred.probs)
    with pytest.raises(ValueError, match="method='monte-carlo' for Ordinal"):
        la.predict(x, method="probit")


def test_a_width_is_found() -> None:
    """The outputs that it compares have one axis of size one, from which no mean over classes is to be taken."""
    network, x = Network(1).eval(), randn(20, 2, seed=3)
    la = sampla.LinearisedLaplace(network, sampla.Ordinal(THRESHOLDS), progress=False)
    la.fit([(x, torch.arange(20) % 4)])
    assert la.leave_one_out([(x, torch.arange(20) % 4)]).num_observations == 20


def test_bad_input() -> None:
    likelihood, outputs = sampla.Ordinal(THRESHOLDS), randn(4, 1)
    with pytest.raises(ValueError, match=r"increasing thresholds \(C - 1,\), got \[1.0, 0.0\]"):
        sampla.Ordinal([1.0, 0.0])
    with pytest.raises(ValueError, match=r"outputs \(n, ..., 1\) for ordered classes, got \(4, 3\)"):
        likelihood.check_targets(randn(4, 3), torch.zeros(4).long())
    with pytest.raises(ValueError, match=r"class targets of shape \(4,\), got \(4, 1\)"):
        likelihood.check_targets(outputs, torch.zeros(4, 1).long())
    with pytest.raises(ValueError, match=r"labels in 0\.\.3, got labels from 0 to 4"):
        likelihood.check_targets(outputs, torch.tensor([0, 1, 2, 4]))
