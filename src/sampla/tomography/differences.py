"""A Gaussian prior on the differences of neighbouring pixels, and the linear model that it makes of a scan.

    x ~ N(0, Q^-1),   Q = D' diag(q) D + delta I,   y = T x + noise,

with D the differences to the neighbours below and to the right (``gradient``) and a precision q for each of them;
delta, far below what any scan tells, makes Q invertible. Q is sparse and factorised once, Q = P' L diag(d) L' P, so
that x = B u with B = P' L'^-1 diag(d)^-1/2 and white u: features T B of as many parameters as pixels, with prior
N(0, I).
"""

import numpy as np
import torch
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import splu
from torch import Tensor

from sampla.core.checks import require
from sampla.core.inputs import input_tensors
from sampla.core.params import ParameterLayout
from sampla.core.typing import Inputs
from sampla.features import Features, Linearisation
from sampla.tomography.operators import Operator


class DifferencePrior:
    """Q^-1/2 and its transpose, in float64 on the CPU, where the sparse factor lives.

    Args:
        precision: (2, H, W) q of the differences, as ``gradient`` lays them out; those of the last row and column,
            which are no differences, do not count.
        anchor: delta.
    """

    def __init__(self, precision: Tensor, anchor: float) -> None:
        self.image_shape = tuple(precision.shape[1:])
        self._precision = _precision_matrix(precision.double().cpu().numpy(), anchor)
        factor = splu(
            self._precision, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
        )
        assert (factor.perm_r == factor.perm_c).all(), "a positive definite matrix needs no pivots"
        self._order = factor.perm_r
        # SuperLU solves with L and with L' alone when its factor is the identity times L
        self._lower = splu(factor.L, permc_spec="NATURAL", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
        self._root = np.sqrt(factor.U.diagonal())

    def precision_product(self, images: Tensor) -> Tensor:
        """Q x: (K, H, W) -> (K, H, W)."""
        rows = images.double().cpu().flatten(1).numpy()
        return torch.from_numpy(np.ascontiguousarray((self._precision @ rows.T).T)).view(images.shape)

    def root_product(self, white: Tensor) -> Tensor:
        """B u: (K, H W) -> (K, H, W)."""
        columns = (white.double().cpu().numpy() / self._root).T
        solved = self._lower.solve(np.asfortranarray(columns), trans="T")
        return torch.from_numpy(np.ascontiguousarray(solved[self._order].T)).view(-1, *self.image_shape)

    def root_transpose_product(self, images: Tensor) -> Tensor:
        """B' x: (K, H, W) -> (K, H W)."""
        rows = images.double().cpu().flatten(1).numpy()
        columns = np.empty(rows.shape[::-1], order="F")
        columns[self._order] = rows.T
        return torch.from_numpy(np.ascontiguousarray(self._lower.solve(columns).T / self._root))


def _precision_matrix(precision: np.ndarray, anchor: float) -> csc_matrix:
    """Q."""
    _, height, width = precision.shape
    number = np.arange(height * width).reshape(height, width)
    ends = np.r_[number[:-1].ravel(), number[:, :-1].ravel()], np.r_[number[1:].ravel(), number[:, 1:].ravel()]
    weight = np.r_[precision[0, :-1].ravel(), precision[1, :, :-1].ravel()]
    diagonal = np.full(number.size, anchor)
    for end in ends:
        np.add.at(diagonal, end, weight)
    between = csc_matrix((-weight, ends), shape=(number.size, number.size))
    pixels = number.ravel()
    return csc_matrix(between + between.T + csc_matrix((diagonal, (pixels, pixels))))


class DifferenceFeatures(Features):
    """phi = T B: m measurements of an image with prior N(0, Q^-1), one datum; float64.

    Args:
        operator: T, in float64.
        prior: B.
    """

    def __init__(self, operator: Operator, prior: DifferencePrior) -> None:
        height, width = operator.image_shape
        self.layout = ParameterLayout(("pixels",), ((height, width),))
        self.like, self.prior = torch.empty(0, dtype=torch.float64), prior
        self._operator = operator

    @property
    def rounding(self) -> float:
        return max(super().rounding, self._operator.rounding)

    def linearise(self, inputs: Inputs) -> Linearisation:
        (given,) = input_tensors(inputs)
        require(len(given) == 1, "one datum, the scan", f"{len(given)}", "Pass a batch of one.")
        return _Measured(self)

    def jvp(self, vectors: Tensor) -> Tensor:
        """T B u: (K, H W) -> (K, 1, m)."""
        images = self.prior.root_product(vectors).to(self._operator.like.device)
        return self._operator.forward(images).to(self.like.device).unsqueeze(1)

    def vjp(self, cotangents: Tensor) -> Tensor:
        """B' T' v: (K, 1, m) -> (K, H W)."""
        return self.prior.root_transpose_product(self._operator.adjoint(cotangents[:, 0].to(self._operator.like)))

    @property
    def num_measurements(self) -> int:
        """m."""
        return self._operator.num_measurements


class _Measured(Linearisation):
    def __init__(self, features: DifferenceFeatures) -> None:
        self._features = features

    @property
    def outputs(self) -> Tensor:
        return self._features.like.new_zeros(1, self._features.num_measurements)

    def jvp(self, vectors: Tensor) -> Tensor:
        return self._features.jvp(vectors)

    def vjp(self, cotangents: Tensor) -> Tensor:
        return self._features.vjp(cotangents)
