"""The posterior over the coefficients of standardised columns: in closed form from a spectrum, or as K samples."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sampla.core.checks import require
from sampla.core.noise import PRIOR, standard_normal
from sampla.features import DesignMatrix, Rows
from sampla.linear.closed_form import ExactFit, dense, standardised
from sampla.linear.columns import Columns


class CoefficientPosterior(ABC):
    """N(mean, Sigma) over (D, C) coefficients; rows (n, D) are as the user gives them."""

    @abstractmethod
    def variance(self, rows: Rows) -> Tensor:
        """(n, C) variance of x' theta, without noise, float64."""

    @abstractmethod
    def covariance(self, rows: Rows) -> Tensor:
        """(n, n, C) covariance between the rows, output by output, without noise."""

    @abstractmethod
    def draw(self, count: int, seed: int) -> Tensor:
        """(count, D, C) draws of the coefficients minus their mean.

        Raises:
            ValueError: for more draws than there are.
        """


@dataclass(frozen=True)
class ClosedForm(CoefficientPosterior):
    """Sigma = A^(-1/2) (I - V' diag(1 - shrinkage) V) A^(-1/2), for each output in the noise's axes."""

    fit: ExactFit
    columns: Columns

    def variance(self, rows: Rows) -> Tensor:
        scaled = self._scaled(rows)
        inside = scaled @ self.fit.spectrum.basis.mT
        outside = (scaled.square().sum(1) - inside.square().sum(1)).clamp_min(0)
        if not self._incomplete:
            outside = torch.zeros_like(outside)
        axes = outside[:, None] + inside.square() @ self.fit.shrinkage
        turn = self.fit.hyperparameters.axes
        return axes if turn is None else axes @ turn.square().mT

    def covariance(self, rows: Rows) -> Tensor:
        scaled = self._scaled(rows)
        inside = scaled @ self.fit.spectrum.basis.mT
        lost = scaled @ scaled.mT - inside @ inside.mT
        if not self._incomplete:
            lost = torch.zeros_like(lost)
        axes = lost[:, :, None] + torch.einsum("nr,rc,mr->nmc", inside, self.fit.shrinkage, inside)
        turn = self.fit.hyperparameters.axes
        return axes if turn is None else axes @ turn.square().mT

    def draw(self, count: int, seed: int) -> Tensor:
        basis, turn = self.fit.spectrum.basis, self.fit.hyperparameters.axes
        shape = (basis.shape[1], len(self.fit.hyperparameters.variances))
        change = self.fit.shrinkage.sqrt() - 1  # (r, C)
        draws = []
        for xi in standard_normal(seed, PRIOR, range(count), 0, shape, basis):
            axes = xi + basis.mT @ (change * (basis @ xi))
            draws.append(self.fit.prior_scale[:, None] * (axes if turn is None else axes @ turn.mT))
        return torch.stack(draws)

    @property
    def _incomplete(self) -> bool:
        """Whether there are directions that the data do not reach."""
        return self.fit.spectrum.basis.shape[0] < self.fit.spectrum.basis.shape[1]

    def _scaled(self, rows: Rows) -> Tensor:
        return standardised(dense(rows), self.columns) * self.fit.prior_scale


@dataclass(frozen=True)
class Sampled(CoefficientPosterior):
    """K zero-mean samples; a standard deviation is known to about 1 / sqrt(2 K) of itself."""

    samples: Tensor
    """(K, D, C)."""
    design: DesignMatrix

    def variance(self, rows: Rows) -> Tensor:
        return self._pushed(rows).square().mean(0)

    def covariance(self, rows: Rows) -> Tensor:
        pushed = self._pushed(rows)
        return torch.einsum("knc,kmc->nmc", pushed, pushed) / len(pushed)

    def draw(self, count: int, seed: int) -> Tensor:
        require(
            count <= len(self.samples),
            f"at most num_samples = {len(self.samples)} joint draws from a posterior held as samples",
            f"{count}",
            "Fit with a larger num_samples, or with solver='exact' if there are few columns or rows.",
        )
        return self.samples[np.random.default_rng(seed).permutation(len(self.samples))[:count]].double()

    def _pushed(self, rows: Rows) -> Tensor:
        return self.design.linearise((rows,)).jvp(self.samples.flatten(1)).double()
