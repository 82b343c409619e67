"""The settings of a linear model, checked; the choice of its solver by sizes; and the report of a fit."""

from dataclasses import dataclass, replace
from math import isnan
from typing import Any, Literal, cast
from warnings import warn

import numpy as np
import torch
from torch import Tensor

from sampla.core.checks import require, require_known
from sampla.inference.report import FitReport
from sampla.likelihoods import Gaussian
from sampla.linear.closed_form import ExactFit, Noise
from sampla.linear.columns import Columns

World = Literal["primal", "dual"]
_SMALL, _MEDIUM, _LARGEST = 2500, 5000, 20_000
"""Smaller side of X up to which the exact way is chosen: by default, for many outputs, and at all."""
_MANY = 16
"""Outputs from which one decomposition for all of them pays."""
_BASIS = 2**30
"""Bytes of the singular vectors that the exact way may keep."""


@dataclass(frozen=True)
class SolverChoice:
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
    def checked(cls, estimator: Any, structure: str = "shared", noise_precision: Any = None) -> "Settings":
        """Read off an estimator, and the noise that a classifier does not have.

        Raises:
            ValueError: saying which parameter is wrong.
        """
        require_known(estimator.prior, ("isotropic", "g-prior"), "prior")
        require_known(structure, ("shared", "diagonal", "full"), "noise structure")
        solver = _solver(estimator.solver)
        count = estimator.num_samples
        require(int(count) == count and count >= 2, "num_samples as an integer of at least 2", f"{count}", "Try 64.")
        require(0 < estimator.tol < 1, "tol in (0, 1)", f"{estimator.tol}", "The default is 0.01.")
        require(estimator.max_iter >= 1, "max_iter of at least 1", f"{estimator.max_iter}", "The default is 300.")
        alpha, noise = estimator.prior_precision, None
        positive = alpha is None or 0 < alpha < float("inf")
        require(positive, "a positive prior_precision or None", f"{alpha}", "Give 1 / prior variance.")
        if noise_precision is not None:
            noise = Gaussian(torch.as_tensor(np.asarray(noise_precision, dtype=float))).noise_precision
        groups = None if estimator.groups is None else np.asarray(estimator.groups)
        return cls(
            cast(Noise, structure), groups, None if alpha is None else float(alpha), noise, solver,
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

    def check_varying(self, power: Tensor, choice: SolverChoice) -> None:
        """Raise ValueError where noise is to be learnt from outputs (C,) without any, and not in closed form."""
        varied = bool((power > 0).any() if self.noise == "shared" else (power > 0).all())
        fix = "Give a noise_precision, or solver='exact', whose noise has a floor."
        known = varied or choice.exact or self.noise_precision is not None
        require(known, "targets that vary, to learn the noise from", "constants", fix)


def _solver(name: str) -> str:
    """The name of a solver, "krylov" being what "block-cg" used to be called."""
    if name == "krylov":
        warn("solver='krylov' is called 'block-cg' now, as in LinearisedLaplace.", DeprecationWarning, stacklevel=4)
        return "block-cg"
    require_known(name, ("auto", "exact", "block-cg"), "solver")
    return name


def choose_solver(settings: Settings, rows: int, columns: int, outputs: int) -> SolverChoice:
    """Exact or matrix-free, primal or dual, by what each would cost.

    The exact way costs about 4 N D min(N, D) + 20 min(N, D)^3 operations once, for all outputs, whatever is learnt; the
    matrix-free one 4 N D C for each of K samples and pass, and a few EM steps where one Krylov space does not serve.

    Raises:
        ValueError: if solver="exact" cannot be.
    """
    world: World = "primal" if columns <= rows else "dual"
    small, held = min(rows, columns), 8 * min(rows, columns) * columns
    sizes = f"N = {rows:,}, P = D C = {columns:,} x {outputs:,}"
    if settings.solver == "block-cg":
        return SolverChoice(False, "primal", f"asked for; {sizes}")
    fits = small <= _LARGEST and held <= 4 * _BASIS
    if settings.solver == "exact":
        require(
            fits,
            f"the smaller side of X at most {_LARGEST:,} for solver='exact', and singular vectors of at most 4 GiB",
            f"{small:,}, and {held / 2**30:.1f} GiB ({sizes})",
            "Use solver='block-cg', which forms no matrix.",
        )
        return SolverChoice(True, world, f"asked for; {sizes}")
    many = outputs > _MANY or (outputs > 1 and (settings.noise != "shared" or settings.groups is not None))
    limit = _MEDIUM if many and settings.groups is None else _SMALL
    side = f"min(N, D) = {small:,} is"
    if small <= limit and held <= _BASIS:
        return SolverChoice(
            True, world, f"{side} at most {limit:,}: one decomposition costs less than iterating; {sizes}"
        )
    return SolverChoice(False, "primal", f"{side} above {limit:,}, or its singular vectors above 1 GiB; {sizes}")


@dataclass(frozen=True)
class LinearReport:
    """The report of a fit, ``report_``; ``print`` shows it as text."""

    passes: float
    """Readings of all rows (exact), or products with M for each sample (matrix-free)."""
    settled: bool
    """Whether the hyperparameters settled, and the solve reached its tolerance."""
    em_steps: int
    effective_dimension: float
    log_evidence: float
    fit: FitReport | None = None
    """The certificate of the matrix-free solver; None where everything is exact."""
    num_rows: int = 0
    num_columns: int = 0
    num_outputs: int = 0
    solver: str = ""
    """"exact" or "block-cg"."""
    world: str = ""
    """"primal" or "dual"."""
    why: str = ""
    """Why this solver was chosen."""
    seconds: float = 0.0

    @classmethod
    def of_exact(cls, fit: ExactFit, passes: int, evidence: float) -> "LinearReport":
        """From a closed-form fit, and log p(y)."""
        return cls(passes, fit.settled, len(fit.trace), float(fit.effective_dimension.sum()), evidence)

    @classmethod
    def of_iterative(cls, fit: FitReport, evidence: float) -> "LinearReport":
        """Make the report from the certificate of the matrix-free solver."""
        settled = fit.settled and fit.solve_error <= fit.tolerance
        fit = replace(fit, log_evidence=None if isnan(evidence) else evidence)
        return cls(fit.passes, settled, len(fit.trace), sum(fit.effective_dimension), evidence, fit)

    def finished(self, rows: int, columns: int, outputs: int, choice: SolverChoice, seconds: float) -> "LinearReport":
        """Return the report with sizes, the choice of the solver and the time."""
        return replace(
            self, num_rows=rows, num_columns=columns, num_outputs=outputs,
            solver="exact" if choice.exact else "block-cg", world=choice.world, why=choice.why, seconds=seconds,
        )  # fmt: skip

    def __str__(self) -> str:
        size = f"{self.num_columns:,} columns" + (f" x {self.num_outputs:,} outputs" if self.num_outputs > 1 else "")
        lines = [
            f"linear model {size} from {self.num_rows:,} rows, {self.seconds:.1f} s",
            f"solver       {self.solver}, {self.world}: {self.why}",
        ]
        if self.fit is not None:
            return "\n".join([*lines, *self.fit.details()])
        word = "settled" if self.settled else "NOT settled: raise max_iter"
        return "\n".join(
            [
                *lines,
                f"cost         {self.passes:.0f} readings of the rows",
                "exact        mean, variances and hyperparameters are in closed form; draws are exact",
                f"prior, noise EM {word} in {self.em_steps} steps",
                f"data         determine {self.effective_dimension:.1f} of "
                f"{self.num_columns * self.num_outputs:,} coefficients",
                f"evidence     log p(y) = {self.log_evidence:,.1f} nats",
            ]
        )


def in_users_units(report: FitReport, columns: Columns) -> FitReport:
    """The certificate with precisions in the units of X and y instead of the model's."""
    alpha, noise = columns.precision_unit.cpu(), columns.target_unit**-2

    def restored(values: list[float]) -> list[float]:
        known: list[float] = (torch.tensor(values[: len(alpha)], dtype=torch.float64) / alpha).tolist()
        return known + values[len(alpha) :]

    def noisy(values: Any) -> Any:
        return None if values is None else (torch.tensor(values, dtype=torch.float64) * noise).tolist()

    trace = [
        {
            **row,
            "precision": restored(row["precision"]),
            "updated_precision": restored(row["updated_precision"]),
            "noise_precision": noisy(row["noise_precision"]),
        }
        for row in report.trace
    ]
    return replace(
        report, trace=trace, prior_precision=restored(report.prior_precision),
        noise_precision=noisy(report.noise_precision),
    )  # fmt: skip
