"""What Dask holds, part by part, and graphs over it that end in one small answer.

A part is a row chunk of an array or a partition of a data frame. A graph runs by whichever scheduler Dask would take:
its threads, or the workers of a ``distributed.Client``. Dask is imported in functions only, so that nobody needs it who
passes no object of it.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import isnan
from time import monotonic
from typing import Any

from sampla.core.checks import require
from sampla.core.interrupts import interruptible

_FAN = 8
"""Parts' answers that one task joins."""
_LOOK = 5.0
"""Seconds between looks at whether a cluster still has workers."""
_ALONE = 60.0
"""Seconds that a cluster may be without any, while others are started in their place."""
_LOST = (
    "the Dask cluster could not compute a part of X: {error} Give its workers more memory, or X smaller parts "
    "(X.rechunk, repartition); whatever killed them is in their own logs."
)


class PartsLostError(RuntimeError):
    """A cluster's workers died with the same part, or it has none left."""


def is_dask(given: Any) -> bool:
    """Whether it is one of Dask's arrays, data frames or series; found out without importing Dask."""
    return type(given).__module__.partition(".")[0] in ("dask", "dask_expr") and hasattr(given, "__dask_graph__")


def frame_of(rows: Any) -> Any:
    """What tells the number of columns and their names: an array itself, or a frame without rows."""
    return getattr(rows, "_meta", rows) if hasattr(rows, "to_dask_array") else rows


def in_row_chunks(given: Any) -> Any:
    """The same in chunks that hold all columns."""
    if len(getattr(given, "chunks", ())) != 2 or given.numblocks[1] == 1:
        return given
    known = not any(isnan(width) for width in given.chunks[1])
    fix = "X.compute_chunk_sizes() finds the others out."
    require(known, "columns in one chunk, or in chunks of known sizes", "chunks of unknown sizes", fix)
    return given.rechunk({1: -1})


def parts_of(*given: Any) -> list[list[Any] | None]:
    """A delayed object for each part of each: the row chunks of an array, the partitions of a data frame or series.

    Graphs of arrays are not optimised, each for itself: X and y may be columns of one array, which is then made once.
    """
    import dask.array as da

    found: list[list[Any] | None] = []
    for each in given:
        if isinstance(each, da.Array):
            found.append(list(each.to_delayed(optimize_graph=False).reshape(-1)))
        else:
            found.append(None if each is None else list(each.to_delayed()))
    return found


def lengths_of(given: Any) -> tuple[int, ...]:
    """Rows of each part: what Dask knows of them, or what a reading of all parts tells."""
    chunks = getattr(given, "chunks", None)
    if chunks is not None and not any(isnan(length) for length in chunks[0]):
        return tuple(int(length) for length in chunks[0])
    from dask import delayed

    count, (parts,) = delayed(_length, pure=False), parts_of(given)
    return tuple(computed(tree([count(part) for part in parts or []], _flat)))


def _length(part: Any) -> list[int]:
    return [int(part.shape[0])]


def _flat(lists: Sequence[list[Any]]) -> list[Any]:
    return [each for some in lists for each in some]


def tree(answers: list[Any], join: Callable[[Sequence[Any]], Any]) -> Any:
    """Delayed answers joined, a few at a time and in their order, to one."""
    from dask import delayed

    joined = delayed(join, pure=False, traverse=False)
    while True:
        answers = [joined(answers[first : first + _FAN]) for first in range(0, len(answers), _FAN)]
        if len(answers) == 1:
            return answers[0]


def computed(root: Any) -> Any:
    """The value of a delayed object, by the scheduler that Dask would take for it.

    Raises:
        PartsLostError: if a cluster's workers die of it, or all of them have gone.
    """
    from dask.base import get_scheduler

    with interruptible():
        client = getattr(get_scheduler(collections=[root]), "__self__", None)
        if type(client).__module__.partition(".")[0] != "distributed":
            return root.compute()
        return _from_cluster(client, root)


def _from_cluster(client: Any, root: Any) -> Any:
    """The same of a client's cluster, which may lose workers: Dask computes their parts again on the others."""
    with warnings.catch_warnings():  # a product's vectors go along with its graph, and outlive any worker there
        warnings.filterwarnings("ignore", message="Sending large graph")
        future = client.compute(root)
    alone: float | None = None
    try:
        while not future.done():
            _wait(future)
            if client.nthreads():
                alone = None
            else:
                alone = alone or monotonic()
                if monotonic() - alone > _ALONE:
                    raise PartsLostError(_LOST.format(error=f"it has been without workers for {_ALONE:g} s."))
        return future.result()
    except Exception as error:
        if type(error).__name__ != "KilledWorker":
            raise
        raise PartsLostError(_LOST.format(error=error)) from error
    finally:
        future.release()


def _wait(future: Any) -> None:
    from distributed import TimeoutError as Late
    from distributed import wait

    with suppress(Late):
        wait(future, timeout=_LOOK)
