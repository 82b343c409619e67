"""Reading the user's data: batches with positions, and a watch on whether a loader's data stay the same.

Every pass hashes each datum (inputs and targets). On a later pass each must be one of the first pass's, before anything
is made of it, and at the end the sums of all must agree. Neither depends on the order, so a shuffled loader passes;
random augmentation, or shuffling with drop_last, is noticed and explained.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from sampla.core.batch import Batch, arriving
from sampla.core.checks import require
from sampla.core.hashes import Counted, Tally, datum_hashes, padding_sides, wrap
from sampla.core.inputs import input_tensors
from sampla.core.interrupts import Interruptible
from sampla.core.items import as_batch
from sampla.core.memory import free_bytes
from sampla.core.progress import Progress
from sampla.core.typing import Loader, Opaque
from sampla.core.unpacking import Unpack
from sampla.distributed import Ranks, ToldLoader, ranks_of

_CHANGED = (
    "the loader gave different data on a later pass ({detail}). A posterior needs the same N data on every pass: "
    "use a loader without random augmentation, and without drop_last when it shuffles.{hint}"
)
_PADDED = (
    " The shapes of the batches differ: if that is padding to the longest of a batch, give inputs as a dict with their "
    "mask (such as input_ids with attention_mask) or pad them by 0, and pad targets by a number that the likelihood "
    "ignores, as sampla.Categorical(ignore_index=-100)."
)
_OBJECTS = (
    " A batch that is one object can only be compared as a whole: give it a to_data_list() method, one object for each "
    "datum, or a loader that does not shuffle."
)
_EMPTY = "Check the data set, and that the loader can be read more than once (a list or DataLoader, no generator)."
_OF_FREE = 8
"""Part of the free memory of a device that data may take which are kept there: one in so many."""


class Data(ABC):
    """N data that can be read many times, in batches."""

    cut = True
    """Whether batches are to be cut to the size that products like; otherwise they come in that size, and checked."""
    fixed_order = True
    """False once two passes came in different orders."""
    sweeps = 0
    """How often the data have been read to their end."""
    nbytes = 0
    """Bytes of all data, where they come from the user's loader and have been read once."""
    kept_on = ""
    """The device on which they were kept once they had been read twice, and read from there; empty: none."""
    ranks: Ranks | None = None
    """The processes over which the data are spread; None: this one has them all."""
    start = 0
    """Number of the first datum on this process."""
    borders: tuple[int, ...] = ()
    """Numbers of the data with which the parts of other processes than the first begin."""
    first_output = 0
    """Number of the first output on this process among those of all, known after ``count_outputs``."""
    outputs_before = 0
    """How many outputs data have that come before all of these."""
    jumps: Mapping[int, int] = {}
    """Numbers of the data on this process that do not follow the one before -> the numbers of their first outputs."""
    num_outputs = 0
    """N C, where that is more than a process can tell from its own data."""
    in_parts = False
    """Whether they lie in parts elsewhere, where sums over them are made (``over_parts``)."""

    @property
    @abstractmethod
    def num_data(self) -> int:
        """N, known after the first pass."""

    @abstractmethod
    def __iter__(self) -> Iterator[Batch]:
        """One pass, over the data on this process."""

    @property
    def num_here(self) -> int:
        """How many are on this process, after the first pass."""
        return self.num_data

    @property
    def ends(self) -> Set[int]:
        """Numbers behind those data on this process that the next one does not follow."""
        return {self.num_data}

    def summed(self, name: str, *tensors: Tensor | None) -> list[Tensor]:
        """Sums over the data on this process made sums over all data; every pass ends with it.

        Args:
            name: of the sum.
            tensors: the sums, which may be changed; None only where this process has no data.
        """
        if self.ranks is not None:
            self.fixed_order = all(self.ranks.gathered("order", self.fixed_order))
            return self.ranks.summed(name, tensors, empty=not self.num_here)
        assert all(each is not None for each in tensors), "a sum over no data"
        return [each for each in tensors if each is not None]

    def over_parts(self, each: Callable[["Data"], list[Tensor]]) -> list[Tensor]:
        """Sums over all data; of data in parts, those of each part, made where it lies, are added up.

        Args:
            each: the sums over some data; for data in parts it must be possible to pickle it.
        """
        return each(self)

    def count_outputs(self, numbers: int) -> int:
        """N C of all data, from that of the data on this process; the first output's number is known from then on."""
        if self.ranks is None:
            return numbers
        counts = self.ranks.gathered("outputs", numbers)
        self.first_output, self.num_outputs = self.outputs_before + sum(counts[: self.ranks.rank]), sum(counts)
        return self.num_outputs

    @property
    def stays(self) -> bool:
        """Whether data that have been read once may be kept on the network's device."""
        return False

    @contextmanager
    def kept_meanwhile(self) -> Iterator[None]:
        """Inside, data that come from elsewhere may be kept on the network's device."""
        yield


