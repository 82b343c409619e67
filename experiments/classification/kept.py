"""Fits of sampla that outlive their process: one that was cut off goes on, one that has ended is not done twice."""

import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import process_time
from typing import TypeAlias

import torch.distributed as dist
from torch import nn

import sampla
from experiments.common.facts import peak_memory

Fit: TypeAlias = Callable[[Path | None], sampla.LinearisedLaplace]
"""A fit that keeps its checkpoint in the folder it is given."""


@dataclass(frozen=True)
class Earlier:
    """What a fit took and said in an earlier process."""

    seconds: float = 0.0
    """Of the CPU, of all processes."""
    peak: int = 0
    """Bytes."""
    warnings: tuple[str, ...] = ()
    continued: bool = False
    """Whether it had been cut off: its seconds count from where it went on."""


def kept(folder: Path | None, network: nn.Module, fit: Fit) -> tuple[sampla.LinearisedLaplace, Earlier]:
    """A fit, and what it had taken before.

    Args:
        folder: of this fit alone; None keeps nothing.
        network: to which a fit that has ended belongs.
        fit: the fit itself.
    """
    if folder is None:
        return fit(None), Earlier()
    posterior, told = folder / "fit.safetensors", folder / "told.json"
    if told.is_file():
        return sampla.LinearisedLaplace.load(posterior, network), Earlier(**json.loads(told.read_text()))
    continued, start = folder.is_dir(), process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        la = fit(folder / "checkpoint")
    said = sorted({str(w.message) for w in caught if "sampla" in str(w.filename)})
    processes, first = (dist.get_world_size(), dist.get_rank() == 0) if dist.is_initialized() else (1, True)
    if first:
        la.save(posterior)
        seconds = processes * (process_time() - start)
        told.write_text(json.dumps(asdict(Earlier(seconds, peak_memory(), tuple(said), continued))))
    return la, Earlier(warnings=tuple(said), continued=continued)
