"""experiments/accelerator: what begins in the time that there is, what is kept, and every stage on the CPU, tiny."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
import torch
from experiments.accelerator import carry, classifiers, probe, stage
from experiments.accelerator import run as running
from experiments.accelerator.__main__ import STAGES, checked, chosen, place_of
from experiments.accelerator.page import write
from experiments.accelerator.run import bring, here, rates, run
from experiments.accelerator.stage import DONE, FIT, TRAINING, Place, Stage, estimate
from experiments.accelerator.tomography import line_matrix
from experiments.accelerator.weights import joined, rounded, split
from experiments.common.devices import FP32, forward_flop, peaks
from experiments.common.images import Images
from experiments.common.networks import resnet18
from experiments.common.process import apart
from experiments.common.training import OneCycle, loss_and_accuracy, one_cycle
from PIL import Image
from safetensors.torch import load_file

from sampla.tomography import Geometry


@pytest.fixture
def place(tmp_path):
    return place_of("cpu", tmp_path / "data", tmp_path / "networks", tmp_path / "out", None, tiny=True)


def _found(case):
    return {DONE: f"found {case['number']}", "rates": {FIT: case["number"]}}


def _stage(name, cost, number=1.0, **options):
    return Stage(name, _found, lambda _: cost, {"number": number}, **options)


def _lines(place):
    return [line.split("s  ", 1)[1] for line in (place.out / running.LINES).read_text().splitlines()]


def test_a_stage_that_cannot_end_in_time_is_not_begun_and_a_later_one_is(place):
    stages = [_stage("long", {"seconds": 1000.0}), _stage("short", {"seconds": 1.0})]
    store = run(stages, place, 600, perf_counter(), here, 1)
    assert "takes about 1004 s" in store.rows["long"]["skipped"]
    assert store.rows["short"][DONE] == "found 1.0"
    first, second = _lines(place)
    assert first.startswith("long: not begun, takes about 1004 s, and 5")
    assert second.startswith("short: found 1.0 (")
    assert second.endswith(" s, 5 expected)")


def test_time_that_has_passed_counts(place):
    stages = [_stage("one", {"seconds": 300.0})]
    assert "skipped" not in run(stages, place, 600, perf_counter(), here, 1).rows["one"]
    again = replace(place, out=place.out / "again")
    assert "takes about 304 s" in run(stages, again, 600, perf_counter() - 400, here, 1).rows["one"]["skipped"]


def test_what_is_done_is_not_done_again_but_what_failed_or_was_not_begun_is(place):
    def broken(case):  # noqa: ARG001
        raise RuntimeError("made up\nand more")

    calls = []

    def counted(function, case, threads, seconds=None):
        calls.append(case["number"])
        assert 0 < seconds < 600
        return here(function, case, threads, seconds)

    stages = [
        _stage("done", {}, 1.0), Stage("broken", broken, lambda _: {}, {"number": 2.0}),
        _stage("long", {"seconds": 700.0}, 3.0),
    ]  # fmt: skip
    store = run(stages, place, 600, perf_counter(), counted, 1)
    assert store.rows["broken"]["failed"] == "RuntimeError: made up"
    assert calls == [1.0, 2.0]
    again = run([stages[0], _stage("broken", {}, 4.0), _stage("long", {}, 5.0)], place, 600, perf_counter(), counted, 1)
    assert calls == [1.0, 2.0, 4.0, 5.0]
    assert "failed" not in again.rows["broken"]
    assert "done: done before. found 1.0" in _lines(place)


def test_a_killed_run_has_lost_the_stage_it_was_in(place):
    def killed(function, case, threads, seconds=None):
        if case["number"] == 2.0:
            raise KeyboardInterrupt
        return here(function, case, threads, seconds)

    stages = [_stage("one", {}, 1.0), _stage("two", {}, 2.0)]
    back = place.out.parent / "back"
    with pytest.raises(KeyboardInterrupt):
        run(stages, place, 600, perf_counter(), killed, 1, back)
    assert list(json.loads((place.out / running.RESULTS).read_text())["rows"]) == ["one"]
    with zipfile.ZipFile(back / running.ARCHIVE) as archive:
        assert list(json.loads(archive.read(running.RESULTS))["rows"]) == ["one"]


def test_estimates_follow_what_was_measured(place):
    before = estimate({FIT: 1e12, "seconds": 3.0}, stage.assumed("cpu"), "cpu")
    assert before == pytest.approx(4 + 3 + 1e12 / 2e10)
    store = run([_stage("one", {}, 5e11)], place, 600, perf_counter(), here, 1)
    found = rates(store, place)
    assert found[FIT] == 5e11
    assert found[TRAINING] == stage.assumed("cpu")[TRAINING]
    assert estimate({FIT: 1e12}, found, "cpu") == pytest.approx(4 + 2)


def test_what_is_missing_is_said(place):
    stages = [
        _stage("data", {}, files=lambda p: [p.root / "a.npz"]), _stage("module", {}, modules=("no_such_module",)),
        _stage("other", {}, other=lambda _: "no reason"),
    ]  # fmt: skip
    rows = run(stages, place, 600, perf_counter(), here, 1).rows
    assert rows["data"]["skipped"] == f"not here: {place.root / 'a.npz'}"
    assert rows["module"]["skipped"] == "not here: no_such_module"
    assert rows["other"]["skipped"] == "no reason"


def test_a_stage_in_a_process_of_its_own(place):
    store = run(chosen("probe"), place, 600, perf_counter(), apart, 1)
    assert store.rows["probe"]["rates"].keys() == {TRAINING, FIT}


def test_names_of_stages():
    names = [s.name for s in STAGES]
    assert len(set(names)) == len(names)
    assert [s.name for s in chosen("")] == names
    assert {s.name.split("-")[0] for s in chosen("cifar10,jax")} == {"cifar10", "jax"}
    assert [s.name for s in chosen("cifar100-g")] == ["cifar100-g", "cifar100-g-8", "cifar100-g-64"]
    with pytest.raises(SystemExit, match="got 'cifar'"):
        chosen("cifar")


def test_every_stage_and_its_pages(place):
    """Of the three published ResNets one: the others are the same with another number."""
    stages = chosen("probe,smoke,cifar100,engine,cifar10-20,tomography,jax")
    back = place.out.parent / "back"
    store = run(stages, place, 3600, perf_counter(), here, 1, back)
    assert not [name for name, row in store.rows.items() if "failed" in row], store.rows
    may_be_missing = {"cifar100-g-8", "cifar100-laplace", "jax"}
    assert {name for name, row in store.rows.items() if "skipped" in row} <= may_be_missing
    assert store.rows["smoke"]["counts"] == {"passed": 1}
    assert store.rows["cifar100-g"]["rates"][FIT] > 0
    state, facts = joined(place.out)
    kept = load_file(place.cache / "cifar100_0.safetensors")
    assert state.keys() == kept.keys()
    assert all(torch.equal(state[name], kept[name]) for name in kept)
    assert facts["epochs"] == "3"
    assert {path.name for path in back.iterdir()} == {"lines.txt", "results.zip", "weights_0.safetensors"}
    with zipfile.ZipFile(back / "results.zip") as archive:
        archive.extractall(place.out.parent / "home")
    write(place.out.parent / "home")
    text = (place.out.parent / "home" / "results.md").read_text()
    assert "A tiny run: its figures mean nothing." in text
    assert "| LeNet | float32 | 4 | 2 |" in text
    assert "16 x 16 pixels" in text
    page = (place.out.parent / "home" / "cifar100" / "results.md").read_text()
    for line in ("network alone", "SWAG", "ensemble", "sampla, g-prior, K = 64", "sampla, last layer alone, isotropic"):
        assert f"| {line} |" in page
    assert "wall seconds" in page
    assert "CPU seconds" not in page
    assert (place.out.parent / "home" / "cifar100" / "shifts.png").stat().st_size > 1000


def test_networks_that_are_scored_are_those_that_are_brought_back(tmp_path):
    torch.manual_seed(0)
    network = resnet18()
    rounded(network)
    paths = split(network, tmp_path, {"epochs": "1"})
    assert 1 < len(paths) <= 4
    assert max(path.stat().st_size for path in paths) < 2**24
    state, facts = joined(tmp_path)
    assert facts == {"epochs": "1"}
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())


def test_few_files_are_brought_back_and_none_is_large(tmp_path):
    out, back = tmp_path / "out", tmp_path / "back"
    (out / "cache").mkdir(parents=True)
    for name, size in {
        "results.json": 10,
        "a.png": 20,
        "large.npz": 2**24 + 1,
        "lines.txt": 5,
        "cache/x.json": 5,
    }.items():
        (out / name).write_bytes(b"0" * size)
    for _ in range(2):
        bring(out, back)
        assert {path.name for path in back.iterdir()} == {"lines.txt", "results.zip"}
    with zipfile.ZipFile(back / "results.zip") as archive:
        assert set(archive.namelist()) == {"results.json", "a.png"}


def test_what_is_carried(tmp_path):
    """Every file of both sets is in one part, and a set that is foreign to another is cut, all classes in it."""
    root, networks = tmp_path / "data", tmp_path / "networks"
    (root / "cifar10").mkdir(parents=True)
    networks.mkdir()
    (networks / "published_resnet20_cifar10.safetensors").write_bytes(b"0")
    found = carry.parts(root, networks)
    names = [name for files in found.values() for name in files]
    for group in ("cifar10", "cifar100"):
        for file in ("test", *(f"train_{k}" for k in range(5))):
            assert names.count(f"data/{group}/{file}.npz") == 1
    pictures = [np.full((100 * 4, 4, 3), k, np.uint8) for k in range(10)]
    pieces = []
    for k, picture in enumerate(pictures):
        path = tmp_path / f"{k}.webp"
        Image.fromarray(picture).save(path, lossless=True)
        pieces.append(np.frombuffer(path.read_bytes(), np.uint8))
    source = root / "cifar10" / "test.npz"
    offsets = np.cumsum([0, *map(len, pieces)])
    np.savez(
        source, data=np.concatenate(pieces), offsets=offsets, labels=np.repeat(np.arange(10), 100).astype(np.uint8)
    )
    carry.strips(source, tmp_path / "cut.npz", 4)
    with np.load(tmp_path / "cut.npz") as cut:
        assert np.unique(cut["labels"]).tolist() == [0, 3, 6, 9]
        assert len(cut["labels"]) == 400
        start, stop = cut["offsets"][1:3]
        assert bytes(cut["data"][start:stop]) == pieces[3].tobytes()


def test_lines_are_the_strips_of_astra():
    pytest.importorskip("astra")
    from sampla.tomography.rays import projector_matrix

    rows, columns = np.mgrid[:32, :28]
    image = np.exp(-((rows - 10) ** 2 + (columns - 20) ** 2) / 30) + np.exp(
        -((rows - 22) ** 2 + (columns - 9) ** 2) / 15
    )
    for distances in ((None, None), (60.0, 120.0)):
        turn = tuple(np.linspace(0, 6.2, 9).tolist())
        geometry = Geometry((32, 28), 0.5, turn, 30, 2.5 if distances[0] else 0.9, *distances)
        exact = projector_matrix(geometry) @ image.ravel()
        assert np.linalg.norm(line_matrix(geometry) @ image.ravel() - exact) < 0.01 * np.linalg.norm(exact)


def test_operations_and_peaks():
    assert forward_flop(resnet18(), (1, 3, 32, 32)) == pytest.approx(1.11e9, rel=0.01)
    assert peaks("NVIDIA H100 80GB HBM3")[FP32] == 67e12
    assert peaks("some other card") == {}
    assert probe.STAGES[0].cost(Place("cpu", *[Path()] * 4)) == {"seconds": 15.0}


@pytest.mark.parametrize("fast", [False, True])
def test_one_cycle_trains(fast):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 2
    images = 0.3 * torch.rand(96, 1, 8, 8, generator=generator)
    images += 0.5 * labels.view(-1, 1, 1, 1)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 2)
    )
    told = []
    recipe = OneCycle(6, 0.05, 16, bfloat16=fast, channels_last=fast)
    one_cycle(network, Images(images, labels), recipe, 0, lambda *pair: told.append(pair))
    assert [epoch for epoch, _ in told] == [1, 2, 3, 4, 5, 6]
    assert told[-1][1] < 0.5 * told[0][1]
    assert loss_and_accuracy(network, Images(images, labels))[1] > 0.95
    assert not network.training
    assert network[0].weight.is_contiguous()


def test_costs_of_the_full_run():
    """A pass over CIFAR-100 with K = 16 is 3.5 PFLOP, thirty epochs 4.9; 64 samples cost four times 16."""
    made = Place("cpu", *[Path()] * 4)
    costs = {s.name: s.cost(made) for s in classifiers.STAGES}
    assert costs["cifar100-train"][TRAINING] == pytest.approx(4.9e15, rel=0.02)
    assert costs["cifar100-g"][FIT] == pytest.approx(12 * 3.5e15, rel=0.06)
    assert costs["cifar100-g-64"][FIT] == pytest.approx(4 * costs["cifar100-g"][FIT])
    assert set(costs["cifar100-ensemble"]) >= {"seconds"}


def test_what_is_here_is_said():
    assert "missing and needed: " in checked()
