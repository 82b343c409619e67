"""Fits of sampla that outlive their process: one that was cut off goes on, one that has ended is not done twice."""

import json
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import TypeAlias

from torch import nn

import sampla

Fit: TypeAlias = Callable[[Path | None], sampla.LinearisedLaplace]
"""A fit that keeps its checkpoint in the folder it is given."""


def kept(folder: Path | None, network: nn.Module, fit: Fit) -> tuple[sampla.LinearisedLaplace, float, bool]:
    """A fit, and what it had taken before.

    Args:
        folder: of this fit alone; None keeps nothing.
        network: to which a fit that has ended belongs.
        fit: the fit itself.

    Returns:
        the fit; the CPU seconds of a process that has ended it before; whether a fit had been cut off, whose seconds
        count from where it went on.
    """
    if folder is None:
        return fit(None), 0.0, False
    posterior, told = folder / "fit.safetensors", folder / "told.json"
    if told.is_file():
        found = json.loads(told.read_text())
        return sampla.LinearisedLaplace.load(posterior, network), found["seconds"], found["continued"]
    continued, start = folder.is_dir(), process_time()
    la = fit(folder / "checkpoint")
    la.save(posterior)
    told.write_text(json.dumps({"seconds": process_time() - start, "continued": continued}))
    return la, 0.0, continued
