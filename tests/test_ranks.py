"""Fits to data that are spread over processes: what one process finds, or a clear error on all of them.

One group of two processes goes through all cases, one of four through three of them.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset

import sampla
from processes import (
    BEHIND,
    EARLIER,
    LATER,
    Ending,
    data,
    error_of,
    laplace,
    network,
    part,
    require_equal,
    run,
    split,
    told,
)
from reliability import workers
from sampla.core import journal
from sampla.distributed import Shard, _ranks, _words, ranks_of
from sampla.laplace import spread

CASES: dict[str, dict[str, Any]] = {
    "g-prior, noise learnt": {"kind": "gaussian"},
    "classes, float32": {"kind": "categorical", "dtype": torch.float32, "prior": "isotropic"},
    "linear mode": {"kind": "categorical", "curvature_at": "linear-mode"},
    "EM by samples, tangent": {"kind": "gaussian", "prior": "layerwise", "linear_model": "tangent"},
    "noise by output": {"kind": sampla.Gaussian(structure="diagonal")},
    "dense": {"kind": "bernoulli", "solver": "dense"},
}
LIKELIHOODS: dict[str, dict[str, Any]] = {
    "Poisson": {"kind": sampla.Poisson(), "of": "counts"},
    "Poisson, missing": {"kind": sampla.Poisson(ignore_nan=True), "of": "counts, some missing"},
    "negative binomial": {"kind": sampla.NegativeBinomial(3.0), "of": "counts"},
    "Student t": {"kind": sampla.StudentT(4.0, 0.3), "of": "gaussian"},
    "mean and variance": {"kind": sampla.HeteroscedasticGaussian(), "of": "first value"},
    "noise of each target": {"kind": sampla.FixedNoiseGaussian(), "of": "values and variances"},
    "Gaussian, missing": {"kind": sampla.Gaussian(ignore_nan=True), "of": "values, some missing"},
    "grades": {"kind": sampla.Ordinal([-1.0, 1.0]), "of": "grades", "outputs": 1},
    "heads": {
        "kind": sampla.Heads({"value": (sampla.Gaussian(10.0), 1), "class": (sampla.Categorical(), 2)}),
        "of": "value and class", "outputs": 3,
    },
    "class weights": {"kind": sampla.Categorical(weight=[1.0, 3.0]), "of": "categorical"},
    "smoothed labels": {"kind": sampla.Categorical(label_smoothing=0.1), "of": "categorical"},
    "labels, missing": {"kind": sampla.Categorical(ignore_index=-100), "of": "labels, some missing"},
}  # fmt: skip
_GIVEN = sampla.Isotropic(1.0, learn=False)
CASES |= {name: {"solver": "auto", "prior": _GIVEN, **each} for name, each in LIKELIHOODS.items()}
CASES["Gaussian, missing"]["prior"] = CASES["class weights"]["prior"] = "g-prior"
ON_FOUR = ["g-prior, noise learnt", "linear mode"]
STOPPED = {"g-prior, noise learnt": 9, "linear mode": 14}
"""Of fits that are stopped: at which reading."""


ABOUT_DATA = ["g-prior, noise learnt", "linear mode"]
"""Fits whose posterior is asked about the data."""


def about_data(la: sampla.LinearisedLaplace, loader: Any, whole: TensorDataset) -> dict[str, np.ndarray]:
    """Each datum left out, its influence, and the errors of predictions, as numbers."""
    x, y = whole[:3]
    left = la.leave_one_out(loader)
    found = {"log_prob": left.log_prob, "leverage": left.leverage, "counted": left.counted}
    found |= {
        "solved": la.influence(loader, (x, y)).change,
        "solved, outputs": la.influence(loader, (x[:1], None)).change,
    }
    error = la.predict(x, certificate=True).solve_error
    assert error is not None
    assert bool(((error > 0) & (error < 1e-9)).all())  # a space of all parameters leaves rounding only
    return {key: value.numpy().astype(float) for key, value in found.items()}


def require_equal_about(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Equal but for rounding, and what takes another solve to its tolerance."""
    assert found.keys() == expected.keys()
    for name in expected:
        require_equal({name: found[name]}, {name: expected[name]}, 1e-3 if "solved" in name else 1e-9)


