"""The linear map T from an image to measurements, with its exact adjoint: a sparse matrix, or a pair of functions."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias
from warnings import catch_warnings, simplefilter

import numpy as np
import torch
from scipy.sparse import csr_array, csr_matrix, issparse
from torch import Tensor

from sampla.core.checks import require, require_finite
from sampla.core.noise import ADJOINT, standard_normal

ImageMap: TypeAlias = Callable[[Tensor], Tensor]


class Operator(ABC):
    """T for images (H, W) and m measurements, on stacks of K at once."""

    image_shape: tuple[int, int]
    num_measurements: int
    """m."""
    like: Tensor
    """An empty tensor with the dtype and device of the products."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """T x: (K, H, W) -> (K, m)."""

    @abstractmethod
    def adjoint(self, measurements: Tensor) -> Tensor:
        """T' u: (K, m) -> (K, H, W)."""

    def widened(self) -> "Operator":
        """The same T for vectors in float64; in float64 itself where its numbers are at hand."""
        return self if self.like.dtype == torch.float64 else _Widened(self)

    @property
    def rounding(self) -> float:
        """Relative rounding error of the products."""
        return float(torch.finfo(self.like.dtype).eps)

    def __call__(self, images: Tensor) -> Tensor:
        """T x, differentiable: autograd goes through ``adjoint``."""
        measured: Tensor = _Differentiable.apply(images, self)
        return measured


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, operator: Operator) -> Tensor:
        ctx.operator = operator
        return operator.forward(images)

    @staticmethod
    def backward(ctx: Any, cotangents: Tensor) -> tuple[Tensor, None]:
        return ctx.operator.adjoint(cotangents), None


class _Widened(Operator):
    """Takes and gives float64, and computes as coarsely as before."""

    def __init__(self, base: Operator) -> None:
        self.image_shape, self.num_measurements, self.like = base.image_shape, base.num_measurements, base.like.double()
        self._base = base

    def forward(self, images: Tensor) -> Tensor:
        return self._base.forward(images.to(self._base.like)).double()

    def adjoint(self, measurements: Tensor) -> Tensor:
        return self._base.adjoint(measurements.to(self._base.like)).double()

    @property
    def rounding(self) -> float:
        return self._base.rounding


