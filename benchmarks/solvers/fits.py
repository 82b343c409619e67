"""A whole fit by the library, its cost split into stages, and the problem that it leaves: sampling at a fixed alpha."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import floor, log10
from pathlib import Path
from time import perf_counter
from typing import Any

from experiments.common.command import say
from experiments.common.store import Row
from torch import Tensor, nn

from benchmarks.solvers.problem import SEED, Batches, Problem, Truth, kept, known_truth, prior_part, surveyed
from sampla import ConvergenceWarning
from sampla.features import NetworkFeatures, ScaledFeatures, select_parameters
from sampla.inference.infer import EM, infer
from sampla.likelihoods import Categorical
from sampla.model import Ledger, LinearModel, NoiseDraw
from sampla.priors import GPrior
from sampla.solvers import BlockCG

EM_TOLERANCE = 0.01  # relative change of alpha at which a fit has settled
SAMPLE_TOLERANCE = 0.02


@dataclass(frozen=True)
class Subject:
    """A trained network and the data that its posterior is about."""

    name: str
    network: nn.Module
    batches: Batches

    @property
    def features(self) -> NetworkFeatures:
        """J(x) at the trained weights."""
        return NetworkFeatures(self.network, select_parameters(self.network)[0])


FindTruth = Callable[[Subject, Tensor, Tensor, float], Truth]
"""(network and data, scale s, right-hand side b, alpha) -> the solution in float64."""


def fit(subject: Subject, columns: int) -> dict[str, Any]:
    """EM to one per cent in alpha, then K samples at two per cent; what it cost in products and seconds."""
    model = LinearModel(subject.features, Categorical(), subject.batches, Ledger())
    start, told = perf_counter(), -1.0

    def speak(text: str) -> None:  # a line at most every product
        nonlocal told
        if model.ledger.products - told >= 1:
            told = model.ledger.products
            say(f"fit: {text} ({told:.0f} products)")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = infer(
            model, GPrior(), BlockCG(), num_samples=columns, seed=SEED, em=EM(tolerance=EM_TOLERANCE),
            tolerance=SAMPLE_TOLERANCE, say=speak,
        )  # fmt: skip
    steps = [
        {"alpha": row.precision[0], "gamma": row.effective_dimension[0], "change": row.change, "products": row.products}
        for row in found.trace
    ]
    return {
        "columns": columns, "alpha": float(found.prior.precision[0]), "gamma": float(found.effective_dimension.sum()),
        "products": model.ledger.products, "passes": model.ledger.products / columns,
        "seconds": perf_counter() - start, "settled": found.settled, "method": found.method, "steps": steps,
        "final_passes": found.solution.passes, "final_error": found.solution.error,
        "warnings": [str(w.message) for w in caught if issubclass(w.category, ConvergenceWarning)],
    }  # fmt: skip


def sampling_problem(subject: Subject, found: Row, columns: int, known: int, cache: Path, find: FindTruth) -> Problem:
    """K posterior samples under the g-prior, with the truth found by ``find`` or kept from before.

    alpha is the one that the fit has found, rounded down to two significant digits: the problem then stays the same
    when a fit changes by a little. The truth is that of the first ``known`` columns: the error of a larger block is
    judged on those. The noise is kept too: the same bits in every run, whatever the number of threads.
    """
    unit = 10 ** (floor(log10(found["alpha"])) - 1)
    alpha = float(f"{floor(found['alpha'] / unit) * unit:.1e}")
    features, size = subject.features, sum(len(labels) for _, labels in subject.batches)
    path = cache / f"draw-{subject.name}-{size}-{columns}.safetensors"
    drawn = kept(path, lambda: vars(surveyed(features, Categorical(), subject.batches).draw_noise(SEED, columns)))
    scale = GPrior().bind(features.layout, drawn["diagonal"]).scale
    draw = NoiseDraw(drawn["data_part"] * scale, drawn["diagonal"] * scale.square())
    model = surveyed(ScaledFeatures(features, scale), Categorical(), subject.batches)
    rhs = (draw.data_part[:known] + prior_part(draw.diagonal.new_full(draw.diagonal.shape, alpha), known)).double()
    truth = known_truth(cache, subject.name, rhs, alpha, lambda: find(subject, scale, rhs, alpha))
    facts = {"P": model.num_parameters, "N": size, "accuracy": truth.accuracy, "truth": truth.words}
    return Problem(f"{subject.name}, alpha {alpha:g}", model, alpha, draw, truth, facts)
