"""What a stage is, what it is given, and how long it will take."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from experiments.common.devices import BF16, TF32, device_name, peaks
from experiments.common.process import Case

TRAINING, FIT = "training", "fit"
"""Kinds of work: forward and backward under bfloat16; products of a fit of as many passes as are assumed."""
_SHARES = {TRAINING: (BF16, 0.10), FIT: (TF32, 0.10)}
"""Of which peak so much is assumed until a stage has measured it."""
_UNKNOWN = 2e13, 2e10
"""FLOP/s of any kind on a card that the table of peaks does not know, and on a CPU."""
START = {"cuda": 12.0, "cpu": 4.0}
"""Seconds until a process of its own has imported torch and found the device."""
DONE = "line"
"""The entry that only a stage has which came to its end: what it found, in a line."""

Cost = dict[str, float]
"""Kind of work -> FLOP; "seconds": whatever does not depend on the device's speed."""


@dataclass(frozen=True)
class Place:
    """Where a stage runs, and on what."""

    device: str
    root: Path
    checkpoints: Path
    out: Path
    cache: Path
    tiny: bool = False
    seconds: float = 600.0
    """That are left."""

    def case(self) -> Case:
        """As plain JSON, for another process."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}

    @classmethod
    def of(cls, case: Case) -> "Place":
        """The inverse of ``case``; what else is in the case is left out."""
        folders = {name: Path(case[name]) for name in ("root", "checkpoints", "out", "cache")}
        return cls(case["device"], **folders, tiny=case["tiny"], seconds=case["seconds"])


@dataclass(frozen=True)
class Stage:
    """One result, in a process of its own: a function of a module, plain JSON in and out."""

    name: str
    run: Callable[[Case], Case]
    """Of a place's case and ``more``: what it found; ``DONE`` is a line of text, "rates" what it measured in FLOP/s."""
    cost: Callable[[Place], Cost]
    more: Case = field(default_factory=dict)
    files: Callable[[Place], list[Path]] = lambda _: []
    """That it cannot do without."""
    modules: tuple[str, ...] = ()
    """That it cannot do without, beside torch and sampla's own."""
    other: Callable[[Place], str] = lambda _: ""
    """What else stands against it; empty: nothing."""

    def missing(self, place: Place) -> str:
        """Why it cannot run here; empty if it can."""
        modules = [name for name in self.modules if find_spec(name) is None]
        files = [str(path) for path in self.files(place) if not path.exists()]
        return f"not here: {', '.join(modules + files)}" if modules + files else self.other(place)


def assumed(device: str) -> dict[str, float]:
    """FLOP/s of each kind of work before anything is measured."""
    kind = device.split(":")[0]
    known = peaks(device_name(device)) if kind == "cuda" and torch.cuda.is_available() else {}
    rate = _UNKNOWN[kind == "cpu"]
    return {work: share * known[of] if known else rate for work, (of, share) in _SHARES.items()}


def estimate(cost: Cost, rates: dict[str, float], device: str) -> float:
    """Seconds from the start of the process to its end."""
    fixed = START.get(device.split(":")[0], START["cuda"]) + cost.get("seconds", 0.0)
    return fixed + sum(work / rates[kind] for kind, work in cost.items() if kind != "seconds")


def floored(values: dict[str, Any]) -> dict[str, float]:
    """Rates that can be divided by."""
    return {kind: max(float(rate), 1.0) for kind, rate in values.items()}