def case(name: str) -> tuple[sampla.LinearisedLaplace, TensorDataset]:
    settings = dict(CASES[name])
    kind = settings.pop("kind")
    known = settings.pop("of", kind if isinstance(kind, str) else "gaussian")
    return laplace(kind, **settings), data(known, settings.get("dtype", torch.float64))


def answers(rank: int, size: int, folder: str) -> Iterator[tuple[str, Any]]:
    """What one process of a group has to say."""
    for name in CASES if size == 2 else ON_FOUR:
        la, whole = case(name)
        loader = part(whole, rank, size) if size == 4 or name == "g-prior, noise learnt" else split(whole)
        yield name, told(la.fit(loader))
        if name == "g-prior, noise learnt" and size == 2:
            if rank == 1:
                la.save(Path(folder) / "posterior.safetensors")
            yield "report", str(la.report_)
            yield "new data on all", error_of(lambda la=la, whole=whole: la.update([whole[:5]]))
            yield "no new data", error_of(lambda la=la: la.update(part(data("gaussian"), size - 1 - rank, size)))
            yield "all left out", error_of(lambda la=la, whole=whole: la.leave_one_out(DataLoader(whole)))
            other = (whole[rank : rank + 1][0], None)
            yield "other test", error_of(lambda la=la, whole=whole, o=other: la.influence(part(whole, rank, size), o))
            yield "plan", str(la.plan(part(whole, rank, size)))
        if name in ABOUT_DATA:
            yield f"about data, {name}", about_data(la, loader, whole)
        if name == "dense":
            yield "more", told(la.more(2))
    yield "updated", updated(rank, size)
    journal._EVERY, journal._SHARE = 0.0, 1e9  # every pass is kept, whatever that costs
    if size == 2:
        yield from stopped(rank, size, folder)
        yield from refusals(rank)
    for name in STOPPED if size == 4 else ():
        la, whole = case(name)
        yield f"resumed {name}", told(la.fit(part(whole, rank, size), Path(folder) / f"{name} on 4"))


def updated(rank: int, size: int) -> list[dict[str, np.ndarray]]:
    """Fits to the first data, with those that come later in two lots; and more samples, whose noise is of all data."""
    found = []
    for name in ("g-prior, noise learnt", "dense"):
        la, whole = case(name)
        found.append(told(la.fit(part(whole, rank, size, EARLIER))))
        for borders in (LATER, BEHIND):
            found.append(told(la.update(part(whole, rank, size, borders))))
    draw = la._inference.model.draw_noise(seed=5, num_samples=2)
    noise = {"data part": draw.data_part.numpy(), "diagonal": draw.diagonal.numpy()}
    return [*found, noise, told(la.more(2))]


def refusals(rank: int) -> Iterator[tuple[str, str]]:
    """What must be refused, on both processes of a group, and leave them fit for the next."""
    whole = data("gaussian", torch.float64)
    x, y = whole.tensors

    def fit(loader: Any = None, **settings: Any) -> str:
        return error_of(lambda: laplace("gaussian", **settings).fit(split(whole) if loader is None else loader))

    yield "other seed", fit(seed=rank)
    yield "other settings", fit(tolerance=0.01 * (1 + rank))
    with torch.random.fork_rng():
        other = sampla.LinearisedLaplace(network(torch.float64, seed=rank), "gaussian", progress=False)
    yield "other weights", error_of(lambda: other.fit(split(whole)))
    yield "all data on both", fit(sampla.as_shard(DataLoader(whole, batch_size=11)))
    padded = DistributedSampler(whole, shuffle=False)
    yield "data repeated", fit(DataLoader(whole, sampler=padded, batch_size=11))
    yield "NaN on one", fit(sampla.as_shard([(x[rank::2] / (torch.nan if rank else 1), y[rank::2])]))
    yield "no data at all", fit(sampla.as_shard([]))
    yield "solver", fit(solver="minibatch")
    yield "precision", fit(precision="auto")
    spread.version = lambda _: f"0.{rank}"
    yield "other version", fit()
    spread.version = lambda _: "0"
    yield "plain loader", fit(DataLoader(whole, batch_size=11))
    yield "plain loader to plan", error_of(lambda: laplace("gaussian").plan(DataLoader(whole, batch_size=11)))
    alone = laplace("gaussian", solver="auto")
    yield "whole", error_of(lambda: alone.fit(sampla.as_whole(DataLoader(whole, batch_size=11 + rank))))
    yield "stale part", fit(DataLoader(Shard(whole, 0, 1)))
    yield "linear model", error_of(lambda: sampla.BayesianLinearRegression().fit(sampla.as_shard([(x, y)])))
    drops = DataLoader(whole, sampler=DistributedSampler(whole, shuffle=False, drop_last=True), batch_size=11)
    yield "sampler without repeats", fit(drops)
    wrapped = nn.parallel.DistributedDataParallel(network(torch.float64).train()).eval()
    yield "wrapped", type(sampla.LinearisedLaplace(wrapped, "gaussian").model).__name__


