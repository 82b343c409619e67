"""Sums over processes, each of which holds a part of the data; the only user of torch.distributed.

Every process computes all that lies between passes for itself, on the same numbers: only sums over data are shared, by
an all-reduce each. Before it the processes tell one another where they are, in a few hundred bytes. So one that has
failed is named by all, and processes that have come apart say so, where a bare all-reduce would wait or give nonsense.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

from sampla.core.checks import require

_SLOT = 512
"""Bytes of what a process says before a sum, as long as that is enough."""
_LENGTH = 8
"""Bytes of them that say how many of the others count."""
_FAILED = "failed"
_WHOLE = 512
"""Parts begin at multiples of this where that leaves them within a tenth of one another: blocks of noise and
minibatches then lie in one part each, and are summed in the order that they have on one process."""
_OVER = (
    "Take sampla.shard(dataset), which splits by number (and so allows equal data); a DistributedSampler repeats data "
    "to make parts equal unless drop_last=True."
)


class RankError(RuntimeError):
    """The processes of a group cannot go on together: one has failed, is gone or does something else."""


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


class ShardedLoader:
    """A loader that yields this process's part of the data; made by ``as_shard``."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader

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


def as_shard(loader: Iterable[Any]) -> ShardedLoader:
    """Say of a loader that it yields this process's part of the data, which may be empty.

    The data are numbered by process, and within one as its loader yields them.

    Args:
        loader: re-iterable of batches, as for ``fit``.
    """
    return ShardedLoader(loader)


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


def ranks_of(loader: Any) -> "Ranks | None":
    """The processes over which the data of a loader are spread; None where the loader has them all.

    Raises:
        ValueError: for a part that was made for another number of processes.
    """
    here, made = _place(), _part_of(loader)
    if made is None:
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
    if isinstance(loader, ShardedLoader):
        return "as_shard"
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


def refuse_spread(ranks: "Ranks | None", what: str) -> None:
    """Refuse what does not sum over processes.

    Raises:
        ValueError: if data are spread over processes.
    """
    require(
        ranks is None, f"all the data on this process for {what}", "data spread over processes",
        'What sums over processes: LinearisedLaplace.fit and more, with solver="block-cg" or "dense".',
    )  # fmt: skip


@contextmanager
def together(ranks: "Ranks | None", what: str) -> Iterator[None]:
    """Inside, an error of one process ends all of them, each with words on it; they leave it together.

    Args:
        ranks: the processes; None: this one is on its own.
        what: is done inside.
    """
    if ranks is None:
        yield
        return
    try:
        yield
        ranks.gathered(f"end of {what}")
    except RankError:
        raise
    except BaseException as error:
        ranks.fail(error)
        raise


