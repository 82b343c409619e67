"""SIGKILL of one of several workers under the agent that torchrun is: the same command goes on from the checkpoint.

    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --standalone --nproc-per-node 3 --max-restarts 1 \\
        tests/reliability/workers.py FOLDER [READING]

``launched`` starts the same agent, with workers that are forked: they have imported everything. Given a reading of the
data, the last worker kills itself at it in the first run.
"""

import os
import random
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.utils.data import DataLoader

import sampla
from processes import Ending, data, laplace, network
from sampla.core import journal

WORKERS = 3
FIRST = 3
"""Readings with which every run begins: the first batch, the check of all data, and the right-hand side of the mean."""
_SAME = 1e-10
"""Of the largest entry, by which samples of several processes may differ from those of one."""


def fit(folder: str, kill_at: int | None = None) -> None:
    """What every worker does: a fit to its part with a checkpoint of which every pass is written.

    Args:
        folder: for the checkpoint, the posterior, and what each run has read.
        kill_at: the reading at which the last worker is killed in the first run.
    """
    torch.set_num_threads(1)
    journal._EVERY, journal._SHARE = 0.0, 1e9
    place, run = Path(folder), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank, size = dist.get_rank(), dist.get_world_size()
    (place / f"worker-{run}-{rank}").write_text(str(os.getpid()))

    def act(reading: int) -> None:
        if run == 0 and rank == size - 1 and reading == kill_at:
            (place / "killed").write_text(str(reading))
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == 0:
            (place / f"readings-{run}").write_text(str(reading))

    x, y = data("gaussian").tensors
    rows = slice(77 * rank // size, 77 * (rank + 1) // size)
    loader = Ending(list(zip(x[rows].split(10), y[rows].split(10), strict=True)), act)
    la = laplace("gaussian").fit(sampla.as_shard(loader), checkpoint=place / "kept")
    if rank == 0:
        la.save(place / "posterior.safetensors")
    dist.destroy_process_group()


def launched(folder: Path, workers: int) -> None:
    """Run the workers, once more if one ends."""
    folder.mkdir(parents=True, exist_ok=True)
    import_module("torch._dynamo")  # which any fit imports: two seconds of every worker
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # else a restart finds the last run's addresses
    config = LaunchConfig(
        1, 1, workers, max_restarts=1, rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="fork"
    )
    elastic_launch(config, fit)(str(folder))


def readings(folder: Path) -> list[int]:
    """Of the data, by the first worker of each run; one that was killed in the middle of one counts it."""
    return [int(path.read_text()) for path in sorted(folder.glob("readings-*"))]


def samples(folder: Path) -> dict[str, Tensor]:
    """Of the posterior that the workers have left."""
    return sampla.LinearisedLaplace.load(folder / "posterior.safetensors", network()).samples_


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Whether samples are equal but for rounding."""
    return all(bool((found[n] - each).abs().max() <= _SAME * each.abs().max()) for n, each in expected.items())


def trials(count: int, seed: int, folder: Path, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """So many kills, each of one of three workers at a random moment of its first run."""
    choose, found = random.Random(seed), dict.fromkeys(("tried", "right", "refused", "wrong", "lost"), 0)
    x, y = data("gaussian").tensors
    expected = laplace("gaussian").fit(DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=10)).samples_
    launched(folder / "whole", WORKERS)
    start = monotonic()
    launched(folder / "again", WORKERS)
    seconds, whole = monotonic() - start, readings(folder / "again")[0]
    assert same(samples(folder / "whole"), expected)
    for number in range(10 * count):
        if found["tried"] == count:
            break
        place, victim, moment = folder / str(number), choose.randrange(WORKERS), choose.uniform(0, seconds)
        killer = Thread(target=_kill, args=(place / f"worker-0-{victim}", moment), daemon=True)
        killer.start()
        launched(place, WORKERS)
        if not (place / "worker-1-0").exists():  # it had ended before
            continue
        found["tried"] += 1
        right = same(samples(place), expected)
        found["right" if right else "wrong"] += 1
        lost = sum(readings(place)) - whole - FIRST
        found["lost"] = max(found["lost"], lost)
        say(f"worker {victim} after {moment:.2f} s: {'right' if right else 'WRONG'}, readings {readings(place)}")
    return found | {"workers": WORKERS}


def _kill(path: Path, seconds: float) -> None:
    """Kill the process whose number the file holds, so long after it has been written."""
    while not path.exists() or not path.read_text():
        sleep(0.01)
    sleep(seconds)
    with suppress(ProcessLookupError):  # it has ended
        os.kill(int(path.read_text()), signal.SIGKILL)


if __name__ == "__main__":
    fit(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)
