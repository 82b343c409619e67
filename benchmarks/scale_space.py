"""What each process holds where EM's Krylov space is the most of it; started by torchrun from benchmarks.scale.

    torchrun --standalone --nproc-per-node 4 -m benchmarks.scale_space CASE FILE

Few data and a tolerance that is never met let the space grow to all of its vectors, of which each process has a slice.
"""

import json
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from experiments.common.facts import peak_memory
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sampla


def fitted(case: dict[str, Any]) -> dict[str, Any]:
    """Peak of this process before and after a fit, its P, the vectors of its space and its passes."""
    torch.manual_seed(0)
    width, inputs = case["width"], 16
    network = nn.Sequential(
        nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, case["outputs"])
    ).eval()
    x, y = torch.randn(case["data"], inputs), torch.randn(case["data"], case["outputs"])
    part = DataLoader(sampla.shard(TensorDataset(x, y)), batch_size=16)
    em = sampla.EM(tolerance=1e-9, max_rows=case["rows"], exact_up_to=0, num_samples=case["samples"], max_steps=99)
    laplace = sampla.LinearisedLaplace(
        network, sampla.Gaussian(10.0), num_samples=case["samples"], em=em, solver="block-cg", chunks=(16, 4),
        progress=False,
    )  # fmt: skip
    before = peak_memory()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sampla.ConvergenceWarning)
        laplace.fit(part)
    rows = sum(row["passes"] for row in laplace.report_.trace) * (case["samples"] + 1)  # and the mean's
    return {
        "before": before, "peak": peak_memory(), "parameters": sum(each.numel() for each in network.parameters()),
        "vectors": rows, "samples": [float(each.double().norm()) for each in laplace.samples_.values()],
    }  # fmt: skip


def main() -> None:
    """In each process of the group."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(hours=1))
    case = json.loads(sys.argv[1])
    fitted(case | {"width": 8, "rows": 16})  # what is loaded at the first fit
    mine = fitted(case)
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, mine)
    if dist.get_rank() == 0:
        Path(sys.argv[2]).write_text(json.dumps(every), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
