"""Ctrl-C at any moment leaves the process and the network as they were; the network can be copied after a fit."""

import copy
import io
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune, spectral_norm, weight_norm
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

import sampla
from helpers import laplace
from reliability import interrupts
from sampla.core import interrupts as moments
from sampla.core.interrupts import Interruptible, deferred_interrupts, interruptible, raise_deferred

X, Y, BATCHES = interrupts.X, interrupts.Y, interrupts.BATCHES


def press() -> None:
    """Ctrl-C, now."""
    signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore")  # some come from torch's own code for compiling, when it is stopped half-way
def test_whenever_it_comes(tmp_path: Path) -> None:
    found = interrupts.trials(14, 5, tmp_path)
    assert found["wrong"] == 0, found["faults"]
    assert found["stopped"] >= 9


class Module(nn.Module):
    """A linear layer that keeps its outputs in a way of its own."""

    def __init__(self, keep: Callable[[Any, Tensor], None], start: Callable[[], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.keep, self.kept, self.calls = nn.Linear(4, 3), keep, start(), 0

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layer(x)
        self.calls += 1
        self.keep(self, outputs)
        return outputs


KEEPING: dict[str, tuple[Callable[[Any, Tensor], None], Callable[[], Any]]] = {
    "attribute": (lambda m, x: setattr(m, "last", x), lambda: None),
    "attribute that was there": (lambda m, x: setattr(m, "kept", x), lambda: torch.ones(2)),
    "list": (lambda m, x: m.kept.append(x), list),
    "list of lists": (lambda m, x: m.kept[0].append(x), lambda: [[torch.ones(1)]]),
    "mapping": (lambda m, x: m.kept.__setitem__("last", x), dict),
    "mapping in a tuple": (lambda m, x: m.kept[1].__setitem__("last", x), lambda: (1, {"last": 3})),
    "object": (lambda m, x: setattr(m.kept, "last", x), SimpleNamespace),
    "new buffer": (lambda m, x: m.register_buffer("last", x), lambda: None),
    "taken away": (lambda m, _: setattr(m, "kept", None), lambda: torch.ones(2)),
}


def _flat(kept: Any) -> list[Any]:
    if isinstance(kept, (list, tuple)):
        return [entry for each in kept for entry in _flat(each)]
    if isinstance(kept, (dict, SimpleNamespace)):
        return _flat(list((kept if isinstance(kept, dict) else vars(kept)).items()))
    return [id(kept) if isinstance(kept, Tensor) else kept]


@pytest.mark.parametrize("name", KEEPING)
def test_tensors_that_forward_keeps_are_as_before(name: str) -> None:
    model = Module(*KEEPING[name]).eval()
    before, names = _flat(model.kept), sorted(vars(model))
    buffers = list(model._buffers)
    la = laplace(model).fit(BATCHES)
    for _ in range(2):
        assert _flat(model.kept) == before
        assert sorted(vars(model)) == names
        assert list(model._buffers) == buffers
        copy.deepcopy(model)
        la.predict(X)
    assert model.calls > 0  # numbers stay as the network has left them


def normed() -> nn.Module:
    return nn.Sequential(spectral_norm(nn.Linear(4, 3)))


def weight_normed() -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.Sequential(weight_norm(nn.Linear(4, 3)))


def pruned() -> nn.Module:
    layer = nn.Linear(4, 3)
    prune.l1_unstructured(layer, "weight", 2)
    return nn.Sequential(layer)


@pytest.mark.parametrize("make", [normed, weight_normed, pruned])
def test_networks_that_compute_their_weights_can_be_copied_and_written(make: Callable[[], nn.Module]) -> None:
    model = make().eval()
    with torch.no_grad():
        outputs = model(X)
    la = laplace(model).fit(BATCHES)
    la.predict(X)
    assert torch.equal(copy.deepcopy(model)(X), outputs)
    torch.save(model, io.BytesIO())


def test_it_waits_for_a_moment_and_comes_then() -> None:
    steps = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupts():  # noqa: PT012
        press()
        steps.append("kept")
        raise_deferred()
        steps.append("too far")
    assert steps == ["kept"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        press()


class Pressing(nn.Module):
    """Presses Ctrl-C in the middle of its n-th forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls, self.at, self.ended = nn.Linear(4, 3), 0, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            press()
        outputs: Tensor = self.layer(x)
        self.ended += 1
        return outputs


@pytest.mark.parametrize("at", [1, 4, 9, 14])
@pytest.mark.parametrize("what", ["fit", "predict", "plan"])
def test_a_product_is_taken_to_its_end(what: str, at: int) -> None:
    model = Pressing().eval()
    la = laplace(model).fit(BATCHES)
    work = {
        "fit": lambda: laplace(model).fit(BATCHES),
        "predict": lambda: la.predict(X),
        "plan": lambda: la.plan(BATCHES),
    }
    before = interrupts.process_state()
    model.calls, model.ended, model.at = 0, 0, min(at, 2) if what == "predict" else at
    with pytest.raises(KeyboardInterrupt):
        work[what]()
    assert model.ended == model.calls >= model.at
    assert interrupts.process_state() == before


def test_it_comes_at_the_end_at_the_latest_and_after_another_error() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, deferred_interrupts():  # noqa: PT012
        press()
        raise ValueError("also")
    assert isinstance(caught.value.__context__, ValueError)


def test_front_doors_inside_each_other_count_as_one() -> None:
    steps = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupts():  # noqa: PT012
        with deferred_interrupts():
            press()
            raise_deferred()  # the outer one is in the middle of something
            with interruptible():
                pass
        steps.append("kept")
        with interruptible():
            steps.append("too far")
    assert steps == ["kept"]


def test_a_second_one_is_let_through_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "_PATIENCE", 0.05)
    steps = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupts():  # noqa: PT012
        press()
        press()
        steps.append("kept")
        time.sleep(0.06)
        press()
        steps.append("too far")
    assert steps == ["kept"]


def test_while_a_loader_is_asked_it_comes_at_once() -> None:
    def slow() -> Iterator[int]:
        yield 1
        press()
        steps.append("too far")
        yield 2

    steps: list[Any] = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupts():  # noqa: PT012
        for each in Interruptible(slow()):
            steps.append(each)
    assert steps == [1]


def test_the_users_own_handler_is_asked() -> None:
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        with deferred_interrupts():
            press()
            assert not pressed
            raise_deferred()
            assert pressed == [signal.SIGINT]
            press()
            with interruptible():
                assert len(pressed) == 2
            press()
            assert len(pressed) == 2
        assert len(pressed) == 3
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with deferred_interrupts():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_and_processes_have_their_own() -> None:
    found: list[Any] = []

    def work() -> None:
        with deferred_interrupts():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]
    with deferred_interrupts():
        child = os.fork()
        if child == 0:
            try:
                press()
            except KeyboardInterrupt:
                os._exit(3)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


@pytest.mark.parametrize("progress", [False, True])
def test_a_process_that_was_killed_in_a_bar_stops_no_other(progress: bool) -> None:
    """It leaves tqdm's lock between processes taken, for all that were forked with it."""
    lock, ready, done = tqdm.get_lock().mp_lock, threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            ready.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    ready.wait()
    fit = threading.Thread(
        target=lambda: laplace(Pressing().eval(), progress=progress).fit(BATCHES).predict(X), daemon=True
    )
    fit.start()
    fit.join(60)
    waits = fit.is_alive()
    done.set()
    holder.join()
    assert not waits


def test_an_estimator_is_stopped_between_chunks() -> None:
    rows = torch.randn(20, 3).numpy()

    class Chunks:
        readings = 0

        def __iter__(self) -> Iterator[Any]:
            self.readings += 1
            yield rows, rows.sum(1)
            if self.readings == 2:
                press()
                raise AssertionError("too far")

    chunks = Chunks()
    with pytest.raises(KeyboardInterrupt):
        sampla.BayesianLinearRegression(progress=False).fit(chunks)
    assert chunks.readings == 2
    assert interrupts.process_state()["kept memory"] == 0


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_global_random_state_is_the_loaders(shuffle: bool) -> None:
    """sampla draws nothing from it; a DataLoader does whenever it is read, unless it has a generator of its own."""
    readings = []

    class Reading(DataLoader):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            readings.append(self)
            return super().__iter__()

    def after(work: Callable[[], Any]) -> Tensor:
        torch.manual_seed(7)
        work()
        return torch.get_rng_state()

    data, model = TensorDataset(X, Y), Module(*KEEPING["attribute"]).eval()
    loader, untouched = Reading(data, 4, shuffle=shuffle), after(lambda: None)
    found = after(lambda: laplace(model).fit(loader).predict(X))
    count = len(readings)
    assert torch.equal(found, after(lambda: [list(loader) for _ in range(count)]))
    assert not torch.equal(found, untouched)
    own = Reading(data, 4, shuffle=shuffle, generator=torch.Generator().manual_seed(1))
    assert torch.equal(after(lambda: laplace(model).fit(own).predict(X)), untouched)
