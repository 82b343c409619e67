"""A whole fit by the library, its cost split into stages, and the problem that it leaves: sampling at a fixed alpha."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import floor, log10
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from experiments.common.command import say
from experiments.common.store import Row
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.solvers.problem import SEED, Batches, Problem, Truth, known_truth, prior_part, surveyed
from sampla import ConvergenceWarning
from sampla.features import NetworkFeatures, ScaledFeatures, select_parameters
from sampla.inference.infer import EM, Inference, infer
from sampla.likelihoods import Categorical
from sampla.model import Ledger, LinearModel, NoiseDraw
from sampla.priors import GPrior
from sampla.solvers import BlockCG

EM_TOLERANCE = 0.01
"""Relative change of alpha at which a fit has settled."""
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


def fit(subject: Subject, columns: int) -> tuple[Inference, dict[str, Any]]:
    """EM to one per cent in alpha, then K samples at two per cent; what it cost in products and seconds."""
    model = LinearModel(subject.features, Categorical(), subject.batches, Ledger())
    start, seen = perf_counter(), [0.0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inference = infer(
            model, GPrior(), BlockCG(), num_samples=columns, seed=SEED, em=EM(tolerance=EM_TOLERANCE),
            tolerance=SAMPLE_TOLERANCE, say=lambda text: _speak(text, seen, model.ledger),
        )  # fmt: skip
    steps = [
        {"alpha": row.precision[0], "gamma": row.effective_dimension[0], "change": row.change, "products": row.products}
        for row in inference.trace
    ]
    return inference, {
        "columns": columns,
        "alpha": float(inference.prior.precision[0]),
        "gamma": float(inference.effective_dimension.sum()),
        "products": model.ledger.products,
        "passes": model.ledger.products / columns,
        "seconds": perf_counter() - start,
        "settled": inference.settled,
        "method": inference.method,
        "steps": steps,
        "final_passes": inference.solution.passes,
        "final_error": inference.solution.error,
        "warnings": [str(w.message) for w in caught if issubclass(w.category, ConvergenceWarning)],
    }


def _speak(text: str, seen: list[float], ledger: Ledger) -> None:
    """A line at most every few products."""
    if ledger.products - seen[0] >= 1 or ledger.products == 0:
        seen[0] = ledger.products
        say(f"fit: {text} ({ledger.products:.0f} products)")


FindTruth = Callable[[Subject, Tensor, Tensor, float], Truth]
"""(network and data, scale s, right-hand side b, alpha) -> the solution in float64."""


def sampling_problem(subject: Subject, found: Row, columns: int, known: int, cache: Path, find: FindTruth) -> Problem:
    """K posterior samples under the g-prior, with the truth found by ``find`` or kept from before.

    alpha is the one that the fit has found, rounded down to two significant digits: the problem then stays the same
    when a fit changes by a little. The truth is that of the first ``known`` columns: the error of a larger block is
    judged on those.
    """
    unit = 10 ** (floor(log10(found["alpha"])) - 1)
    alpha = float(f"{floor(found['alpha'] / unit) * unit:.1e}")
    features, size = subject.features, sum(len(labels) for _, labels in subject.batches)
    draw = _kept_draw(cache / f"draw-{subject.name}-{size}-{columns}.safetensors", subject, columns)
    scale = GPrior().bind(features.layout, draw.diagonal).scale
    draw = NoiseDraw(draw.data_part * scale, draw.diagonal * scale.square())
    model = surveyed(ScaledFeatures(features, scale), Categorical(), subject.batches)
    rhs = (draw.data_part[:known] + prior_part(torch.full_like(draw.diagonal, alpha), known)).double()
    path = cache / f"truth-{subject.name}.safetensors"
    truth = known_truth(path, rhs, alpha, lambda: find(subject, scale, rhs, alpha))
    facts = {"P": model.num_parameters, "N": size, "accuracy": truth.accuracy, "truth": truth.words}
    return Problem(f"{subject.name}, alpha {alpha:g}", model, alpha, draw, truth, facts)


def _kept_draw(path: Path, subject: Subject, columns: int) -> NoiseDraw:
    """The same bits in every run, whatever the number of threads: the truth belongs to them."""
    if not path.is_file():
        say(f"{subject.name}: drawing the noise of {columns} samples")
        draw = surveyed(subject.features, Categorical(), subject.batches).draw_noise(SEED, columns)
        save_file({"data_part": draw.data_part, "diagonal": draw.diagonal}, path)
    kept = load_file(path)
    return NoiseDraw(kept["data_part"], kept["diagonal"])
