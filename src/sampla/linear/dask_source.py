"""Rows that Dask holds: arrays in chunks and data frames in partitions, here called parts.

A pass is one graph: each part is read or made, what the pass asks of it is computed where it lies, and the answers are
joined in a tree. Only these come here.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, validate_data
from torch import Tensor

from sampla.core.checks import require
from sampla.linear.dask_parts import computed, frame_of, in_row_chunks, is_dask, lengths_of, parts_of, tree
from sampla.linear.sources import (
    REPEATED,
    ROUNDING,
    ArraySource,
    Chunk,
    ChunkSource,
    Found,
    Source,
    as_matrix,
    as_tensor,
    compute_dtype,
)


@dataclass(frozen=True)
class _Kind:
    """What all parts of a source have in common."""

    dtype: torch.dtype
    num_columns: int
    targets: Callable[[Any], Tensor]
    """Of a part's y: (n, C)."""


@dataclass(frozen=True)
class _Answer:
    """What a pass finds in some parts, and what tells whether they are the same ones on every pass."""

    found: Any
    rows: int
    total: float

    def joined(self, other: "_Answer", join: Callable[[Any, Any], Any]) -> "_Answer":
        known = [each.found for each in (self, other) if each.found is not None]
        found = join(*known) if len(known) == 2 else (known or [None])[0]
        return _Answer(found, self.rows + other.rows, self.total + other.total)


class DaskSource(Source):
    """A Dask array (N, D), dense or with SciPy's sparse matrices as chunks, or a data frame of numbers.

    Nothing is kept between passes: what is not persisted is read or made anew for each.

    Args:
        rows: X.
        targets: y (N,) or (N, C), of Dask or an array; None: none.
        weights: (N,) the same.
        convert: a part's y as (n, C) numbers; it must be possible to pickle it.

    Raises:
        ValueError: for shapes, columns in several chunks of unknown size, or parts that do not fit one another.
    """

    in_parts, device = True, torch.device("cpu")

    def __init__(
        self, rows: Any, targets: Any = None, weights: Any = None, convert: Callable[[Any], Tensor] = as_matrix
    ) -> None:
        shape = tuple(rows.shape)
        require(len(shape) == 2 and shape[1] != 0, "X of shape (N, D), D at least 1", f"{shape}", "Give 2-D data.")
        self.num_columns = int(shape[1])
        self._kind = _Kind(_dtype_of(rows), self.num_columns, convert)
        rows = in_row_chunks(rows)
        self._lengths = lengths_of(rows)
        self.num_rows: int = sum(self._lengths)
        targets = None if targets is None else self._beside(targets, "y")
        weights = None if weights is None else self._beside(weights, "sample_weight")
        parts, self._targets, self._weights = parts_of(rows, targets, weights)
        self._rows = parts or []
        self.dtype = self._kind.dtype
        self._seen: float | None = None

    def chunks(self, rows: int | None = None) -> Iterator[Chunk]:  # noqa: ARG002
        raise AssertionError(
            "rows that lie in parts are read there: reduced(), or gathered() where few of them are wanted"
        )

    def gathered(self) -> Source:
        every: list[Chunk] | None = self.reduced(_all_chunks, list.__add__)
        require(every is not None, "at least one row", "none", "Check where the parts come from.")
        return ChunkSource(every or [])

    def reduced(self, each: Callable[[Source], Found | None], join: Callable[[Found, Found], Found]) -> Found | None:
        from dask import delayed

        task, kind = delayed(each, traverse=False, pure=False), delayed(self._kind, traverse=False, pure=False)
        of_part, answers, start = delayed(_of_part, pure=False, traverse=False), [], 0
        nothing = [None] * len(self._rows)
        for number, length in enumerate(self._lengths):
            y, weights = (self._targets or nothing)[number], (self._weights or nothing)[number]
            answers.append(of_part(self._rows[number], y, weights, number, start, length, kind, task))
            start += length
        answer = computed(tree(answers, _Joined(join)))
        self._require_same(answer)
        found: Found | None = answer.found
        return found

    def _beside(self, given: Any, what: str) -> Any:
        """Y or the weights, cut as X is."""
        import dask.array as da

        lengths = self._lengths
        if not is_dask(given):
            given = as_tensor(given, what).cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
            self._require_length(len(given), what)
            given = da.from_array(given, chunks=(lengths, *given.shape[1:])).persist()
        require(given.ndim in (1, 2), f"{what} of shape (N,) or (N, C)", f"{given.ndim} axes", "Reshape it.")
        if isinstance(given, da.Array) and not any(isnan(length) for length in given.chunks[0]):
            self._require_length(given.shape[0], what)
            given = in_row_chunks(given).rechunk({0: lengths})
        own = lengths_of(given)
        self._require_length(sum(own), what)
        return given if own == lengths else _known(given, own).rechunk({0: lengths})

    def _require_length(self, got: int, what: str) -> None:
        require(
            got == self.num_rows, f"{self.num_rows:,} rows in {what}, as X has", f"{got:,}", "Give one for each row."
        )

    def _require_same(self, answer: _Answer) -> None:
        if self._seen is None:
            self._seen = answer.total
        same = abs(answer.total - self._seen) <= ROUNDING * abs(self._seen) or answer.total != answer.total
        got = f"rows that sum to {answer.total:g} instead of {self._seen:g}"
        require(same, f"the same {self.num_rows:,} rows on every pass over the parts", got, REPEATED)


