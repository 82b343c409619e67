"""A fit of one method by several processes, kept where the run of one process then finds it.

    torchrun --nproc-per-node 2 -m experiments.classification.spread NAME METHOD --cache DIR

NAME is the experiment's, METHOD a key of sampla's, DIR the cache of a run that has prepared images and network
(``--only network`` does). A fit that was cut off goes on, with as many processes or another number; afterwards
``python -m experiments.classification.NAME --only METHOD`` with the same cache has the predictions left to do.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist

from experiments.classification.registry import METHODS, SAMPLA
from experiments.classification.runner import experiment_of, task_of
from sampla.core.allocator import freed_memory_kept


def main() -> None:
    """The command line, on each process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("method", choices=[key for key, method in METHODS.items() if method.family == SAMPLA])
    parser.add_argument("--cache", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    case = {"settings": asdict(experiment_of(asked.name).full), "cache": str(asked.cache)}
    try:
        with freed_memory_kept():
            METHODS[asked.method].fit(task_of(case | {"experiment": asked.name}))
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
