"""Monte Carlo averages over functions drawn from the Gaussian that K samples define (docs/method.md, section 7).

A draw is mean + s sum_k xi_k d_k / sqrt(K) with xi standard normal. A few data and a few draws are looked at together,
as many as the caches of a CPU hold, so that memory does not grow with either. Draws are the last axis, since what
follows, such as a softmax over few classes, is quick along any axis but that one.
"""

from collections.abc import Iterator, Sequence
from math import log

import torch
from torch import Tensor

from sampla.core.noise import PREDICTIVE, standard_normal
from sampla.likelihoods import Likelihood

_AT_ONCE = {"cpu": 2**16}
"""Outputs times draws that are looked at together, by kind of device."""
_ELSEWHERE = 2**23
_LEAST_DRAWS = 16
"""Draws together at least, so that reading the K deviations is shared."""
_DOUBLINGS, _HALVINGS, _CLOSE = 200, 64, 1e-12
"""Of the interval that a quantile is looked for in, until it is so short beside where it is."""


def mixing(seed: int, count: int, num_draws: int, like: Tensor) -> Tensor:
    """(K, S) weights xi / sqrt(K) of K deviations in S draws; those of fewer draws are the first of more.

    Args:
        seed: of the draws.
        count: K.
        num_draws: S.
        like: for type and device.
    """
    mix: Tensor = standard_normal(seed, PREDICTIVE, range(count), 0, (num_draws,), like) / count**0.5
    return mix


def class_averages(likelihood: Likelihood, mean: Tensor, deviations: Tensor, mix: Tensor) -> tuple[Tensor, Tensor]:
    """Averages over S draws of the class probabilities, and of their entropy.

    Args:
        likelihood: of classes.
        mean: (n, *out).
        deviations: (K, n, *out).
        mix: (K, S), the width included.

    Returns:
        (n, *out), and (n, ...) in nats.
    """

    def sums() -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
        for rows, draws in _pieces(mean, deviations, mix):
            total = None
            for each in draws:
                more = likelihood.class_sums(each)
                total = more if total is None else (total[0] + more[0], total[1] + more[1])
            assert total is not None
            yield rows, total

    probabilities, entropies = _collected(len(mean), sums())
    return probabilities / mix.shape[1], entropies / mix.shape[1]


def log_prob_of_draws(
    likelihood: Likelihood, mean: Tensor, deviations: Tensor, mix: Tensor, targets: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """Log likelihood of the targets under S draws, a few data at a time: their rows, and (S, rows) in nats.

    Args: as for ``class_averages``, and (n, ...) targets.
    """
    for rows, draws in _pieces(mean, deviations, mix):
        yield rows, torch.cat([likelihood.log_prob_of_draws(each, targets[rows]) for each in draws])


def averaged_log_prob(likelihood: Likelihood, mean: Tensor, deviations: Tensor, mix: Tensor, targets: Tensor) -> Tensor:
    """(n,) log of the likelihood of each target, averaged over S draws; arguments as for ``log_prob_of_draws``."""
    each = log_prob_of_draws(likelihood, mean, deviations, mix, targets)
    (found,) = _collected(len(mean), ((rows, (values.logsumexp(0),)) for rows, values in each))
    return found - log(mix.shape[1])


def grouped_log_prob(
    likelihood: Likelihood, mean: Tensor, deviations: Tensor, mix: Tensor, targets: Tensor, group: Tensor
) -> Tensor:
    """(G,) log of the likelihood of each group's targets together, averaged over S draws.

    Args: as for ``log_prob_of_draws``, and (n,) the group of each datum, 0 .. G - 1.
    """
    joint = mean.new_zeros(mix.shape[1], int(group.max()) + 1)
    for rows, each in log_prob_of_draws(likelihood, mean, deviations, mix, targets):
        joint = joint.index_add(1, group[rows], each)
    return joint.logsumexp(0) - log(mix.shape[1])


def target_quantiles(
    likelihood: Likelihood, mean: Tensor, deviations: Tensor, mix: Tensor, probabilities: Sequence[float]
) -> Tensor:
    """(Q, n, ...) quantiles of targets under p(y | f) averaged over S draws: by bisection of the averaged P(y <= v).

    Args: as for ``class_averages``, and Q probabilities in (0, 1).
    """
    found: list[list[Tensor]] = [[] for _ in probabilities]
    for _, draws in _pieces(mean.detach().double(), deviations.detach().double(), mix.detach().double()):
        outputs = torch.cat(list(draws), -1).movedim(-1, 0)
        for parts, probability in zip(found, probabilities, strict=True):
            parts.append(_quantile(likelihood, outputs, probability))
    return torch.stack([torch.cat(parts) for parts in found]).to(mean)


def _quantile(likelihood: Likelihood, outputs: Tensor, probability: float) -> Tensor:
    """(n, ...) quantile of targets whose outputs are (S, n, *out); of counts the least v with P(y <= v) >= q."""
    each = likelihood.distribution(outputs)
    assert each is not None
    discrete = each.support is not None and each.support.is_discrete

    def reached(values: Tensor) -> Tensor:
        return likelihood.cdf(outputs, values).mean(0) >= probability

    high = outputs.new_ones(each.batch_shape[1:])
    low = -high
    for _ in range(_DOUBLINGS):
        short, past = ~reached(high), reached(low) & (not discrete)
        if not bool((short | past).any()):
            break
        below, above = torch.where(past, 2 * low, low), torch.where(short, 2 * high, high)
        low, high = below.where(~short, high), above.where(~past, low)
    for _ in range(_HALVINGS):
        near = high.new_ones(()) if discrete else _CLOSE * torch.maximum(low.abs(), high.abs())
        if bool((high - low <= near).all()):
            break
        middle = ((low + high) / 2).floor() if discrete else (low + high) / 2
        enough = reached(middle)
        low, high = low.where(enough, middle), middle.where(enough, high)
    return high


def _collected(size: int, parts: Iterator[tuple[slice, tuple[Tensor, ...]]]) -> list[Tensor]:
    """Results for a few rows each as results for all of them.

    They are written where they go: many small tensors between the large ones of the work would leave holes in memory
    that nothing fits into. With a graph they are put together instead.
    """
    pieces, whole = [], None
    for rows, found in parts:
        if any(each.requires_grad for each in found):
            pieces.append(found)
            continue
        whole = whole or [each.new_empty(size, *each.shape[1:]) for each in found]
        for place, each in zip(whole, found, strict=True):
            place[rows] = each
    return whole or [torch.cat(each) for each in zip(*pieces, strict=True)]


def _pieces(mean: Tensor, deviations: Tensor, mix: Tensor) -> Iterator[tuple[slice, Iterator[Tensor]]]:
    """Rows of a few data, and their draws (rows, *out, s) a few at a time; one empty piece of no data."""
    outputs, number = max(1, mean.shape[1:].numel()), mix.shape[1]
    most = _AT_ONCE.get(mean.device.type, _ELSEWHERE)
    together = min(number, max(_LEAST_DRAWS, most // outputs))
    size = max(1, most // (outputs * together))

    def drawn(rows: slice) -> Iterator[Tensor]:
        centre, directions = mean[rows].reshape(-1, 1), deviations[:, rows].flatten(1).mT
        for part in mix.split(together, dim=1):
            yield torch.addmm(centre, directions, part).view(*mean[rows].shape, part.shape[1])

    for start in range(0, max(1, len(mean)), size):
        rows = slice(start, start + size)
        yield rows, drawn(rows)
