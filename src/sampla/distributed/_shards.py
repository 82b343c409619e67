"""Which part of the data is this process's, and whether a loader is of such a part."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

from sampla.core.checks import require
from sampla.distributed._ranks import Ranks, refuse_spread

_WHOLE = 512
"""Parts begin at multiples of this where that leaves them within a tenth of one another: blocks of noise and
minibatches then lie in one part each, and are summed in the order that they have on one process."""


class Shard(Dataset[Any]):
    """This process's part of a data set, which has its data by number; made by ``shard``.

    Args:
        dataset: with ``len`` and ``[]``.
        rank: number of the process.
        size: how many processes there are.
    """

    def __init__(self, dataset: Any, rank: int, size: int) -> None:
        self.dataset, self.rank, self.size = dataset, rank, size
        number = len(dataset)
        whole = _WHOLE if number >= 10 * _WHOLE * size else 1
        self.start, stop = (number // whole * part // size * whole for part in (rank, rank + 1))
        self.stop = stop if rank + 1 < size else number

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"expected a number below {len(self)}, got {index}")
        return self.dataset[self.start + index % len(self)]


class ToldLoader:
    """A loader of which it is said how much of the data it yields; made by ``as_shard`` and ``as_whole``."""

    def __init__(self, loader: Iterable[Any], part: bool) -> None:
        self.loader, self.part = loader, part

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)


def shard(dataset: Any) -> Shard:
    """This process's part of a data set: consecutive data, in the order of the processes.

    A fit to a ``DataLoader`` of it goes over the parts of all processes, and gives every one of them the samples of one
    process with all the data, up to rounding. Without a process group, or in one of a single process, it is all of it.

    Args:
        dataset: with ``len`` and ``[]``, the same on every process. Call it after
            ``torch.distributed.init_process_group``.

    Raises:
        TypeError: for a data set that has no length or no ``[]``.
    """
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise TypeError(
            f"expected a data set with len() and [], got {type(dataset).__name__}. For a loader that yields this "
            "process's part by itself use sampla.as_shard(loader)."
        )
    return Shard(dataset, *_place())


def as_shard(loader: Iterable[Any]) -> ToldLoader:
    """Say of a loader that it yields this process's part of the data, which may be empty.

    The data are numbered by process, and within one as its loader yields them.

    Args:
        loader: re-iterable of batches, as for ``fit``.
    """
    return ToldLoader(loader, part=True)


def as_whole(loader: Iterable[Any]) -> ToldLoader:
    """Say of a loader that it yields all the data: in a process group, this process then fits on its own.

    Args:
        loader: re-iterable of batches, as for ``fit``.
    """
    return ToldLoader(loader, part=False)


def _place() -> tuple[int, int]:
    """Number of this process, and how many there are."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def is_first() -> bool:
    """Whether this is the process that speaks for all."""
    return _place()[0] == 0


def unwrapped(model: nn.Module) -> nn.Module:
    """The network itself, without DistributedDataParallel around it."""
    while isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    return model


def ranks_of(loader: Any, told: bool = False) -> Ranks | None:
    """The processes over which the data of a loader are spread; None where the loader has them all.

    Args:
        loader: of the user's.
        told: whether in a group of several processes the loader must say which it is.

    Raises:
        ValueError: for a part that was made for another number of processes; for a loader that does not say what it is.
    """
    here, made = _place(), _part_of(loader)
    if made is None:
        require(
            not told or here[1] == 1 or isinstance(loader, ToldLoader),
            f"a loader that says that it yields a part of the data, in a group of {here[1]} processes",
            type(loader).__name__,
            "A DataLoader of sampla.shard(dataset) does; sampla.as_shard(loader) says it of any that yields this "
            "process's part by itself, and sampla.as_whole(loader) that this process is to fit all data on its own.",
        )
        return None
    if isinstance(made, tuple):
        require(
            made == here,
            f"a part made for process {here[0]} of {here[1]}",
            f"one made for process {made[0]} of {made[1]}",
            "Call sampla.shard(dataset) after torch.distributed.init_process_group, on each process.",
        )
    return Ranks(*here, by_number=isinstance(made, tuple)) if here[1] > 1 else None


def _part_of(loader: Any) -> tuple[int, int] | str | None:
    """Which process's part ``shard`` has made it of; how else it says that it is a part; None: it does not."""
    if isinstance(loader, ToldLoader):
        return "as_shard" if loader.part else None
    inner = loader
    for _ in range(8):  # a Subset of a Shard, and the like
        if isinstance(inner, Shard):
            return inner.rank, inner.size
        inner = getattr(inner, "dataset", None)
    samplers = [getattr(each, "sampler", None) for each in (loader, getattr(loader, "batch_sampler", None))]
    return "DistributedSampler" if any(isinstance(each, DistributedSampler) for each in samplers) else None


def refuse_parts(loader: Any, what: str) -> None:
    """Refuse a loader of a part of the data, where every process would go its own way with it.

    Raises:
        ValueError: if there is more than one process and the loader says that it is a part.
    """
    refuse_spread(ranks_of(loader), what)
