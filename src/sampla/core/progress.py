"""One progress bar, shown only for what lasts longer than two seconds."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm
from tqdm.std import TqdmDefaultWriteLock

from sampla.core.interrupts import Interruptible

Item = TypeVar("Item")


class _Bar(tqdm):
    """tqdm without its lock between processes, which even a bar that is never shown takes.

    A process that is killed while it holds that lock leaves all that were forked with it waiting for ever. The lock
    between threads is the one that the user's own bars take.
    """

    _lock = TqdmDefaultWriteLock.th_lock


class Progress:
    """Shows the stage of a fit and the progress of the present pass over the data."""

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.stage = ""

    def enter(self, stage: str) -> None:
        """Name the stage of the bars that follow."""
        self.stage = stage

    def sweep(self, items: Iterable[Item], total: int | None) -> Iterator[Item]:
        """Yield the items and draw a progress bar named after the stage."""
        yield from _Bar(
            Interruptible(items),
            total=total,
            desc=self.stage,
            disable=not self.enabled,
            delay=2,
            leave=False,
            dynamic_ncols=True,
        )

    def say(self, text: str) -> None:
        """Print one line above the bar."""
        if self.enabled:
            _Bar.write(text, file=sys.stderr)
