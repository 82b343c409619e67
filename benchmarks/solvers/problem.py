"""A linear system whose solution is known: what every solver is measured on."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from experiments.common.command import say
from experiments.common.store import Store
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
class Sizes:
    """Of everything that a kept result depends on."""

    spectra: tuple[int, int] = (200, 250)  # P, N
    estimates: int = 200  # random cases on which the error estimate is tried
    mnist: tuple[int, int] = (10_000, 64)  # training images of the LeNet; K of the largest block
    resnet: int = 64  # images that the ResNet's posterior is about
    paper: int = 400  # epochs after which the paper's schedule is given up
    quick: bool = False

    @classmethod
    def of(cls, quick: bool) -> "Sizes":
        """The whole ones, or small ones to see that everything works."""
        return cls((160, 320), 40, (400, 64), 24, 160, quick=True) if quick else cls()


@dataclass(frozen=True)
class Run:
    """What every part is given."""

    store: Store
    sizes: Sizes
    root: Path
    checkpoints: Path


@dataclass(frozen=True)
class Truth:
    """z* and M z*, both (K, P) in float64."""

    value: Tensor
    curvature_value: Tensor
    accuracy: float  # |H z* - b| / |b|
    words: str = ""  # how it was found

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
    """H Z = B in whitened coordinates, its true solution (perhaps of the first columns only), and a meter."""

    name: str
    model: LinearModel
    alpha: float
    draw: NoiseDraw
    truth: Truth
    facts: dict[str, Any] = field(default_factory=dict)  # for the words: sizes, conditions
    reusable: dict[str, Any] = field(default_factory=dict)  # what contestants share, such as EM's Krylov space

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


def kept(path: Path, find: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors from a file, or found and put there."""
    if not path.is_file():
        say(f"{path.name} is made")
        save_file({name: tensor.contiguous() for name, tensor in find().items()}, path)
    return load_file(path)


def known_truth(folder: Path, name: str, rhs: Tensor, alpha: float, find: Callable[[], Truth]) -> Truth:
    """The truth from its file if it belongs to this right-hand side and alpha; otherwise found and kept."""
    key = hashlib.sha256(rhs.contiguous().numpy().tobytes() + repr(alpha).encode()).hexdigest()[:16]
    words = "kept from an earlier run"

    def tensors() -> dict[str, Tensor]:
        nonlocal words
        truth = find()
        words, accuracy = truth.words, torch.tensor(truth.accuracy, dtype=torch.float64)
        return {"value": truth.value, "curvature_value": truth.curvature_value, "accuracy": accuracy}

    found = kept(folder / f"truth-{name}-{key}.safetensors", tensors)
    return Truth(found["value"], found["curvature_value"], float(found["accuracy"]), words)
