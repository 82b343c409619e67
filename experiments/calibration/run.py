"""Simulation-based calibration (Talts et al. 2018) of the linear models: are the ranks of the truth uniform?

    python experiments/calibration/run.py [--sets 1000] [--out experiments/calibration]

Writes results.md and ranks.png.
"""

import argparse
from collections import Counter
from pathlib import Path
from time import perf_counter

import numpy as np
from scipy.stats import chisquare
from simulation import DRAWS, NOISE_PRECISION, PRIOR_PRECISION, QUANTITIES, WAYS, Way, simulate
from writing import Outcome, draw, write

SEED = 20180418
"""Chosen once."""
BINS = 16


def main() -> None:
    """All ways, each on its own data sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=1000, help="simulated data sets for each way")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where the results go")
    arguments = parser.parse_args()
    start = perf_counter()
    outcomes = []
    for number, way in enumerate(WAYS):
        outcomes.append(_outcome(way, number, arguments.sets))
        print(f"{perf_counter() - start:7.1f} s  {way.name}, learnt: {way.learnt}: {outcomes[-1].p_values}", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    settings = {
        "sets": arguments.sets,
        "seed": SEED,
        "draws": DRAWS,
        "alpha": PRIOR_PRECISION,
        "noise": NOISE_PRECISION,
    }
    draw(arguments.out / "ranks.png", outcomes)
    write(arguments.out / "results.md", outcomes, settings)


def _outcome(way: Way, number: int, sets: int) -> Outcome:
    counts = {quantity: np.zeros(BINS, dtype=int) for quantity in QUANTITIES}
    warned: Counter[bool] = Counter()
    for index in range(sets):
        ranks, warnings = simulate(way, (SEED, number, index))
        warned[warnings > 0] += 1
        for quantity, rank in ranks.items():
            counts[quantity][rank * BINS // (DRAWS + 1)] += 1
    p_values = {quantity: float(chisquare(count).pvalue) for quantity, count in counts.items()}
    return Outcome(way, counts, p_values, warned[True])


if __name__ == "__main__":
    main()
