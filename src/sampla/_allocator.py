"""Keeping freed memory within the process during a fit.

Products with M allocate and free the same few megabytes thousands of times. The C library's defaults give every such
block back to the kernel, and the pages are cleared anew each time: more than half of the time of a pass on a CPU
(NOTES.md). Only glibc on Linux has these settings; elsewhere nothing is changed.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # malloc.h
_DEFAULT, _DEFAULT_MAX = 128 * 1024, 65536
_LARGEST_KEPT = 32 * 2**20  # the largest that glibc accepts for _MMAP_THRESHOLD
_MOST_KEPT = 2**31 - 1  # at the top of the heap; an int
_depth = 0


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Inside, freed blocks of any size are reused; afterwards glibc's documented defaults hold and all is returned.

    Without mappings (_MMAP_MAX of zero) even blocks above 32 MiB, K vectors of many parameters, come from the heap.
    Process-wide. Nested uses count as one.
    """
    global _depth
    library = _glibc()
    if library is None:
        yield
        return
    _depth += 1
    if _depth == 1:
        library.mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, _MOST_KEPT)
    try:
        yield
    finally:
        _depth -= 1
        if _depth == 0:
            library.mallopt(_MMAP_THRESHOLD, _DEFAULT)
            library.mallopt(_MMAP_MAX, _DEFAULT_MAX)
            library.mallopt(_TRIM_THRESHOLD, _DEFAULT)
            library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    try:
        library.gnu_get_libc_version  # noqa: B018  (musl has no such function)
    except AttributeError:
        return None
    return library
