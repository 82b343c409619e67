"""Sums over processes, each of which holds a part of the data, and words on what keeps them from going on.

Every process computes all that lies between passes for itself, on the same numbers: only sums over data are shared.
For one the processes tell one another where they are, in a few hundred bytes, which hold small tensors too; large ones
follow, by an all-reduce each. So a process that has failed is named by all, and processes that have come apart say so,
where a bare all-reduce would wait or give nonsense.
"""

import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from time import monotonic, sleep
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from sampla.core.checks import require
from sampla.core.processes import runs
from sampla.distributed._words import bytes_of, kind_of, like, read, spelled

Held: TypeAlias = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors by name, and facts as JSON knows them: what a file holds."""

_SLOT = 2048
"""Bytes of what a process says before a sum, as long as that is enough."""
_LENGTH = 8
"""Bytes of them that say how many of the others count."""
_AT_ONCE = 2**25
"""Bytes of vectors that are laid together at a time: they are held twice meanwhile."""
_FAILED = "failed"
_PATIENCE = 5.0
"""Seconds in which those that have lost somebody tell one another that it was not them."""
_OVER = (
    "Take sampla.shard(dataset), which splits by number (and so allows equal data); a DistributedSampler repeats data "
    "to make parts equal unless drop_last=True."
)


class RankError(RuntimeError):
    """The processes of a group cannot go on together: one has failed, is gone or does something else."""


def refuse_spread(ranks: "Ranks | None", what: str) -> None:
    """Refuse what does not sum over processes.

    Raises:
        ValueError: if data are spread over processes.
    """
    require(
        ranks is None, f"all the data on this process for {what}", "data spread over processes",
        'What sums over processes is LinearisedLaplace, with solver="block-cg" or "dense".',
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
        self._at = ""
        self._places: list[tuple[str, int]] = []  # host and number of each process, after ``agree``

    @property
    def beside(self) -> int:
        """How many of them are on this machine, this one included."""
        return max(1, sum(host == socket.gethostname() for host, _ in self._places))

    def taking(self, by_number: bool) -> "Ranks":
        """The same processes for other data, which are numbers of one data set or not."""
        other = copy(self)
        other.by_number = by_number
        return other

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
        here = [socket.gethostname(), os.getpid()]
        told = self.gathered(at, [here, {name: repr(value) for name, value in settings.items()}])
        self._places, said = [(host, number) for (host, number), _ in told], [each for _, each in told]
        for name, value in said[0].items():
            for rank, other in enumerate(said):
                if other.get(name) != value:
                    raise RankError(
                        f"expected the same fit on every process, got another {name} on rank {rank}: "
                        f"{_short(other.get(name))}, against {_short(value)} on rank 0. Make model, settings and seed "
                        "the same on all: load the same weights, or broadcast them."
                    )

    def of_first(
        self, at: str, make: Callable[[], Held | None], keep: Callable[[str, Tensor], Tensor] = lambda _, each: each
    ) -> Held | None:
        """What the first process makes, such as what a file holds, on all of them, on the CPU.

        Args:
            at: where this process is.
            make: called on the first process; None is None on all.
            keep: what each process keeps of a tensor of that name, as soon as it has come.
        """
        made = make() if self.rank == 0 else None
        told = None if made is None else [[[n, *kind_of(t)] for n, t in made[0].items()], made[1]]
        told = self.gathered(at, told)[0]
        if told is None:
            return None
        kinds, facts = told
        return {n: keep(n, self._of(0, None if made is None else made[0][n], kind)) for n, *kind in kinds}, facts

    def joined(self, at: str, tensor: Tensor) -> Tensor:
        """The tensors of all processes behind one another along the first axis, where this one's is."""
        kinds = self.gathered(at, kind_of(tensor))
        return torch.cat([self._of(rank, tensor, kind) for rank, kind in enumerate(kinds)]).to(tensor.device)

    def _of(self, rank: int, tensor: Tensor | None, kind: list[Any]) -> Tensor:
        """The tensor of one process, of that type and shape, on the CPU of all."""
        there = bytes_of(like(kind) if rank != self.rank or tensor is None else tensor).to(self._device)
        if len(there):
            self._do(lambda: dist.broadcast(there, rank))
        return there.cpu().view(getattr(torch, kind[0].removeprefix("torch."))).view(kind[1:])

    def summed(self, name: str, tensors: Sequence[Tensor | None], empty: bool) -> list[Tensor]:
        """Each of the tensors summed over all processes.

        Args:
            name: of the sum.
            tensors: of this process, changed in place where that saves memory; None: it has none of that kind.
            empty: whether this process has no data: what it gives is then not looked at.

        Raises:
            RankError: if a process has failed, is gone or sums something else.
        """
        own = [None if empty or each is None else [kind_of(each), spelled(each)] for each in tensors]
        said = self.gathered(name, own)
        parts = [[part for part in parts if part is not None] for parts in zip(*said, strict=True)]
        if any(kind != each[0][0] for each in parts for kind, _ in each):
            raise RankError(f"expected the same shapes of {name!r} on every process, got {said}. Report this, please.")
        return [self._sum(tensor, each, empty) for tensor, each in zip(tensors, parts, strict=True)]

    def _sum(self, tensor: Tensor | None, parts: list[Any], empty: bool) -> Tensor:
        """The sum of the tensors that processes have, each with its kind and, where it is small, in words."""
        assert parts, "a process with data has a part in every sum"
        kind, told = parts[0]
        home = torch.device("cpu") if tensor is None else tensor.device
        if told is not None:
            return sum((read(kind, words) for _, words in parts), start=like(kind)).to(home)
        there = self._there(like(kind).to(home) if tensor is None or empty else tensor)
        self._do(lambda: dist.all_reduce(there))
        return there.to(home)

    def _there(self, tensor: Tensor) -> Tensor:
        """The tensor in one piece where the processes can exchange it."""
        on_gpu = self._on_gpu and tensor.device.type == "cuda"
        return (tensor if on_gpu else tensor.to(self._device)).contiguous()

    def width(self, size: int) -> int:
        """How wide slices of ``size`` numbers are; the last ones may be narrower, or empty."""
        return -(-size // self.size)

    def side_by_side(self, at: str, own: Tensor, size: int) -> Tensor:
        """(k, size) vectors whose slices (k, p), ``width(size)`` wide, the processes have in their order.

        Args:
            at: where this process is.
            own: its slices of the same vectors and type as all have.
            size: how long the vectors are.

        Raises:
            RankError: if a process has failed, is gone or has other vectors.
        """
        said = self.gathered(at, [str(own.dtype), len(own), size])
        if any(each != said[0] for each in said):
            raise RankError(f"expected slices of the same vectors on every process, got {said}. Report this, please.")
        width = self.width(size)
        whole, few = own.new_empty(len(own), size), max(1, _AT_ONCE // max(1, own.element_size() * width * self.size))
        for start in range(0, len(own) if size else 0, few):
            mine = self._there(pad(own[start : start + few], (0, width - own.shape[1])))
            every = [torch.empty_like(mine) for _ in range(self.size)]
            self._do(lambda mine=mine, every=every: dist.all_gather(every, mine))  # type: ignore[misc]
            for place, slices in zip(whole[start : start + few].split(width, dim=1), every, strict=False):
                place.copy_(slices[:, : place.shape[1]])
        return whole

    def elsewhere(self, at: str, hashes: Tensor) -> int:
        """How many of the sorted int64 hashes of this process are those of a process with a lower number, of all."""
        twice, sizes = 0, self.gathered(at, len(hashes))
        for rank, size in enumerate(sizes):
            found = self._of(rank, hashes, [str(hashes.dtype), size])
            if rank < self.rank and size:
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
        self._spoken, self._at = self._spoken + 1, at
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
            where = f"{self._at!r} (exchange {self._spoken})"
            raise RankError(
                f"rank {self.rank} of {self.size} has lost others at {where}: {self._lost()} ({error})"
            ) from error

    def _lost(self) -> str:
        """Which of the others have ended, or else have not come, in words."""
        ended, silent = self._roll_call()
        if ended:
            return (
                f"{self._named(ended)} ended before its time. Its own messages say why; one that was killed leaves "
                "none. With fit(loader, checkpoint=...) the same command goes on from where this fit was."
            )
        if silent:
            return (
                f"no answer from {self._named(silent)}: hanging, busy for longer than the timeout of "
                "init_process_group(timeout=...), not making the same calls, or, on another machine, ended."
            )
        return "all of them answer: the connection between them broke."

    def _roll_call(self) -> tuple[list[int], list[int]]:
        """The others that have ended on this machine, and those that do not say that they have lost somebody too."""
        host, until = socket.gethostname(), monotonic() + _PATIENCE
        here = {rank: process for rank, (at, process) in enumerate(self._places) if at == host}
        silent = [rank for rank in range(self.size) if rank != self.rank]
        with suppress(RuntimeError):  # the group's store is gone with the process that held it
            store = dist.distributed_c10d._get_default_store()
            store.set(f"sampla/lost/{self.rank}", str(self._spoken))
            while silent and monotonic() < until and all(map(runs, here.values())):
                sleep(0.05)
                silent = [rank for rank in silent if not store.check([f"sampla/lost/{rank}"])]
        return [rank for rank, process in here.items() if not runs(process)], silent

    def _named(self, ranks: list[int]) -> str:
        def name(rank: int) -> str:
            host, process = self._places[rank] if self._places else ("", 0)
            return f"rank {rank}" + (f" (process {process} on {host})" if process else "")

        return " and ".join(map(name, ranks))


def _short(text: Any) -> str:
    return f"{text:.80}" if isinstance(text, str) else "none"
