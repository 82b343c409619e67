"""Sources of rows: (X, y) of any kind, read in chunks and never copied as a whole.

A chunk is (rows, targets, weights): rows dense (n, D) or sparse by rows, targets (n, C) or None, weights (n,) or None,
in one floating-point dtype and on one device.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from mmap import mmap
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from weakref import finalize

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from sampla.core.checks import require
from sampla.core.inputs import as_tensor as dense_tensor
from sampla.core.interrupts import Interruptible, raise_deferred
from sampla.features import Rows

Chunk: TypeAlias = tuple[Rows, Tensor | None, Tensor | None]
Found = TypeVar("Found")

_ENTRIES = 2**22
"""Stored entries of a chunk: 32 MiB in float64."""
ROUNDING = 1e-6
"""Relative difference of the sum of all entries that another order of the chunks explains."""
REPEATED = "A posterior is about fixed data: no augmentation, no subsampling, no generator."
_MAPS = Path("/proc/self/maps")
"""Linux's list of what is mapped into memory, with device and inode of each file."""


class Source(ABC):
    """Rows that can be read many times."""

    dtype: torch.dtype
    device: torch.device
    num_columns: int
    num_rows: int | None
    """None if only a pass can tell."""
    in_parts = False
    """Whether the rows lie in parts elsewhere, where passes over them are made (``reduced``)."""
    start = 0
    """Number of the first row among those of all parts."""

    @abstractmethod
    def chunks(self, rows: int | None = None) -> Iterator[Chunk]:
        """One pass; ``rows`` a chunk, where that is the source's to choose."""

    def reduced(self, each: Callable[["Source"], Found | None], join: Callable[[Found, Found], Found]) -> Found | None:
        """What a pass finds: of a source in parts, what it finds of each part where that lies, joined two by two.

        Args:
            each: a pass over a source; it must be possible to pickle it.
            join: what two parts that follow one another say together.

        Returns:
            None if there are no rows in any part.
        """
        del join
        return each(self)

    def gathered(self) -> "Source":
        """The same with all rows here."""
        return self


