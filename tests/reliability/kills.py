"""SIGKILL at any moment of a fit with a checkpoint; what is left in the folder goes on to the same end, to the bit."""

import os
import random
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import sampla
from reliability.fits import KINDS, batches, door, same
from sampla.core import journal

_IN_A_ROW = 3
"""Kills of one fit, each of which finds what the last one has left."""


def trials(
    count: int,
    seed: int,
    folder: Path,
    say: Callable[[str], None] = lambda _: None,
    kinds: Collection[str] = tuple(KINDS),
) -> dict[str, Any]:
    """So many fits killed in a process of their own, over kinds in turn; each is then finished from its folder."""
    choose, found = (
        random.Random(seed),
        {"tried": 0, "right": 0, "refused": 0, "wrong": 0, "from a state": 0, "from passes": 0},
    )
    whole: dict[str, tuple[sampla.LinearisedLaplace, float]] = {}
    for number in range(10 * count):
        name = list(kinds)[number % len(kinds)]
        if name not in whole:
            whole[name] = _timed(name, folder / "whole" / str(len(whole)))
        expected, seconds = whole[name]
        place = folder / str(number)
        for _ in range(choose.randint(1, _IN_A_ROW)):
            if found["tried"] == count:
                return found
            if not killed(name, place, choose.uniform(0, seconds), every_pass=number // len(kinds) % 2 == 0):
                break
            found["tried"] += 1
            found["from a state"] += (place / "em-state.safetensors").exists()
            found["from passes"] += any(place.glob("passes-*"))
            verdict = finished(name, place, expected)
            found[verdict] += 1
            if verdict != "right":
                say(f"{name}: {verdict}")
    return found


def _timed(name: str, place: Path) -> tuple[sampla.LinearisedLaplace, float]:
    """The fit that nobody kills, and the seconds that it takes once everything is imported."""
    for _ in range(2):
        shutil.rmtree(place, ignore_errors=True)
        start = time.perf_counter()
        la = _fitted(name, place)
    return la, time.perf_counter() - start


def _fitted(name: str, place: Path) -> sampla.LinearisedLaplace:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sampla.ConvergenceWarning)
        return door(name).fit(batches(name), checkpoint=place)


def killed(name: str, place: Path, seconds: float, every_pass: bool) -> bool:
    """Whether a fit in another process was still running when it was killed after so many seconds.

    These fits are far too short for passes to be kept; ``every_pass`` has each of them kept, whatever that costs.
    """
    child = os.fork()
    if child == 0:
        try:
            if every_pass:
                journal._EVERY, journal._SHARE = 0.0, 1e9
            _fitted(name, place)
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def finished(name: str, place: Path, expected: sampla.LinearisedLaplace) -> str:
    """What becomes of a copy of the folder: "right", "refused" or "wrong"."""
    copy = place.with_name(f"{place.name}-copy")
    shutil.rmtree(copy, ignore_errors=True)
    if place.exists():
        shutil.copytree(place, copy)
    try:
        again = _fitted(name, copy)
    except (ValueError, OSError):
        return "refused"
    left = {path.name for path in copy.iterdir()} - {"em-state.safetensors", "noise.safetensors"}
    return "right" if same(expected, again) and not left else "wrong"
