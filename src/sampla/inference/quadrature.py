"""What a Krylov space of M says about traces, and about the fixed point of EM, for every precision at once.

The start vectors are the data parts of the right-hand sides, d = sum_n phi_n' S_n xi_n ~ N(0, M), so that

    gamma(a)                = tr M (M + a)^-1      = E d' (M + a)^-1 d
    log det(I + M / a)                             = E d' log(1 + M / a) M^-1 d

and both functions are mixtures of 1 / (x + a): Gauss quadrature is below, Gauss-Radau above them (docs/method.md,
section 4).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import exp, inf, log

import torch
from scipy.optimize import brentq
from torch import Tensor

from sampla.inference.krylov import KrylovSpace, Quadrature
from sampla.inference.mackay import (
    ALL_MET,
    settled_error,
    trace_error,
    updated_alpha,
    updated_noise,
    why_noise_is_unknown,
)

_WEAKEST, _STRONGEST = 1e-24, 1e8
"""alpha / noise factor over M's largest eigenvalue, down to which a fixed point is looked for, and at most: beyond, the
data say everything about every parameter that they say anything about, or nothing about any."""
_NARROW = 1.5
"""Upper over lower bound up to which the quadratures are believed; at a smaller alpha the space must grow first."""
_SILENT = 10.0
"""Rounding errors of the targets' square that residuals must exceed, for the same."""
_LOST, _MOST_LOST = 4.0, 10.0
"""Rounding errors of the targets' square by which residuals are taken to be off, and the largest error then stated."""


@dataclass(frozen=True)
class Estimate:
    """A number with its two errors."""

    value: float
    standard_error: float
    """Of the mean over the probes; zero when exact."""
    truncation: float
    """What more iterations might still change, estimated: the truth for these probes is within four times this."""
    lower: float
    """What Gauss quadrature proves for these probes, up to rounding."""
    upper: float
    """What Gauss-Radau quadrature proves for these probes, up to rounding."""


def gamma(quadrature: Quadrature, ratio: float) -> Tensor:
    """(k,) the effective dimension tr M (M + a)^-1 as each probe sees it."""
    return (quadrature.nodes + ratio).reciprocal() @ quadrature.weights


def log_determinant(quadrature: Quadrature, ratio: float) -> Tensor:
    """(k,) log det(I + M / a) as each probe sees it."""
    nodes = quadrature.nodes.clamp_min(torch.finfo(torch.float64).tiny)
    return (torch.log1p(nodes / ratio) / nodes) @ quadrature.weights


def estimated(space: KrylovSpace, probes: int, form: Callable[[Quadrature, float], Tensor], ratio: float) -> Estimate:
    """The trace that ``form`` is about, from the first ``probes`` start vectors."""

    def mean(quadrature: Quadrature) -> float:
        return float(form(quadrature, ratio)[:probes].mean())

    lower, upper = mean(space.gauss), mean(space.gauss_radau)
    history = [mean(one.quadrature) for one in _history(space)]
    return Estimate(
        mean(space.quadrature), _standard_error(space, probes, form, ratio),
        settled_error(history, max(upper - lower, 0.0) / 2), lower, upper,
    )  # fmt: skip


def _standard_error(
    space: KrylovSpace, probes: int, form: Callable[[Quadrature, float], Tensor], ratio: float
) -> float:
    """Of the mean over probes d ~ N(0, M) of d' f(M) d, whose variance is 2 tr (M f(M))^2 = 2 E d' f(M) M f(M) d.

    The spread of a few probes is known to a factor only, and small where their mean is: this mean of theirs is not.
    """
    if space.exact:
        return 0.0
    nodes, weights = space.quadrature.nodes, space.quadrature.weights[:, :probes]
    values = form(Quadrature(nodes, torch.eye(len(nodes), dtype=torch.float64)), ratio)
    average = weights.mean(1)
    return float(trace_error(values @ average, 2 / probes * (nodes * values.square()) @ average))


@dataclass(frozen=True)
class Hyper:
    """Where MacKay's updates lead at a given ratio a = alpha / noise factor."""

    ratio: float
    precision: float
    noise_factor: float
    """New noise precision over the one that M belongs to."""


