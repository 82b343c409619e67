"""How data get to a device that is not the CPU: kept there where they fit, else copied ahead of their use.

The device is torch's "meta", which holds shapes and no values: a pass that asks it for a number fails.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from helpers import class_batches, inputs, labels, laplace
from sampla.core import batch as batch_module
from sampla.core import data as data_module
from sampla.core.batch import Batch, arriving
from sampla.core.data import CheckedLoader
from sampla.core.progress import Progress

THERE = torch.device("meta")


class Counted(list):  # type: ignore[type-arg]
    """A list that counts how often it is read."""

    readings = 0

    def __iter__(self) -> Iterator[Any]:
        self.readings += 1
        return super().__iter__()


def read(data: CheckedLoader) -> list[Batch]:
    return list(data)


def loaded(loader: Any, device: torch.device = THERE) -> CheckedLoader:
    return CheckedLoader(loader, device, Progress(False))


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Bytes that are free on every device."""
    memory = SimpleNamespace(free=10**9)
    monkeypatch.setattr(data_module, "free_bytes", lambda _: memory.free)
    return memory


@pytest.mark.usefixtures("free")
def test_data_stay_on_the_device_once_two_passes_have_agreed() -> None:
    loader = Counted(class_batches())
    data = loaded(loader)
    with data.kept_meanwhile():
        passes = [read(data) for _ in range(5)]
        assert (loader.readings, data.sweeps, data.kept_on) == (2, 5, "meta")
    assert all(batch.targets.device == THERE for each in passes for batch in each)
    assert [batch.position for batch in passes[4]] == [batch.position for batch in passes[0]] == [0, 8, 16]
    assert [id(a) for a in passes[1]] == [id(b) for b in passes[4]]
    read(data)
    assert (loader.readings, data.sweeps) == (3, 6)


def test_data_are_read_each_time_where_they_do_not_fit_or_nobody_asked(free: Any) -> None:
    loader = Counted(class_batches())
    size = sum(x.nbytes + y.nbytes for x, y in class_batches())
    data = loaded(loader)
    for _ in range(3):
        read(data)
    assert (loader.readings, data.kept_on) == (3, "")
    free.free = 8 * size - 1
    with data.kept_meanwhile():
        read(data), read(data)
        assert (loader.readings, data.kept_on, data.nbytes) == (5, "", size)
        free.free = 8 * size
        read(data), read(data)
        assert (loader.readings, data.kept_on) == (6, "meta")


@pytest.mark.usefixtures("free")
def test_on_the_cpu_every_pass_reads_the_loader() -> None:
    loader = Counted(class_batches())
    data = loaded(loader, torch.device("cpu"))
    with data.kept_meanwhile():
        for _ in range(4):
            read(data)
    assert (loader.readings, data.kept_on) == (4, "")


@pytest.mark.usefixtures("free")
def test_a_pass_that_stops_early_keeps_nothing() -> None:
    loader = Counted(class_batches())
    data = loaded(loader)
    with data.kept_meanwhile():
        read(data)
        next(iter(data))
        assert data.kept_on == ""
        read(data), read(data)
    assert loader.readings == 3


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("change", ["augmented", "shuffled with drop_last"])
def test_data_that_change_are_noticed_before_they_are_kept(change: str) -> None:
    generator = torch.Generator().manual_seed(0)

    class Noisy(TensorDataset):
        def __getitem__(self, index: Any) -> Any:
            x, y = super().__getitem__(index)
            return x + torch.rand(x.shape, generator=generator), y

    kept = TensorDataset(inputs(), labels())
    loader = (
        DataLoader(Noisy(*kept.tensors), batch_size=8) if change == "augmented"
        else DataLoader(kept, batch_size=7, shuffle=True, drop_last=True, generator=generator)
    )  # fmt: skip
    data = loaded(loader)
    with data.kept_meanwhile(), pytest.raises(ValueError, match="different data on a later pass"):
        list(chain.from_iterable(data for _ in range(5)))