class ArraySource(Source):
    """A NumPy array, a SciPy sparse matrix or a torch tensor, cut into views.

    Of a sparse matrix in which places come more than once, each chunk is a copy in which they are added up.

    Args:
        rows: (N, D).
        targets: (N, C) or None.
        weights: (N,) or None.
        device: where chunks go; None: where the rows are.
    """

    def __init__(
        self,
        rows: Any,
        targets: Tensor | None = None,
        weights: Tensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.num_rows, self.num_columns = rows.shape
        self.dtype = compute_dtype(rows.dtype)
        self.device = device or (rows.device if isinstance(rows, Tensor) else torch.device("cpu"))
        self._rows = rows.tocsr() if sparse.issparse(rows) else rows
        stored = self._rows.nnz if sparse.issparse(rows) else rows.shape[0] * rows.shape[1]
        self._step = max(1, _ENTRIES * rows.shape[0] // max(1, stored))
        self._repeats = sparse.issparse(rows) and not self._rows.has_canonical_format
        self._repeats = self._repeats and self._has_repeats()
        self._targets = None if targets is None else targets.to(self.device)
        self._weights = None if weights is None else weights.to(self.device)

    def chunks(self, rows: int | None = None) -> Iterator[Chunk]:
        for part in self._parts(rows or self._step):
            raise_deferred()
            sliced = self._slice(part)
            yield (
                as_rows(without_repeats(sliced) if self._repeats else sliced, self.dtype, self.device),
                None if self._targets is None else self._targets[part].to(self.dtype),
                None if self._weights is None else self._weights[part].to(self.dtype),
            )

    def _parts(self, step: int) -> list[slice]:
        assert self.num_rows is not None
        return [slice(start, min(start + step, self.num_rows)) for start in range(0, self.num_rows, step)]

    def _has_repeats(self) -> bool:
        """Whether a sparse matrix has places that come more than once, whose entries add up."""
        return any(without_repeats(p).nnz < p.nnz for p in map(self._slice, self._parts(self._step)))

    def _slice(self, part: slice) -> Any:
        if not sparse.issparse(self._rows):
            return self._rows[part]
        matrix, ends = self._rows, self._rows.indptr[part.start : part.stop + 1]
        inside = slice(ends[0], ends[-1])
        sliced = sparse.csr_array((part.stop - part.start, self.num_columns), dtype=matrix.dtype)
        # SciPy's slices, and its constructor, would copy the entries.
        sliced.data, sliced.indices, sliced.indptr = matrix.data[inside], matrix.indices[inside], ends - ends[0]
        # No repeats, or they are added up in a copy: without this SciPy would sort the user's own arrays in place.
        sliced.has_canonical_format = not self._repeats
        return sliced


class FileSource(Source):
    """A np.memmap, read from its file into one buffer: pages of a mapping would count as the process's memory.

    ``open_source`` asks ``of`` for one, which declines where the file may hold something else than the array.

    Args:
        rows: (N, D), each row contiguous.
        targets: (N, C) or None.
        weights: (N,) or None.
    """

    def __init__(self, rows: np.memmap, file: int, targets: Tensor | None, weights: Tensor | None) -> None:
        self.num_rows, self.num_columns = rows.shape
        self.dtype, self.device = compute_dtype(rows.dtype), torch.device("cpu")
        self._path, self._offset, self._stride = str(rows.filename), _offset_of(rows), rows.strides[0]
        self._numpy_dtype, self._targets, self._weights = rows.dtype, targets, weights
        self._file = file
        finalize(self, os.close, file)

    @classmethod
    def of(cls, rows: np.memmap, targets: Tensor | None = None, weights: Tensor | None = None) -> "FileSource | None":
        """None if rows are not contiguous, changes stay in memory (copy on write), or the file is another by now."""
        root, path = _root_of(rows), rows.filename
        in_file = isinstance(root.base, mmap) and root.mode != "c"
        if path is None or not (
            in_file and rows.ndim == 2 and rows.strides[1] == rows.dtype.itemsize and rows.strides[0] > 0
        ):
            return None
        try:
            file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError:
            return None
        if _is_mapped(file, rows.__array_interface__["data"][0]):
            return cls(rows, file, targets, weights)
        os.close(file)
        return None

    def chunks(self, rows: int | None = None) -> Iterator[Chunk]:
        assert self.num_rows is not None
        step = rows or max(1, _ENTRIES // self.num_columns)
        buffer = np.empty((min(step, self.num_rows), self.num_columns), self._numpy_dtype)
        for start in range(0, self.num_rows, step):
            count = min(step, self.num_rows - start)
            self._read(start, buffer[:count])
            yield (
                as_rows(buffer[:count], self.dtype, self.device),
                None if self._targets is None else self._targets[start : start + count].to(self.dtype),
                None if self._weights is None else self._weights[start : start + count].to(self.dtype),
            )

    def _read(self, start: int, into: np.ndarray) -> None:
        whole = self._stride == self.num_columns * self._numpy_dtype.itemsize
        for row, part in [(start, into)] if whole else [(start + i, into[i]) for i in range(len(into))]:
            view, place = memoryview(part.reshape(-1).view(np.uint8).data), self._offset + row * self._stride
            while len(view):
                got = os.preadv(self._file, [view], place)
                require(
                    got > 0,
                    f"{self.num_rows:,} rows in {self._path}",
                    f"a file that ends after byte {place:,}, in row {row:,} or later",
                    "The file has become shorter since it was opened: write it again and fit anew.",
                )
                view, place = view[got:], place + got


class ChunkSource(Source):
    """A re-iterable of (X, Y) or (X, Y, weights) chunks, the same ones on every pass.

    ``single`` says whether targets came as (n,).

    Raises:
        TypeError: for something that can be read only once, or chunks of another form.
        ValueError: if a later pass gives other data.
    """

    def __init__(self, chunks: Iterable[Any]) -> None:
        if isinstance(chunks, Iterator):
            raise TypeError(
                f"expected chunks that can be read many times (a list of (X, Y), or an object whose __iter__ starts "
                f"anew), got {type(chunks).__name__}, which can be read only once. Wrap it in a class with __iter__."
            )
        self._chunks, self.num_rows = chunks, None
        self._seen: tuple[int, float] | None = None
        self.single = False
        first = next(iter(self._converted(None)), None)
        require(first is not None, "at least one chunk (X, Y)", "an empty iterable", "Check the source of the chunks.")
        assert first is not None
        rows = first[0]
        self.num_columns = rows.shape[1]
        self.dtype = rows.dtype if isinstance(rows, Tensor) else compute_dtype(rows.dtype)
        self.device = rows.device if isinstance(rows, Tensor) else torch.device("cpu")

    def chunks(self, rows: int | None = None) -> Iterator[Chunk]:  # noqa: ARG002  (the user has cut them)
        count, total = 0, 0.0
        for chunk in self._converted(self.num_columns):
            count += chunk[0].shape[0]
            total += float(chunk[0].sum()) + (0.0 if chunk[1] is None else float(chunk[1].double().sum()))
            yield chunk
        if self._seen is None:
            self._seen, self.num_rows = (count, total), count
        same = total == self._seen[1] or total != total or abs(total - self._seen[1]) <= ROUNDING * abs(total)
        require(
            same and count == self._seen[0],
            f"the same {self._seen[0]:,} rows on every pass over the chunks",
            f"{count:,} rows that sum to {total:g} instead of {self._seen[1]:g}",
            REPEATED,
        )

    def _converted(self, columns: int | None) -> Iterator[Chunk]:
        for index, item in enumerate(Interruptible(self._chunks)):
            if not (isinstance(item, (tuple, list)) and len(item) in (2, 3)):
                raise TypeError(f"chunk {index}: expected (X, Y) or (X, Y, weights), got {type(item).__name__}.")
            rows, targets = as_scipy(item[0]), item[1]
            if not hasattr(rows, "dtype"):  # a list, or a frame, which has a type for each column
                rows = np.asarray(rows)
            weights = item[2] if len(item) == 3 else None
            shape: tuple[int, ...] = tuple(getattr(rows, "shape", ()))
            expected = f"X of shape (n, {columns or 'D'})"
            fits = len(shape) == 2 and shape[0] > 0 and columns in (None, shape[1])
            require(fits, f"{expected} in chunk {index}", f"{shape}", "All chunks have the same columns.")
            dtype = self.dtype if columns else compute_dtype(rows.dtype)
            device = rows.device if isinstance(rows, Tensor) else torch.device("cpu")
            self.single = np.ndim(targets) == 1
            target = as_matrix(targets).to(device, dtype)
            lengths = [len(target)] + ([] if weights is None else [len(weights)])
            require(
                set(lengths) == {shape[0]},
                f"{shape[0]} targets (and weights) in chunk {index}",
                f"{lengths}",
                "Give one for each row.",
            )
            weight = None if weights is None else as_tensor(weights, "sample weights").to(device, dtype)
            if sparse.issparse(rows) and not (rows := rows.tocsr()).has_canonical_format:
                rows = without_repeats(rows)
            yield as_rows(rows, dtype, device), target, weight


def open_source(
    rows: Any, targets: Tensor | None = None, weights: Tensor | None = None, device: torch.device | None = None
) -> Source:
    """The source that suits an array-like with a shape."""
    here = device in (None, torch.device("cpu"))
    from_file = FileSource.of(rows, targets, weights) if isinstance(rows, np.memmap) and here else None
    if from_file is not None:
        return from_file
    return ArraySource(rows, targets, weights, device)


def as_rows(rows: Any, dtype: torch.dtype, device: torch.device) -> Rows:
    """A chunk in the dtype of the products, where they are made; a view where it is that already."""
    if sparse.issparse(rows) and device.type != "cpu":  # SciPy's products are the CPU's
        return torch.from_numpy(rows.toarray()).to(device, dtype)
    if sparse.issparse(rows):
        csr: Rows = rows.tocsr().astype(str(dtype).removeprefix("torch."), copy=False)
        return csr
    if isinstance(rows, Tensor):
        return rows.detach().to(device, dtype)
    return as_tensor(rows, "X").to(device, dtype)


def as_tensor(array: Any, what: str) -> Tensor:
    """An array of real numbers as a tensor; a view where torch has its type and can read it in place.

    Raises:
        ValueError: for complex numbers, dates, text, masked entries, and tensors that are not dense.
    """
    if isinstance(array, Tensor):
        fix = f"Give {what} as a dense tensor (tensor.to_dense())."
        require(array.layout == torch.strided, f"a dense tensor as {what}", f"layout {array.layout}", fix)
        compute_dtype(array.dtype, what)
        return array.detach()
    masked = int(np.ma.getmaskarray(array).sum()) if isinstance(array, np.ma.MaskedArray) else 0
    require(masked == 0, f"known numbers in {what}", f"{masked} masked entries", "Remove or impute them.")
    array = np.asarray(array)
    compute_dtype(array.dtype, what)
    if array.dtype.kind == "O" or array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    return dense_tensor(array, what)


def as_matrix(targets: Any) -> Tensor:
    """(n,) or (n, C) targets as (n, C)."""
    tensor = as_tensor(targets, "y")
    require(tensor.ndim in (1, 2), "targets (n,) or (n, C)", f"{tuple(tensor.shape)}", "Reshape them.")
    return tensor[:, None] if tensor.ndim == 1 else tensor


def as_scipy(rows: Any) -> Any:
    """A sparse torch tensor on the CPU as SciPy's matrix with the same numbers, not copied if by rows; else as it is.

    Raises:
        ValueError: for sparse tensors elsewhere or in blocks.
    """
    if not isinstance(rows, Tensor) or rows.layout == torch.strided:
        return rows
    got = f"{rows.layout} on {rows.device}"
    known = rows.layout in (torch.sparse_csr, torch.sparse_csc, torch.sparse_coo) and rows.device.type == "cpu"
    require(known, "X dense, or a sparse tensor on the CPU by rows, columns or places", got, "Convert it.")
    compute_dtype(rows.dtype, "X")
    rows, shape = rows.detach(), tuple(rows.shape)
    if rows.layout == torch.sparse_coo:
        rows = rows.coalesce()
        return sparse.coo_array((rows.values().numpy(), tuple(rows.indices().numpy())), shape)
    by_rows = rows.layout == torch.sparse_csr
    places = (rows.col_indices(), rows.crow_indices()) if by_rows else (rows.row_indices(), rows.ccol_indices())
    make = sparse.csr_array if by_rows else sparse.csc_array
    return make((rows.values().numpy(), *(place.numpy() for place in places)), shape)


def without_repeats(sliced: Any) -> Any:
    """A copy of a matrix that is sparse by rows, in order and with entries of the same place added up."""
    copied = sliced.copy()
    copied.sum_duplicates()
    return copied


def compute_dtype(dtype: Any, what: str = "X") -> torch.dtype:
    """In which type products are made.

    Raises:
        ValueError: for numbers that are not real, dates and text.
    """
    name = str(dtype).removeprefix("torch.")
    if isinstance(dtype, torch.dtype):
        real = not dtype.is_complex and "qint" not in name and "bits" not in name
    else:
        real = dtype.kind in "biufO"
    fix = (
        "Complex data not supported: give real and imaginary part as columns."
        if "complex" in name
        else ("Convert to numbers first, dates by subtracting one and dividing by np.timedelta64(1, 'D').")
    )
    require(real, f"real numbers in {what}", name, fix)
    single = not isinstance(dtype, torch.dtype) and dtype.kind == "f" and dtype.itemsize <= 4
    return torch.float32 if single or name in ("float32", "float16", "bfloat16") else torch.float64


def _offset_of(rows: np.memmap) -> int:
    """Where in its file a memmap, or a slice of one, begins."""
    root = _root_of(rows)
    return int(root.offset + rows.__array_interface__["data"][0] - root.__array_interface__["data"][0])


def _is_mapped(file: int, address: int) -> bool:
    """Whether the open file is the one that is mapped at the address; False where that cannot be told."""
    facts = os.fstat(file)
    device = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}"
    try:
        lines = _MAPS.read_text(errors="replace").splitlines()
    except OSError:
        return False
    for line in lines:
        span, _, _, where, inode = line.split(maxsplit=5)[:5]
        first, last = (int(end, 16) for end in span.split("-"))
        if first <= address < last:
            return where == device and int(inode) == facts.st_ino
    return False


def _root_of(rows: np.memmap) -> Any:
    """The memmap that a slice was taken of."""
    root: Any = rows
    while isinstance(root.base, np.memmap):
        root = root.base
    return root
