"""What K samples of functions say of a network's outputs at n inputs: moments, covariances, draws, quantiles."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sampla.core.checks import require, require_count, require_known
from sampla.likelihoods import Likelihood
from sampla.posterior.averages import mixing, target_quantiles

Rows = int | slice | Sequence[int] | Tensor | np.ndarray
"""What chooses data."""


def check_average(method: str, num_draws: int) -> None:
    """Refuse a way to average class probabilities that there is not.

    Raises:
        ValueError: for an unknown method, or less than one draw.
    """
    require_known(method, ("monte-carlo", "probit"), "predictive method")
    require_count(num_draws, "num_draws", 1, "The default is 512; method='probit' draws nothing.")


def _numbers(rows: Any, count: int) -> Tensor:
    """Numbers of some of so many data, or a mask of them; one number alone as a list of it."""
    if isinstance(rows, tuple):
        raise TypeError("expected a slice, list or mask of data, got several: outputs are chosen of mean, std, ...")
    found = torch.as_tensor(rows)
    found = found.bool() if found.dtype == torch.uint8 and found.ndim else found  # as torch takes it
    mask, empty = found.dtype == torch.bool, found.numel() == 0
    if found.ndim > 1 or (found.is_floating_point() and not empty) or (mask and found.ndim == 0):
        got = f"{tuple(found.shape)} {found.dtype}"
        raise TypeError(f"expected one number, or a slice, list or mask of data on one axis, got {got}")
    if found.ndim == 0 and not -count <= int(found) < count:
        raise IndexError(f"datum {int(found)} of {count}")
    return found if mask else found.reshape(-1).long()


@dataclass(frozen=True)
class Outputs:
    """The Gaussian N(mean, s^2 (1/K) sum_k d_k d_k') over the outputs at n inputs."""

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
    targets: Tensor | None = None
    """(n, ...) targets, where the inputs came from a loader that has them, in its order."""

    def __post_init__(self) -> None:
        check_average(self.method, self.num_draws)
        name, fits = type(self.likelihood).__name__, self.method != "probit" or self.likelihood.takes_probit
        require(fits, f"method='monte-carlo' for {name}", "'probit'", "Its probabilities have no such approximation.")

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
        spread = self._variance  # a root's derivative is infinite at zero: what does not vary has none
        return self.joint_width * torch.where(spread == 0, 1, spread).sqrt() * (spread != 0)

    @property
    def mean_total(self) -> Tensor:
        """(n, ...) mean of a new target: ``mean`` where that is an output plus noise, of counts exp(f) averaged.

        Raises:
            TypeError: where targets are no numbers, as of classes.
        """
        moments = self._target_moments
        if moments is None:
            if self.likelihood.log_determinant(self.mean) is None:
                self.likelihood.noise_covariance(self.mean[:0])  # raises where targets are classes
            return self.mean
        return moments[0]

    @property
    def variance_total(self) -> Tensor:
        """(n, ...) variance of a new target: with Gaussian noise ``variance`` plus that of the noise of each output.

        Of other targets, as counts or those with outliers, it is their variance at the width for single labels.

        Raises:
            TypeError: where targets are no numbers, as of classes.
        """
        moments = self._target_moments
        if moments is not None:
            return moments[1]
        noise = self.likelihood.noise_covariance(self.mean)
        return self.variance + (noise.diagonal() if noise.ndim == 2 else noise)

    @property
    def std_total(self) -> Tensor:
        """(n, ...) square root of ``variance_total``."""
        return self.variance_total.sqrt()

    @property
    def covariance(self) -> Tensor:
        """(n, *out, *out) covariance of the outputs of each input, of rank K at most, without noise."""
        outputs = self._flat
        found = outputs @ outputs.mT * (self.joint_width**2 / len(self.deviations))
        return found.view(*self.mean.shape, *self.mean.shape[1:])

    @property
    def joint_covariance(self) -> Tensor:
        """(n, *out, n, *out) covariance of all outputs of all inputs, of rank K at most, in memory of that size."""
        return self.covariance_with(self)

    def covariance_with(self, other: "Outputs") -> Tensor:
        """(n, *out, m, *out) covariance of these outputs with those at m other inputs, without noise.

        Args:
            other: of the same posterior, with all of its samples.

        Raises:
            ValueError: for another number of samples, or another likelihood.
        """
        count, theirs = len(self.deviations), len(other.deviations)
        fix = "Both must be of one posterior, for whose samples the covariance is."
        require(count == theirs, f"predictions with {count} samples", f"{theirs}", fix)
        self._require_likelihood(other)
        product = self.deviations.flatten(1).mT @ other.deviations.flatten(1)
        scale = self.joint_width * other.joint_width / count
        return product.mul(scale).view(*self.mean.shape, *other.mean.shape)

    def sample(self, num_draws: int, seed: int | None = None) -> Tensor:
        """(num_draws, n, *out) new draws of functions at the joint width, from the Gaussian that the K samples define.

        The same seed gives the same functions at any inputs, and the first of more draws are those of fewer.

        Args:
            num_draws: how many.
            seed: of the draws; None: that of those which ``probs`` averages over.

        Raises:
            ValueError: for less than one draw.
        """
        require_count(num_draws, "num_draws", 1, "pred.samples are the K samples themselves.")
        mix = mixing(self.seed if seed is None else seed, len(self.deviations), num_draws, self.mean)
        drawn: Tensor = torch.tensordot(mix * self.joint_width, self.deviations, dims=([0], [0]))
        return self.mean + drawn

    def quantile(self, q: float | Sequence[float] | Tensor, total: bool = False) -> Tensor:
        """Quantiles of each output under the Gaussian: mean + std times the standard normal's.

        Args:
            q: one probability in (0, 1), or Q of them.
            total: of new targets, with noise (``std_total``), instead of the function's. Where that is not Gaussian,
                they are those of p(y | f) averaged over ``num_draws`` draws of f, without a graph; of counts the least
                that will do.

        Returns:
            (n, *out) or (Q, n, *out); of new targets, their shape.

        Raises:
            ValueError: for q outside (0, 1).
            TypeError: with ``total``, where targets are no numbers.
        """
        asked = torch.as_tensor(q, dtype=torch.float64)
        fits = asked.ndim < 2 and bool(((asked > 0) & (asked < 1)).all())
        require(fits, "probabilities in (0, 1)", f"{q}", "The median is .5; .025 and .975 hold 95 % between them.")
        if total and self.likelihood.distribution(self.mean[:0]) is not None:
            mix = self.width * mixing(self.seed, len(self.deviations), self.num_draws, self.mean)
            each = target_quantiles(self.likelihood, self.mean, self.deviations, mix, asked.reshape(-1).tolist())
            return each.view(*asked.shape, *each.shape[1:])
        normal: Tensor = torch.special.ndtri(asked).to(self.mean).view(*asked.shape, *[1] * self.mean.ndim)
        return self.mean + normal * (self.std_total if total else self.std)

    def __len__(self) -> int:
        """Return n."""
        return len(self.mean)

    def __getitem__(self, rows: Rows) -> Self:
        """Return the predictive at some of the inputs: a slice, list or mask; of one number that datum alone, n = 1.

        Raises:
            IndexError: for a datum that there is not.
            TypeError: for what chooses no data, as several axes.
        """
        rows = rows if isinstance(rows, slice) else _numbers(rows, len(self)).to(self.mean.device)
        chosen: dict[str, Any] = {name: each[rows] for name, each in self._each_datum().items() if name != "deviations"}
        return replace(self, deviations=self.deviations[:, rows], **chosen)

    def __iter__(self) -> Iterator[Self]:
        """Each datum alone."""
        return (self[row] for row in range(len(self)))

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """The predictive at the inputs of several, one after the other, on the device of the first.

        Raises:
            ValueError: for none, or for parts of other settings, likelihoods or numbers of samples. Posteriors that
                differ in nothing of this cannot be told apart.
        """
        require(len(parts) > 0, "predictions to put together", "none", "Give a list of at least one.")
        first, joined = parts[0], dict[str, Any](solve_error=None, targets=None)
        for part in parts[1:]:
            first._require_like(part)
        for name in first._each_datum():
            tensors = [part._each_datum().get(name) for part in parts]
            if all(tensor is not None for tensor in tensors):
                here = [tensor.to(first.mean.device) for tensor in tensors if tensor is not None]
                joined[name] = torch.cat(here, dim=1 if name == "deviations" else 0)
        return replace(first, **joined)

    def to(self, *where: Any, **options: Any) -> Self:
        """The same on another device or in another floating-point type, asked for as of ``torch.Tensor.to``."""
        mean = self.mean.to(*where, **options)
        moved: dict[str, Any] = {
            name: each.to(mean) for name, each in self._each_datum().items() if name not in ("mean", "targets")
        }
        if self.targets is not None:
            moved["targets"] = self.targets.to(mean.device)
        return replace(self, mean=mean, **moved)

    def _each_datum(self) -> dict[str, Tensor]:
        """Tensors that have numbers for each datum, on the first axis or of the deviations on the second."""
        every = {name: getattr(self, name) for name in ("mean", "deviations", "solve_error", "targets")}
        return {name: each for name, each in every.items() if each is not None}

    def _require_likelihood(self, other: "Outputs") -> None:
        if self.likelihood is other.likelihood:  # as of a loader's batches, thousands perhaps
            return
        own, theirs = self.likelihood.config(), other.likelihood.config()
        require(own == theirs, f"predictions with {own}", f"{theirs}", "Predictions of one posterior go together.")

    def _require_like(self, other: "Outputs") -> None:
        def facts(of: "Outputs") -> tuple[Any, ...]:
            return (
                len(of.deviations), tuple(of.mean.shape[1:]), of.width, of.joint_width, of.method, of.num_draws, of.seed
            )  # fmt: skip

        fix = (
            "Predictions of one posterior go together; where inputs are padded to lengths that differ, keep them apart."
        )
        require(
            facts(self) == facts(other),
            f"(samples, outputs, widths, method, draws, seed) = {facts(self)}",
            f"{facts(other)}",
            fix,
        )
        self._require_likelihood(other)

    @property
    def _flat(self) -> Tensor:
        """(n, out, K) deviations, all outputs of a datum on one axis."""
        count, size = self.deviations.shape[:2]
        return self.deviations.reshape(count, size, self.mean.shape[1:].numel()).movedim(0, -1)

    @property
    def _target_moments(self) -> tuple[Tensor, Tensor] | None:
        """Mean and variance of new targets at the width for single labels, where these are no outputs plus noise."""
        return self.likelihood.target_moments(self.mean, self.width**2 * self._variance)

    @property
    def _variance(self) -> Tensor:
        """(n, *out) under the posterior itself."""
        return self.deviations.square().mean(0)