class Ranks:
    """The processes of the default group, over which the data of a fit are spread.

    Args:
        rank: number of this process.
        size: how many there are.
        by_number: whether parts are numbers of one data set, so that none is in two of them.
    """

    def __init__(self, rank: int, size: int, by_number: bool) -> None:
        self.rank, self.size, self.by_number = rank, size, by_number
        pairs = [each.partition(":") for each in str(dist.get_backend_config()).split(",")]
        kinds = {device: backend for device, _, backend in pairs if (device, backend) != ("cpu", "nccl")}
        self._on_gpu = kinds.get("cuda") == "nccl"
        self._device = torch.device("cpu") if "cpu" in kinds else torch.device("cuda", torch.cuda.current_device())
        self._spoken = 0

    def fail(self, error: BaseException) -> None:
        """Have the others learn of an error of this process where they wait for it next."""
        with suppress(RankError):
            self._said(_FAILED, f"{type(error).__name__}: {error}")

    def gathered(self, at: str, fact: Any = None) -> list[Any]:
        """What every process says, by number.

        Args:
            at: where this process is; all must be at the same place.
            fact: as JSON knows it.

        Raises:
            RankError: if a process has failed, is gone or is elsewhere.
        """
        said = self._said(at, fact)
        for rank, (_, where, words) in enumerate(said):
            if where == _FAILED:
                raise RankError(f"rank {rank} of {self.size} has failed, so that all stop here. {words}")
        places = [f"{where!r} (exchange {count})" for count, where, _ in said]
        if len(set(places)) > 1:
            words = ", ".join(f"rank {rank} at {place}" for rank, place in enumerate(places))
            raise RankError(
                f"expected all processes at the same pass, got {words}. Each must make the same calls in the same "
                "order, and on machines of one kind, so that rounding decides alike."
            )
        return [fact for _, _, fact in said]

    def agree(self, at: str, settings: dict[str, Any]) -> None:
        """See that all processes were given the same.

        Raises:
            RankError: on every process, naming what differs, if they were not.
        """
        said = self.gathered(at, {name: repr(value) for name, value in settings.items()})
        for name, value in said[0].items():
            for rank, other in enumerate(said):
                if other.get(name) != value:
                    raise RankError(
                        f"expected the same fit on every process, got another {name} on rank {rank}: "
                        f"{_short(other.get(name))}, against {_short(value)} on rank 0. Make model, settings and seed "
                        "the same on all: load the same weights, or broadcast them."
                    )

    def summed(self, name: str, tensors: Sequence[Tensor | None], empty: bool) -> list[Tensor]:
        """Each of the tensors summed over all processes.

        Args:
            name: of the sum.
            tensors: of this process, changed in place where that saves memory; None: it has none of that kind.
            empty: whether this process has no data: what it gives is then not looked at.

        Raises:
            RankError: if a process has failed, is gone or sums something else.
        """
        own = [None if empty or each is None else [str(each.dtype), *each.shape] for each in tensors]
        said = self.gathered(name, own)
        kinds = [next((row[i] for row in said if row[i] is not None), None) for i in range(len(tensors))]
        if any(kind not in (None, kinds[i]) for row in said for i, kind in enumerate(row)):
            raise RankError(f"expected the same shapes of {name!r} on every process, got {said}. Report this, please.")
        return [self._sum(tensor, kind, empty) for tensor, kind in zip(tensors, kinds, strict=True)]

    def _sum(self, tensor: Tensor | None, kind: list[Any] | None, empty: bool) -> Tensor:
        assert kind is not None, "a process with data has a part in every sum"
        home = torch.device("cpu") if tensor is None else tensor.device
        if tensor is None or empty:
            tensor = torch.zeros(kind[1:], dtype=getattr(torch, kind[0].removeprefix("torch.")), device=home)
        there = tensor.contiguous() if self._on_gpu and home.type == "cuda" else tensor.to(self._device).contiguous()
        self._do(lambda: dist.all_reduce(there))
        return there.to(home)

    def elsewhere(self, at: str, hashes: Tensor) -> int:
        """How many of the sorted int64 hashes of this process are those of a process with a lower number, of all."""
        twice, sizes = 0, self.gathered(at, len(hashes))
        for rank, size in enumerate(sizes):
            there = (hashes if rank == self.rank else hashes.new_empty(size)).to(self._device)
            self._do(lambda there=there, rank=rank: dist.broadcast(there, rank))  # type: ignore[misc]
            if rank < self.rank and size:
                found = there.cpu()
                places = torch.searchsorted(found, hashes).clamp_max(size - 1)
                twice += int((found[places] == hashes).sum())
        return sum(self.gathered(f"{at}, counted", twice))

    def require_apart(self, twice: int) -> None:
        """Refuse data that are on more than one process.

        Raises:
            ValueError: on every process.
        """
        require(twice == 0, "each datum on one process", f"{twice} that are also on another one", _OVER)

    def _said(self, at: str, fact: Any) -> list[Any]:
        self._spoken += 1
        return [json.loads(row) for row in self._exchanged(json.dumps([self._spoken, at, fact]).encode())]

    def _exchanged(self, words: bytes) -> list[bytes]:
        """The words of every process; in a second round if those of one are long."""
        slot = _SLOT
        while True:
            row = len(words).to_bytes(_LENGTH, "little") + words[: slot - _LENGTH]
            mine = torch.frombuffer(bytearray(row.ljust(slot, b"\0")), dtype=torch.uint8).to(self._device)
            every = [torch.empty_like(mine) for _ in range(self.size)]
            self._do(lambda mine=mine, every=every: dist.all_gather(every, mine))  # type: ignore[misc]
            rows = [each.cpu().numpy().tobytes() for each in every]
            lengths = [int.from_bytes(row[:_LENGTH], "little") for row in rows]
            if max(lengths) <= slot - _LENGTH:
                return [row[_LENGTH : _LENGTH + length] for row, length in zip(rows, lengths, strict=True)]
            slot = max(lengths) + _LENGTH

    def _do(self, collective: Callable[[], Any]) -> None:
        try:
            collective()
        except RuntimeError as error:
            raise RankError(
                f"rank {self.rank} of {self.size} has lost the others: one of them has ended, or did not answer within "
                "the timeout of init_process_group(timeout=...). Its own messages say why; a process that was killed "
                f"leaves none. ({error})"
            ) from error


def _short(text: Any) -> str:
    return f"{text:.80}" if isinstance(text, str) else "none"
