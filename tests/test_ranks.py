"""Fits to data that are spread over processes: what one process finds, or a clear error on all of them.

A fork server that has imported everything makes the processes, so that a group costs no imports. One group of two goes
through all cases, one of four through two of them.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset

import sampla
from sampla.distributed import Shard, ranks_of

Fit = Callable[[Any], sampla.LinearisedLaplace]
_SECONDS = 100


def data(kind: str, dtype: torch.dtype) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(77, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(77, 2, generator=generator, dtype=torch.float64)
    y = torch.stack([x.sum(1).sin(), x[:, 0] * x[:, 1]], 1) + 0.3 * noise
    targets = {"gaussian": y.to(dtype), "categorical": y.argmax(1), "bernoulli": (y > 0).to(dtype)}
    return TensorDataset(x.to(dtype), targets[kind])


def network(dtype: torch.dtype, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype).eval()


def laplace(kind: str, dtype: torch.dtype = torch.float64, **settings: Any) -> sampla.LinearisedLaplace:
    chosen = {"num_samples": 3, "solver": "block-cg", "tolerance": 1e-3, "progress": False, "chunks": (16, 4)}
    return sampla.LinearisedLaplace(network(dtype), kind, **{**chosen, **settings})


CASES: dict[str, dict[str, Any]] = {
    "g-prior, noise learnt": {"kind": "gaussian"},
    "classes, float32": {"kind": "categorical", "dtype": torch.float32, "prior": "isotropic"},
    "linear mode": {"kind": "categorical", "curvature_at": "linear-mode"},
    "EM by samples, tangent": {"kind": "gaussian", "prior": "layerwise", "linear_model": "tangent"},
    "noise by output": {"kind": sampla.Gaussian(structure="diagonal")},
    "dense": {"kind": "bernoulli", "solver": "dense"},
}
ON_FOUR = ["g-prior, noise learnt", "linear mode"]
BORDERS = {2: [0, 45, 77], 4: [0, 20, 20, 29, 77]}
"""Of parts made by hand: uneven, within blocks of noise, one of them empty."""


def case(name: str) -> tuple[sampla.LinearisedLaplace, TensorDataset]:
    settings = dict(CASES[name])
    kind = settings.pop("kind")
    known = kind if isinstance(kind, str) else "gaussian"
    return laplace(kind, **settings), data(known, settings.get("dtype", torch.float64))


def told(la: sampla.LinearisedLaplace) -> dict[str, np.ndarray]:
    """What a fit has found, as numbers."""
    report = la.report_
    width = report.width or {}
    found = {f"samples {name}": value for name, value in la.samples_.items()}
    found |= {"precision": la.prior_precision_, "dimension": la.effective_dimension_}
    found |= {"noise": la.noise_precision_ if la.noise_precision_ is not None else torch.zeros(())}
    numbers = [report.num_data, width["marginal"], width["joint"], report.log_evidence or 0.0]
    return {name: np.asarray(value) for name, value in {**found, "numbers": np.array(numbers)}.items()}


def part(whole: TensorDataset, rank: int, size: int) -> Any:
    start, stop = BORDERS[size][rank : rank + 2]
    return sampla.as_shard(DataLoader(Subset(whole, range(start, stop)), batch_size=11) if stop > start else [])


def split(whole: TensorDataset) -> DataLoader[Any]:
    return DataLoader(sampla.shard(whole), batch_size=10)


def answers(rank: int, size: int, folder: str) -> Iterator[tuple[str, Any]]:
    """What one process of a group has to say."""
    for name in CASES if size == 2 else ON_FOUR:
        la, whole = case(name)
        yield (
            name,
            told(la.fit(part(whole, rank, size) if size == 4 or name == "g-prior, noise learnt" else split(whole))),
        )
        if name == "g-prior, noise learnt" and size == 2:
            if rank == 1:
                la.save(Path(folder) / "posterior.safetensors")
            yield "report", str(la.report_)
            yield "influence refused", error_of(lambda la=la, whole=whole: la.leave_one_out(DataLoader(whole)))
            yield "certificate refused", error_of(lambda la=la, whole=whole: la.predict(whole[:3][0], certificate=True))
        if name == "dense":
            yield "more", told(la.more(2))
    if size == 2:
        yield from refusals(rank)


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
    yield "checkpoint", error_of(lambda: laplace("gaussian").fit(split(whole), checkpoint="nowhere"))
    yield "stale part", fit(DataLoader(Shard(whole, 0, 1)))
    yield "linear model", error_of(lambda: sampla.BayesianLinearRegression().fit(sampla.as_shard([(x, y)])))
    drops = DataLoader(whole, sampler=DistributedSampler(whole, shuffle=False, drop_last=True), batch_size=11)
    yield "sampler without repeats", fit(drops)
    wrapped = nn.parallel.DistributedDataParallel(network(torch.float64).train()).eval()
    yield "wrapped", type(sampla.LinearisedLaplace(wrapped, "gaussian").model).__name__


def error_of(act: Callable[[], Any]) -> str:
    try:
        act()
    except (ValueError, TypeError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def killed(rank: int, size: int, _: str) -> Iterator[tuple[str, Any]]:
    """The last process of a group dies in the middle of its fifth reading of the data."""

    class Dying(list[Any]):
        readings = 0

        def __iter__(self) -> Iterator[Any]:
            Dying.readings += 1
            if rank == size - 1 and Dying.readings == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__iter__()

    x, y = data("gaussian", torch.float64).tensors
    yield "killed", error_of(lambda: laplace("gaussian").fit(sampla.as_shard(Dying([(x[rank::size], y[rank::size])]))))


def _process(work: Callable[..., Iterator[tuple[str, Any]]], rank: int, size: int, folder: str, to: Any) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store-{work.__name__}-{size}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=timedelta(seconds=60))
    for answer in work(rank, size, folder):
        to.send(answer)
    to.close()


def run(work: Callable[..., Iterator[tuple[str, Any]]], size: int, folder: Path) -> list[dict[str, Any]]:
    """What each process of a group says."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sampla", "torch.distributed", "tests.test_ranks", "test_ranks"])
    processes, ends = [], []
    for rank in range(size):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_process, args=(work, rank, size, str(folder), theirs), daemon=True)
        process.start()
        theirs.close()
        processes.append(process)
        ends.append(ours)
    said: list[dict[str, Any]] = []
    for end in ends:
        heard = {}
        try:
            while end.poll(_SECONDS):
                name, answer = end.recv()
                heard[name] = answer
        except EOFError:
            pass
        said.append(heard)
    for process in processes:
        process.join(5)
        process.kill()
    return said


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    return run(answers, 2, folder)


