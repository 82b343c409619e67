"""Results of passes over the data, kept in files: a computation that was killed repeats itself up to where it was.

Everything between passes follows from their results, to the bit. So whatever is being computed (a Krylov space, a
search for a mode, a solve), what is kept is what its passes have given, in their order. A run that goes on does the
same again, and takes the next of them in the place of a pass that asks for the same; any other pass it takes anew.

Results wait in memory and are written together once a minute, or after each pass where that takes longer. Writing gets
2 % of the time; what can neither be written in that nor wait in 256 MiB ends the keeping until the next stage: passes
are then short beside the size of their results, and the stage before is what a killed run goes on from.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import isclose
from pathlib import Path
from time import monotonic
from typing import Any, TypeAlias
from warnings import warn

from torch import Tensor
from torch.linalg import vector_norm

from sampla.core import checkpoint
from sampla.core.memory import is_of_the_machine
from sampla.distributed import Held, RankError, Ranks

_NAME = "passes"
_EVERY = 60.0
"""Seconds between two writings at least."""
_SHARE = 0.02
"""Part of the time that writing may take."""
_WAITING = 256 * 2**20
"""Bytes that may wait to be written."""
_RATE = 200e6
"""Bytes written in a second, before it has been measured."""
_NEAR = 1e-3
"""Relative difference of what two passes are taken of that rounding may have made since they were last the same."""


Entry: TypeAlias = tuple[dict[str, Any], list[Tensor]]
"""What tells a pass, and its results."""


class Journal:
    """Kept results of one stage, and what is still to be written.

    Args:
        folder: for its files; None: nothing is kept.
        identity: what the files must belong to; asked for when the first is written or read.
        ranks: the processes that take the passes together; the first one writes and reads for all.
    """

    def __init__(
        self,
        folder: str | Path | None,
        identity: Callable[[], dict[str, Any]] = dict,
        ranks: Ranks | None = None,
    ) -> None:
        self._folder, self._identity, self._ranks = None if folder is None else Path(folder), identity, ranks
        self._stage: int | None = None
        self._files = 0
        self._known: list[Entry] = []
        self._waiting: list[Entry] = []
        self._began = self._last = monotonic()
        self._spent, self._written = 0.0, 0
        self._full = False

    def begin(self, stage: int) -> None:
        """The next stage: what an earlier one has kept is of no more use; what this one has kept is taken up."""
        if self._folder is None:
            return
        self._stage, self._files, self._known, self._waiting = stage, 0, [], []
        self._last, self._full = monotonic(), False
        if self._writes:
            for path in self._all():
                found = self._read(path) if path.name == self._path.name else []
                self._known += found
                self._files += bool(found)
                if not found:
                    path.unlink()
        if self._ranks is not None:
            known = self._ranks.of_first("kept passes", lambda: _packed(self._known))
            self._known = [] if known is None else _unpacked(*known)

    @property
    def keeps(self) -> bool:
        """Whether a stage has begun, so that passes are told apart."""
        return self._stage is not None

    @property
    def _writes(self) -> bool:
        """Whether the files are this process's to write and remove."""
        return self._ranks is None or self._ranks.rank == 0

    @property
    def _path(self) -> Path:
        """Of the next file."""
        assert self._folder is not None
        return self._folder / f"{_NAME}-{self._stage:06d}-{self._files:06d}.safetensors"

    def _all(self) -> list[Path]:
        """Every file of a journal in the folder, also what a killed writer has left half."""
        assert self._folder is not None
        number, kind = "[0-9]" * 6, f"{_NAME}-"
        files = self._folder.glob(f"{kind}{number}-{number}.safetensors")
        return sorted([*files, *self._folder.glob(f".{kind}{number}-{number}.safetensors.*.partial")])

    @contextmanager
    def saved_on_failure(self) -> Iterator[None]:
        """Inside, an error of the machine's, or of another process, first has what still waits written."""
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if self._waiting and (is_of_the_machine(error) or isinstance(error, RankError)):
                self._write(self._waiting)
                self._waiting = []
            raise

    def end(self) -> None:
        """All is done: nothing of it is needed any more."""
        if self._folder is None:
            return
        self._stage, self._known, self._waiting = None, [], []
        for path in self._all() if self._writes else []:
            path.unlink()

    def once(
        self,
        name: str,
        given: Tensor,
        compute: Callable[[], Sequence[Tensor]],
        counters: Callable[..., tuple[float, int]],
    ) -> list[Tensor]:
        """The results of a pass: kept ones, or new ones, which are kept.

        Args:
            name: of the pass and its settings.
            given: what it is taken of; with the name it tells whether a kept pass is the same one.
            compute: takes the pass.
            counters: adds products and readings of the data to the counts, and returns them.
        """
        if not self.keeps:
            return list(compute())
        sizes = [float(given.sum()), *(float(vector_norm(given, order)) for order in (1, 2))]
        asked = {"name": name, "shape": list(given.shape), "sizes": sizes}
        same, near = self._meets(asked)
        if same:
            facts, found = self._known.pop(0)
            counters(facts["products"], facts["sweeps"])
            return [t.to(given.device) if there else t for t, there in zip(found, facts["there"], strict=True)]
        if near:
            self._forget()
        before = counters()
        results = list(compute())
        after = counters()
        spent = {"products": after[0] - before[0], "sweeps": after[1] - before[1]}
        there = [t.device == given.device for t in results]
        if not self._known:  # else it is found again because it was known before this stage began
            self._keep(asked | spent | {"there": there}, results)
        return results

    def _meets(self, asked: dict[str, Any]) -> tuple[bool, bool]:
        """Whether the next kept pass, if there is one, is the same one; else whether it differs by rounding only."""
        if not self._known:
            return False, False
        kept = self._known[0][0]
        same = all(kept[each] == asked[each] for each in asked)
        alike = all(kept[each] == asked[each] for each in ("name", "shape"))
        near = alike and all(map(partial(isclose, rel_tol=_NEAR), kept["sizes"][1:], asked["sizes"][1:]))
        if self._ranks is not None:
            said = self._ranks.gathered("kept pass", [same, near])
            same, near = (all(each) for each in zip(*said, strict=True))
        return same, near and not same

    def _forget(self) -> None:
        """Begin the stage anew: another machine or number of processes rounds otherwise, and will meet no kept pass."""
        self._known, self._files = [], 0
        for path in self._all() if self._writes else []:
            path.unlink()

    def _keep(self, facts: dict[str, Any], results: list[Tensor]) -> None:
        if self._full or not self._writes:
            return
        size = sum(t.nbytes for _, parts in self._waiting for t in parts) + sum(t.nbytes for t in results)
        now = monotonic()
        rate = self._written / self._spent if self._spent else _RATE
        affordable = self._spent + size / rate <= _SHARE * (now - self._began)
        if affordable and now - self._last >= _EVERY:
            self._write([*self._waiting, (facts, results)])
            self._waiting = []
        elif size <= _WAITING:
            self._waiting.append((facts, [t.to("cpu", copy=True) for t in results]))
        else:
            self._full, self._waiting = True, []

    def _write(self, entries: list[Entry]) -> None:
        start = monotonic()
        tensors, facts = _packed(entries)
        try:
            checkpoint.save(self._path, tensors, {"identity": self._identity(), **facts})
        except OSError as error:
            self._full = True
            warn(f"the passes of this fit are kept no longer: {error}", stacklevel=2)
            return
        self._files += 1
        self._last = monotonic()
        self._spent += self._last - start
        self._written += sum(t.nbytes for t in tensors.values())

    def _read(self, path: Path) -> list[Entry]:
        """What a file holds; nothing where it is damaged or another fit's: the passes are then taken again."""
        try:
            tensors, facts = checkpoint.load(path)
        except ValueError:
            return []
        if facts["identity"] != checkpoint.plain(self._identity(), "identity"):
            return []
        return _unpacked(tensors, facts)


def _packed(entries: list[Entry]) -> Held:
    """Entries as a file holds them."""
    tensors = {f"{n}.{part}": t for n, (_, parts) in enumerate(entries) for part, t in enumerate(parts)}
    return tensors, {"entries": [facts | {"parts": len(parts)} for facts, parts in entries]}


def _unpacked(tensors: dict[str, Tensor], facts: dict[str, Any]) -> list[Entry]:
    return [
        (row, [tensors[f"{number}.{part}"] for part in range(row["parts"])])
        for number, row in enumerate(facts["entries"])
    ]
