"""What the posterior of the linear model says of an observation that is left out (docs/method.md, section 9).

With V_n = J_n H^-1 J_n', g_n the gradient of -log p(y_n | f) at the mode's outputs f*_n, and B_n as in H,

    f_-n = f*_n + V_-n g_n,    V_-n = V_n (I - B_n V_n)^-1,

one Newton step without the observation, exact for a Gaussian likelihood (Rad & Maleki 2020). K samples give V g, the
mean of (d_k'g) d_k, without any (C, C) matrix, and I - B V acts on it as 1 - h with the leverage h = (Vg)'B(Vg) / g'Vg.
As these are sums of K squares, 1 / (1 - h) is biased upwards; its unbiased estimate from h chi^2_K / K is
1F1(1; K / 2; K h / 2).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import log, pi, sqrt

import numpy as np
import torch
from scipy.special import hyp1f1
from torch import Tensor

from sampla.core.noise import PREDICTIVE, standard_normal
from sampla.features import displaced, predicted
from sampla.likelihoods import Likelihood
from sampla.linear_batch import LinearBatch
from sampla.model import LinearModel

_LARGEST_LEVERAGE = 3.0
"""What an estimated leverage is cut at: truly it is below 1, and beyond this its estimate says no more than that."""
_LARGEST_STEP, _LARGEST_VARIANCE = 1e4, 10.0
"""What 1 / (1 - h) is cut at where it moves the mean, and where it widens the variance."""
_TINY = 1e-8
"""Leverage that is none."""
_DRAWS = 64
"""Draws of the function in an average over it."""
_ENTRIES = 2**20
"""Numbers in flight in such an average."""


@dataclass(frozen=True)
class LeftOut:
    """The functions of n data with every observation left out of its own, by a likelihood averaged over draws."""

    likelihood: Likelihood
    targets: Tensor
    outputs: Tensor
    """(n, *out) f_-n."""
    deviations: Tensor
    """(K, n, *out) zero-mean samples with a covariance near V_-n."""
    leverage: Tensor
    """(n, ...) h of each observation, the likelihood's ``observation_axes`` taken out; an estimate from K samples."""
    mix: Tensor
    """(S, K) standard normals over the root of K, for draws of the function."""

    def log_prob(self, factors: list[float], powers: tuple[float, ...]) -> Tensor:
        """log E[p(y | f_-n + s d)^k] / k of each observation, in nats: (powers, factors, n, ...).

        Args:
            factors: s, on the deviations.
            powers: k; above 1 as if the label had been seen k times, all explained by the same function.
        """
        shape = (len(powers), len(factors), *self.leverage.shape)
        total = torch.full(shape, -torch.inf, dtype=self.outputs.dtype, device=self.outputs.device)
        for few in self.mix.split(max(1, _ENTRIES // max(1, self.outputs.numel()))):
            drawn = torch.tensordot(few, self.deviations, dims=([1], [0]))
            targets = self.targets.expand(len(few), *self.targets.shape).flatten(0, 1)
            for i, factor in enumerate(factors):
                outputs = (self.outputs + factor * drawn).flatten(0, 1)
                each = self.likelihood.observation_log_prob(outputs, targets).unflatten(0, (len(few), -1))
                for j, power in enumerate(powers):
                    total[j, i] = torch.logaddexp(total[j, i], (power * each).logsumexp(0))
        return (total - log(len(self.mix))) / torch.tensor(powers).to(total).view(-1, *[1] * (total.ndim - 1))


@dataclass(frozen=True)
class GaussianLeftOut:
    """The same where y ~ N(f, B^-1): in coordinates in which all outputs have noise of variance one of their own."""

    residual: Tensor
    """(n, *out) S'(y - f_-n)."""
    variance: Tensor
    """(n, *out) of S'f_-n."""
    leverage: Tensor
    """(n, *out) h of each output."""
    log_root: float | Tensor
    """log det B / 2 for each output, a number or (n, *out)."""

    def log_prob(self, factors: list[float], powers: tuple[float, ...]) -> Tensor:
        """As for ``LeftOut``, in closed form: (powers, factors, n, *out) in float64; only powers of one mean anything.

        Factors are told apart by differences far below the log of a noise in small units.
        """
        variance = torch.stack([1 + factor**2 * self.variance.double() for factor in factors])
        density = -0.5 * (self.residual.double().square() / variance + variance.log() + log(2 * pi)) + self.log_root
        return density.expand(len(powers), *density.shape)


@dataclass(frozen=True)
class Linear:
    """Where the linear model of a fit lies, for the data of one batch."""

    batch: LinearBatch
    network: Tensor
    """(n, *out) the network's outputs f."""
    mode: Tensor
    """(n, *out) the linear model's, f*."""
    deviations: Tensor
    """(K, n, *out) d_k = J z_k."""
    at_mode: bool
    """Whether H has B at f*, not at f."""

    def left_out(self, mix: Tensor, scale: float = 1.0) -> LeftOut | GaussianLeftOut:
        """Each observation left out of what is said of it.

        Args:
            mix: (S, K) standard normals over the root of K.
            scale: what f_-n is multiplied by to stand for the network.
        """
        at = self.mode if self.at_mode else self.network
        batch = self.batch
        found = left_out(batch.likelihood, self.mode, at, self.deviations, batch.targets, mix, batch.weights)
        return replace(found, outputs=scale * found.outputs) if isinstance(found, LeftOut) else found

    def counted(self, like: Tensor) -> Tensor:
        """(n, ...) how often each observation counts."""
        likelihood, counted = self.batch.likelihood, self.batch.likelihood.counted(self.batch.targets)
        if counted is None:
            times = torch.ones_like(like)
        else:
            each = like.shape == self.mode.shape  # as of Gaussian noise, whatever one observation is about
            axes = () if each else observation_axes(likelihood, self.mode)
            times = counted.expand_as(self.mode).to(like)
            times = times.amax(axes) if axes else times
        weights = self.batch.weights
        return times if weights is None else times * weights.to(times).view(-1, *[1] * (times.ndim - 1))


def linear_batches(model: LinearModel, samples: Tensor, mean: Tensor, at_mode: bool) -> Iterator[Linear]:
    """One pass of K + 1 jvps over the data on this process, half as many products; for sums over them.

    Args:
        model: of the network's own parameters, unscaled, its outputs the network's.
        samples: (K, P), K at least 0.
        mean: (P,) the linear model's mode.
        at_mode: whether H has B at the linear model's outputs.
    """
    origin = model.features.origin
    columns = torch.cat([displaced(mean[None].to(samples), origin), samples]).to(model.features.device)
    for batch in model.batches(len(columns), summed=True):
        pushed, outputs = batch.features.jvp(columns), batch.features.outputs
        if torch.finfo(outputs.dtype).bits < 32:  # scores are differences that such types do not show
            pushed, outputs = pushed.float(), outputs.float()
        yield Linear(batch, outputs, predicted(outputs, pushed[:1], origin)[0], pushed[1:], at_mode)
    model.ledger.products += len(columns) / 2


def left_out(
    likelihood: Likelihood,
    mode: Tensor,
    curved_at: Tensor,
    deviations: Tensor,
    targets: Tensor,
    mix: Tensor,
    weights: Tensor | None = None,
) -> LeftOut | GaussianLeftOut:
    """Each observation left out of what is said of it.

    Args:
        likelihood: of the data.
        mode: (n, *out) f*.
        curved_at: (n, *out) outputs at which B of H was taken.
        deviations: (K, n, *out) zero-mean samples of the function.
        targets: as the likelihood takes them.
        mix: (S, K) standard normals over the root of K.
        weights: (n,) how often each datum counts; it is left out as often. None: once.
    """
    times = 1.0 if weights is None else weights.to(mode).view(-1, *[1] * (mode.ndim - 1))
    log_det = likelihood.log_determinant(mode)
    if log_det is not None:
        own = likelihood.log_precisions(mode, targets)
        left = targets.to(mode) - mode if own is None else likelihood.residuals(mode, targets)
        assert left is not None
        residual = likelihood.curvature_root_transpose_product(mode, left[None])[0]
        variance = likelihood.curvature_root_transpose_product(mode, deviations).square().mean(0)
        known = None if own is None else likelihood.curvature_weights(targets)
        if known is not None:
            residual, variance = residual * known.to(residual).sqrt(), variance * known.to(variance)
        log_root = log_det / (2 * mode[0].numel()) if own is None else own / 2
        leverage = times * variance
        factor = inverse_remainder(leverage, len(deviations))
        wider = variance * factor.clamp(1, _LARGEST_VARIANCE)
        return GaussianLeftOut(residual * (1 + leverage * factor), wider, leverage, log_root)
    axes = observation_axes(likelihood, mode)

    def summed(values: Tensor) -> Tensor:
        return values.sum(axes, keepdim=True) if axes else values

    gradient = _gradient(likelihood, mode, targets)
    along = summed(gradient * deviations)
    step, size = (along * deviations).mean(0), along.square().mean(0)
    bent = likelihood.curvature_product(curved_at, step[None])[0]
    known = likelihood.curvature_weights(targets)
    bent = bent if known is None else bent * known.to(bent)
    leverage = times * summed(step * bent) / size.clamp_min(torch.finfo(size.dtype).tiny)
    factor = inverse_remainder(leverage, len(deviations))
    wider = deviations * factor.clamp(1, _LARGEST_VARIANCE).sqrt()
    leverage = leverage.squeeze(axes) if axes else leverage
    return LeftOut(likelihood, targets, mode + times * step * factor, wider, leverage, mix.to(wider))


def observation_axes(likelihood: Likelihood, outputs: Tensor) -> tuple[int, ...]:
    """The axes of the outputs that one observation is about."""
    axes = likelihood.observation_axes
    return tuple(range(1 - outputs.ndim, 0)) if axes is None else axes


def inverse_remainder(leverage: Tensor, count: int) -> Tensor:
    """Estimate 1 / (1 - h) without bias, for where it multiplies h, from leverages that are means of ``count`` squares.

    (1F1(1; K / 2; K h / 2) - 1) / h, of which h times it has the mean h / (1 - h) over h chi^2_K / K.
    """
    cut = leverage.detach().double().clamp(0, _LARGEST_LEVERAGE).cpu().numpy()
    series = hyp1f1(1.0, count / 2, count / 2 * cut) - 1
    factor = np.where(cut < _TINY, 1.0, series / np.maximum(cut, _TINY))  # at zero the difference from one is rounding
    return torch.as_tensor(np.minimum(factor, _LARGEST_STEP)).to(leverage)


def mixing(seed: int, count: int, like: Tensor) -> Tensor:
    """(S, K) standard normals over the root of K: draws of the function from K samples of it."""
    return standard_normal(seed, PREDICTIVE, range(count), 0, (_DRAWS,), like).T.contiguous() / sqrt(count)


def _gradient(likelihood: Likelihood, outputs: Tensor, targets: Tensor) -> Tensor:
    """(n, *out) of the loss."""
    leaf = outputs.detach().requires_grad_()
    with torch.enable_grad():
        gradient: Tensor = torch.autograd.grad(likelihood.observation_loss(leaf, targets).sum(), leaf)[0]
    return gradient