@dataclass(frozen=True)
class _Joined:
    """Joins the answers of parts that follow one another."""

    join: Callable[[Any, Any], Any]

    def __call__(self, answers: Sequence[_Answer]) -> _Answer:
        first, *others = answers
        for other in others:
            first = first.joined(other, self.join)
        return first


def _of_part(
    rows: Any, targets: Any, weights: Any, number: int, start: int, length: int, kind: _Kind,
    each: Callable[[Source], Any],
) -> _Answer:  # fmt: skip
    """What a pass finds in one part, where it lies."""
    try:
        source = _opened(rows, targets, weights, length, kind)
        if source is None:
            return _Answer(None, 0, 0.0)
        source.start = start
        total = sum(float(x.sum()) + (0.0 if y is None else float(y.double().sum())) for x, y, _ in source.chunks())
        return _Answer(each(source), length, total)
    except ValueError as error:
        raise ValueError(f"part {number} of X (rows from {start:,}): {error}") from error


def _opened(rows: Any, targets: Any, weights: Any, length: int, kind: _Kind) -> ArraySource | None:
    rows = _as_array(rows)
    fix = "Parts must be the same on every pass, with all columns."
    require(rows.shape == (length, kind.num_columns), f"shape ({length}, {kind.num_columns})", f"{rows.shape}", fix)
    if length == 0:
        return None
    y = None if targets is None else kind.targets(_values(targets))
    weight = None if weights is None else as_matrix(_values(weights))[:, 0]
    for given, what in ((y, "targets"), (weight, "weights")):
        require(given is None or len(given) == length, f"{length} {what}", f"{given is not None and len(given)}", fix)
    source = ArraySource(rows, y, weight)
    source.dtype = kind.dtype
    return source


def _as_array(rows: Any) -> Any:
    """A part of X as NumPy or SciPy have it; frames as scikit-learn reads them."""
    if isinstance(rows, np.ndarray) or sparse.issparse(rows):
        return rows
    return check_array(
        rows, accept_sparse="csr", dtype="numeric", ensure_all_finite=False, ensure_min_samples=0, input_name="X"
    )


def _values(targets: Any) -> np.ndarray:
    """A part of y or of the weights as an array."""
    if isinstance(targets, np.ndarray):
        return targets
    values: np.ndarray = check_array(
        targets, dtype=None, ensure_2d=False, ensure_all_finite=False, ensure_min_samples=0, input_name="y"
    )
    return values