def stopped(rank: int, size: int, folder: str) -> Iterator[tuple[str, Any]]:
    """Fits with a checkpoint that an error of one process stops, then gone on from; copies are left for others."""
    for name, stop in STOPPED.items():
        la, whole = case(name)

        def act(reading: int, stop: int = stop) -> None:
            if rank == 1 and reading == stop:
                raise RuntimeError("this disk is gone")

        place = Path(folder) / name
        loader = Ending(part(whole, rank, size), act)
        yield (
            f"stopped {name}",
            error_of(lambda la=la, loader=loader, place=place: la.fit(sampla.as_shard(loader), place)),
        )
        if rank == 0:
            for other in (1, 4):
                shutil.copytree(place, f"{place} on {other}")
        if name == "linear mode":
            x, y = whole.tensors
            changed = part(TensorDataset(x + (torch.arange(77) == 70)[:, None], y), rank, size)
            yield "other data", error_of(lambda la=la, place=place, changed=changed: la.fit(changed, place))
            one = place if rank == 0 else None
            yield "checkpoint of one", error_of(lambda la=la, whole=whole, one=one: la.fit(split(whole), one))
        loader = Ending(part(whole, rank, size), lambda _: None)
        yield f"resumed {name}", told(la.fit(sampla.as_shard(loader), place))
        yield f"readings {name}", loader.readings


def killed(rank: int, size: int, _: str) -> Iterator[tuple[str, Any]]:
    """The last process of a group dies in the middle of its fifth reading of the data."""

    def act(reading: int) -> None:
        if rank == size - 1 and reading == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    x, y = data("gaussian").tensors
    yield "process", os.getpid()
    loader = sampla.as_shard(Ending([(x[rank::size], y[rank::size])], act))
    yield "killed", error_of(lambda: laplace("gaussian").fit(loader))


def hanging(rank: int, size: int, folder: str) -> Iterator[tuple[str, Any]]:
    """The last process of a group hangs until the first one has said so."""
    _ranks._PATIENCE = 1.0
    said = Path(folder) / "said"

    def act(reading: int) -> None:
        while rank == size - 1 and reading == 4 and not said.exists():
            sleep(0.1)

    x, y = data("gaussian").tensors
    loader = sampla.as_shard(Ending([(x[rank::size], y[rank::size])], act))
    yield "hangs", error_of(lambda: laplace("gaussian").fit(loader))
    said.write_text("")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    return run(answers, 2, folder)


@pytest.fixture(scope="module")
def alone() -> Mapping[str, dict[str, np.ndarray]]:
    """What one process finds."""
    found: dict[str, dict[str, np.ndarray]] = {"readings": {}}
    for name in CASES:
        la, whole = case(name)
        found[name] = told(la.fit(DataLoader(whole, batch_size=13)))
        if name in STOPPED:
            found["readings"][name] = 1 + np.array(la.report_.sweeps)  # and the first batch, ahead
        if name == "dense":
            found["more"] = told(la.more(2))
        if name in ABOUT_DATA:
            found[f"about data, {name}"] = about_data(la, DataLoader(whole, batch_size=13), whole)
    return found


