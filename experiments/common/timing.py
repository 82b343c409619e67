"""Times that can be compared: everything in one process, taking turns."""

from collections.abc import Callable, Mapping
from math import inf
from statistics import median
from time import perf_counter
from typing import Any


def interleaved(
    contestants: Mapping[str, Callable[[], Any]], seconds: float = inf, least: int = 2, most: int = 50
) -> dict[str, float]:
    """Median seconds of each, in turn; a first round that is short warms up and does not count.

    Args:
        contestants: name -> what is timed.
        seconds: after which no further round begins.
        least: rounds, however long they take.
        most: rounds, however short they are.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    start, rounds = perf_counter(), 0
    while rounds < least or (perf_counter() - start < seconds and rounds < most):
        for name, run in contestants.items():
            begun = perf_counter()
            run()
            times[name].append(perf_counter() - begun)
        rounds += 1
        if rounds == 1 and perf_counter() - start < seconds / 4 < inf:
            times = {name: [] for name in contestants}
    return {name: median(each) for name, each in times.items()}