def _all_chunks(source: Source) -> list[Chunk]:
    return list(source.chunks())


def _dtype_of(rows: Any) -> torch.dtype:
    """The type of the products, by what Dask says of the columns."""
    meta = getattr(rows, "_meta_nonempty", None)
    return compute_dtype(rows.dtype if meta is None else _as_array(meta).dtype)


def labels_of(targets: Any) -> np.ndarray:
    """The sorted labels in y, of Dask.

    Raises:
        ValueError: for what are no labels (n,) of classes.
    """
    from dask import delayed

    require(targets.ndim == 1, "labels (n,)", f"{targets.ndim} axes", "Give one label for each row.")
    own = delayed(_labels, pure=False)
    labels: np.ndarray = computed(tree([own(part) for part in parts_of(targets)[0] or []], _union))
    return labels


@dataclass(frozen=True)
class CodesOf:
    """Labels (n,) as numbers of their classes, (n, 1) float64."""

    classes: np.ndarray
    """(C,) sorted."""

    def __call__(self, labels: Any) -> Tensor:
        return torch.from_numpy(np.searchsorted(self.classes, labels).astype(np.float64))[:, None]


def _labels(part: Any) -> np.ndarray:
    values = _values(part)
    if len(values):
        check_classification_targets(values)
    return np.unique(values)


def _union(labels: Sequence[np.ndarray]) -> np.ndarray:
    known = [each for each in labels if len(each)] or labels[:1]
    return np.unique(np.concatenate(known))


def _known(given: Any, lengths: tuple[int, ...]) -> Any:
    """A Dask array of what has parts of these lengths: Dask reads small files of few columns together, say."""
    import dask.array as da
    from dask import delayed

    if isinstance(given, da.Array):
        return da.Array(given.dask, given.name, (lengths, *given.chunks[1:]), given.dtype)
    (parts,), like, numbers = parts_of(given), np.asarray(given._meta), delayed(np.asarray, pure=False)
    shapes = [(length, *like.shape[1:]) for length in lengths]
    return da.concatenate(
        [da.from_delayed(numbers(part), shape, like.dtype) for part, shape in zip(parts or [], shapes, strict=True)]
    )


def predicted_by_part(estimator: Any, method: str, rows: Any, **settings: Any) -> Any:
    """What an estimator's method says of each part of Dask's rows: Dask arrays, nothing of which is computed yet.

    Args:
        estimator: that has been fitted; it is copied, and the copy sent to the parts.
        method: its name.
        rows: X, of Dask.
        settings: of the method.
    """
    import dask.array as da
    from dask import delayed

    validate_data(estimator, frame_of(rows), reset=False, skip_check_array=True)
    few = rows._meta_nonempty if hasattr(rows, "to_dask_array") else np.zeros((1, rows.shape[1]), rows.dtype)
    like = getattr(estimator, method)(few, **settings)
    call = delayed(_predicted, pure=False, traverse=False)
    there = delayed(copy(estimator), traverse=False, pure=False)
    parts = [call(there, method, part, settings, like) for part in parts_of(in_row_chunks(rows))[0] or []]
    known = rows.chunks[0] if isinstance(rows, da.Array) else [float("nan")] * len(parts)

    def whole(place: int | None) -> Any:
        kind = like if place is None else like[place]
        each = parts if place is None else [part[place] for part in parts]
        shapes = [(length, *kind.shape[1:]) for length in known]
        return da.concatenate(
            [da.from_delayed(part, shape, kind.dtype) for part, shape in zip(each, shapes, strict=True)]
        )

    return tuple(whole(place) for place in range(len(like))) if isinstance(like, tuple) else whole(None)


def _predicted(estimator: Any, method: str, rows: Any, settings: dict[str, Any], like: Any) -> Any:
    """Of one part, which may be empty."""
    if len(rows):
        return getattr(estimator, method)(rows, **settings)
    return tuple(each[:0] for each in like) if isinstance(like, tuple) else like[:0]
