"""What the posterior says about new data: pure functions of the mean and K zero-mean function samples.

K samples define the Gaussian N(mean, s^2 (1/K) sum_k d_k d_k') of a width s. Monte Carlo averages use many draws from
it, which cost no further pass through the network (docs/method.md, section 7), and are kept. There are two widths
(section 9): one for what is said of a single label, and one for functions, which explain several.
"""

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from math import exp, inf, log, pi

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.distributions import Distribution

from sampla.core.checks import require
from sampla.posterior.averages import averaged_log_prob, class_averages, grouped_log_prob, log_prob_of_draws, mixing
from sampla.posterior.density import gaussian_joint_log_prob, gaussian_log_prob
from sampla.posterior.distributions import target_distribution
from sampla.posterior.outputs import Outputs

_SCALES = (0.01, 10.0)
"""Factors among which ``best_scale`` looks."""


def relative_size(error: Tensor, deviations: Tensor) -> Tensor:
    """(n,) root mean square over the outputs of (k, n, *out) errors over that of (K, n, *out) deviations."""
    top, bottom = (each.square().mean(0).flatten(1).mean(1).sqrt() for each in (error, deviations))
    return top / bottom.clamp_min(torch.finfo(bottom.dtype).tiny)


@dataclass(frozen=True)
class Predictive(Outputs):
    """The posterior predictive at n inputs."""

    @property
    def probs(self) -> Tensor:
        """Class probabilities, (n, ..., C) or for Bernoulli (n, *out), computed once and kept.

        Monte Carlo: E[p(f)]. Probit: p(mean / sqrt(1 + pi/8 variance)) (MacKay 1992).
        """
        return self._probit if self.method == "probit" else self._averages[0]

    @cached_property
    def entropy(self) -> Tensor:
        """(n, ...) entropy in nats of the averaged class probabilities: total uncertainty."""
        return self.likelihood.class_entropy(self._averages[0])

    @cached_property
    def mutual_information(self) -> Tensor:
        """(n, ...) what knowing the parameters would tell about y, in nats: entropy of the averaged probabilities minus
        the average of their entropy, both at the joint width."""
        probabilities, expected = self._joint_averages
        return (self.likelihood.class_entropy(probabilities) - expected).clamp_min(0)

    def head(self, name: str) -> "Predictive":
        """The predictive of one head of a ``Heads`` likelihood, without the others.

        Raises:
            ValueError: for a head that there is not.
        """
        heads = self.likelihood.heads
        require(name in heads, f"a head among {', '.join(heads)}", f"{name!r}", "They are those of sampla.Heads.")
        likelihood, place = heads[name]
        mean, deviations = self.mean[..., place], self.deviations[..., place]
        return replace(self, mean=mean, deviations=deviations, likelihood=likelihood, targets=None, solve_error=None)

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
            return gaussian_log_prob(self.likelihood, self.mean, self.deviations, self.width, targets, log_det)
        if self.method == "probit":
            return self.likelihood.log_prob(self.likelihood_outputs(self.probs), targets)
        return averaged_log_prob(self.likelihood, self.mean, self.deviations, self._mix(self.width), targets)

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
        group = group.long()
        lowest = int(group.min()) if len(group) else 0
        require(lowest >= 0, "group numbers 0 .. G - 1", f"{lowest}", "Leave out data of no group: pred[group >= 0].")
        likelihood, mean, deviations, width = self.likelihood, self.mean, self.deviations, self.joint_width
        log_det = likelihood.log_determinant(mean)
        if log_det is not None:
            return gaussian_joint_log_prob(likelihood, mean, deviations, width, targets, group, log_det)
        return grouped_log_prob(likelihood, mean, deviations, self._mix(width), targets, group)

    def sample_log_prob(self, targets: Tensor) -> Tensor:
        """(num_draws, n) log likelihood of each target under each drawn function, at the joint width."""
        targets, mix = self._given(targets, "targets"), self._mix(self.joint_width, self.num_draws)
        parts = log_prob_of_draws(self.likelihood, self.mean, self.deviations, mix, targets)
        return torch.cat([each for _, each in parts], dim=1)

    def likelihood_outputs(self, probs: Tensor) -> Tensor:
        """Outputs (logits) that have the given probabilities."""
        tiny = torch.finfo(probs.dtype).tiny
        log_p = probs.clamp_min(tiny).log()
        return log_p - (1 - probs).clamp_min(tiny).log() if self.likelihood.class_axis is None else log_p

    def distribution(self) -> Distribution:
        """The distribution of each datum's target for ``torch.distributions``, n of them.

        Classes: Categorical, the class axis last, or Bernoulli, of ``probs``. Counts and other noise that is not
        Gaussian: the mixture of p(y | f) over ``num_draws`` draws, all of them held. Regression: a normal distribution
        over all outputs of a datum, flattened, whose ``log_prob`` is that of this predictive. Its covariance, of rank
        K plus the noise, is a matrix only where the noise is one. (Take ``to(torch.float64)`` first where noise is
        small.)

        Raises:
            TypeError: for other likelihoods.
        """
        return target_distribution(self, lambda: self.probs)

    def numpy(self) -> dict[str, np.ndarray]:
        """What there is to say, as NumPy arrays: mean, std and samples, and of classes probs, entropy and
        mutual_information; of regression std_total, of other numbers mean_total too."""
        names = ["mean", "std", "samples"]
        try:
            self.likelihood.probabilities(self.mean[:0])
            names += ["probs", "entropy", "mutual_information"]
        except TypeError:
            if self.likelihood.distribution(self.mean) is not None:
                names.append("mean_total")
            with suppress(TypeError):  # where the noise of new targets is not known
                _ = self[:0].variance_total
                names.append("std_total")
        return {name: getattr(self, name).detach().cpu().numpy() for name in names}

    def _given(self, values: Tensor, what: str) -> Tensor:
        """Targets or groups as a tensor where the outputs are: NumPy arrays and lists will do too."""
        try:
            return torch.as_tensor(values, device=self.mean.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"expected {what} as a tensor, a NumPy array or a list of numbers, got {type(values).__name__}: {error}"
            ) from error

    def _mix(self, width: float, num_draws: int | None = None) -> Tensor:
        """(K, S) weights of the deviations in each draw; without width one draw is all."""
        draws = num_draws or (self.num_draws if width else 1)
        return width * mixing(self.seed, len(self.deviations), draws, self.mean)

    @cached_property
    def _probit(self) -> Tensor:
        return self.likelihood.probabilities(self.mean / (1 + pi / 8 * self.width**2 * self._variance).sqrt())

    @cached_property
    def _averages(self) -> tuple[Tensor, Tensor]:
        """Class probabilities and their entropy, averaged at the width for single labels."""
        if self.width == self.joint_width:
            return self._joint_averages
        return class_averages(self.likelihood, self.mean, self.deviations, self._mix(self.width))

    @cached_property
    def _joint_averages(self) -> tuple[Tensor, Tensor]:
        """The same at the joint width."""
        return class_averages(self.likelihood, self.mean, self.deviations, self._mix(self.joint_width))