@pytest.fixture(scope="module")
def alone() -> Mapping[str, dict[str, np.ndarray]]:
    """What one process finds."""
    found = {}
    for name in CASES:
        la, whole = case(name)
        found[name] = told(la.fit(DataLoader(whole, batch_size=13)))
        if name == "dense":
            found["more"] = told(la.more(2))
    return found


def require_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=tolerance * np.abs(value).max(), err_msg=name)


@pytest.mark.parametrize("name", [*CASES, "more"])
def test_two_processes_find_what_one_finds(two: list[dict[str, Any]], alone: Any, name: str) -> None:
    tolerance = 1e-5 if "float32" in name else 1e-10
    for said in two:
        require_equal(said[name], alone[name], tolerance)


def test_four_processes_find_what_one_finds(folder: Path, alone: Any) -> None:
    for said in run(answers, 4, folder):
        for name in ON_FOUR:
            require_equal(said[name], alone[name], 1e-10)


REFUSED = {
    "other seed": "another seed on rank 1: 1, against 0 on rank 0",
    "other settings": "another tolerance on rank 1",
    "other weights": "another network on rank 1",
    "all data on both": "each datum on one process, got 77 that are also",
    "data repeated": "each datum on one process, got 1 that are also",
    "no data at all": "at least one batch",
    "solver": 'solver="block-cg" or "dense"',
    "precision": 'precision="full" or "bfloat16"',
    "checkpoint": "no checkpoint",
    "stale part": "one made for process 0 of 1",
    "linear model": "data spread over processes",
    "influence refused": "data spread over processes",
    "certificate refused": "data spread over processes",
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
        assert "data spread over 2 processes" in said["report"]


@pytest.mark.usefixtures("two")
def test_a_file_of_one_process_is_loaded_without_the_others(alone: Any, folder: Path) -> None:
    loaded = sampla.LinearisedLaplace.load(folder / "posterior.safetensors", network(torch.float64))
    for name, value in loaded.samples_.items():
        expected = alone["g-prior, noise learnt"][f"samples {name}"]
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-10 * np.abs(expected).max())


def test_a_killed_process_ends_the_others_with_words(folder: Path) -> None:
    said = run(killed, 3, folder)
    assert said[2] == {}
    for each in said[:2]:
        assert "has lost the others" in each["killed"] or "rank 2 of 3 has failed" in each["killed"]


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