@pytest.fixture(scope="module")
def updated_alone() -> list[dict[str, np.ndarray]]:
    return updated(0, 1)


@pytest.mark.parametrize("name", ABOUT_DATA)
def test_they_say_of_the_data_what_one_says(two: list[dict[str, Any]], alone: Any, name: str) -> None:
    for said in two:
        require_equal_about(said[f"about data, {name}"], alone[f"about data, {name}"])


@pytest.mark.parametrize("name", [*CASES, "more"])
def test_two_processes_find_what_one_finds(two: list[dict[str, Any]], alone: Any, name: str) -> None:
    tolerance = 1e-5 if "float32" in name else 1e-10
    for said in two:
        require_equal(said[name], alone[name], tolerance)


def test_updates_of_two_processes_are_those_of_one(two: list[dict[str, Any]], updated_alone: Any) -> None:
    for said in two:
        for found, expected in zip(said["updated"], updated_alone, strict=True):
            require_equal(found, expected, 1e-10)


@pytest.mark.usefixtures("two")  # whose checkpoints they go on from
def test_four_processes_find_what_one_finds(folder: Path, alone: Any, updated_alone: Any) -> None:
    for said in run(answers, 4, folder):
        for found, expected in zip(said["updated"], updated_alone, strict=True):
            require_equal(found, expected, 1e-10)
        for name in ON_FOUR:
            require_equal(said[name], alone[name], 1e-10)
            require_equal(said[f"resumed {name}"], alone[name], 1e-10)
        require_equal_about(said["about data, linear mode"], alone["about data, linear mode"])


def readings_from(stop: int, whole: Any) -> int:
    """Readings of a run that goes on from one that was stopped in that one: from there on, and those of any start."""
    return int(whole) - (stop - 1) + workers.FIRST


@pytest.mark.parametrize("name", STOPPED)
def test_a_stopped_fit_goes_on_from_its_checkpoint(two: list[dict[str, Any]], alone: Any, name: str) -> None:
    assert two[1][f"stopped {name}"] == "RuntimeError: this disk is gone"
    assert "rank 1 of 2 has failed, so that all stop here. RuntimeError: this disk" in two[0][f"stopped {name}"]
    for said in two:
        require_equal(said[f"resumed {name}"], alone[name], 1e-10)
        assert said[f"readings {name}"] <= readings_from(STOPPED[name], alone["readings"][name])


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("name", STOPPED)
def test_another_number_of_processes_goes_on_from_it(alone: Any, folder: Path, name: str) -> None:
    la, whole = case(name)
    found = told(la.fit(DataLoader(whole, batch_size=13), folder / f"{name} on 1"))
    require_equal(found, alone[name], 1e-10)


REFUSED = {
    "other seed": "another seed on rank 1: 1, against 0 on rank 0",
    "other settings": "another tolerance on rank 1",
    "other weights": "another network on rank 1",
    "all data on both": "each datum on one process, got 77 that are also",
    "data repeated": "each datum on one process, got 1 that are also",
    "no data at all": "at least one batch",
    "solver": 'solver="block-cg" or "dense"',
    "precision": 'precision="full" or "bfloat16"',
    "other data": "one with other data. Use another folder",
    "checkpoint of one": "another checkpoint on rank 1: False, against True",
    "other version": "another sampla on rank 1: '0.1', against '0.0'",
    "plain loader": "a part of the data, in a group of 2 processes, got DataLoader. A DataLoader of sampla.shard",
    "plain loader to plan": "sampla.as_whole(loader)",
    "stale part": "one made for process 0 of 1",
    "linear model": "data spread over processes",
    "new data on all": "this process's part of the new data, as of those of the fit, got all the new data on this",
    "no new data": "a loader of new data alone, got one in which 77 of 77 are data that the fit has had",
    "all left out": "expected this process's part of the data, as in the fit, got all the data on this process",
    "other test": "another test data on rank 1",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused_on_both(two: list[dict[str, Any]], name: str) -> None:
    for said in two:
        assert REFUSED[name] in said[name]


def test_an_error_of_one_process_is_told_to_the_other(two: list[dict[str, Any]]) -> None:
    assert two[1]["NaN on one"].startswith("ValueError: expected finite")
    assert two[0]["NaN on one"].startswith("RankError: rank 1 of 2 has failed")
    assert "expected finite" in two[0]["NaN on one"]


def test_a_sampler_that_repeats_nothing_and_a_wrapped_network_are_taken(two: list[dict[str, Any]]) -> None:
    for said in two:
        assert said["sampler without repeats"] == "none"
        assert said["wrapped"] == "Sequential"
        assert "data spread over 2 processes, each with all samples" in said["report"]
        assert "2, each of which holds all this, and of EM's Krylov space a slice, 2 of them on this m" in said["plan"]


@pytest.mark.usefixtures("two")
def test_a_file_of_one_process_is_loaded_without_the_others(alone: Any, folder: Path) -> None:
    loaded = sampla.LinearisedLaplace.load(folder / "posterior.safetensors", network(torch.float64))
    for name, value in loaded.samples_.items():
        expected = alone["g-prior, noise learnt"][f"samples {name}"]
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-10 * np.abs(expected).max())


