"""A linear system whose solution is known: what every solver is measured on."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from experiments.common.command import say
from safetensors.torch import load_file, save_file
from torch import Tensor

from sampla.core.noise import PRIOR, standard_normal
from sampla.features import Features
from sampla.likelihoods import Likelihood
from sampla.model import Ledger, LinearModel, NoiseDraw
from sampla.solvers import LinearSystem, RightHandSide

SEED = 0
"""Of all noise in this benchmark."""

Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Truth:
    """z* and M z*, in float64."""

    value: Tensor
    """(K, P)."""
    curvature_value: Tensor
    """(K, P)."""
    accuracy: float
    """|H z* - b| / |b|."""
    words: str = ""
    """How it was found."""

    def error(self, value: Tensor, curvature_value: Tensor) -> float:
        """|phi (z - z*)|_B / |phi z*|_B over the first rows, the root mean square over columns; costs no product.

        Over all columns whose truth is known, if a solver has more.
        """
        count = min(len(value), len(self.value))
        truth, curvature = self.value[:count], self.curvature_value[:count]
        difference = value[:count].double() - truth
        missing = (difference * (curvature_value[:count].double() - curvature)).sum(1).clamp_min(0)
        return float((missing.mean() / (truth * curvature).sum(1).mean()).sqrt())

    def first(self, count: int) -> "Truth":
        """The first columns alone."""
        return replace(self, value=self.value[:count], curvature_value=self.curvature_value[:count])


@dataclass
class Problem:
    """H Z = B with its true solution, and a meter for everything that is spent on it."""

    name: str
    model: LinearModel
    """In whitened coordinates."""
    alpha: float
    draw: NoiseDraw
    """Whitened; the truth may be known for its first columns only."""
    truth: Truth
    facts: dict[str, Any] = field(default_factory=dict)
    """For the words: sizes, conditions."""
    reusable: dict[str, Any] = field(default_factory=dict)
    """What several contestants share, such as a Krylov space that EM would have built."""

    @property
    def precision(self) -> Tensor:
        """(P,) the diagonal of A."""
        return torch.full_like(self.draw.diagonal, self.alpha)

    @property
    def system(self) -> LinearSystem:
        """H."""
        return LinearSystem(self.model, self.precision, self.draw.diagonal)

    def rhs(self, columns: int) -> RightHandSide:
        """The first columns of B: noise is keyed by sample, so fewer columns are the same as a smaller draw."""
        return RightHandSide(self.draw.data_part[:columns], prior_part(self.precision, columns), columns, SEED)

    @property
    def products(self) -> float:
        """Products with M spent so far; those on part of the data count as that part."""
        return self.model.ledger.products

    def measured_free(self, function: Callable[[], Any]) -> Any:
        """What the function returns, its products not counted: they serve the measurement alone."""
        before = self.model.ledger.products
        result = function()
        self.model.ledger.products = before
        return result


def prior_part(precision: Tensor, columns: int) -> Tensor:
    """(K, P) A^(1/2) xi, as the EM loop draws it."""
    return precision.sqrt() * standard_normal(SEED, PRIOR, range(columns), 0, (len(precision),), precision)


def surveyed(features: Features, likelihood: Likelihood, batches: Batches) -> LinearModel:
    """A model with its own ledger whose data have been read once, so that their number is known."""
    model = LinearModel(features, likelihood, batches, Ledger())
    model.survey()
    return model


def known_truth(path: Path, rhs: Tensor, alpha: float, find: Callable[[], Truth]) -> Truth:
    """The truth from its file if it belongs to this right-hand side and alpha; otherwise found and kept."""
    key = hashlib.sha256(rhs.contiguous().numpy().tobytes() + repr(alpha).encode()).hexdigest()[:16]
    path = path.with_name(f"{path.stem}-{key}.safetensors")
    if path.is_file():
        say(f"truth from {path.name}")
        kept = load_file(path)
        return Truth(kept["value"], kept["curvature_value"], float(kept["accuracy"]), "kept from an earlier run")
    truth = find()
    path.parent.mkdir(parents=True, exist_ok=True)
    accuracy = torch.tensor(truth.accuracy, dtype=torch.float64)
    tensors = {"value": truth.value, "curvature_value": truth.curvature_value, "accuracy": accuracy}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return truth
