"""One progress bar, shown only for what lasts longer than two seconds."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


class Progress:
    """Says which stage a fit is in and how far the present pass over the data has come."""

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.stage = ""

    def enter(self, stage: str) -> None:
        """Name the stage of the bars that follow."""
        self.stage = stage

    def sweep(self, items: Iterable[Item], total: int | None) -> Iterator[Item]:
        """Pass the items through, drawing a bar named after the stage."""
        yield from tqdm(
            items, total=total, desc=self.stage, disable=not self.enabled, delay=2, leave=False, dynamic_ncols=True
        )

    def say(self, text: str) -> None:
        """One line above the bar."""
        if self.enabled:
            tqdm.write(text, file=sys.stderr)
