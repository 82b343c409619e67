"""The basis of a Krylov space of which each process holds a slice, in a checkpoint's folder: a file for each part.

In one file all of it would have to be whole on the process that writes. So one part at a time is: laid together on all
processes, written by the first, and read by it for all, each of which keeps its slice; these may be others then.
"""

from pathlib import Path
from secrets import token_hex

from torch import Tensor

from sampla.core import checkpoint
from sampla.core.stack import Stack
from sampla.distributed import Held, Ranks, Slices

_ROWS = "rows"


def write_parts(folder: Path, basis: Stack, ranks: Ranks) -> str:
    """Write the parts of a basis beside those that are there; returns the name by which they are found again.

    The name is a new one every time, so that a state that is there stays whole until another one takes its place.
    """
    name: str = ranks.gathered("space", token_hex(4))[0]
    for number, part in enumerate(basis.parts):
        whole = basis.slices.whole(part)
        if ranks.rank == 0:
            checkpoint.save(_path(folder, name, number), {_ROWS: whole}, {})
    return name


def read_parts(folder: Path, name: str, count: int, slices: Slices) -> list[Tensor]:
    """This process's slices of the parts of a basis, on the CPU.

    Args:
        folder: of the checkpoint; the first process's counts.
        name: of the parts.
        count: how many there are.
        slices: that the processes have now.

    Raises:
        FileNotFoundError: if one is gone.
        ValueError: if one is damaged.
    """

    def read(number: int) -> Tensor:
        def make() -> Held:
            return checkpoint.load(_path(folder, name, number))

        held = make() if slices.ranks is None else slices.ranks.of_first(f"part {number} of the space", make)
        assert held is not None
        return slices.own(held[0][_ROWS])

    return [read(number) for number in range(count)]


def remove_parts(folder: Path, kept: str | None) -> None:
    """Remove the parts that no state needs any more, and what a writer that was killed has left half."""
    for path in [*folder.glob("space-*.safetensors"), *folder.glob(".space-*.partial")]:
        if kept is None or not path.name.startswith(f"space-{kept}-"):
            path.unlink(missing_ok=True)


def _path(folder: Path, name: str, number: int) -> Path:
    return folder / f"space-{name}-{number:03d}.safetensors"
