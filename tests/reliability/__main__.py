"""Kills, flipped bits, interrupts, threads and stated errors in full; writes docs/reliability.json and its page.

    PYTHONPATH=tests python -m reliability [--only kills] [--out docs]

Run by hand, from the root of the repository (``make soak``); a quarter of an hour on one core.
"""

import signal
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from experiments.common.command import command, say
from experiments.common.page import ROOT, write_page
from experiments.common.store import Store

from reliability import certificates, flips, interrupts, kills, predictions, workers
from reliability.fits import KINDS
from reliability.page import page

SEED = 17
PARTS: dict[str, tuple[int, Callable[..., dict[str, Any]]]] = {
    "kills": (100, kills.trials),
    "workers": (20, workers.trials),
    "flips": (200, flips.trials),
    "interrupts": (500, interrupts.trials),
    "predictions": (4000, predictions.trials),
    "certificates": (300, certificates.trials),
    "reduced": (200, certificates.reduced_trials),
}
"""Name -> how many, and what tries them."""


def measured(name: str) -> dict[str, Any]:
    """One part in full."""
    count, trials = PARTS[name]
    start = perf_counter()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = trials(count, SEED, Path(folder), say)
    calls = interrupts.Action.NAMES
    told = f"{len(calls)} calls ({'; '.join(calls)})"
    more = {"kills": {"kinds": len(KINDS)}, "interrupts": {"actions": told}}
    return found | more.get(name, {}) | {"seconds": perf_counter() - start}


def main() -> None:
    """Run what is asked for and write the page."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    asked = command(__doc__ or "", ROOT / "docs", only=PARTS)
    store = Store(asked.out / "reliability.json", {"seed": SEED}, anew=True)
    for name in asked.only or PARTS:
        say(name)
        store.put(name, measured(name))
        write_page(asked.out / "reliability.md", "tests/reliability/reliability.md.j2", **page(store))


if __name__ == "__main__":
    main()