@dataclass(frozen=True)
class FixedPoint:
    """One map a -> a' whose fixed point is where EM settles, once M, its probes and a model of the mode are given.

    A Gaussian likelihood's mean is in the same Krylov space: its start vectors end with t = sum_n phi_n' B_n y_n, and

        |mean|^2 = t' (M + a)^-2 t,   mean' t = t' (M + a)^-1 t,   mean' M mean = t' (M + a)^-1 t - a |mean|^2.

    For other likelihoods the mode was found at one alpha; near it |mode|^2 is taken for a power of alpha.
    """

    space: KrylovSpace
    probes: int
    learn_prior: bool = True
    precision: float = 1.0
    """alpha, where it is not learnt."""
    learn_noise: bool = False
    target_size: float = 0.0
    """sum_n y_n' B_n y_n."""
    noise_factor: float = 1.0
    """New noise precision over the one that M belongs to, where it is not learnt."""
    entries: float = 0
    """N C, less what the features have absorbed."""
    mode_size: tuple[float, float, float] | None = None
    """alpha at which the mode was found, |mode|^2 there, d log |mode|^2 / d log alpha; None for a Gaussian."""

    def at(self, ratio: float, quadrature: Quadrature, weights: Tensor) -> Hyper:
        """MacKay's updates (docs/method.md, section 3) at alpha / noise factor = ratio, probes weighted."""
        determined = float(gamma(quadrature, ratio)[: self.probes] @ weights)
        if self.mode_size is not None:
            used, size, slope = self.mode_size
            alpha = updated_alpha(determined, size * (ratio / used) ** slope)
            return Hyper(alpha, alpha, 1.0)
        shrunk = (quadrature.nodes + ratio).reciprocal()
        size = float(shrunk.square() @ quadrature.weights[:, -1])
        residual = max(self.residual(ratio, quadrature), self._least_residual)
        alpha = updated_alpha(determined, size) if self.learn_prior else self.precision
        factor = updated_noise(self.entries, determined, residual) if self.learn_noise else self.noise_factor
        return Hyper(alpha / factor, alpha, factor)

    def residual(self, ratio: float, quadrature: Quadrature) -> float:
        """sum_n |y_n - phi_n mean|^2 in the norm of B: a small difference of large numbers where the fit is close."""
        shrunk, target = (quadrature.nodes + ratio).reciprocal(), quadrature.weights[:, -1]
        return self.target_size - float(shrunk @ target) - ratio * float(shrunk.square() @ target)

    @property
    def _least_residual(self) -> float:
        """Residuals below this are rounding."""
        return max(torch.finfo(self.space.basis.dtype).eps * self.target_size, 1e-300)

    def noise_unknown(self, ratio: float) -> str:
        """Why the noise cannot be learnt at this alpha / noise factor; empty if it can.

        MacKay's update is (N C - gamma) / |y - phi mean|^2: nothing where gamma is N C as far as the probes tell, or
        where the mean meets all targets up to rounding.
        """
        determined = estimated(self.space, self.probes, gamma, ratio)
        rounding = self.residual(ratio, self.space.quadrature) <= _SILENT * self._least_residual
        unknown = why_noise_is_unknown(self.entries, determined.value, determined.standard_error)
        return unknown or (ALL_MET if rounding else "")

    def solved(self, start: float, lowest: float = 0.0) -> "Settled":
        """The fixed point that EM reaches from ``start``, at least ``lowest``, with its errors.

        Where the space does not let it go so far, its end, with an infinite truncation error.
        """
        uniform = torch.full((self.probes,), 1 / self.probes, dtype=torch.float64)
        reach = self.reach(start, lowest)
        if reach is None:
            return Settled(self.at(start, self.space.quadrature, uniform), LogError(inf, inf), LogError(inf, inf))
        within = reach, self._highest
        history = [
            replace(self, space=one)._root(start, within, one.quadrature, uniform) for one in _history(self.space)
        ]
        found = history[-1]
        ends = [self._root(start, within, one, uniform) for one in (self.space.gauss, self.space.gauss_radau)]
        left_out = (1 - torch.eye(self.probes, dtype=torch.float64)).unbind() if self.probes > 1 else ()
        without = [self._root(start, within, self.space.quadrature, row / row.sum()) for row in left_out]
        spread = self._spread(found.ratio)
        errors = [_errors(history, ends, without, name, spread) for name in ("precision", "noise_factor")]
        if self.learn_noise and self.space.exact:  # the residual is the difference of numbers known up to rounding
            left = max(self.residual(found.ratio, self.space.quadrature), self._least_residual)
            lost = min(_LOST * self._least_residual / left, _MOST_LOST)
            errors[1] = replace(errors[1], truncation=errors[1].truncation + lost)
        if found.ratio > 1.001 * reach or reach <= max(lowest, self._lowest):
            return Settled(found, *errors)
        return Settled(found, *(replace(one, truncation=inf) for one in errors))

    def ahead(self, start: float, lowest: float = 0.0) -> float:
        """How far from ``start`` the fixed point is, |log a|, as ``solved`` would say, without its errors."""
        reach = self.reach(start, lowest)
        if reach is None:
            return inf
        uniform = torch.full((self.probes,), 1 / self.probes, dtype=torch.float64)
        within = reach, self._highest
        return abs(log(max(self._root(start, within, self.space.quadrature, uniform).ratio, 1e-300) / start))

    def _spread(self, ratio: float) -> float:
        """Standard error of gamma over that which the spread of the probes themselves shows."""
        if self.probes == 1:
            return 1.0
        shown = float(gamma(self.space.quadrature, ratio)[: self.probes].std()) / self.probes**0.5
        return float(_standard_error(self.space, self.probes, gamma, ratio) / max(shown, 1e-300))

    def reach(self, start: float, lowest: float = 0.0) -> float | None:
        """The smallest a, from ``start`` down, at which the two quadratures agree; None if they do not at the start."""
        end, place, reached = log(max(lowest, self._lowest)), log(start), None
        while self._agree(exp(place)):
            reached = exp(place)
            if place <= end:
                return reached
            place = max(place - 0.1, end)
        return reached

    def _agree(self, ratio: float) -> bool:
        lower, upper = (self._integrals(ratio, rule) for rule in (self.space.gauss, self.space.gauss_radau))
        return all(high <= _NARROW * low for low, high in zip(lower, upper, strict=True))

    def _integrals(self, ratio: float, quadrature: Quadrature) -> list[float]:
        determined = float(gamma(quadrature, ratio)[: self.probes].mean())
        if self.mode_size is not None:
            return [determined]
        return [determined, float((quadrature.nodes + ratio).reciprocal().square() @ quadrature.weights[:, -1])]

    @property
    def _lowest(self) -> float:
        return _WEAKEST * self._largest

    @property
    def _highest(self) -> float:
        return _STRONGEST * self._largest

    @property
    def _largest(self) -> float:
        """Eigenvalue of M that the space has seen; of an M that is zero any alpha is as good as another."""
        nodes = self.space.quadrature.nodes
        seen = float(nodes.max()) if len(nodes) else 0.0
        return seen if seen > 0 else 1.0

    def _root(self, start: float, within: tuple[float, float], quadrature: Quadrature, weights: Tensor) -> Hyper:
        """The first root on the way from the start on which EM goes, or the end of that way."""

        def ahead(place: float) -> float:
            return log(max(self.at(exp(place), quadrature, weights).ratio, 1e-300)) - place

        lowest, highest = (log(end) for end in within)
        here = min(max(log(start), lowest), highest)
        way = 1.0 if ahead(here) > 0 else -1.0
        behind, stride = here, 0.25
        while lowest < here < highest and ahead(here) * way > 0:
            behind, here, stride = here, here + way * stride, min(2 * stride, 2.0)
            here = min(max(here, lowest), highest)
        if ahead(here) * way < 0 < abs(here - behind):
            here = float(brentq(ahead, behind, here, xtol=1e-14))
        found = self.at(exp(here), quadrature, weights)
        if self.learn_prior and here >= highest and found.ratio > within[1]:
            return replace(found, ratio=within[1], precision=within[1] * found.noise_factor)
        return found


