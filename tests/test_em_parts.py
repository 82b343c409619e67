"""Parts of the EM loop on their own: the secant, dead groups, and curvature from part of the data."""

import pytest
import torch

import sampla
from cases import linear_model, randn
from sampla.inference.mackay import accelerated, change_that_matters
from sampla.priors import BoundPrior


def alpha(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("slope", [-0.9, 0.5, 0.8])
def test_secant_finds_the_fixed_point_of_a_power_law_at_once(slope):
    """update(a) = 3 (a / 3)^slope has the fixed point 3 and is straight in log a."""
    used = [alpha(1.0, 2.0), alpha(1.5, 9.0)]
    updates = [3 * (a / 3) ** slope for a in used]
    reached = accelerated(used, updates)
    limit = (updates[-1] / used[-1]).log().abs() * 3
    near = (alpha(3.0, 3.0) / used[-1]).log().abs() <= limit
    assert torch.allclose(reached[near], alpha(3.0, 3.0)[near])
    assert torch.allclose(reached[~near], updates[-1][~near]), "too far a step falls back on the plain update"


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
