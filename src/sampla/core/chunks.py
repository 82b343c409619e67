"""How many data and how many vectors go through a feature map at once.

Two things are kept apart. What is *preferred* is a matter of speed: a preset, or measured at the start of a fit. What
is *possible* is learnt from running out of memory, which halves it. Neither changes a result by more than rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from sampla.core.memory import OutOfChunksError

COLUMNS = 64
"""Vectors pushed through the network at once, if nothing was measured."""
ENTRIES = 512
"""Data times vectors in flight, if nothing was measured: what fits the caches of a CPU best (docs/notes/engine.md)."""
_OUTPUTS = 2**22
"""Outputs times data times vectors in flight, at most: memory does not grow with the number of outputs."""
_NOTHING_LEFT = (
    "expected one datum and one vector to fit into memory at a time, got: {error}. Choose fewer parameters "
    "(parameters=[...]), use float32, smaller inputs, or a machine with more memory; la.plan(loader) says what "
    "is needed."
)


def usual_rows(columns: int) -> int:
    """Data in a minibatch that suits products with so many vectors at once; the same however much memory there is."""
    return ENTRIES // max(1, min(columns, COLUMNS))


@dataclass
class Chunks:
    """How many data and vectors go through the features at once; one object serves all models of a fit.

    Args:
        entries: data times vectors in flight.
        columns: vectors at once, at most.
        source: how these were found: "preset", "measured", "given" by the user or "restored" from a checkpoint.
        say: told once when memory runs out.
    """

    entries: int = ENTRIES
    columns: int = COLUMNS
    source: str = "preset"
    say: Callable[[str], None] = lambda _: None
    seconds: float = 0.0
    """What measuring has cost."""
    halvings: int = 0
    """How often memory ran out."""
    way: str = ""
    """How products are taken, where that was measured."""
    _most: tuple[int, int] | None = field(default=None, repr=False)
    """Entries and columns that memory allows, once it has run out."""

    def rows(self, count: int) -> int:
        """Return how many data go through at once for products with ``count`` vectors."""
        return max(1, self.entries // max(1, min(count, self._together)))

    def ranges(self, count: int, beside: int = 0) -> list[range]:
        """The vectors that go through together, in parts that differ by one at most.

        Args:
            count: how many.
            beside: more of them, which stay together and go with the last part, as long as memory has not run out.
        """
        whole = count if self._most is None else count + beside
        parts = max(1, -(-whole // self._together))
        ends = [whole * part // parts for part in range(parts)]
        ends = [*(end for end in ends if end <= count), count + beside]
        return [range(a, b) for a, b in pairwise(ends) if b > a]

    @property
    def _together(self) -> int:
        return min(self.columns, self.entries)

    def possible(self, rows: int, columns: int) -> tuple[int, int]:
        """Return how many of these data and vectors memory allows at once."""
        if self._most is None:
            return rows, columns
        entries, most = self._most
        columns = min(columns, most)
        return min(rows, max(1, entries // columns)), columns

    def halve(self, rows: int, columns: int, error: str) -> None:
        """Halve what is allowed, data or vectors, whichever are more, because so many did not fit into memory.

        Raises:
            OutOfChunksError: (a MemoryError) if it was one datum and one vector.
        """
        if rows == columns == 1:
            raise OutOfChunksError(_NOTHING_LEFT.format(error=error))
        rows, columns = (-(-rows // 2), columns) if rows >= columns else (rows, -(-columns // 2))
        self._most = rows * columns, columns
        self.entries, self.columns = min(self.entries, rows * columns), min(self.columns, columns)
        self.halvings += 1
        if self.halvings == 1:
            self.say(f"memory ran out: going on with {rows} data x {columns} vectors at a time")

    def prefer(self, entries: int, columns: int, source: str) -> None:
        """Use these sizes from now on, as far as memory allows."""
        if self._most is not None:
            entries, columns = min(entries, self._most[0]), min(columns, self._most[1])
        self.entries, self.columns, self.source = entries, columns, source

    def allow_for(self, outputs: int) -> None:
        """Fewer data times vectors where one datum has very many outputs, if nothing better is known."""
        if self.source == "preset":
            self.entries = min(self.entries, max(1, _OUTPUTS // max(1, outputs)))

    def facts(self) -> dict[str, Any]:
        """Return the sizes as JSON, for reports and checkpoints."""
        return {
            "entries": self.entries,
            "columns": self.columns,
            "source": self.source,
            "seconds": self.seconds,
            "halvings": self.halvings,
            "way": self.way,
        }
