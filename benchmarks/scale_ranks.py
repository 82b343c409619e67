"""One process against all of them, in turns, on the ResNet-20 of CIFAR-10; started by torchrun from benchmarks.scale.

    torchrun --standalone --nproc-per-node 2 -m benchmarks.scale_ranks CASE FILE

The first process fits to all data while the others wait at a barrier; then every one does so on its own, all at the
same time, which shows what the machine allows; then all fit to their parts, as one fit; and so on.
"""

import json
import sys
from datetime import timedelta
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
import torch.distributed as dist
from experiments.common.networks import cifar10_network
from torch.utils.data import DataLoader, TensorDataset

import sampla

WAYS = ("one", "alone", "all")
"""All images on the first process; all images on every process, on its own and at the same time; a part on each."""


def fitted(images: TensorDataset, samples: int, batch: int, way: str) -> sampla.LinearisedLaplace:
    """A fit at a fixed precision in one of the ways."""
    torch.manual_seed(0)
    network = cifar10_network().eval()
    whole = sampla.as_whole(DataLoader(images, batch_size=batch))
    loader = DataLoader(sampla.shard(images), batch_size=batch) if way == "all" else whole
    prior = sampla.Isotropic(300.0, learn=False)
    laplace = sampla.LinearisedLaplace(network, "categorical", prior, num_samples=samples, solver="block-cg")
    return laplace.fit(loader)


def timed(case: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each turn, and how far the samples of all processes are from those of one."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(case["images"], 3, 32, 32, generator=generator)
    data = TensorDataset(images, torch.randint(10, (case["images"],), generator=generator))
    few = TensorDataset(*data[: 2 * case["batch"]])
    cpu: dict[str, list[float]] = {way: [] for way in WAYS}
    found: dict[str, Any] = {way: [] for way in WAYS} | {"ranks": dist.get_world_size(), "cpu": cpu}
    for turn in range(case["turns"] + 1):
        kept = {}
        for way in WAYS:
            dist.barrier()
            start, busy = perf_counter(), process_time()
            if way != "one" or dist.get_rank() == 0:
                kept[way] = fitted(data if turn else few, case["samples"], case["batch"], way)
            spent = torch.tensor(process_time() - busy)
            dist.barrier()
            if turn:  # the first turn is to warm up
                found[way].append(perf_counter() - start)
                dist.all_reduce(spent, dist.ReduceOp.MAX)
                cpu[way].append(float(spent))
    if dist.get_rank() == 0:
        one, all_ = (torch.cat([each.flatten(1) for each in kept[n].samples_.values()], 1) for n in WAYS[::2])
        found |= {"apart": float((one - all_).norm() / one.norm()), "passes": kept["one"].report_.passes}
    return found


def main() -> None:
    """In each process of the group."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(hours=1))
    found = timed(json.loads(sys.argv[1]))
    if dist.get_rank() == 0:
        Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
