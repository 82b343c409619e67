"""Ctrl-C where nothing is half done.

Python raises KeyboardInterrupt between any two instructions of the main thread: also between entering a context and
the block that would leave it, in torch's own code as well as here. What torch.func, torch.autograd, tqdm and the user's
network are then left with belongs to the process. So a signal that comes while a front door is at work is deferred to
the next moment at which everything can be put back: while the user's loader is asked for a batch, and after each
product with the network. Two seconds after it, another one is not deferred any more: a network that hangs can be left.
"""

import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any, Generic, TypeVar, cast

_PATIENCE = 2.0
"""Seconds after which another signal is let through."""
Item = TypeVar("Item")


class _Deferral:
    """The handler of SIGINT while a front door is at work on the main thread."""

    def __init__(self, before: Any) -> None:
        self.before, self.process = before, os.getpid()
        self.depth = 1
        """Front doors inside each other; zero while the user's code may be interrupted, or when all is over."""
        self.over = False
        self.waiting: tuple[int, Any, float] | None = None

    def __call__(self, number: int, frame: Any) -> None:
        forked = os.getpid() != self.process  # a worker of a DataLoader, say
        late = self.waiting is not None and monotonic() - self.waiting[2] > _PATIENCE
        if self.depth == 0 or late or forked:
            self.raised(number, frame)
        elif self.waiting is None:
            self.waiting = number, frame, monotonic()

    def raised(self, number: int, frame: Any) -> None:
        """As it would have been; while its exception puts things back, no other comes between."""
        depth, over = self.depth, self.over
        self.waiting, self.depth = None, depth if over else max(1, depth)
        self.before(number, frame)
        self.depth = depth


_deferral: _Deferral | None = None
"""Of the main thread, which alone gets signals."""


def _mine() -> _Deferral | None:
    return _deferral if threading.current_thread() is threading.main_thread() else None


@contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Ctrl-C inside waits for ``raise_deferred`` or ``interruptible``, or for the end.

    The handler that the user has set is then called, as it would have been at once. On other threads, and where SIGINT
    is ignored or kills the process at once, nothing is changed.
    """
    global _deferral
    around = _mine()
    if around is not None:
        depth = around.depth
        around.depth = depth + 1
        try:
            yield
        finally:
            around.depth = depth
            if depth == 0:
                _raise_waiting(around)
        return
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    deferral = _Deferral(before)
    try:
        with suppress(ValueError):  # an interpreter inside another one has no signals
            signal.signal(signal.SIGINT, deferral)
        _deferral = deferral
        yield
    finally:
        _deferral, deferral.over = None, True
        if signal.getsignal(signal.SIGINT) is deferral:
            signal.signal(signal.SIGINT, before)
        deferral.depth = 0
        _raise_waiting(deferral)


def _raise_waiting(deferral: _Deferral | None) -> None:
    if deferral is not None and deferral.waiting is not None:
        deferral.raised(*deferral.waiting[:2])


def raise_deferred() -> None:
    """A moment at which everything can be put back: a signal that waits is raised."""
    deferral = _mine()
    if deferral is not None and deferral.depth == 1:
        _raise_waiting(deferral)


@contextmanager
def interruptible() -> Iterator[None]:
    """The user's own code, such as a loader: it is interrupted at once, as it would be without us."""
    deferral = _mine()
    if deferral is None or deferral.depth != 1:
        yield
        return
    try:
        deferral.depth = 0
        _raise_waiting(deferral)
        yield
    finally:
        deferral.depth = 1


class Interruptible(Generic[Item]):
    """An iterable of the user's: while it is asked for its next item, it can be interrupted."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(cast("Sized", self._items))  # TypeError where there is no length

    def __iter__(self) -> Iterator[Item]:
        with interruptible():
            items = iter(self._items)
        while True:
            with interruptible():
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item