def test_a_killed_process_ends_the_others_with_words(folder: Path) -> None:
    said = run(killed, 3, folder)
    assert "killed" not in said[2]
    for each in said[:2]:
        assert "has lost others at '" in each["killed"] or "has failed" in each["killed"]
    named = f"rank 2 (process {said[2]['process']} on "
    assert any(named in each["killed"] and "ended before its time" in each["killed"] for each in said[:2])


def test_a_process_that_hangs_is_named(folder: Path) -> None:
    said = run(hanging, 2, folder, seconds=8.0)
    assert "rank 0 of 2 has lost others at " in said[0]["hangs"]
    assert "no answer from rank 1 (process " in said[0]["hangs"]


def test_a_restart_goes_on_from_the_checkpoint(folder: Path, alone: Any) -> None:
    """By torchrun as it is typed, of two workers of which one is killed in the first run."""
    place, killed_at = folder / "restarted", 8
    place.mkdir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    here = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": here, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    command = [*torchrun, workers.__file__, str(place), str(killed_at)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert (place / "killed").read_text() == str(killed_at)
    found = workers.samples(place)
    for name, value in found.items():
        expected = alone["g-prior, noise learnt"][f"samples {name}"]
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-10 * np.abs(expected).max())
    first, second = workers.readings(place)
    assert first <= killed_at
    assert second <= readings_from(killed_at, alone["readings"]["g-prior, noise learnt"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (3, 2), (0, 4)])
def test_small_tensors_come_out_of_words_to_the_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape[::-1], generator=torch.Generator().manual_seed(0)).to(dtype)
    tensor = tensor.mT if shape else tensor  # not in one piece
    words = _words.spelled(tensor)
    assert words is not None
    back = _words.read(_words.kind_of(tensor), words)
    assert back.dtype == dtype
    assert torch.equal(back, tensor)
    assert _words.spelled(torch.zeros(_words._FEW + 1, dtype=torch.uint8)) is None


def test_parts_are_all_of_the_data_once() -> None:
    for number, size in ((0, 3), (5, 7), (77, 4), (20_000, 3)):
        parts = [Shard(range(number), rank, size) for rank in range(size)]
        assert [each[i] for each in parts for i in range(len(each))] == list(range(number))
    assert all(each.start % 32 == 0 for each in parts)
    with pytest.raises(IndexError):
        parts[0][len(parts[0])]


def test_without_a_group_a_part_is_everything() -> None:
    whole = data("gaussian", torch.float64)
    assert len(sampla.shard(whole)) == 77
    assert ranks_of(split(whole)) is None
    with pytest.raises(TypeError, match="as_shard"):
        sampla.shard(iter([]))
    with pytest.raises(ValueError, match="made for process 1 of 2"):
        ranks_of(DataLoader(Subset(Shard(whole, 1, 2), [0])))
