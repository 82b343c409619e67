"""A design matrix: the linear model of the textbooks, its columns centred and scaled without touching them."""

from typing import Any, TypeAlias

import torch
from scipy.sparse import csr_array, csr_matrix
from torch import Tensor

from sampla.core.checks import require
from sampla.core.params import ParameterLayout
from sampla.core.typing import Inputs
from sampla.features._base import Features, Linearisation

Rows: TypeAlias = Tensor | csr_array | csr_matrix
"""Some rows of a design matrix: dense (n, D), or sparse by rows."""


class DesignMatrix(Features):
    """phi(x) = I_C kron x' for rows x of a design matrix: outputs x @ theta with theta of shape (D, C).

    With ``centre`` c and ``scale`` s the row is (x - c) / s, and with ``constants`` a 1 stands behind it; all are
    applied to the products, so that a sparse matrix stays sparse and nothing is copied.

    Args:
        num_features: D, the number of columns of the design matrix.
        num_outputs: C; P = D * C, and J more with constants.
        dtype: of the products.
        coefficients: (D, C), or (P,) with constants, at which a non-Gaussian likelihood's curvature is taken; zeros
            when None.
        centre: (D,) subtracted from each row, which takes an intercept out of the model: it absorbs one datum's
            worth of each output. Centre the targets too.
        scale: (D,) each column is divided by.
        constants: (J, C) directions in the outputs along which they have constants, J parameters "intercept": the
            identity for one each; for a softmax contrasts, since it does not see all outputs go up together.
        device: of the products.

    Raises:
        ValueError: if a batch has not D columns.
    """

    squares_data = True

    def __init__(
        self,
        num_features: int,
        num_outputs: int = 1,
        dtype: torch.dtype = torch.float64,
        coefficients: Tensor | None = None,
        *,
        centre: Tensor | None = None,
        scale: Tensor | None = None,
        constants: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        names, shapes = ("coefficients",), ((num_features, num_outputs),)
        self.layout = (
            ParameterLayout(names, shapes)
            if constants is None
            else ParameterLayout((*names, "intercept"), (*shapes, (len(constants),)))
        )
        self.like = torch.empty(0, dtype=dtype, device=device)
        self.shape = (num_features, num_outputs)
        self.coefficients = coefficients
        self.centre = None if centre is None else centre.to(self.like)
        self.inverse_scale = None if scale is None else scale.to(self.like).reciprocal()
        self.constants = None if constants is None else constants.to(self.like)
        self.absorbed = 0 if centre is None or constants is not None else num_outputs

    def linearise(self, inputs: Inputs | tuple[Rows]) -> Linearisation:
        rows = inputs[0] if isinstance(inputs, tuple) and len(inputs) == 1 else inputs
        return _Rows(_checked(rows, self.shape[0]), self)


def _checked(inputs: Any, columns: int) -> Rows:
    kind = isinstance(inputs, (Tensor, csr_array, csr_matrix))
    ok = kind and inputs.ndim == 2 and inputs.shape[1] == columns
    got = str(tuple(inputs.shape)) if kind else type(inputs).__name__
    require(ok, f"a design matrix of shape (n, {columns})", got, "Give one row per datum.")
    rows: Rows = inputs
    return rows


class _Rows(Linearisation):
    def __init__(self, rows: Rows, design: DesignMatrix) -> None:
        self._rows = rows.to(design.like) if isinstance(rows, Tensor) else rows
        self._design = design

    @property
    def outputs(self) -> Tensor:
        at, like = self._design.coefficients, self._design.like
        if at is None:
            return like.new_zeros(self._rows.shape[0], self._design.shape[1])
        return self.jvp(at.to(like).reshape(1, -1))[0]

    def jvp(self, vectors: Tensor) -> Tensor:
        features, outputs = self._design.shape
        weights = vectors[:, : features * outputs].view(-1, features, outputs)
        if self._design.inverse_scale is not None:
            weights = weights * self._design.inverse_scale[:, None]
        flat = weights.movedim(0, 1).reshape(features, -1)  # (D, K C)
        pushed = self._forward(flat) - self._shift(flat)
        pushed = pushed.view(-1, len(vectors), outputs).movedim(1, 0)
        if self._design.constants is not None:
            pushed = pushed + (vectors[:, features * outputs :] @ self._design.constants)[:, None]
        return pushed

    def vjp(self, cotangents: Tensor) -> Tensor:
        design, count = self._design, len(cotangents)
        flat = cotangents.movedim(0, 1).reshape(cotangents.shape[1], -1)  # (n, K C)
        pulled = self._backward(flat)
        if design.centre is not None:
            pulled = pulled - design.centre[:, None] * flat.sum(0)
        if design.inverse_scale is not None:
            pulled = pulled * design.inverse_scale[:, None]
        pulled = pulled.view(design.shape[0], count, design.shape[1]).movedim(1, 0).reshape(count, -1)
        if design.constants is None:
            return pulled
        return torch.cat([pulled, cotangents.sum(1) @ design.constants.mT], dim=1)

    def squared_vjp(self, cotangents: Tensor) -> Tensor:
        """sum_n (x_nd - c_d)^2 u_nc^2 / s_d^2 from the moments of u^2, the mean over K."""
        design, squares = self._design, cotangents.square().mean(0)  # (n, C)
        pulled = self._backward(squares, square=True)
        if design.centre is not None:
            centre = design.centre[:, None]
            pulled = pulled - 2 * centre * self._backward(squares) + centre.square() * squares.sum(0)
        if design.inverse_scale is not None:
            pulled = pulled * design.inverse_scale[:, None].square()
        if design.constants is None:
            return pulled.clamp_min(0).flatten()
        along = (cotangents @ design.constants.mT).square().mean(0).sum(0)
        return torch.cat([pulled.clamp_min(0).flatten(), along])

    def _shift(self, weights: Tensor) -> Tensor | float:
        centre = self._design.centre
        return 0.0 if centre is None else centre @ weights

    def _forward(self, weights: Tensor) -> Tensor:
        if isinstance(self._rows, Tensor):
            return self._rows @ weights
        return torch.from_numpy(self._rows @ weights.numpy())

    def _backward(self, cotangents: Tensor, square: bool = False) -> Tensor:
        if isinstance(self._rows, Tensor):
            return (self._rows.square() if square else self._rows).mT @ cotangents
        rows = self._rows.power(2) if square else self._rows
        return torch.from_numpy(rows.T @ cotangents.numpy())
