"""Test error and test log-likelihood on the UCI regression sets: sampla, BayesianRidge, an exact Gaussian process.

    python experiments/uci/run.py --root DIR [--only boston] [--anew] [--out experiments/uci]

``--root`` holds the npz files. Every fit is kept in OUT/results.json as soon as it is done, and a run that was cut off
goes on there; ``--anew`` fits sampla again where the library's source has changed since. Writes OUT/results.md.
"""

import argparse
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import oracle
from config import PROCESS, PROCESS_SPLITS, RANDOM, RAW, RIDGE, RIDGE_SPLITS, SAMPLA, SETS
from gaussian_process import fit_process, fits
from kept import Kept
from methods import fit_ridge, fit_sampla
from sets import DataSet, Split, random_features
from writing import write

FIRST = 5
"""Splits that every set gets before any gets more: a run that is cut off has something of everything."""
Fit = tuple[str, str, Callable[[Split], dict[str, Any]]]


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
        known: list[Split] = []
        for features, method, fit in _fits(data, number, process):
            key = f"{features}/{data.name}/{method}/{number:02d}"
            result = kept.once(key, lambda f=features, m=fit: m(_split(data, number, f, known)), ours=method == SAMPLA)
            print(f"{perf_counter() - start:7.0f} s  {key}: {result['rmse']:.4g} {result['seconds']:.1f} s", flush=True)
        write(arguments.out, kept)
    write(arguments.out, kept)


def _order(sets: list[DataSet]) -> Iterator[tuple[DataSet, int, bool]]:
    """Set, split and whether it is the Gaussian process's turn: the cheap before the dear."""
    for process in (False, True):
        for first in (True, False):
            for data in sorted(sets, key=lambda data: len(data.x)) if process else sets:
                for number in range(data.num_splits):
                    if (number < FIRST) == first:
                        yield data, number, process


def _fits(data: DataSet, number: int, process: bool) -> Iterator[Fit]:
    """What is fitted to a split."""
    if process:
        if fits(len(data.x)) and number < PROCESS_SPLITS.get(data.name, data.num_splits):
            yield RAW, PROCESS, fit_process
        return
    for features in (RAW, RANDOM):
        yield features, SAMPLA, fit_sampla
        if number < RIDGE_SPLITS.get((features, data.name), data.num_splits):
            yield features, RIDGE, fit_ridge


def _split(data: DataSet, number: int, features: str, known: list[Split]) -> Split:
    """The split; random features are drawn once for all methods."""
    if features == RAW:
        return data.split(number)
    if not known:
        known.append(random_features(data.split(number)))
    return known[0]


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
