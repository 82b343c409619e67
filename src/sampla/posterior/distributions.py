"""Predictions as torch.distributions has them."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
)

from sampla.posterior.averages import mixing
from sampla.posterior.outputs import Outputs


def target_distribution(outputs: Outputs, probs: Callable[[], Tensor]) -> Distribution:
    """The distribution of each datum's target.

    Args:
        outputs: the Gaussian over the outputs at n inputs.
        probs: gives the class probabilities.

    Returns:
        A Categorical with the classes last, a Bernoulli, a normal distribution over the flattened outputs of a datum
        with noise, or a mixture of p(y | f) over draws of f, at the width for single labels; n of them.

    Raises:
        TypeError: for a likelihood that has neither class probabilities nor noise that is added.
    """
    drawn = outputs.likelihood.distribution(outputs.mean[:0])
    if drawn is not None:
        count, mix = outputs.num_draws, mixing(outputs.seed, len(outputs.deviations), outputs.num_draws, outputs.mean)
        each = outputs.mean + outputs.width * torch.tensordot(mix, outputs.deviations, dims=([0], [0]))
        components = outputs.likelihood.distribution(each.movedim(0, 1))  # (n, S, ...)
        assert components is not None
        equal = Categorical(logits=outputs.mean.new_zeros(len(outputs), count))
        return MixtureSameFamily(equal, Independent(components, len(components.batch_shape) - 2))
    axis = outputs.likelihood.class_axis
    if outputs.likelihood.log_determinant(outputs.mean) is None:
        found = probs()
        return Bernoulli(probs=found) if axis is None else Categorical(probs=found.movedim(axis, -1))
    mean, noise = outputs.mean.reshape(len(outputs), -1), outputs.likelihood.noise_covariance(outputs.mean)
    factor = outputs._flat * (outputs.width / len(outputs.deviations) ** 0.5)
    if noise.ndim < 2:
        return LowRankMultivariateNormal(mean, factor, noise.expand(outputs.mean.shape).reshape(mean.shape))
    blocks = torch.eye(mean.shape[1] // len(noise)).to(noise)
    return MultivariateNormal(mean, factor @ factor.mT + torch.kron(blocks, noise.contiguous()))
