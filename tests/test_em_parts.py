"""Parts of the EM loop on their own: the secant, dead groups, and curvature from part of the data."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

import sampla
from cases import linear_model, randn
from sampla.inference.evidence import effective_dimension
from sampla.inference.mackay import accelerated, change_that_matters
from sampla.priors import BoundPrior


def alpha(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("slope", [-0.9, 0.5, 0.8, 0.95])
def test_secant_finds_the_fixed_point_of_a_power_law_at_once(slope):
    """update(a) = 3 (a / 3)^slope has the fixed point 3 and is straight in log a."""
    used = [alpha(1.0, 2.0), alpha(1.5, 9.0)]
    updates = [3 * (a / 3) ** slope for a in used]
    reached = accelerated(used, updates)
    step, whole = (updates[-1] / used[-1]).log(), (alpha(3.0, 3.0) / used[-1]).log()
    near = whole.abs() <= 10 * step.abs()
    assert torch.allclose(reached[near], alpha(3.0, 3.0)[near])
    assert torch.allclose(reached[~near], (used[-1] * (10 * step).exp())[~near]), "too far: ten times the update"
    assert bool(near.all()) == (slope < 0.9)


@pytest.mark.parametrize("slope", [0.95, 1.0, 1.1])
def test_long_steps_are_bounded(slope):
    """Where the update runs away from alpha, or hardly changes with it, no secant says where it ends."""
    used = [alpha(3e4), alpha(1e4)]
    updates = [a / 100 * (a / 3e4) ** (slope - 1) for a in used]
    reached = accelerated(used, updates)
    assert torch.allclose(reached, updates[-1] * float(torch.tensor(-1.5).exp()))


def test_first_step_and_useless_secants_are_plain_updates():
    assert torch.equal(accelerated([alpha(1.0)], [alpha(5.0)]), alpha(5.0))
    same = [alpha(1.0), alpha(1.0)]
    assert torch.allclose(accelerated(same, [alpha(5.0), alpha(5.0)]), alpha(5.0))


def test_groups_about_which_the_data_say_nothing_do_not_hold_up_em():
    prior = BoundPrior(alpha(1.0, 1.0), torch.ones(2), torch.tensor([0, 1]), ("a", "b"), learn=True)
    updated = alpha(1.01, 1e6)
    assert change_that_matters(prior.precision, updated, alpha(5.0, 0.01)) == pytest.approx(0.01, rel=0.01)
    assert change_that_matters(prior.precision, updated, alpha(5.0, 5.0)) > 10
    assert change_that_matters(prior.precision, updated, alpha(0.0, 0.0)) == 0


def test_curvature_of_a_part_is_scaled_to_all_data_and_only_for_a_fixed_order():
    rows = randn(6000, 5)
    model = linear_model(sampla.DesignMatrix(5), sampla.Gaussian(1.0), [(rows, torch.zeros(6000, 1).double())])
    vector, zero = randn(1, 5, seed=3), torch.zeros(1, 5).double()
    part, whole = model.newton_product(zero, vector, stride=4), model.newton_product(zero, vector)
    taken = (torch.arange(6000) // 256) % 4 == 0
    expected = rows[taken].mT @ (rows[taken] @ vector.mT) * 6000 / taken.sum()
    torch.testing.assert_close(part, expected.mT)
    assert not torch.allclose(part, whole)
    model.data.fixed_order = False
    assert model.hessian_stride == 1


@pytest.mark.parametrize("mixed", [False, True])
def test_the_error_of_a_sampled_gamma_is_that_of_repeated_draws_in_every_group(mixed):
    """Two groups that share directions, and their sum; 8 samples, 60 seeds: against (2 tr (H^-1 S_g)^2 / 8)^(1/2).

    Where the second group has nearly the features of the first, what one has too much the other has too little, and
    errors added as if they were independent are more than twice that of the sum.
    """
    size, group = 24, torch.tensor([0, 1, 1, 0] * 6 if mixed else [0] * 12 + [1] * 12)
    root = randn(20, size, seed=1)
    if not mixed:
        root[:, 12:] = root[:, :12] + randn(20, 12, seed=2) / 2
    matrix, precision = root.mT @ root, alpha(0.5, 3.0)[group]
    inverse = torch.linalg.inv(matrix + precision.diag())
    prior = BoundPrior(alpha(0.5, 3.0), torch.ones(size), group, ("a", "b"), learn=True)
    half, z, sizes = torch.linalg.cholesky(inverse), [], []
    parts = [(matrix * (group == g)[:, None] + matrix * (group == g)) / 2 for g in range(2)] + [matrix]
    exact = torch.stack([(inverse @ part).trace() for part in parts])
    spread = torch.stack([(2 * (inverse @ part @ inverse @ part).trace() / 8).sqrt() for part in parts])
    for seed in range(60):
        values = randn(8, size, seed=100 + seed) @ half.mT
        solution = SimpleNamespace(value=values, curvature_value=values @ matrix, effective_dimension=None)
        gamma, error, error_of_sum = effective_dimension(cast(Any, solution), 8, prior)
        errors = torch.cat([error, alpha(error_of_sum)])
        z.append((torch.cat([gamma, gamma.sum()[None]]) - exact) / errors)
        sizes.append(errors)
    errors, scores = torch.stack(sizes), torch.stack(z)
    assert bool((errors.square().mean(0).sqrt() / spread - 1).abs().max() < 0.1)
    assert float((errors / spread - 1).abs().mean()) < 0.17, "the spread of 8 numbers is off by 0.21"
    assert bool((scores.square().mean(0) - 1).abs().max() < 3 * (2 / 60) ** 0.5)
    independent = errors[:, :2].norm(dim=1)
    assert float((independent / errors[:, 2]).mean()) > (1.3 if mixed else 2.4)


class Twice(nn.Module):
    """Two layers that see nearly the same."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(12, 1, bias=False).double(), nn.Linear(12, 1, bias=False).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(x) + self.other(x + 0.3 * x.roll(1, 1))


def test_the_error_of_gamma_that_a_fit_reports_is_that_of_fits_with_other_seeds():
    """Not that of independent layers, 2.6 times as much; 25 seeds know a standard deviation to 14 %."""
    x, prior, found = randn(20, 12, seed=1), sampla.Layerwise([0.5, 3.0], learn=False), []
    for seed in range(25):
        la = sampla.LinearisedLaplace(
            Twice().eval(), sampla.Gaussian(1.0), prior, solver="block-cg", num_samples=8, seed=seed, tolerance=1e-4,
            width="em", progress=False,
        ).fit([(x, x[:, :1])])  # fmt: skip
        error = la.report_.effective_dimension_sum_error
        found.append((sum(la.report_.effective_dimension), error, np.hypot(*la.report_.effective_dimension_error)))
    gamma, error, independent = np.array(found).T
    assert 0.7 < np.sqrt((error**2).mean()) / gamma.std() < 1.4
    assert independent.mean() > 2 * gamma.std()
    assert f"(standard error {error[-1]:.1f})" in str(la.report_)


def test_a_sampled_gamma_is_never_negative():
    """A group's share of z' M z may be, where the data say next to nothing about it; the sum stays what it is."""
    prior = BoundPrior(alpha(1.0, 1.0), torch.ones(2), torch.tensor([0, 1]), ("a", "b"), learn=True)
    values, images = alpha(1.0, 1.0).expand(4, 2), alpha(2.0, -0.5).expand(4, 2)
    solution = SimpleNamespace(value=values, curvature_value=images, effective_dimension=None)
    assert effective_dimension(cast(Any, solution), 4, prior)[0].tolist() == pytest.approx([1.5, 0.0])