@dataclass(frozen=True)
class LogError:
    """Relative errors of a positive number."""

    standard_error: float
    truncation: float


@dataclass(frozen=True)
class Settled:
    """A fixed point and how well it is known."""

    hyper: Hyper
    precision_error: LogError
    noise_error: LogError

    @property
    def truncation(self) -> float:
        """What more iterations might still change of either."""
        return max(self.precision_error.truncation, self.noise_error.truncation)


def _errors(history: list[Hyper], ends: list[Hyper], without: list[Hyper], name: str, spread: float) -> LogError:
    """Truncation from the last iterations and the two quadratures, standard error by the jackknife over probes.

    ``spread`` is by how much the probes' own spread misses the standard error of gamma.
    """
    logs = [log(max(getattr(one, name), 1e-300)) for one in history]
    bracket = max(abs(log(max(getattr(one, name), 1e-300)) - logs[-1]) for one in ends)
    left_out = torch.tensor([log(max(getattr(one, name), 1e-300)) for one in without], dtype=torch.float64)
    count = len(without)
    error = spread * float(((count - 1) * left_out.var(correction=0)).sqrt()) if count else inf
    return LogError(error, settled_error(logs, bracket))


def _history(space: KrylovSpace) -> list[KrylovSpace]:
    """The space as it was up to two iterations ago, oldest first."""
    history = [space]
    while not space.exact and len(history) < 3 and history[0].iterations > 1:
        history.insert(0, history[0].before())
    return history
