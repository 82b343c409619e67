"""Test error and test log-likelihood on the UCI regression sets: sampla, BayesianRidge, an exact Gaussian process.

    python experiments/uci/run.py --root DIR [--only boston] [--anew] [--out experiments/uci]

``--root`` holds the npz files. Every fit is kept in OUT/results.json as soon as it is done, and a run that was cut off
goes on there; ``--anew`` fits sampla again where the library's source has changed since. Writes OUT/results.md.
"""

import argparse
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import oracle
from config import PROCESS, RANDOM, RAW, RIDGE, SAMPLA, SETS
from gaussian_process import fit_process, fits
from kept import Kept
from methods import fit_ridge, fit_sampla
from sets import DataSet, Split, random_features
from writing import write

FIRST = 3
"""Splits that every set gets before any gets more: a run that is cut off has something of everything."""
Fit = tuple[str, str, Callable[[Split], dict[str, Any]]]


class Inputs:
    """One split; its random features are drawn when they are first needed, and once for all methods."""

    def __init__(self, data: DataSet, number: int) -> None:
        self._data, self._number = data, number
        self._random: Split | None = None

    def fitted(self, features: str, fit: Callable[[Split], dict[str, Any]]) -> dict[str, Any]:
        """What a method gives on these features."""
        if features == RAW:
            return fit(self._data.split(self._number))
        if self._random is None:
            self._random = random_features(self._data.split(self._number))
        return fit(self._random)


def main() -> None:
    """Everything that is not known yet, then the tables."""
    arguments = _arguments()
    kept = Kept(arguments.out / "results.json", arguments.anew)
    sets = [DataSet(arguments.root, name) for name in arguments.only or SETS]
    start = perf_counter()
    for data in sets:
        for key, compute in oracle.parts(data):
            kept.once(key, compute, ours=True)
    for data, number, process in _order(sets):
        inputs = Inputs(data, number)
        for features, method, fit in _fits(data, process):
            key = f"{features}/{data.name}/{method}/{number:02d}"
            result = kept.once(key, partial(inputs.fitted, features, fit), ours=method == SAMPLA)
            print(f"{perf_counter() - start:7.0f} s  {key}: {result['rmse']:.4g} {result['seconds']:.1f} s", flush=True)
        write(arguments.out, kept)
    write(arguments.out, kept)


def _order(sets: list[DataSet]) -> Iterator[tuple[DataSet, int, bool]]:
    """Set, split and whether it is the Gaussian process's turn: the first splits, then the others; the cheap first."""
    cheap_first = sorted(sets, key=lambda data: len(data.x))
    for first in (True, False):
        for process in (False, True):
            for data in cheap_first:
                for number in range(data.num_splits):
                    if (number < FIRST) == first:
                        yield data, number, process


def _fits(data: DataSet, process: bool) -> Iterator[Fit]:
    """What is fitted to a split."""
    if process:
        if fits(len(data.x)):
            yield RAW, PROCESS, fit_process
        return
    for features in (RAW, RANDOM):
        yield features, SAMPLA, fit_sampla
        yield features, RIDGE, fit_ridge


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of the npz files")
    parser.add_argument("--only", choices=SETS, action="append", help="only this set; may be given several times")
    parser.add_argument("--anew", action="store_true", help="fit sampla again where its source has changed")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where the results go")
    return parser.parse_args()


if __name__ == "__main__":
    warnings.simplefilter("default")  # each place warns once: seen, and not a flood
    main()
