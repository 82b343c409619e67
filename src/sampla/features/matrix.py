"""A design matrix: the linear model of the textbooks."""

import torch
from torch import Tensor

from sampla._checks import require
from sampla._params import ParameterLayout
from sampla._typing import Inputs
from sampla.features._base import Features, Linearisation


class DesignMatrix(Features):
    """phi(x) = I_C kron x' for rows x of a design matrix: outputs x @ theta with theta of shape (D, C).

    Args:
        num_features: D, the number of columns of the design matrix.
        num_outputs: C; P = D * C.
        dtype: of the products.
        coefficients: (D, C) at which a non-Gaussian likelihood's curvature is taken; zeros when None.

    Raises:
        ValueError: if a batch has not D columns.
    """

    def __init__(
        self,
        num_features: int,
        num_outputs: int = 1,
        dtype: torch.dtype = torch.float64,
        coefficients: Tensor | None = None,
    ) -> None:
        self.layout = ParameterLayout(("coefficients",), ((num_features, num_outputs),))
        self.like = torch.empty(0, dtype=dtype)
        self._at = torch.zeros(num_features, num_outputs, dtype=dtype) if coefficients is None else coefficients

    def linearise(self, inputs: Inputs) -> Linearisation:
        rows = self.layout.shapes[0][0]
        ok = isinstance(inputs, Tensor) and inputs.ndim == 2 and inputs.shape[1] == rows
        got = str(tuple(inputs.shape)) if isinstance(inputs, Tensor) else type(inputs).__name__
        require(ok, f"a design matrix of shape (n, {rows})", got, "Give one row per datum.")
        assert isinstance(inputs, Tensor)
        return _Rows(inputs.to(self.like), self._at)


class _Rows(Linearisation):
    def __init__(self, rows: Tensor, at: Tensor) -> None:
        self._rows, self._at = rows, at

    @property
    def outputs(self) -> Tensor:
        return self._rows @ self._at

    def jvp(self, vectors: Tensor) -> Tensor:
        return self._rows @ vectors.view(-1, *self._at.shape)

    def vjp(self, cotangents: Tensor) -> Tensor:
        return (self._rows.mT @ cotangents).flatten(1)
