"""Metrics against loops that follow their definitions word by word."""

from math import exp, log

import pytest
import torch

from cases import randn
from sampla.posterior.metrics import dyadic_log_likelihood, expected_calibration_error


def naive_calibration_error(probs, targets, bins):
    total = 0.0
    for b in range(bins):
        inside = [
            (float(p.max()), int(p.argmax()) == int(y))
            for p, y in zip(probs, targets, strict=True)
            if b / bins < float(p.max()) <= (b + 1) / bins
        ]
        if inside:
            confidence = sum(c for c, _ in inside) / len(inside)
            accuracy = sum(right for _, right in inside) / len(inside)
            total += len(inside) / len(targets) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("sharpness", [0.3, 3.0])
def test_calibration_error_against_a_loop(bins, sharpness):
    probs, targets = (sharpness * randn(300, 4)).softmax(-1), torch.arange(300) % 4
    expected = naive_calibration_error(probs, targets, bins)
    assert expected_calibration_error(probs, targets, bins) == pytest.approx(expected, abs=1e-12)


def test_certain_and_right_is_calibrated_certain_and_wrong_is_not():
    certain = torch.eye(3).double()
    assert expected_calibration_error(certain, torch.arange(3)) == 0
    assert expected_calibration_error(certain, torch.tensor([1, 2, 0])) == pytest.approx(1)


def test_a_confidence_on_the_edge_belongs_to_the_bin_below():
    """Bins are (0, 1/2] and (1/2, 1]: one wrong at 0.5, one right at 0.6, each in a bin of its own."""
    probs = torch.tensor([[0.5, 0.5], [0.6, 0.4]]).double()
    assert expected_calibration_error(probs, torch.tensor([1, 0]), bins=2) == pytest.approx((0.5 + 0.4) / 2)


def test_calibration_error_in_single_precision_is_accumulated_in_double():
    probs, targets = randn(5000, 3).softmax(-1), torch.arange(5000) % 3
    single = expected_calibration_error(probs.float(), targets)
    assert single == pytest.approx(expected_calibration_error(probs, targets), abs=1e-4)


def naive_dyadic(each, repeats, groups, seed):
    """Pairs and kappa drawn as documented; for each pair, average the likelihood of the whole group over functions."""
    generator = torch.Generator().manual_seed(seed)
    count, found = each.shape[1], []
    for _ in range(groups):
        order = torch.randperm(count, generator=generator).tolist()
        partner = {order[k]: order[k - 1] for k in range(count)}
        kappa = torch.binomial(torch.full((count,), float(repeats)), torch.full((count,), 0.5), generator=generator)
        for n in range(count):
            k = int(kappa[n])
            terms = [exp(k * float(row[n]) + (repeats - k) * float(row[partner[n]])) for row in each]
            found.append(log(sum(terms) / len(terms)))
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("functions", [1, 6])
def test_dyadic_log_likelihood_against_a_loop(functions):
    each = -randn(functions, 9).abs()
    found = dyadic_log_likelihood(each, repeats=10, groups_per_datum=3, seed=4)
    torch.testing.assert_close(found, naive_dyadic(each, 10, 3, 4))


def test_no_datum_is_its_own_partner_and_every_one_is_used():
    """With one-hot log likelihoods the group's value shows which two data it holds."""
    marks = torch.diag(torch.tensor([1e3, 1e6, 1e9, 1e12]).double()).sum(0, keepdim=True)
    found = dyadic_log_likelihood(marks, repeats=10, groups_per_datum=50, seed=0)
    assert float(found.max()) <= 10e12
    assert len(found) == 200


def test_the_joint_rewards_knowing_that_labels_go_together():
    """Two functions, each certain in its own way: marginally a coin, jointly half of the groups are explained."""
    coin = torch.tensor([[0.5], [0.5]]).double().log().expand(2, 2)
    knows = torch.tensor([[0.999, 0.999], [0.001, 0.001]]).double().log()
    assert float(dyadic_log_likelihood(knows).mean()) > float(dyadic_log_likelihood(coin).mean()) + 5
