"""EM with several alphas where one of them creeps: small steps far from the fixed point are not the end.

A group of which the data determine little, gamma of 1 to 9 of 40, has an update that hardly pulls: its rate of
convergence is .9 to .99, and what is left is 10 to 100 steps. The fixed point is that of plain EM in float64 in NumPy.
"""

import numpy as np
import pytest
import torch
from torch import nn

import sampla
from sampla.inference.mackay import distance_that_matters

STRONG, WEAK, DATA = 6, 40, 60
CASES = [(0.1, 2), (0.1, 5), (0.06, 0), (0.06, 1), (0.06, 2), (0.06, 3), (0.06, 5)]
"""Size of the weak group's weights, and seed; what was called settled was up to 9 % off, or 30 steps did not do."""


class TwoGroups(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.strong, self.weak = nn.Linear(STRONG, 1, bias=False), nn.Linear(WEAK, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.strong(x[:, :STRONG]) + self.weak(x[:, STRONG:])


def problem(size, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(DATA, STRONG + WEAK, generator=generator).double()
    strong, weak = (torch.randn(count, generator=generator) for count in (STRONG, WEAK))
    clean = rows @ torch.cat([strong, size * weak]).double()
    return rows, clean[:, None] + torch.randn(DATA, 1, generator=generator).double()


def exact(rows, targets):
    """alpha of both groups, by plain EM until nothing moves."""
    rows, targets = rows.numpy(), targets.numpy()[:, 0]
    group = np.repeat([0, 1], [STRONG, WEAK])
    alpha = np.ones(2)
    for _ in range(5000):
        inverse = np.linalg.inv(rows.T @ rows + np.diag(alpha[group]))
        mean, free = inverse @ rows.T @ targets, 1 - alpha[group] * np.diag(inverse)
        updated = np.array([free[group == g].sum() / (mean[group == g] ** 2).sum() for g in (0, 1)])
        moved, alpha = np.abs(np.log(updated / alpha)).max(), updated
        if moved < 1e-8:
            return alpha
    raise AssertionError("plain EM did not come to its end")


def fitted(rows, targets, start=None, **em):
    return sampla.LinearisedLaplace(
        TwoGroups().double().eval(), sampla.Gaussian(1.0), sampla.Layerwise(start), num_samples=8, width="em",
        em=sampla.EM(**em), progress=False,
    ).fit([(rows, targets)])  # fmt: skip


@pytest.mark.parametrize(("size", "seed"), CASES)
def test_alpha_is_that_of_plain_em_run_to_its_end(size, seed):
    rows, targets = problem(size, seed)
    la = fitted(rows, targets)
    assert la.report_.settled
    assert float(np.abs(np.log(la.prior_precision_.numpy() / exact(rows, targets))).max()) < 0.03
    assert len(la.report_.trace) <= (14 if (size, seed) == (0.06, 5) else 7)


@pytest.mark.parametrize("seed", [0, 3])
def test_with_probes_it_ends_at_the_same_place_from_both_sides(seed):
    rows, targets = problem(0.06, seed)
    ends = [
        fitted(rows, targets, start, exact_up_to=0, num_samples=32, mode_tolerance=1e-4).prior_precision_
        for start in (10.0, 3e4)
    ]
    assert float((ends[0] / ends[1]).log().abs().max()) < 0.03


def alphas(*values):
    return [torch.tensor(each, dtype=torch.float64) for each in values]


@pytest.mark.parametrize("rate", [0.7, 0.9, 0.94])
def test_distance_is_that_to_the_limit_of_steps_that_converge_linearly(rate):
    """log alpha = 1, 1 + d, ..., whose updates are rate times as far from 0, beside a group that is at its end."""
    logs = [1.0, rate, rate**2]
    used = alphas(*[[np.exp(each), 2.0] for each in logs])
    updates = alphas(*[[np.exp(rate * each), 2.0] for each in logs])
    gamma = torch.tensor([3.0, 3.0])
    assert distance_that_matters(used, updates, gamma) == pytest.approx(rate**2)
    assert distance_that_matters(used, updates, torch.tensor([0.0, 3.0])) == pytest.approx(rate**2)  # it falls
    turned = torch.tensor([True, False])
    assert distance_that_matters(used, updates, torch.tensor([0.0, 3.0]), turned) == 0.0
    assert distance_that_matters(used[-1:], updates[-1:], gamma) == pytest.approx(rate**2 * (1 - rate))


def test_where_steps_are_long_distance_is_the_step():
    """Within three steps of the end a secant goes there; rounding tells no rate."""
    gamma = torch.tensor([3.0])
    used, updates = alphas([np.e], [np.exp(0.5)]), alphas([np.exp(0.5)], [np.exp(0.25)])
    assert distance_that_matters(used, updates, gamma) == pytest.approx(0.25)
    still = alphas([2.0], [2.0001]), alphas([2.001], [2.0012])
    assert distance_that_matters(*still, gamma) == pytest.approx(np.log(2.0012 / 2.0001))


def test_of_two_secants_the_slower_one_counts():
    """The last one may be bent by another group's move."""
    used = alphas([np.exp(1.0)], [np.exp(0.9)], [np.exp(0.5)])
    updates = alphas([np.exp(0.9)], [np.exp(0.81)], [np.exp(0.49)])
    assert distance_that_matters(used, updates, torch.tensor([3.0])) == pytest.approx(0.01 / 0.1)
