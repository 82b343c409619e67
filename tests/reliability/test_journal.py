"""A fit that is stopped inside a stage loses one pass: the others are read from its folder; its end is the same."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import sampla
from reliability.fits import batches, door, same
from sampla.core import journal as module
from sampla.core.journal import Journal
from sampla.model import LinearModel

GIVEN = sampla.GPrior(0.5, learn=False)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "nothing learnt": ("categorical", {"prior": GIVEN}),
    "nothing learnt, with the evidence": ("categorical", {"prior": GIVEN, "log_evidence": True}),
    "Krylov space": ("gaussian", {}),
    "search for modes": ("categorical", {}),
    "samples": ("gaussian, by layer", {"em": sampla.EM(exact_up_to=0, max_steps=3)}),
}  # fmt: skip


class Counted:
    """Batches that are interrupted after so many readings, which are counted."""

    def __init__(self, data: Any, most: int = 10**9) -> None:
        self.data, self.most, self.readings = data, most, 0

    def __iter__(self) -> Iterator[Any]:
        if self.readings == self.most:
            raise KeyboardInterrupt
        self.readings += 1
        return iter(self.data)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pass is written, whatever it costs."""
    monkeypatch.setattr(module, "_EVERY", 0.0)
    monkeypatch.setattr(module, "_SHARE", 1e9)


@pytest.mark.usefixtures("eager")
@pytest.mark.filterwarnings("ignore::sampla.ConvergenceWarning")
@pytest.mark.parametrize("name", KINDS)
def test_one_pass_is_lost_at_most_at_any_stage(name: str, tmp_path: Path) -> None:
    kind, settings = KINDS[name]
    whole_data = Counted(batches(kind))
    whole = door(kind, **settings).fit(whole_data, checkpoint=tmp_path / "whole")
    assert not list((tmp_path / "whole").glob("passes-*"))
    again_at_start = 2  # the first batch, and the pass that checks all data
    after_noise = again_at_start + 1
    for stop in sorted({after_noise, *range(after_noise + 1, whole_data.readings, 9), whole_data.readings - 1}):
        folder = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            door(kind, **settings).fit(Counted(batches(kind), stop), checkpoint=folder)
        data = Counted(batches(kind))
        again = door(kind, **settings).fit(data, checkpoint=folder)
        assert same(whole, again), f"stopped after {stop} of {whole_data.readings} readings"
        assert data.readings <= whole_data.readings - stop + again_at_start + 1
        assert -0.01 <= again.report_.passes - whole.report_.passes <= 1  # the lost one, or a part of it
        assert not list(folder.glob("passes-*"))


@pytest.mark.usefixtures("eager")
def test_a_damaged_file_costs_its_passes_only(tmp_path: Path) -> None:
    kind, settings = KINDS["nothing learnt"]
    whole = door(kind, **settings).fit(batches(kind))
    with pytest.raises(KeyboardInterrupt):
        door(kind, **settings).fit(Counted(batches(kind), 8), checkpoint=tmp_path)
    files = sorted(tmp_path.glob("passes-*"))
    assert len(files) >= 3
    content = bytearray(files[1].read_bytes())
    content[-3] ^= 4
    files[1].write_bytes(content)
    assert same(whole, door(kind, **settings).fit(batches(kind), checkpoint=tmp_path))


def taken(journal: Journal, vector: torch.Tensor, done: list[float]) -> torch.Tensor:
    """A pass that doubles, and how often it was taken."""

    def compute() -> list[torch.Tensor]:
        done.append(float(vector[0]))
        return [2 * vector]

    return journal.once("double", vector, compute, lambda *_: (0.0, 0))[0]


@pytest.mark.usefixtures("eager")
def test_what_differs_is_taken_anew_and_another_stage_forgets(tmp_path: Path) -> None:
    done: list[float] = []
    first = Journal(tmp_path)
    first.begin(0)
    for value in (1.0, 2.0, 3.0):
        taken(first, torch.full((4,), value), done)
    second = Journal(tmp_path)
    second.begin(0)
    for value in (1.0, 5.0, 3.0, 2.0, 3.0):  # out of its order nothing is believed
        assert torch.equal(taken(second, torch.full((4,), value), done), torch.full((4,), 2 * value))
    assert done == [1, 2, 3, 5, 3]
    third = Journal(tmp_path)
    third.begin(1)
    taken(third, torch.full((4,), 1.0), done)
    assert done == [1, 2, 3, 5, 3, 1]
    other = Journal(tmp_path, lambda: {"seed": 2})
    other.begin(1)
    taken(other, torch.full((4,), 1.0), done)
    assert done == [1, 2, 3, 5, 3, 1, 1]
    other.end()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("eager")
def test_what_differs_by_rounding_ends_what_was_kept_and_is_kept_itself(tmp_path: Path) -> None:
    """As with another number of processes, whose inner products are summed in another order."""
    done: list[float] = []
    for factor in (1.0, 1 + 1e-6, 1 + 1e-6):
        journal = Journal(tmp_path)
        journal.begin(0)
        for value in (1.0, 2.0, 3.0):
            given = torch.full((4,), value * factor, dtype=torch.float64)
            assert torch.equal(taken(journal, given, done), 2 * given)
    assert done == [1.0, 2.0, 3.0, 1 + 1e-6, 2 * (1 + 1e-6), 3 * (1 + 1e-6)]


def test_writing_takes_its_share_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes of 10 s are written once a minute; where writing takes as long as a pass, it is given up."""
    clock = [0.0]
    monkeypatch.setattr(module, "monotonic", lambda: clock[0])
    writes: list[float] = []

    def save(*_: Any) -> None:
        writes.append(clock[0])
        clock[0] += cost

    monkeypatch.setattr(module.checkpoint, "save", save)
    for cost, seconds in ((0.1, 10.0), (5.0, 1.0), (1.0, 100.0)):
        writes.clear()
        journal, begun = Journal(tmp_path), clock[0]
        journal.begin(0)
        for _ in range(100):
            clock[0] += seconds
            taken(journal, torch.ones(4), [])
        passed = clock[0] - begun
        assert len(writes) * cost <= 0.02 * passed + cost
        if cost < 5:
            assert len(writes) == pytest.approx(passed / max(60.0, seconds), rel=0.15)
    monkeypatch.setattr(module, "_WAITING", 32)
    journal = Journal(tmp_path)
    journal.begin(0)
    writes.clear()
    for _ in range(100):
        clock[0] += 1e-3
        taken(journal, torch.ones(4), [])
    assert not writes
    assert journal._full
    journal.begin(1)
    assert not journal._full


def test_moments_of_a_network_on_another_device_are_taken_back_there(tmp_path: Path) -> None:
    """They are not where the vectors are, and files are read on the CPU; with the targets' they are compared."""

    class Features:
        device, like = torch.device("meta"), torch.zeros(0)

    class Kept(Journal):
        def once(self, name: str, given: torch.Tensor, *_: Any) -> list[torch.Tensor]:  # noqa: ARG002
            return [torch.ones((), dtype=torch.float64), torch.ones((), dtype=torch.float64)]

    features: Any = Features()
    model = LinearModel(features, sampla.Gaussian(1.0), [], journal=Kept(tmp_path))
    vectors = torch.zeros(1, 3)
    assert [moment.device.type for moment in model.noise_moments(vectors, vectors)] == ["meta", "meta"]
