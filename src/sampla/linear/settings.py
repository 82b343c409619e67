"""What a user asks of a linear model, checked; and the way to solve it that sizes suggest."""

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from sampla._checks import require, require_known
from sampla.likelihoods import Gaussian
from sampla.linear.mackay import Noise

World = Literal["primal", "dual"]
_SMALL, _MEDIUM, _LARGEST = 2500, 5000, 20_000
"""Smaller side of X up to which the exact way is chosen: by default, for many outputs, and at all."""
_MANY = 16
"""Outputs from which one decomposition for all of them pays."""
_BASIS = 2**30
"""Bytes of the singular vectors that the exact way may keep."""


@dataclass(frozen=True)
class Way:
    """How a linear model is solved, and why."""

    exact: bool
    world: World
    why: str


@dataclass(frozen=True)
class Settings:
    """The estimator's parameters, checked."""

    noise: Noise
    groups: np.ndarray | None
    """(D,) labels."""
    precision: float | None
    noise_precision: Tensor | None
    solver: str
    num_samples: int
    tol: float
    max_iter: int

    @classmethod
    def checked(cls, estimator: Any) -> "Settings":
        """Read off an estimator.

        Raises:
            ValueError: saying which parameter is wrong.
        """
        require_known(estimator.prior, ("isotropic", "g-prior"), "prior")
        require_known(estimator.noise, ("shared", "diagonal", "full"), "noise structure")
        require_known(estimator.solver, ("auto", "exact", "krylov"), "solver")
        count = estimator.num_samples
        require(int(count) == count and count >= 2, "num_samples as an integer of at least 2", f"{count}", "Try 64.")
        require(0 < estimator.tol < 1, "tol in (0, 1)", f"{estimator.tol}", "The default is 0.01.")
        require(estimator.max_iter >= 1, "max_iter of at least 1", f"{estimator.max_iter}", "The default is 300.")
        alpha, noise = estimator.prior_precision, None
        positive = alpha is None or 0 < alpha < float("inf")
        require(positive, "a positive prior_precision or None", f"{alpha}", "Give 1 / prior variance.")
        if estimator.noise_precision is not None:
            noise = Gaussian(torch.as_tensor(np.asarray(estimator.noise_precision, dtype=float))).noise_precision
        groups = None if estimator.groups is None else np.asarray(estimator.groups)
        return cls(
            cast(Noise, estimator.noise), groups, None if alpha is None else float(alpha), noise, estimator.solver,
            int(count), float(estimator.tol), int(estimator.max_iter),
        )  # fmt: skip

    @property
    def covariance(self) -> Tensor | None:
        """Noise covariance that is given: (), (C,) or (C, C)."""
        given = self.noise_precision
        if given is None:
            return None
        return torch.linalg.inv(given) if given.ndim == 2 else given.reciprocal()

    def group(self, columns: int) -> Tensor:
        """(D,) int64 number of each column's group."""
        if self.groups is None:
            return torch.zeros(columns, dtype=torch.int64)
        return torch.from_numpy(np.unique(self.groups, return_inverse=True)[1].reshape(-1)).long()

    def check_sizes(
        self, columns: int, outputs: int, total: float, fit_intercept: bool = False, learns_noise: bool = False
    ) -> None:
        """Raise ValueError where settings do not fit the data."""
        left = total - fit_intercept
        require(
            left > 0 or self.noise_precision is not None or not learns_noise,
            "more rows (or weight) than the intercept takes, n_samples of at least 2 as a rule",
            f"n_samples = {total:g} in total weight",
            "Give more data, a noise_precision, or fit_intercept=False.",
        )
        if self.groups is not None:
            shape, fix = self.groups.shape, "Give one label for each column."
            require(shape == (columns,), f"groups of shape ({columns},), one label a column", f"{shape}", fix)
        if self.noise_precision is not None and self.noise_precision.ndim:
            size, fix = self.noise_precision.shape[-1], "Give a number, a vector (C,) or a matrix (C, C)."
            require(size == outputs, f"a noise precision for {outputs} outputs", f"one for {size}", fix)

    def check_varying(self, power: Tensor, way: Way) -> None:
        """Raise ValueError where noise is to be learnt from outputs (C,) without any, and not in closed form."""
        varied = bool((power > 0).any() if self.noise == "shared" else (power > 0).all())
        fix = "Give a noise_precision, or solver='exact', whose noise has a floor."
        known = varied or way.exact or self.noise_precision is not None
        require(known, "targets that vary, to learn the noise from", "constants", fix)


def chosen_way(settings: Settings, rows: int, columns: int, outputs: int) -> Way:
    """Exact or matrix-free, primal or dual, by what each would cost.

    The exact way costs about 4 N D min(N, D) + 20 min(N, D)^3 operations once, for all outputs, whatever is learnt; the
    matrix-free one 4 N D C for each of K samples and pass, and a few EM steps where one Krylov space does not serve.

    Raises:
        ValueError: if solver="exact" cannot be.
    """
    world: World = "primal" if columns <= rows else "dual"
    small, held = min(rows, columns), 8 * min(rows, columns) * columns
    sizes = f"N = {rows:,}, P = D C = {columns:,} x {outputs:,}"
    if settings.solver == "krylov":
        return Way(False, "primal", f"asked for; {sizes}")
    fits = small <= _LARGEST and held <= 4 * _BASIS
    if settings.solver == "exact":
        require(
            fits,
            f"the smaller side of X at most {_LARGEST:,} for solver='exact', and singular vectors of at most 4 GiB",
            f"{small:,}, and {held / 2**30:.1f} GiB ({sizes})",
            "Use solver='krylov', which forms no matrix.",
        )
        return Way(True, world, f"asked for; {sizes}")
    many = outputs > _MANY or (outputs > 1 and (settings.noise != "shared" or settings.groups is not None))
    limit = _MEDIUM if many and settings.groups is None else _SMALL
    side = f"min(N, D) = {small:,} is"
    if small <= limit and held <= _BASIS:
        return Way(True, world, f"{side} at most {limit:,}: one decomposition costs less than iterating; {sizes}")
    return Way(False, "primal", f"{side} above {limit:,}, or its singular vectors above 1 GiB; {sizes}")
