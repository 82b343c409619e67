"""Groups of processes for tests, and the small fits that they make.

A fork server that has imported everything makes the processes, so that a group costs no imports.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import sampla

_SECONDS = 300
BORDERS = {1: [0, 77], 2: [0, 45, 77], 4: [0, 20, 20, 29, 77]}
"""Of parts made by hand: uneven, within blocks of noise, one of them empty."""
EARLIER = {1: [0, 60], 2: [0, 45, 60], 4: [0, 20, 20, 29, 60]}
LATER = {1: [60, 71], 2: [60, 63, 71], 4: [60, 60, 68, 68, 71]}
BEHIND = {1: [71, 77], 2: [71, 71, 77], 4: [71, 74, 74, 74, 77]}
"""The same of the first data, and of two lots that come later."""
Work = Callable[[int, int, str], Iterator[tuple[str, Any]]]
"""What one process of a group has to say, by name: of its number, how many there are, and a folder of theirs."""


def inputs_and_values() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(77, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(77, 2, generator=generator, dtype=torch.float64)
    return x, torch.stack([x.sum(1).sin(), x[:, 0] * x[:, 1]], 1) + 0.3 * noise


def data(kind: str, dtype: torch.dtype = torch.float64) -> TensorDataset:
    x, y = inputs_and_values()
    counts, classes = (2 * y.abs()).round(), y.argmax(1)
    some = torch.arange(77) % 5 == 0  # the targets that are missing, in every part
    targets = {
        "gaussian": y.to(dtype),
        "categorical": classes,
        "bernoulli": (y > 0).to(dtype),
        "counts": counts,
        "counts, some missing": counts.where(~some[:, None], torch.nan),
        "values, some missing": y.where(~some[:, None], torch.nan),
        "labels, some missing": classes.where(~some, -100),
        "values and variances": torch.stack([y, 0.05 + y.square()], 2),
        "first value": y[:, :1],
        "grades": (y[:, 0] > -0.5).long() + (y[:, 0] > 0.5).long(),
        "value and class": torch.stack([y[:, 0], classes.double()], 1),
    }
    return TensorDataset(x.to(dtype), targets[kind])


def network(dtype: torch.dtype = torch.float64, seed: int = 0, outputs: int = 2) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs)).to(dtype).eval()


def laplace(
    kind: Any, dtype: torch.dtype = torch.float64, outputs: int = 2, **settings: Any
) -> sampla.LinearisedLaplace:
    chosen = {"num_samples": 3, "solver": "block-cg", "tolerance": 1e-3, "progress": False, "chunks": (16, 4)}
    return sampla.LinearisedLaplace(network(dtype, outputs=outputs), kind, **{**chosen, **settings})


def told(la: sampla.LinearisedLaplace) -> dict[str, np.ndarray]:
    """What a fit has found, as numbers."""
    report = la.report_
    width = report.width or {}
    found = {f"samples {name}": value for name, value in la.samples_.items()}
    found |= {"precision": la.prior_precision_, "dimension": la.effective_dimension_}
    noise = None if la.noise_precision_ is None else la.noise_precision_
    found |= {"noise": torch.zeros(()) if noise is None else noise}
    numbers = [report.num_data, width["marginal"], width["joint"], report.log_evidence or 0.0]
    return {name: np.asarray(value) for name, value in {**found, "numbers": np.array(numbers)}.items()}


def require_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=tolerance * np.abs(value).max(), err_msg=name)


def part(whole: TensorDataset, rank: int, size: int, borders: Mapping[int, list[int]] = BORDERS) -> Any:
    start, stop = borders[size][rank : rank + 2]
    return sampla.as_shard(DataLoader(Subset(whole, range(start, stop)), batch_size=11) if stop > start else [])


def split(whole: TensorDataset) -> DataLoader[Any]:
    return DataLoader(sampla.shard(whole), batch_size=10)


class Ending:
    """A loader of this process's part with which something happens at its readings.

    Args:
        inner: the batches.
        act: called with the number of each reading before it.
    """

    def __init__(self, inner: Any, act: Callable[[int], Any]) -> None:
        self.inner, self.act, self.readings = inner, act, 0

    def __iter__(self) -> Iterator[Any]:
        self.readings += 1
        self.act(self.readings)
        return iter(self.inner)


def error_of(act: Callable[[], Any]) -> str:
    try:
        act()
    except (ValueError, TypeError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def _process(work: Work, rank: int, size: int, folder: str, seconds: float, to: Any) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store-{work.__name__}-{size}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=timedelta(seconds=seconds))
    for answer in work(rank, size, folder):
        to.send(answer)
    to.close()


def run(work: Work, size: int, folder: Path, seconds: float = 120.0) -> list[dict[str, Any]]:
    """What each process of a group says.

    Args:
        work: what they do.
        size: how many there are.
        folder: of theirs.
        seconds: for which one waits for another.
    """
    context = multiprocessing.get_context("forkserver")
    # torch's compiler too, which any fit imports: two seconds of every process
    context.set_forkserver_preload(["sampla", "torch._dynamo", "torch.distributed", "tests.test_ranks", "test_ranks"])
    processes, ends = [], []
    for rank in range(size):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_process, args=(work, rank, size, str(folder), seconds, theirs), daemon=True)
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