class MatrixOperator(Operator):
    """A sparse matrix (m, H W), kept as CSR together with its transpose as CSR: both products run along rows.

    Args:
        matrix: SciPy sparse (any format), or torch sparse or dense.
        image_shape: (H, W).
        dtype: of the products.
        device: where they run.

    Raises:
        ValueError: if the matrix has not H W columns, no row, or entries that are not finite.
    """

    def __init__(
        self,
        matrix: Any,
        image_shape: tuple[int, int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        rows = _as_csr(matrix)
        pixels = image_shape[0] * image_shape[1]
        require(
            rows.shape[1] == pixels and rows.shape[0] > 0,
            f"a matrix with a column for each of {image_shape[0]} x {image_shape[1]} = {pixels} pixels",
            f"shape {rows.shape}",
            "Flatten the image row by row.",
        )
        require_finite(torch.from_numpy(rows.data), "entries of the operator", "Check the geometry.")
        self.image_shape, self.num_measurements = image_shape, rows.shape[0]
        self.like = torch.empty(0, dtype=dtype, device=device)
        self.scipy = rows
        self._matrix = _as_torch(rows, self.like)
        self._transpose = _as_torch(csr_array(rows.T), self.like)

    def forward(self, images: Tensor) -> Tensor:
        return (self._matrix @ images.flatten(1).mT.contiguous()).mT.contiguous()

    def adjoint(self, measurements: Tensor) -> Tensor:
        pulled = self._transpose @ measurements.mT.contiguous()
        return pulled.mT.reshape(-1, *self.image_shape)

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> "MatrixOperator":
        """The same operator in another dtype or on another device."""
        return MatrixOperator(self.scipy, self.image_shape, dtype, device)

    def only(self, kept: Tensor) -> "MatrixOperator":
        """The rows of some measurements: (m,) booleans."""
        rows = csr_array(self.scipy[kept.flatten().cpu().numpy()])
        return MatrixOperator(rows, self.image_shape, self.like.dtype, self.like.device)

    def widened(self) -> "Operator":
        return self if self.like.dtype == torch.float64 else self.to(torch.float64, self.like.device)

    @property
    def bytes(self) -> int:
        """Memory of the two CSR matrices: a value and a column index for each entry, twice."""
        return 2 * int(self.scipy.nnz) * (self.like.element_size() + 8)


def _as_csr(matrix: Any) -> csr_array:
    if isinstance(matrix, Tensor):
        coordinates = matrix.to_sparse_coo().coalesce().cpu()
        rows, columns = coordinates.indices().numpy()
        found = csr_array((coordinates.values().numpy(), (rows, columns)), shape=tuple(matrix.shape))
    elif issparse(matrix):
        found = csr_array(matrix, copy=True)
    else:
        raise TypeError(
            f"expected a SciPy or torch matrix as operator, got {type(matrix).__name__}. "
            "For a pair of functions use FunctionOperator."
        )
    found.sum_duplicates()  # sorts as well, which torch asks for
    return found


def _as_torch(rows: csr_array | csr_matrix, like: Tensor) -> Tensor:
    indptr, indices = (torch.from_numpy(a.astype(np.int64)) for a in (rows.indptr, rows.indices))
    values = torch.from_numpy(np.asarray(rows.data)).to(like)
    device = like.device
    with catch_warnings():  # torch says on first use that sparse CSR is in beta
        simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(indptr.to(device), indices.to(device), values, rows.shape, check_invariants=True)


class FunctionOperator(Operator):
    """Any pair of functions, (K, H, W) -> (K, m) and back, tested for being adjoint to each other when it is made.

    Raises:
        ValueError: if they are not adjoint, or give other shapes.
    """

    def __init__(
        self, forward: ImageMap, adjoint: ImageMap, image_shape: tuple[int, int], num_measurements: int, like: Tensor
    ) -> None:
        """Args: forward, adjoint: T and T'. image_shape: (H, W). num_measurements: m. like: dtype and device."""
        self._forward, self._adjoint = forward, adjoint
        self.image_shape, self.num_measurements, self.like = image_shape, num_measurements, like.new_empty(0)
        check_operator(self)

    def forward(self, images: Tensor) -> Tensor:
        return self._forward(images)

    def adjoint(self, measurements: Tensor) -> Tensor:
        return self._adjoint(measurements)


class Whitened(Operator):
    """diag(1 / std) T: measurements in units of their own noise, so that one precision serves all of them.

    Args:
        base: T.
        std: (m,) standard deviation of each measurement, up to a common factor if that is to be learnt.

    Raises:
        ValueError: if the deviations do not fit, or are not positive and finite.
    """

    def __init__(self, base: Operator, std: Tensor) -> None:
        count = base.num_measurements
        fits = tuple(std.shape) == (count,)
        fix = "Give one for each measurement, row by row."
        require(fits, f"{count} standard deviations", f"shape {tuple(std.shape)}", fix)
        require_finite(std, "standard deviations", "Leave out bins without a measurement, or give them a large one.")
        require(float(std.min()) > 0, "positive standard deviations", f"{float(std.min()):g}", "A variance is no 0.")
        self.image_shape, self.num_measurements, self.like = base.image_shape, count, base.like
        self._base, self.std, self._weight = base, std, std.to(base.like).reciprocal()

    def widened(self) -> "Operator":
        return self if self.like.dtype == torch.float64 else Whitened(self._base.widened(), self.std)

    @property
    def rounding(self) -> float:
        return self._base.rounding

    def forward(self, images: Tensor) -> Tensor:
        return self._base.forward(images) * self._weight

    def adjoint(self, measurements: Tensor) -> Tensor:
        return self._base.adjoint(measurements * self._weight)


def operator_adjoint_error(operator: Operator, seed: int = 0) -> float:
    """|<T x, u> - <x, T' u>| / (|T x| |u| + |x| |T' u|) for one random pair: about rounding if all is well.

    Raises:
        ValueError: if a product has another shape than it should.
    """
    pixels = operator.image_shape[0] * operator.image_shape[1]
    x = standard_normal(seed, ADJOINT, range(1), 0, operator.image_shape, operator.like)
    u = standard_normal(seed, ADJOINT, range(1), pixels, (operator.num_measurements,), operator.like)
    pushed, pulled = operator.forward(x), operator.adjoint(u)
    for name, found, wanted in (("forward", pushed, u), ("adjoint", pulled, x)):
        got, fix = f"{tuple(found.shape)}", "The first axis counts images."
        require(found.shape == wanted.shape, f"{tuple(wanted.shape)} from {name} of the operator", got, fix)
    x, u, pushed, pulled = (t.double() for t in (x, u, pushed, pulled))
    size = pushed.norm() * u.norm() + x.norm() * pulled.norm()
    return float(((pushed * u).sum() - (x * pulled).sum()).abs() / size) if size > 0 else 0.0


def check_operator(operator: Operator) -> float:
    """Refuse an operator whose two products are not adjoint; returns the relative error found.

    Raises:
        ValueError: if the error is larger than rounding explains.
    """
    error, dtype = operator_adjoint_error(operator), operator.like.dtype
    bound = 100 * torch.finfo(dtype).eps
    require(
        error <= bound,
        f"<T x, u> = <x, T' u> up to rounding ({bound:.0e} relative in {dtype})",
        f"a relative difference of {error:.1e}",
        "The adjoint must be the transpose of the forward map itself, no filtered or interpolated back-projection.",
    )
    return error