@dataclass(frozen=True)
class _Joined:
    """The batches of one loader, then those of another."""

    first: Loader
    second: Loader

    def __iter__(self) -> Iterator[Any]:
        return chain(self.first, self.second)


class CheckedLoader(Data):
    """The user's loader, checked: the same data on every pass, in any order.

    For an accelerator ``kept_meanwhile`` keeps the data of the second pass there, once they have been compared with
    those of the first, if they take no more than an eighth of the free memory: later passes need no loader and no hash.
    Else each batch is moved ahead of its use (``arriving``). On the CPU every pass reads the loader.

    A loader of a part (``shard``, ``as_shard``) is this process's; where it begins is known after the first pass.

    Args:
        loader: re-iterable of batches.
        device: to which they are brought.
        progress: shown while a pass is read.
        unpack: what makes (inputs, targets) of a batch; None: they are such pairs.
        counted: which targets count; the others (padding) may differ between passes.
        ranks: the processes over which the data are spread, where that has been found out.

    Raises:
        TypeError: if it cannot be read many times.
    """

    def __init__(
        self,
        loader: Loader,
        device: torch.device,
        progress: Progress,
        unpack: Unpack | None = None,
        counted: Counted | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        if not isinstance(loader, Iterable) or isinstance(loader, Iterator):
            raise TypeError(
                "expected a loader that can be read many times (a DataLoader, or a list of (inputs, targets) batches), "
                f"got {type(loader).__name__}. Wrap it in list(...) if it fits into memory."
            )
        self.ranks = ranks_of(loader) if ranks is None else ranks
        self._loader = loader.loader if isinstance(loader, ToldLoader) else loader
        self._device, self._progress = device, progress
        self._unpack, self._counted = unpack, counted
        self._length: int | None = None
        self._fingerprint: tuple[int, int] | None = None
        self._whole: tuple[int, int] | None = None  # the same of the data on all processes
        self._first_order: int | None = None
        self._known = torch.zeros(0, dtype=torch.int64)  # sorted hashes of all data, after the first pass
        self._ahead = self._known  # hashes of the batch that was read ahead of it
        self._shapes: set[tuple[int, ...]] = set()
        self._objects, self.has_lists = False, False
        self._sides: dict[str, bool] | None = None
        self._there: list[Batch] = []
        self._keeping = False
        self._later: tuple[tuple[int, int], ...] = ()  # where in the loader new data begin, with their first number

    @property
    def num_data(self) -> int:
        """N, known after the first pass."""
        assert self._whole is not None, "read the loader once first"
        return self._whole[0]

    @property
    def num_here(self) -> int:
        """How many are on this process, after the first pass."""
        return 0 if self._fingerprint is None else self._fingerprint[0]

    @property
    def ends(self) -> Set[int]:
        """Numbers behind those data on this process that the next one does not follow."""
        places = [*(place for place, _ in self._later), self.num_here]
        return {self._number(place - 1) + 1 for place in places if place}

    def _number(self, place: int) -> int:
        """Of the datum at that place of the loader."""
        first, number = max(((0, self.start), *(each for each in self._later if each[0] <= place)))
        return number + place - first

    @property
    def fingerprint(self) -> str:
        """A hexadecimal hash of all data in any order, known after the first pass."""
        assert self._whole is not None, "read the loader once first"
        return f"{self._whole[1]:016x}"

    def first(self) -> Batch | None:
        """A first batch, read ahead of the first pass, which must then hold its data; None of a part that is empty."""
        item = next(iter(Interruptible(self._loader)), None)
        if item is None and self.ranks is not None:
            return None
        require(item is not None, "a loader with at least one batch", "an empty one", _EMPTY)
        batch = as_batch(item, 0, 0, self._unpack)
        self._ahead = self._hashes(batch)
        return batch.on(self._device)

    def behind(self, loader: Loader, first_output: int) -> "CheckedLoader":
        """A loader of new data, numbered as those that come behind these, whose outputs are so many.

        Raises:
            ValueError: for a part of them where these are all the data, or the other way round.
        """
        words = "all the new data on this process", "this process's part of the new data"
        ranks = ranks_of(loader)
        had, given = (words[each is not None] for each in (self.ranks, ranks))
        require(had == given, f"{had}, as of those of the fit", given, "Give them as the fit's data were given.")
        ranks = ranks if ranks is None or self.ranks is None else self.ranks.taking(ranks.by_number)
        new = CheckedLoader(loader, self._device, self._progress, self._unpack, self._counted, ranks)
        new._sides, new.start = self._sides, self.num_data
        new.first_output = new.outputs_before = first_output
        return new

    def joined(self, new: "CheckedLoader") -> "CheckedLoader":
        """These data and the new ones behind them, known without another pass. After a first pass of both."""
        joined = _Joined(self._loader, new._loader)
        both = CheckedLoader(joined, self._device, self._progress, self._unpack, self._counted, self.ranks)
        both._sides, both._shapes = self._sides, self._shapes | new._shapes
        both._fingerprint, both._whole = (
            (first[0] + second[0], wrap(first[1] + second[1]))
            for first, second in ((self._fingerprint, new._fingerprint), (self._whole, new._whole))
            if first is not None and second is not None
        )  # each is known after a first pass
        both._known = torch.cat([self._known, new._known]).sort().values
        both._length = None if self._length is None or new._length is None else self._length + new._length
        both._objects, both.has_lists = self._objects, self.has_lists
        both.fixed_order, both.sweeps = self.fixed_order and new.fixed_order, self.sweeps
        both.nbytes = self.nbytes + new.nbytes
        if self.ranks is not None:
            both.start, both._later = self.start, (*self._later, (self.num_here, new.start))
            both.borders = tuple(sorted({*self.borders, self.num_data, *new.borders}))
            both.first_output, both.jumps = self.first_output, {**self.jumps, new.start: new.first_output}
            both.num_outputs = self.num_outputs + new.num_outputs
        return both

    def require_new(self, new: "CheckedLoader") -> None:
        """Refuse a loader whose data are for the greater part among these. After a first pass of both."""
        ranks, had = self.ranks, self._known
        known = int(torch.isin(new._known, had if ranks is None else ranks.joined("data of the fit", had)).sum())
        known = known if ranks is None else sum(ranks.gathered("known data", known))
        found = f"one in which {known} of {new.num_data} are data that the fit has had"
        fix = "Each would count twice: leave them out, or call fit(loader) where data are to count twice."
        require(2 * known <= new.num_data, "a loader of new data alone", found, fix)

    def require_kind(self, batch: Batch) -> None:
        """Refuse a batch whose inputs or targets have other entries, axes or types than these."""
        item = next(iter(Interruptible(self._loader)), None)
        if item is None and self.ranks is not None and not self.num_here:
            return
        require(item is not None, "the loader of the fit to be readable still", "an empty one", _EMPTY)
        own, fix = as_batch(item, 0, 0, self._unpack).kind, "Data of another kind need a fit of their own."
        require(own == batch.kind, f"new data like those of the fit, {own}", batch.kind, fix)

    @property
    def stays(self) -> bool:
        """Whether they may be kept there: not on the CPU, and only where an eighth of what is free holds them."""
        free = None if self._device.type == "cpu" or self._fingerprint is None else free_bytes(self._device)
        return free is not None and _OF_FREE * self.nbytes <= free

    @contextmanager
    def kept_meanwhile(self) -> Iterator[None]:
        """Inside, a pass keeps the data on the device where they fit; at the end they are let go."""
        self._keeping = True
        try:
            yield
        finally:
            self._keeping, self._there = False, []

    def __iter__(self) -> Iterator[Batch]:
        if self._there:
            yield from self._progress.sweep(self._there, self._length)
            self.sweeps += 1
            return
        found: list[Batch] | None = [] if self._keeping and self.stays else None
        for batch in arriving(self._read(), self._device):
            if found is not None:
                found.append(batch)
            yield batch
        if found is not None:
            self._there, self.kept_on = found, str(self._device)

    def _read(self) -> Iterator[Batch]:
        """One pass of the loader: batches where it has them, checked."""
        position, index, size, tally = 0, -1, 0, Tally()  # the position is that in the loader
        found: list[Tensor] = []
        for index, item in enumerate(self._progress.sweep(self._loader, self._length)):
            batch = as_batch(item, index, position, self._unpack)
            hashes = self._hashes(batch)
            if self._fingerprint is None:
                found.append(hashes)
            else:
                self._require_known(hashes, position)
            tally.add(hashes)
            number, position = self._number(position), position + batch.size
            size += batch.nbytes
            yield replace(batch, position=number) if number != batch.position else batch
        self.nbytes = size
        self._finish(position, *tally.sums(), index + 1, found)

    def _hashes(self, batch: Batch) -> Tensor:
        self._objects, self.has_lists = batch.opaque, isinstance(batch.inputs, list)
        if not isinstance(batch.inputs, (Opaque, list)):
            shapes = [t.shape[1:] for t in (*input_tensors(batch.inputs), batch.targets)]
            self._shapes.add(tuple(size for shape in shapes for size in shape))
        if self._sides is None:  # settled once, so that a datum has the same hash on every pass
            self._sides = padding_sides(batch.inputs)
        return datum_hashes(batch.inputs, batch.targets, self._counted, self._sides).cpu()

    def _require_known(self, hashes: Tensor, position: int) -> None:
        """Each datum is one of the first pass's, before anything is made of it: not every pass is read to its end."""
        where = self._first_strange(hashes)
        if where is not None:
            kind = f"inputs and target together, is none of the {len(self._known)} of the first"
            self._refuse(f"its datum {position + where}, {kind}")

    def stranger(self, batch: Batch) -> int | None:
        """The first datum of another loader's batch that is none of these; None: all are. After a first pass."""
        return self._first_strange(self._hashes(batch))

    def _first_strange(self, hashes: Tensor) -> int | None:
        if not len(self._known):
            return 0
        places = torch.searchsorted(self._known, hashes).clamp_max(len(self._known) - 1)
        strange = self._known[places] != hashes
        return int(strange.int().argmax()) if bool(strange.any()) else None

    def _finish(self, size: int, content: int, order: int, batches: int, found: list[Tensor]) -> None:
        if self._fingerprint is None:
            self._fingerprint, self._first_order, self._length = (size, content), order, batches
            self._known = torch.cat([self._known, *found]).sort().values
            if len(self._ahead):
                self._require_known(self._ahead, 0)
            self._whole = self._fingerprint if self.ranks is None else self._found_whole(self.ranks, size, content)
            require(self._whole[0] > 0, "a loader with at least one batch", "an empty one", _EMPTY)
        elif size != self._fingerprint[0]:
            hint = "" if size else "; was it a generator, which can be read only once?"
            self._refuse(f"{self._fingerprint[0]} data, then {size}{hint}")
        elif content != self._fingerprint[1]:
            self._refuse(f"{size} data both times, but not the same ones")
        if self._first_order is None:  # of joined data, which were known without a pass
            self._first_order = order
        self.fixed_order = self.fixed_order and order == self._first_order
        self.sweeps += 1

    def _found_whole(self, ranks: Ranks, size: int, content: int) -> tuple[int, int]:
        """N and the hash of the data of all processes; says where those of this one begin."""
        parts = ranks.gathered("data", [size, f"{content:x}", self.has_lists])
        self.has_lists = any(lists for _, _, lists in parts)
        starts = [self.start + sum(count for count, _, _ in parts[:rank]) for rank in range(ranks.size)]
        self.start, self.borders = starts[ranks.rank], tuple(sorted({*starts} - {self.start}))
        if not ranks.by_number:
            ranks.require_apart(ranks.elsewhere("equal data", self._known))
        return sum(count for count, _, _ in parts), wrap(sum(int(each, 16) for _, each, _ in parts))

    def _refuse(self, detail: str) -> None:
        hint = _OBJECTS if self._objects else _PADDED if len(self._shapes) > 1 else ""
        raise ValueError(_CHANGED.format(detail=detail, hint=hint))
