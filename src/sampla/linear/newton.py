"""Laplace's approximation of a small logistic regression in closed form: Newton's method and MacKay's updates.

For up to about a thousand parameters H (P, P) is formed, in float64: the mode by Newton steps with halving, gamma_g =
sum_{i in g} (1 - A_i (H^-1)_ii), alpha_g <- gamma_g / |mode|_g^2, and samples L'^-1 xi with L the Cholesky factor of H.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sampla.core.checks import require
from sampla.core.data import Data
from sampla.core.noise import PRIOR, standard_normal
from sampla.inference.evidence import updated_precision
from sampla.inference.mackay import accelerated, change_that_matters
from sampla.likelihoods import Likelihood
from sampla.linear.closed_form import dense, standardised, warn_unsettled
from sampla.linear.columns import Columns, RowData
from sampla.priors import BoundPrior

_MODE, _SHORTEST, _NEWTON = 1e-12, 1e-10, 200
"""Newton decrement relative to the loss at which one step more is the mode; the shortest part of a step; most steps."""
_TIGHT, _SETTLED = 1e-6, 0.1
"""Changes of alpha, in tolerances, at which EM stops, and at which it has settled if it had to stop before."""


@dataclass(frozen=True)
class ClosedLaplace:
    """The fixed point of EM and the Gaussian at its mode."""

    mode: Tensor
    """(P,) coefficients (D, C) and, behind them, the constants (J,) of the design."""
    root: Tensor
    """(P, P) Cholesky factor of H."""
    prior: BoundPrior
    effective_dimension: Tensor
    """(G,)."""
    log_evidence: float
    steps: int
    passes: int
    settled: bool

    def samples(self, count: int, seed: int) -> Tensor:
        """(count, P) zero-mean draws from N(0, H^-1), keyed by the parameter."""
        xi = standard_normal(seed, PRIOR, range(count), 0, (len(self.mode),), self.mode)
        drawn: Tensor = torch.linalg.solve_triangular(self.root.mT, xi.mT, upper=True).mT
        return drawn

    def covariance_root(self) -> Tensor:
        """(P, P) rows r_k with sum_k r_k r_k' = H^-1."""
        eye = torch.eye(len(self.root), dtype=self.root.dtype, device=self.root.device)
        inverse: Tensor = torch.linalg.solve_triangular(self.root, eye, upper=False)
        return inverse


@dataclass(frozen=True)
class _Point:
    """The loss and its derivatives at one theta: all that one reading of the rows tells, for every prior."""

    theta: Tensor
    loss: float
    gradient: Tensor
    """(P,)."""
    hessian: Tensor
    """(P, P)."""

    def penalised(self, precision: Tensor) -> float:
        """The loss plus |theta|_A^2 / 2."""
        return self.loss + 0.5 * float(precision @ self.theta.square())


@dataclass(frozen=True)
class _Derivatives:
    """-sum_n w_n log p(y_n) over rows with its first and second derivatives by (D, C) coefficients."""

    matrix: Tensor
    """(D, C), or (D + 1, C) with a row of constants."""
    columns: Columns
    likelihood: Likelihood
    constant: bool
    """Whether a column of ones stands behind the others."""

    def __call__(self, data: Data) -> list[Tensor]:
        """One reading of the rows: (), (D, C), (D, C, D, C)."""
        assert isinstance(data, RowData)
        matrix = self.matrix
        loss, gradient = torch.zeros((), dtype=torch.float64), torch.zeros_like(matrix)
        hessian = matrix.new_zeros(*matrix.shape, *matrix.shape)
        for rows, targets, weights in self._chunks(data):
            logits = rows @ matrix
            missed, slope = self._slope(logits, targets, weights)
            loss += missed
            gradient += rows.mT @ slope
            for one in range(matrix.shape[1]):
                along = torch.zeros_like(logits)
                along[:, one] = weights
                curvature = self.likelihood.curvature_product(logits, along[None])[0]  # (n, C): a column of each B_n
                for other in range(one + 1):
                    block = rows.mT @ (curvature[:, other, None] * rows)
                    hessian[:, one, :, other] += block
                    if other < one:
                        hessian[:, other, :, one] += block
        return [loss, gradient, hessian]

    def _slope(self, logits: Tensor, targets: Tensor, weights: Tensor) -> tuple[float, Tensor]:
        """-sum_n w_n log p(y_n | f_n), and (n, C) its derivative by the logits."""
        with torch.enable_grad():
            free = logits.detach().requires_grad_()
            missed = -(weights * self.likelihood.log_prob(free, targets)).sum()
            (slope,) = torch.autograd.grad(missed, free)
        return float(missed.detach()), slope

    def _chunks(self, data: RowData) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Standardised rows with a column of ones, targets, weights; float64."""
        for stored, targets, weights in data.chunks():
            rows = standardised(dense(stored), self.columns)
            if self.constant:
                rows = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
            yield rows, targets, torch.ones_like(rows[:, 0]) if weights is None else weights.double()


class _Objective:
    """-sum_n w_n log p(y_n) over all rows; ``passes`` counts the readings."""

    def __init__(
        self, data: RowData, columns: Columns, likelihood: Likelihood, outputs: int, constants: Tensor
    ) -> None:
        self._data, self._columns, self._outputs, self._constants = data, columns, outputs, constants
        self._likelihood, self.passes = likelihood, 0

    def at(self, theta: Tensor) -> _Point:
        """One reading of the rows."""
        self.passes += 1
        matrix = self._matrix(theta)
        sums = _Derivatives(matrix, self._columns, self._likelihood, len(self._constants) > 0)
        loss, gradient, hessian = self._data.over_parts(sums)
        inner = self._parameters(self._parameters(hessian.reshape(-1, matrix.numel())).mT)
        return _Point(theta, float(loss), self._parameters(gradient.flatten()), inner)

    def _matrix(self, theta: Tensor) -> Tensor:
        """(D, C) coefficients, with the outputs' constants as one row more."""
        if len(self._constants) == 0:
            return theta.view(-1, self._outputs)
        coefficients, constants = theta.split([len(theta) - len(self._constants), len(self._constants)])
        return torch.cat([coefficients.view(-1, self._outputs), (constants @ self._constants)[None]])

    def _parameters(self, values: Tensor) -> Tensor:
        """The transpose: derivatives (..., (D + 1) C) by what ``_matrix`` gives as derivatives (..., P) by theta."""
        if len(self._constants) == 0:
            return values
        coefficients, last = values.split([values.shape[-1] - self._outputs, self._outputs], dim=-1)
        return torch.cat([coefficients, last @ self._constants.mT], dim=-1)


