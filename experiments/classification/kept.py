"""Fits of sampla that outlive their process: one that was cut off goes on, one that has ended is not done twice."""

import json
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

from torch import nn

import sampla

Facts = dict[str, Any]


def kept(
    folder: Path | None, network: nn.Module, fit: Callable[[Path | None], tuple[sampla.LinearisedLaplace, Facts]]
) -> tuple[sampla.LinearisedLaplace, Facts, float]:
    """A fit with its facts, and the CPU seconds that it took in an earlier process.

    Args:
        folder: of this fit alone; None keeps nothing.
        network: to which a fit that has ended belongs.
        fit: is given a folder for its checkpoint.

    Returns:
        the fit, its facts, and the seconds that this process did not spend itself. A fit that was cut off counts from
        where it went on, and says so: "continued" is among its facts.
    """
    if folder is None:
        return *fit(None), 0.0
    posterior, said = folder / "fit.safetensors", folder / "facts.json"
    if said.is_file():
        found = json.loads(said.read_text())
        return sampla.LinearisedLaplace.load(posterior, network), found["facts"], found["seconds"]
    begun, start = folder.is_dir(), process_time()
    la, facts = fit(folder / "checkpoint")
    facts |= {"continued": True} if begun else {}
    la.save(posterior)
    said.write_text(json.dumps({"facts": facts, "seconds": process_time() - start}))
    return la, facts, 0.0
