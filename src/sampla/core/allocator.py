"""Keeping freed memory within the process during a fit.

Products with M allocate and free the same few megabytes thousands of times. The C library's defaults give every such
block back to the kernel, and the pages are cleared anew each time: more than half of the time of a pass on a CPU
(measured by ``python -m benchmarks.engine.allocator``). Only glibc on Linux has these settings; elsewhere nothing is
changed.

glibc raises its thresholds by itself as blocks are freed, until a program first sets one of them. What it had come to
cannot be read, and setting its documented defaults again would hold it at 128 KiB for good: elementwise work several
times slower for the life of the process. So afterwards the thresholds are set to the largest values that they reach by
themselves.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # malloc.h
_LARGEST = 32 * 2**20
"""The largest that glibc accepts for _MMAP_THRESHOLD, and that it comes to by itself when large blocks are freed."""
_TRIM_AFTER, _MAPPINGS = 2 * _LARGEST, 65536
"""What glibc sets _TRIM_THRESHOLD to along with that, and its default for _MMAP_MAX."""
_MOST_KEPT = 2**31 - 1  # at the top of the heap; an int
_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")
_OPTION = "SAMPLA_KEEP_FREED_MEMORY"
_lock = Lock()
_depth = 0


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Inside, freed blocks of any size are reused; afterwards blocks up to 32 MiB still are, and the rest is returned.

    Without mappings (_MMAP_MAX of zero) even blocks above 32 MiB, K vectors of many parameters, come from the heap.
    Process-wide; uses that are nested, or on several threads, count as one. Nothing is changed where the environment
    has settings of its own for glibc's allocator, or SAMPLA_KEEP_FREED_MEMORY=0.
    """
    library = _glibc()
    if library is None or _left_alone():
        yield
        return
    _entered(library, 1)
    try:
        yield
    finally:
        _entered(library, -1)


def _entered(library: ctypes.CDLL, step: int) -> None:
    global _depth
    with _lock:
        _depth += step
        if _depth == 1 and step == 1:
            library.mallopt(_MMAP_THRESHOLD, _LARGEST)
            library.mallopt(_MMAP_MAX, 0)
            library.mallopt(_TRIM_THRESHOLD, _MOST_KEPT)
        elif _depth == 0:
            library.mallopt(_MMAP_MAX, _MAPPINGS)
            library.mallopt(_TRIM_THRESHOLD, _TRIM_AFTER)
            library.malloc_trim(0)


def _left_alone() -> bool:
    """Whether somebody has decided otherwise."""
    own = any(name in os.environ for name in _SETTINGS) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    return own or os.environ.get(_OPTION) == "0"


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    try:
        library.gnu_get_libc_version  # noqa: B018  (musl has no such function)
    except AttributeError:
        return None
    return library