def closed_laplace(
    data: RowData,
    columns: Columns,
    prior: BoundPrior,
    likelihood: Likelihood,
    outputs: int,
    constants: Tensor,
    tolerance: float,
    max_steps: int,
) -> ClosedLaplace:
    """EM from the given prior, each step at a mode found by Newton's method from the last one.

    Args:
        data: rows with targets (n, 1) zeros and ones, or (n,) class numbers.
        columns: what is taken off the rows.
        prior: over the P parameters, where EM starts.
        likelihood: of the logits.
        outputs: C; one for two classes.
        constants: (J, C) directions of the outputs along which there are constants.
        tolerance: relative error of alpha at which EM has settled.
        max_steps: EM steps at most; a ConvergenceWarning says if they were not enough.
    """
    objective = _Objective(data, columns, likelihood, outputs, constants)
    here = objective.at(torch.zeros(len(prior.group), dtype=torch.float64, device=prior.group.device))
    used: list[Tensor] = []
    updates: list[Tensor] = []
    steps, change, learns = 0, 1.0, bool(prior.learnt.any())
    while True:
        precision = prior.diagonal.double()
        here = _mode(objective, here, precision)
        root = _factor(here, precision)
        gamma = prior.group_sum((1 - precision * torch.cholesky_inverse(root).diagonal()).clamp(0, 1))
        if not learns or change <= _TIGHT * tolerance or steps >= max_steps:
            break
        updated = updated_precision(prior, gamma, here.theta)
        change = change_that_matters(prior.precision, updated, gamma)
        used, updates, steps = [*used[-1:], prior.precision], [*updates[-1:], updated], steps + 1
        proposed = torch.where(prior.learnt, accelerated(used, updates), prior.precision)
        prior = prior.with_precision(proposed)
    settled = not learns or change <= _SETTLED * tolerance
    if not settled:
        warn_unsettled(tolerance, steps, change)
    volume = 2 * float(root.diagonal().log().sum()) - float(precision.log().sum())
    evidence = -here.penalised(precision) - volume / 2
    return ClosedLaplace(here.theta, root, prior, gamma, evidence, steps, objective.passes, settled)


def _mode(objective: _Objective, here: _Point, precision: Tensor) -> _Point:
    """Newton's method with halving, mostly one reading of the rows a step; the first step costs none."""
    for _ in range(_NEWTON):
        value = here.penalised(precision)
        gradient = here.gradient + precision * here.theta
        step = torch.cholesky_solve(gradient[:, None], _factor(here, precision))[:, 0]
        decrement, length = float(gradient @ step), 1.0
        there = objective.at(here.theta - step)
        if decrement <= _MODE * max(abs(value), 1.0):  # the loss does not see so small a step, and it is quadratic
            return there
        while not there.penalised(precision) < value - 1e-4 * length * decrement:
            length /= 2
            if length < _SHORTEST:  # rounding hides what is left to gain
                return here
            there = objective.at(here.theta - length * step)
        here = there
    return here


def _factor(here: _Point, precision: Tensor) -> Tensor:
    """Cholesky's factor of H."""
    root, info = torch.linalg.cholesky_ex(here.hessian + precision.diag())
    require(int(info) == 0, "a positive definite Hessian", "one that is not", "Try standardize=True.")
    factor: Tensor = root
    return factor