@pytest.mark.usefixtures("free")
def test_a_shuffled_loader_is_kept_in_the_order_of_its_second_pass() -> None:
    kept = TensorDataset(inputs(), labels())
    data = loaded(DataLoader(kept, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(0)))
    with data.kept_meanwhile():
        _, second, third = (read(data) for _ in range(3))
    assert [id(a) for a in second] == [id(b) for b in third]
    assert not data.fixed_order


class Timeline:
    """torch.cuda as far as ``arriving`` uses it: notes what happens, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.copies = 0

    def Stream(self, device: torch.device) -> Any:  # noqa: N802
        assert device.type == "cuda"

        def recorded() -> Any:
            number = self.copies
            self.copies += 1
            self.events.append(f"copy {number}")
            return SimpleNamespace(number=number, synchronize=lambda: self.events.append(f"wait for copy {number}"))

        return SimpleNamespace(record_event=recorded)

    @contextmanager
    def stream(self, _: Any) -> Iterator[None]:
        yield

    def current_stream(self, _: torch.device) -> Any:
        return SimpleNamespace(wait_event=lambda event: self.events.append(f"work after copy {event.number}"))


def test_on_a_gpu_the_next_batch_is_copied_before_the_present_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for torch.cuda: there is no GPU here."""
    timeline, moves = Timeline(), []
    monkeypatch.setattr(batch_module.torch, "cuda", timeline)
    monkeypatch.setattr(Tensor, "pin_memory", lambda t: t.clone())
    monkeypatch.setattr(Tensor, "record_stream", lambda *_: timeline.events.append("held"))

    def on(given: Batch, device: torch.device, wait: bool = True) -> Batch:
        moves.append((device.type, wait))
        return given

    monkeypatch.setattr(Batch, "on", on)
    given = [Batch(x, y, 8 * k, 8) for k, (x, y) in enumerate(class_batches())]

    def loader() -> Iterator[Batch]:
        for number, batch in enumerate(given):
            timeline.events.append(f"load {number}")
            yield batch

    for number, batch in enumerate(arriving(loader(), torch.device("cuda"))):
        assert torch.equal(batch.targets, given[number].targets)
        timeline.events.append(f"use {number}")
    assert moves == [("cuda", False)] * 3
    assert timeline.events == [
        "load 0", "copy 0", "wait for copy 0",
        "load 1", "copy 1", "work after copy 0", "held", "held", "use 0", "wait for copy 1",
        "load 2", "copy 2", "work after copy 1", "held", "held", "use 1", "wait for copy 2",
        "work after copy 2", "held", "held", "use 2",
    ]  # fmt: skip


class Images(nn.Module):
    """Takes bytes, as they are in the files, and notes in which type they come."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
        self.found = set[torch.dtype]()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.found.add(x.dtype)
        outputs: Tensor = self.inner(x.float() / 255)
        return outputs


@pytest.mark.parametrize("kind", ["tensors", "arrays"])
def test_bytes_stay_bytes_all_the_way_to_the_network(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (24, 3, 6, 6), generator=generator, dtype=torch.uint8)
    y, network, other = labels(), Images(), Images()
    small: Any = x.numpy() if kind == "arrays" else x
    settings: dict[str, Any] = {"solver": "block-cg"}
    narrow = laplace(network, **settings).fit([(small[:12], y[:12]), (small[12:], y[12:])])
    wide = laplace(other, **settings).fit([(x[:12].float(), y[:12]), (x[12:].float(), y[12:])])
    assert network.found == {torch.uint8}
    assert torch.equal(narrow.predict(x).variance, wide.predict(x.float()).variance)
    assert network.found == {torch.uint8}
    assert Batch(x, y, 0, 24).on(THERE).inputs.dtype == torch.uint8  # type: ignore[union-attr]
