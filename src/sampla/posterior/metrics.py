"""Measures that no kept library has: calibration error from probabilities, and dyadic joint log-likelihood."""

from math import log

import torch
from torch import Tensor


def expected_calibration_error(probs: Tensor, targets: Tensor, bins: int = 15) -> float:
    """Weighted mean over equal-width confidence bins of |accuracy - confidence| (Guo et al. 2017).

    Args:
        probs: (n, C) class probabilities.
        targets: (n,) class numbers.
        bins: number of bins on (0, 1].
    """
    confidence, predicted = probs.double().max(-1)
    correct = (predicted == targets).double()
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64).index_add(0, index, correct - confidence)
    return float(gap.abs().sum() / len(targets))


def dyadic_log_likelihood(
    sample_log_prob: Tensor, *, repeats: int = 10, groups_per_datum: int = 5, seed: int = 0
) -> Tensor:
    """Joint log-likelihood of groups made of two inputs, repeated kappa and repeats - kappa times.

    Osband et al. 2022 ("dyadic sampling"), as used by Antoran et al. 2023: a method that only knows marginals cannot
    say that both copies of an input have the same label for the same reason. kappa is Binomial(repeats, 1/2).

    Args:
        sample_log_prob: (S, n) log likelihood of each datum under each of S functions; S = 1 for a point estimate.
        repeats: size of a group.
        groups_per_datum: how often each datum is the first of a pair.
        seed: of the pairs and of kappa; the same for every method that is compared.

    Returns:
        (n * groups_per_datum,) joint log-likelihood in nats of each group of ``repeats`` labels.
    """
    generator = torch.Generator().manual_seed(seed)
    count = sample_log_prob.shape[1]
    parts = []
    for _ in range(groups_per_datum):
        order = torch.randperm(count, generator=generator)
        partner = torch.empty_like(order)
        partner[order] = order.roll(1)
        kappa = torch.binomial(torch.full((count,), float(repeats)), torch.full((count,), 0.5), generator=generator)
        kappa = kappa.to(sample_log_prob)
        joint = kappa * sample_log_prob + (repeats - kappa) * sample_log_prob[:, partner]
        parts.append(joint.logsumexp(0) - log(len(joint)))
    return torch.cat(parts)
