"""What a likelihood must say; write one by subclassing and giving the three abstract methods.

A likelihood with a dispersion, such as the noise of a Gaussian, has a ``noise_precision`` as well, and nobody asks
which class it is of: the methods that serve it have defaults for likelihoods without one.
"""

from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.func import vjp, vmap

from sampla.core.checks import require
from sampla.inference.mackay import updated_noise


def require_plain(targets: Tensor, expected: str) -> None:
    """Refuse targets that are sparse, nested or complex, of which nothing else can be asked.

    Raises:
        ValueError: saying which they are.
    """
    sparse = not targets.is_nested and targets.layout != torch.strided
    kinds = {
        "nested ones": (targets.is_nested, "Pad them with torch.nested.to_padded_tensor by a number to be ignored."),
        "sparse ones": (sparse, "Call .to_dense() on them."),
        "complex ones": (targets.is_complex(), "Use their real and imaginary parts as outputs of their own."),
    }
    for kind, (found, remedy) in kinds.items():
        require(not found, expected, kind, remedy)


def as_counts(targets: Tensor) -> Tensor:
    """Integers and booleans as int64, in which every number to be ignored can be told from every label."""
    return targets if targets.is_floating_point() or targets.is_complex() else targets.long()


class Likelihood(ABC):
    """p(y | f) for one datum with outputs f = (*out), all data independent given f.

    ``outputs`` is (n, *out); ``vectors`` is a stack (K, n, *out). B_n = -d2 log p(y_n | f_n) / df df' must not
    depend on y_n and must be positive semi-definite (for other likelihoods use the Fisher matrix instead).
    """

    is_quadratic = False
    """True if log_prob is quadratic in f with B independent of f: the mean then solves a linear system."""
    class_axis: int | None = None
    """The axis of the outputs, counted from the end, along which probabilities add up to one; None: no such axis."""
    observation_axes: tuple[int, ...] | None = None
    """The axes of the outputs, counted from the end, that one observation is about, where a datum has several that are
    independent given f (pixels, places in a sequence, labels); None: a datum is one observation."""
    takes_probit = True
    """Whether probabilities have MacKay's approximation p(mean / sqrt(1 + pi / 8 variance)), logarithms of which are
    outputs again."""
    learns_noise = False
    """True if EM is to learn ``noise_precision``; ``residuals`` and ``with_noise`` are needed then."""
    noise_precision: Tensor | None = None
    """What B and log_prob are proportional to, the inverse of a dispersion: () in float64 on the CPU, and for Gaussian
    noise by output (C,) or in full (C, C). None: there is no such number, or it is not known before the fit."""

    @abstractmethod
    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(n,) log p(y_n | f_n) in nats, summed over the inner axes of one datum; differentiable by autograd."""

    def observation_log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(n, ...) log p of each observation in nats, the ``observation_axes`` taken out; sums to ``log_prob``."""
        if self.observation_axes is not None:
            raise NotImplementedError(f"{type(self).__name__} has observation_axes: write observation_log_prob")
        return self.log_prob(outputs, targets)

    @abstractmethod
    def curvature_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        """B u for each of K vectors: (K, n, *out) -> (K, n, *out)."""

    @abstractmethod
    def curvature_root_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        """S xi with S S' = B for each of K vectors: (K, n, *out) -> (K, n, *out)."""

    def curvature_root_transpose_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        """S' u for each of K vectors: (K, n, *out) -> (K, n, *out); by autograd unless overridden."""
        transpose = vjp(lambda xi: self.curvature_root_product(outputs, xi), torch.zeros_like(vectors))[1]
        product: Tensor = transpose(vectors)[0]
        return product.detach()

    def check_targets(self, outputs: Tensor, targets: Tensor) -> None:
        """Refuse targets that do not belong to these outputs; only their number is checked unless overridden.

        Raises:
            ValueError: saying what was expected of the targets.
        """
        count = outputs.shape[0]
        require(targets.shape[:1] == (count,), f"{count} targets", f"{tuple(targets.shape)}", "Give one per datum.")

    def counted(self, targets: Tensor) -> Tensor | None:
        """Which outputs count, ones and zeros that broadcast to (n, *out); None: all of them.

        What does not count (padding, pixels without a label) must be left out of ``log_prob`` too.
        """
        return None

    def curvature_weights(self, targets: Tensor) -> Tensor | None:
        """What the B of ``curvature_product`` is multiplied by for these targets: at least 0, broadcasts to (n, *out).

        By default ``counted``. Outputs that B connects have one weight. None: one everywhere.
        """
        return self.counted(targets)

    def observation_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(n, ...) what training made small for each observation, in nats; -log p unless overridden.

        Weights belong here, and what else a loss has beside the density of a target. Its Hessian is
        ``curvature_weights`` times B; ``log_prob`` stays the density, by which predictions are scored.
        """
        return -self.observation_log_prob(outputs, targets)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(n,) the sums of ``observation_loss`` over the observations of each datum."""
        if type(self).observation_loss is Likelihood.observation_loss:
            return -self.log_prob(outputs, targets)
        return self.observation_loss(outputs, targets).reshape(outputs.shape[0], -1).sum(1)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Class probabilities of given outputs.

        Raises:
            TypeError: if the likelihood is not about classes.
        """
        raise TypeError(f"{type(self).__name__} has no class probabilities: use pred.mean and pred.variance instead.")

    def class_entropy(self, probabilities: Tensor) -> Tensor:
        """(n, ...) entropy of class probabilities in nats, the class axis taken out; of each label if there is none."""
        terms: Tensor = torch.special.entr(probabilities)
        axis = self.class_axis
        return terms + torch.special.entr(1 - probabilities) if axis is None else terms.sum(axis)

    def class_sums(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over S draws of class probabilities and of their entropy.

        Override it where both can be had at less cost than from ``probabilities``.

        Args:
            draws: (n, *out, S) of the outputs.

        Returns:
            (n, *out) and (n, ...), in nats.
        """
        each = self.probabilities(draws.movedim(-1, 0))
        return each.sum(0), self.class_entropy(each).sum(0)

    def log_prob_of_draws(self, draws: Tensor, targets: Tensor) -> Tensor:
        """(S, n) log p(y_n | f_n) in nats for S draws (n, *out, S) of outputs; by ``log_prob`` unless overridden."""
        each: Tensor = vmap(self.log_prob, in_dims=(-1, None))(draws, targets)
        return each

    def noise_covariance(self, outputs: Tensor) -> Tensor:
        """Covariance of the noise where y = f + noise, in the type of the outputs: (C, C) over their last axis, or of
        independent noise a variance that broadcasts to them, () or (C,).

        Raises:
            TypeError: if targets are no sum of outputs and noise.
        """
        raise TypeError(
            f"{type(self).__name__} has no noise that is added to the outputs: use pred.variance, that of the outputs, "
            "or pred.probs."
        )

    def distribution(self, outputs: Tensor) -> Distribution | None:
        """p(y | f) of each number of the targets for ``torch.distributions``: (n, ...) like the targets of outputs.

        Outputs may have more axes in front. None: targets are classes, or outputs plus Gaussian noise.
        """
        return None

    def cdf(self, outputs: Tensor, values: Tensor) -> Tensor:
        """P(y <= value | f) of each number of the targets; that of ``distribution`` unless overridden.

        Raises:
            TypeError: if there is no such distribution.
        """
        known = self.distribution(outputs)
        if known is None:
            raise TypeError(f"{type(self).__name__} has no distribution of numbers: use pred.mean or pred.probs.")
        found: Tensor = known.cdf(values)
        return found

    def target_moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor] | None:
        """Mean and variance of each number of the targets, where outputs are Gaussian with these moments.

        None: targets are no numbers, or outputs plus noise of ``noise_covariance``.
        """
        return None

    def _keeps(self, of: type["Likelihood"], *methods: str) -> bool:
        """Whether no subclass has written other methods than those that ``of`` has, which a shortcut stands for."""
        return all(getattr(type(self), name) is getattr(of, name) for name in methods)

    def num_targets(self, num_outputs: int) -> int:
        """How many numbers the target of a datum with outputs (n, C) has: one class, or one for each output."""
        return 1 if self.class_axis is not None else num_outputs

    @property
    def heads(self) -> "dict[str, tuple[Likelihood, slice]]":
        """Name -> likelihood and place on the last axis of the outputs, where these are several; none by default."""
        return {}

    @property
    def scalar_noise(self) -> bool:
        """Whether all that EM may learn is one factor of B, so that one Krylov space of M serves every value of it."""
        return True

    @property
    def noise_is_known(self) -> bool:
        """Whether B can be computed; False as long as a noise precision has to be started from the residuals."""
        return not self.learns_noise or self.noise_precision is not None

    def residuals(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """(n, *out) what the outputs leave of the targets, in units in which it has covariance 1 / ``noise_precision``.

        That is y - f for Gaussian noise, Pearson's (y - mu) / sqrt(V(mu)) for counts with mean mu and variance
        V(mu) / noise_precision. None: the likelihood has no dispersion to measure.
        """
        return None

    def with_noise(self, noise_precision: Tensor) -> Self:
        """The same likelihood with another ``noise_precision``.

        Raises:
            NotImplementedError: if the likelihood has no dispersion.
        """
        raise NotImplementedError(f"{type(self).__name__} has no noise_precision to change: write with_noise")

    def second_moment(self, residuals: Tensor) -> Tensor:
        """Sum of r r' over a stack of residuals, in float64; of scalar noise the sum of squares, ()."""
        return residuals.double().square().sum()

    def weighted(self, moment: Tensor) -> float:
        """sum_n r_n' B r_n from the second moment of residuals r; zero if there is no noise precision."""
        return 0.0 if self.noise_precision is None else float(self.noise_precision.to(moment) * moment.sum())

    def started(self, residual: Tensor, entries: float) -> Self:
        """With a first noise precision, if it has none: the inverse mean square of what the network leaves.

        Args:
            residual: second moment of the residuals of the network's own outputs, summed over all data.
            entries: N C, the number of observed numbers (less those that the features have absorbed).
        """
        return self if self.noise_is_known else self.with_noise((entries / residual.clamp_min(1e-300)).cpu())

    def updated(
        self,
        residual: Tensor,
        function: Tensor,
        effective_dimension: float,
        entries: float,
        exact: bool = False,
    ) -> Self:
        """The M-step of the noise precision: MacKay's, (N C - gamma) / sum_n |r_n|^2 (docs/method.md, section 3).

        Args:
            residual: second moment of the residuals at the posterior mean or mode, summed over all data.
            function: second moment of phi z over posterior samples z, summed over all data.
            effective_dimension: gamma.
            entries: N C.
            exact: whether ``function`` is free of sampling error.
        """
        return self.with_noise(updated_noise(entries, effective_dimension, residual).cpu())

    def used_up(self, function: Tensor, entries: float) -> float:
        """The largest share, over outputs and their combinations, of the data that parameters determine: 0 to 1."""
        return 0.0

    def scaled(self, factor: float) -> Self:
        """The same with a noise precision, and so a B, so many times as large; as it is if there is none."""
        return self if self.noise_precision is None else self.with_noise(self.noise_precision * factor)

    def factor_over(self, other: "Likelihood") -> float | None:
        """B over the B of the same likelihood with another noise; None if they differ by more than a factor."""
        mine, theirs = self.noise_precision, other.noise_precision
        if mine is None or theirs is None or mine.ndim > 0 or theirs.ndim > 0:
            return None
        return float(mine / theirs)

    def log_determinant(self, outputs: Tensor) -> float | None:
        """log det B of one datum of these outputs where y ~ N(f, B^-1), whose predictive density has a closed form.

        None: the density is averaged over draws of f.
        """
        return None

    def log_precisions(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """(n, *out) log of the noise's precision of each output where ``log_determinant`` is not that of every datum,
        because ``curvature_weights`` are factors of it; zero where none counts. None: it is."""
        return None

    def config(self) -> dict[str, Any]:
        """What ``from_config`` needs beside tensors to rebuild a built-in likelihood; JSON only."""
        return {"name": type(self).__name__}
