"""The machine: what memory is free, what a computation holds at its peak; what to say where memory or device fail."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from weakref import finalize

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_CLUES = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "status_alloc_failed",
)  # fmt: skip
_FAILED = (
    "cuda error", "hip error", "device lost", "device_lost", "device-side assert", "status_execution_failed",
    "status_internal_error", "status_mapping_error",
)  # fmt: skip
"""What messages of a device that has failed contain: mostly nothing can be computed there afterwards."""
_START_ANEW = (
    "The device has failed, after which a process can mostly use it no more: start another one. {kept} If it keeps "
    "happening, the same on the CPU (model.cpu()) names what the network does wrong, such as an index out of range."
)
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: torch raises several kinds, by device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(clue in str(error).lower() for clue in _CLUES)


def is_device_failure(error: BaseException) -> bool:
    """Whether an error says that an accelerator has failed, in whatever was being computed there."""
    failed = isinstance(error, RuntimeError) and any(clue in str(error).lower() for clue in _FAILED)
    return failed and not is_out_of_memory(error)


def is_of_the_machine(error: BaseException) -> bool:
    """Whether an error is about memory or a device, so that it says nothing of what was being computed."""
    return is_out_of_memory(error) or is_device_failure(error)


@contextmanager
def machine_explained(remedy: str, kept: str) -> Iterator[None]:
    """Put below an error of the machine's what to do; the error itself stays what it is, the loader's own included.

    Args:
        remedy: for too little memory.
        kept: for a device that has failed: what there is to go on from.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_device_failure(error):
            error.add_note(_START_ANEW.format(kept=kept))
        elif is_out_of_memory(error) and not isinstance(error, OutOfChunksError):
            error.add_note(remedy)
        raise


class OutOfChunksError(MemoryError):
    """One datum and one vector do not fit into memory; the message says what to change."""


@cache
def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64: Apple's and some of Intel's do not."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device).square()
    except (RuntimeError, TypeError):
        return False
    return True


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes of free memory of a device; None where the system does not say."""
    if device.type == "cuda":  # torch holds on to what it has freed, and gives it again
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + held)
    found = [_available(), *(_left(Path(limit), Path(used)) for limit, used in _CGROUPS)]
    known = [each for each in found if each is not None]
    return min(known) if known else None


def _available() -> int | None:
    path = Path("/proc/meminfo")
    if not path.is_file():
        return None
    rows = dict(line.split(":", 1) for line in path.read_text().splitlines())
    return int(rows["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in rows else None


def _left(limit: Path, used: Path) -> int | None:
    if not (limit.is_file() and used.is_file()):
        return None
    most = limit.read_text().strip()
    return None if most == "max" else max(0, int(most) - int(used.read_text()))


class LivePeak(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside and alive at the same time; scratch of kernels is not seen.

    Works below torch.func, on any device, and sees the tensors as they are stored.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak: int = 0
        self._now = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        given = {_storage(leaf) for leaf in tree_leaves((args, dict(kwargs or {}))) if isinstance(leaf, Tensor)}
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and _storage(leaf) not in given:
                self._watch(leaf)
        return made

    def _watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes()
        self._seen.add(key)
        self._now += size
        self.peak = max(self.peak, self._now)
        finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._now -= size


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
