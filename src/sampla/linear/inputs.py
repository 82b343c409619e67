"""Checks what is passed to fit and predict, with scikit-learn's own functions, and makes sources of rows."""

from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_array, check_consistent_length, validate_data
from torch import Tensor

from sampla.core.checks import require
from sampla.distributed import refuse_parts
from sampla.linear.dask_parts import frame_of, is_dask
from sampla.linear.dask_source import DaskSource
from sampla.linear.sources import ChunkSource, Source, as_matrix, as_scipy, as_tensor, open_source

_OPEN = (
    "Open it and give what that returns: dask.dataframe.read_parquet(path), dask.array.from_zarr(path), or "
    'np.load(path, mmap_mode="r").'
)


def is_chunks(rows: Any, targets: Any) -> bool:
    """Whether fit was given one re-iterable of (X, Y) chunks instead of X and y."""
    if targets is not None or hasattr(rows, "shape") or isinstance(rows, (str, Mapping)):
        return False
    if not isinstance(rows, Iterable):
        return False
    return not isinstance(rows, list) or (len(rows) > 0 and isinstance(rows[0], tuple))


def chunk_source(estimator: BaseEstimator, chunks: Iterable[Any], weights: Any) -> ChunkSource:
    """The source of a re-iterable of chunks."""
    require(weights is None, "sample weights inside the chunks", "a separate sample_weight", "Give (X, Y, weights).")
    refuse_parts(chunks, "a linear model")
    source = ChunkSource(chunks)
    estimator.n_features_in_ = source.num_columns
    return source


def dask_source(
    estimator: BaseEstimator, rows: Any, targets: Any, weights: Any, convert: Callable[[Any], Tensor] = as_matrix
) -> DaskSource:
    """The source of rows that Dask holds; what can be seen without reading them is checked.

    Args:
        estimator: learns of the columns.
        rows: X, of Dask.
        targets: y, of Dask or an array.
        weights: the same; None: none.
        convert: a part's y as (n, C) numbers.
    """
    _require_targets(estimator, targets)
    require(rows.ndim == 2, "X of shape (N, D)", f"{rows.ndim} axes. Reshape your data", "Give 2-D data.")
    validate_data(estimator, frame_of(rows), reset=True, skip_check_array=True)
    return DaskSource(rows, targets, weights, convert)


def checked_rows(estimator: BaseEstimator, rows: Any, reset: bool) -> Any:
    """X as it is, checked as scikit-learn does; memmaps and torch tensors without reading them."""
    require(not isinstance(rows, (str, PathLike)), "rows", f"the path {str(rows)!r}", _OPEN)
    fix = "Give X.compute() if it is small; predict(X) with return_std takes Dask's part by part."
    require(not is_dask(rows), "rows in memory here", "Dask's", fix)
    rows = as_scipy(rows)
    if isinstance(rows, np.ma.MaskedArray):
        as_tensor(rows, "X")  # refuses masked entries, which scikit-learn's checks do not see
    if isinstance(rows, (Tensor, np.memmap)):
        shape = tuple(rows.shape)
        got = f"{shape}" if len(shape) != 1 else f"{shape}. Reshape your data with X.reshape(-1, 1) or X.reshape(1, -1)"
        require(len(shape) == 2 and 0 not in shape, "X of shape (n, D), n and D at least 1", got, "Give 2-D data.")
        validate_data(estimator, rows, reset=reset, skip_check_array=True)
        return rows
    return validate_data(estimator, rows, reset=reset, accept_sparse="csr", dtype="numeric")


def numeric_targets(estimator: BaseEstimator, targets: Any) -> Tensor:
    """y (n,) or (n, C) of numbers, finite; not copied where it need not be."""
    _require_targets(estimator, targets)
    if not isinstance(targets, (Tensor, np.ma.MaskedArray)):
        targets = check_array(targets, ensure_2d=False, dtype="numeric", input_name="y", ensure_all_finite=True)
    tensor = as_tensor(targets, "y")
    require(tensor.ndim in (1, 2), "y of shape (n,) or (n, C)", f"{tuple(tensor.shape)}", "Reshape it.")
    return tensor


def class_targets(estimator: BaseEstimator, targets: Any) -> np.ndarray:
    """y (n,) of class labels."""
    _require_targets(estimator, targets)
    labels: np.ndarray = column_or_1d(targets.cpu().numpy() if isinstance(targets, Tensor) else targets, warn=True)
    check_classification_targets(labels)
    return labels


def _require_targets(estimator: BaseEstimator, targets: Any) -> None:
    if targets is None:
        raise ValueError(
            f"This {type(estimator).__name__} estimator requires y to be passed, but the target y is None."
        )


def array_source(
    rows: Any, targets: Tensor | None = None, weights: Any = None, device: torch.device | None = None
) -> Source:
    """The source of X with (n, C) targets and weights that have been checked, on their device or the given one."""
    if targets is not None:
        check_consistent_length(rows, targets)
    weight = None
    if weights is not None:
        checked = _check_sample_weight(
            weights.cpu().numpy() if isinstance(weights, Tensor) else weights,
            np.empty((rows.shape[0], 1)), dtype=np.float64, ensure_non_negative=True,
        )  # fmt: skip
        weight = as_tensor(checked, "sample weights")
    return open_source(rows, targets, weight, device)


def seed_of(random_state: Any) -> int:
    """A seed for the library's own noise from scikit-learn's random_state."""
    return int(check_random_state(random_state).randint(2**31 - 1))
