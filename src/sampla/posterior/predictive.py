"""What the posterior says about new data: pure functions of the mean and K zero-mean function samples.

K samples define the Gaussian N(mean, s^2 (1/K) sum_k d_k d_k') of a width s. Monte Carlo averages use many draws from
it, s d = s sum_k xi_k d_k / sqrt(K) with xi standard normal, which cost no further pass through the network
(docs/method.md, section 7). There are two widths (section 9): one for what is said of a single label, and one for
functions, which explain several.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import exp, inf, log, pi

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from sampla.core.checks import require, require_count, require_known
from sampla.core.noise import PREDICTIVE, standard_normal
from sampla.likelihoods import Likelihood

_ENTRIES = 2**24
"""Numbers in flight in a Monte Carlo average."""
_SCALES = (0.01, 10.0)
"""Factors among which ``best_scale`` looks."""


def check_average(method: str, num_draws: int) -> None:
    """Refuse a way to average class probabilities that there is not.

    Raises:
        ValueError: for an unknown method, or less than one draw.
    """
    require_known(method, ("monte-carlo", "probit"), "predictive method")
    require_count(num_draws, "num_draws", 1, "The default is 512; method='probit' draws nothing.")


def relative_size(error: Tensor, deviations: Tensor) -> Tensor:
    """(n,) root mean square over the outputs of (k, n, *out) errors over that of (K, n, *out) deviations."""
    top, bottom = (each.square().mean(0).flatten(1).mean(1).sqrt() for each in (error, deviations))
    return top / bottom.clamp_min(torch.finfo(bottom.dtype).tiny)


@dataclass(frozen=True)
class Predictive:
    """The posterior predictive at n inputs."""

    mean: Tensor
    """(n, *out) outputs of the trained network."""
    deviations: Tensor
    """(K, n, *out) J(x) z_k: zero-mean samples of the function under the posterior itself, of width 1."""
    likelihood: Likelihood
    method: str = "monte-carlo"
    """How ``probs`` averages: "monte-carlo" or "probit"."""
    num_draws: int = 512
    """Draws in a Monte Carlo average."""
    seed: int = 0
    solve_error: Tensor | None = None
    """(n,) how large what the solve has left undone is beside the standard deviation of each datum's outputs, where it
    was asked for; known to about a third, less well where the outputs are few."""
    width: float = 1.0
    """s for single labels: what ``probs``, ``entropy`` and ``log_prob`` take the deviations times."""
    joint_width: float = 1.0
    """s for functions: ``samples``, ``variance``, ``std``, ``mutual_information`` and the joint densities."""

    def __post_init__(self) -> None:
        check_average(self.method, self.num_draws)

    @property
    def samples(self) -> Tensor:
        """(K, n, *out) joint samples of the outputs, of the joint width: each k is one function over all n inputs."""
        return self.mean + self.joint_width * self.deviations

    @property
    def variance(self) -> Tensor:
        """(n, *out) variance of the outputs at the joint width, in output units squared, without observation noise.

        Its relative standard error is sqrt(2 / K).
        """
        return self.joint_width**2 * self._variance

    @property
    def std(self) -> Tensor:
        """(n, *out) square root of ``variance``."""
        return self.variance.sqrt()

    @property
    def probs(self) -> Tensor:
        """Class probabilities, (n, ..., C) or for Bernoulli (n, *out).

        Monte Carlo: E[p(f)]. Probit: p(mean / sqrt(1 + pi/8 variance)) (MacKay 1992).
        """
        if self.method == "probit":
            return self.likelihood.probabilities(self.mean / (1 + pi / 8 * self.width**2 * self._variance).sqrt())
        return self._average(self.likelihood.probabilities, self.width)

    @property
    def entropy(self) -> Tensor:
        """(n, ...) entropy in nats of the averaged class probabilities: total uncertainty."""
        return self._entropy_of(self._average(self.likelihood.probabilities, self.width))

    @property
    def mutual_information(self) -> Tensor:
        """(n, ...) what knowing the parameters would tell about y, in nats: entropy of the averaged probabilities minus
        the average of their entropy, both at the joint width."""
        probabilities, width = self.likelihood.probabilities, self.joint_width
        expected = self._average(lambda f: self._entropy_of(probabilities(f)), width)
        return (self._entropy_of(self._average(probabilities, width)) - expected).clamp_min(0)

    def scaled(self, factor: float) -> "Predictive":
        """The same with both widths equal to a factor on the posterior's own deviations.

        That is another distribution than the posterior, a "cold" one below 1: for where one number is to be chosen by
        what it gains on held-out data (``best_scale``).

        Raises:
            ValueError: for a factor that is negative or not finite.
        """
        fix = "1 is the posterior itself, 0 the network alone."
        require(0 <= factor < inf, "a factor of at least 0", f"{factor}", fix)
        return replace(self, width=factor, joint_width=factor)

    def best_scale(self, targets: Tensor) -> float:
        """The factor in [0.01, 10] with which ``scaled`` gives these targets the highest mean log predictive density.

        To be asked of held-out data, a few hundred at least: on the training data it means nothing. Costs no pass.

        Args:
            targets: as for ``log_prob``.
        """
        low, high = (log(factor) for factor in _SCALES)
        found = minimize_scalar(
            lambda place: -float(self.scaled(exp(place)).log_prob(targets).double().mean()),
            bounds=(low, high), method="bounded", options={"xatol": 0.01},
        )  # fmt: skip
        return exp(float(found.x))

    def log_prob(self, targets: Tensor) -> Tensor:
        """(n,) log predictive density of each datum's target in nats, all its outputs jointly.

        Exact given the K-sample covariance where y ~ N(f, B^-1); for other likelihoods log of the averaged likelihood
        (or of the probit probabilities, with that method).
        """
        targets = self._given(targets, "targets")
        self.likelihood.check_targets(self.mean, targets)
        log_det = self.likelihood.log_determinant(self.mean)
        if log_det is not None:
            return self._gaussian(targets, torch.arange(len(targets), device=targets.device), log_det, self.width)
        if self.method == "probit":
            return self.likelihood.log_prob(self.likelihood_outputs(self.probs), targets)
        each = self._each_log_prob(targets, self.width)
        return each.logsumexp(0) - log(len(each))

    def joint_log_prob(self, targets: Tensor, group: Tensor) -> Tensor:
        """Log density of the targets of each group of data, jointly (one function explains a whole group).

        Args:
            targets: as for ``log_prob``.
            group: (n,) int64 group number of each datum, 0 .. G - 1.

        Returns:
            (G,) in nats. For non-Gaussian likelihoods a Monte Carlo average over ``num_draws`` functions.
        """
        targets, group = self._given(targets, "targets"), self._given(group, "group")
        self.likelihood.check_targets(self.mean, targets)
        require(
            group.shape == targets.shape[:1] and not group.is_floating_point(),
            f"integer group numbers of shape {tuple(targets.shape[:1])}",
            f"{tuple(group.shape)} {group.dtype}",
            "Give one number per datum.",
        )
        log_det = self.likelihood.log_determinant(self.mean)
        if log_det is not None:
            return self._gaussian(targets, group, log_det, self.joint_width)
        each = self.sample_log_prob(targets)
        joint = each.new_zeros(len(each), int(group.max()) + 1).index_add(1, group, each)
        return joint.logsumexp(0) - log(len(joint))

    def sample_log_prob(self, targets: Tensor) -> Tensor:
        """(num_draws, n) log likelihood of each target under each drawn function, at the joint width."""
        return self._each_log_prob(self._given(targets, "targets"), self.joint_width)

    def likelihood_outputs(self, probs: Tensor) -> Tensor:
        """Outputs (logits) that have the given probabilities."""
        tiny = torch.finfo(probs.dtype).tiny
        log_p = probs.clamp_min(tiny).log()
        return log_p - (1 - probs).clamp_min(tiny).log() if self.likelihood.class_axis is None else log_p

    def _given(self, values: Tensor, what: str) -> Tensor:
        """Targets or groups as a tensor where the outputs are: NumPy arrays and lists will do too."""
        try:
            return torch.as_tensor(values, device=self.mean.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"expected {what} as a tensor, a NumPy array or a list of numbers, got {type(values).__name__}: {error}"
            ) from error

    def _entropy_of(self, probs: Tensor) -> Tensor:
        plogp: Tensor = torch.special.entr(probs)
        axis = self.likelihood.class_axis
        return plogp + torch.special.entr(1 - probs) if axis is None else plogp.sum(axis)

    def _rows(self) -> int:
        return max(1, _ENTRIES // (self.num_draws * max(1, self.mean[0].numel())))

    @property
    def _variance(self) -> Tensor:
        """(n, *out) under the posterior itself."""
        return self.deviations.square().mean(0)

    def _each_log_prob(self, targets: Tensor, width: float) -> Tensor:
        parts = [
            torch.vmap(lambda f, y=y: self.likelihood.log_prob(f, y))(draws)
            for draws, y in zip(self._drawn(width), targets.split(self._rows()), strict=True)
        ]
        return torch.cat(parts, dim=1)

    def _drawn(self, width: float) -> list[Tensor]:
        """Draws (num_draws, rows, *out) of the outputs, a few data at a time, the same functions for all."""
        count = len(self.deviations)
        mix = standard_normal(self.seed, PREDICTIVE, range(count), 0, (self.num_draws,), self.mean)
        mix, rows = mix / count**0.5 * width, self._rows()
        pairs = zip(self.mean.split(rows), self.deviations.split(rows, dim=1), strict=True)
        return [mean + torch.tensordot(mix, deviations, dims=([0], [0])) for mean, deviations in pairs]

    def _average(self, function: Callable[[Tensor], Tensor], width: float) -> Tensor:
        return torch.cat([function(draws).mean(0) for draws in self._drawn(width)])

    def _gaussian(self, targets: Tensor, group: Tensor, noise_log_det: float, width: float) -> Tensor:
        """log N(y; mean, B^-1 + (s^2/K) D'D) for each group, by Woodbury in K x K; log det B is that of one datum."""
        mean, deviations = self.mean.double(), self.deviations.double()  # float32 loses the identity beside large ones
        residual = (targets.to(mean) - mean).unsqueeze(0)
        weighted = self.likelihood.curvature_product(mean, residual)
        pushed = self.likelihood.curvature_product(mean, deviations)
        count, groups = len(self.deviations), int(group.max()) + 1

        def grouped(each: Tensor) -> Tensor:
            return each.new_zeros(groups, *each.shape[1:]).index_add(0, group, each)

        def flat(each: Tensor) -> Tensor:
            return each.reshape(*each.shape[:2], -1).movedim(0, -1)  # (k, n, *out) -> (n, out, k)

        inner = grouped(flat(deviations).mT @ flat(pushed)) / count * width**2  # (G, K, K)
        cross = grouped(flat(deviations).mT @ flat(weighted)) / count**0.5 * width  # (G, K, 1)
        square = grouped((flat(residual) * flat(weighted)).sum((1, 2)))
        root = torch.linalg.cholesky(inner + torch.eye(count).to(inner))
        explained = torch.cholesky_solve(cross, root).mul(cross).sum((1, 2))
        log_det = 2 * root.diagonal(dim1=1, dim2=2).log().sum(1)
        size = grouped(mean.new_ones(len(mean)))
        constant = mean[0].numel() * log(2 * pi) - noise_log_det
        density: Tensor = -0.5 * (square - explained + log_det + size * constant)
        return density.to(self.mean)
