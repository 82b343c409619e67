"""The tables every mathematical test runs over: likelihoods, priors, solvers. A new class joins its table here.

Each likelihood comes with a small network trained on real digits, and with everything the dense reference needs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import dense
import sampla
from sampla.core.chunks import Chunks
from sampla.core.data import CheckedLoader
from sampla.core.params import ParameterLayout
from sampla.core.progress import Progress
from sampla.features import Features
from sampla.model import LinearModel
from sampla.priors import BoundPrior
from sampla.solvers import DenseDual, Minibatch

NUM_TRAIN, NUM_TEST, BATCH = 150, 12, 100
FULL_NOISE = torch.tensor([[20.0, 6.0, -2.0], [6.0, 15.0, 1.0], [-2.0, 1.0, 30.0]], dtype=torch.float64)
DIAGONAL_NOISE = torch.tensor([10.0, 20.0, 40.0], dtype=torch.float64)


def _labels(images: Tensor, digits: Tensor) -> Tensor:  # noqa: ARG001  (all targets have one signature)
    return digits


def _yes_no(images: Tensor, digits: Tensor) -> Tensor:  # noqa: ARG001
    """Three questions about a digit: even, at least five, has a hole."""
    return torch.stack([digits % 2 == 0, digits >= 5, torch.isin(digits, torch.tensor([0, 6, 8, 9]))], 1).double()


def _statistics(images: Tensor, digits: Tensor) -> Tensor:  # noqa: ARG001
    """Three statistics of an image, standardised: mean, vertical and horizontal centre of mass."""
    ramp, mass = torch.linspace(-1, 1, 8, dtype=torch.float64), images.sum((1, 2, 3))
    vertical, horizontal = (images.sum(axis).squeeze(1) @ ramp / mass for axis in (3, 2))
    columns = torch.stack([mass, vertical, horizontal], 1)
    return (columns - columns.mean(0)) / columns.std(0)


@dataclass(frozen=True)
class LikelihoodCase:
    """A likelihood with the loss it stands for, and targets made from digits."""

    make: Callable[[], sampla.Likelihood]
    loss: dense.Loss
    targets: Callable[[Tensor, Tensor], Tensor]
    num_outputs: int


LIKELIHOODS = {
    "categorical": LikelihoodCase(sampla.Categorical, dense.categorical_loss, _labels, 10),
    "bernoulli": LikelihoodCase(sampla.Bernoulli, dense.bernoulli_loss, _yes_no, 3),
    "gaussian-scalar": LikelihoodCase(
        lambda: sampla.Gaussian(15.0), dense.gaussian_loss(15 * torch.eye(3, dtype=torch.float64)), _statistics, 3
    ),
    "gaussian-diagonal": LikelihoodCase(
        lambda: sampla.Gaussian(DIAGONAL_NOISE), dense.gaussian_loss(DIAGONAL_NOISE.diag()), _statistics, 3
    ),
    "gaussian-full": LikelihoodCase(
        lambda: sampla.Gaussian(FULL_NOISE), dense.gaussian_loss(FULL_NOISE), _statistics, 3
    ),
}
GAUSSIANS = [name for name in LIKELIHOODS if name.startswith("gaussian")]


class SpreadLayerwise(sampla.Layerwise):
    """Fixed precisions that differ from layer to layer, as only EM would make them otherwise."""

    def bind(self, layout: ParameterLayout, curvature_diagonal: Tensor) -> BoundPrior:
        bound = super().bind(layout, curvature_diagonal)
        return bound.with_precision(bound.precision * 4.0 ** torch.arange(len(bound.names)))


PRIORS: dict[str, Callable[..., sampla.Prior]] = {
    "isotropic": sampla.Isotropic,
    "layerwise": sampla.Layerwise,
    "g-prior": sampla.GPrior,
}

FIXED_PRIORS: dict[str, Callable[..., sampla.Prior]] = {**PRIORS, "layerwise": SpreadLayerwise}


@dataclass(frozen=True)
class SolverCase:
    """A line of the table of solvers: one that joins it inherits the tests of test_solvers.py."""

    make: Callable[[], sampla.Solver[Any]]
    tolerance: float
    """What is asked of it there."""
    short: float = 1.0
    """How many times the error that it states may be short of the truth."""
    exact: bool = False
    """Whether it reaches that on every system there, and then rounding."""


SOLVERS = {
    "dense": SolverCase(sampla.Dense, 1e-10, exact=True),
    "dense-dual": SolverCase(DenseDual, 1e-10, 3.0, exact=True),
    "block-cg": SolverCase(sampla.BlockCG, 1e-6, 10.0, exact=True),
    "minibatch": SolverCase(Minibatch, 0.05, 2.0),
    "sgd-regulariser": SolverCase(sampla.SGD, 0.05),
    "sgd-targets": SolverCase(lambda: sampla.SGD(objective="targets"), 0.05),
}
"""DualDescent, for fewer outputs than parameters only, has tests of its own."""


@dataclass(frozen=True)
class Problem:
    """A trained network, its data, and the dense quantities, each computed once."""

    case: LikelihoodCase
    model: nn.Module
    inputs: Tensor
    targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    names: list[str] = field(default_factory=list)

    @property
    def loader(self) -> list[tuple[Tensor, Tensor]]:
        return batches(self.inputs, self.targets, BATCH)

    @cached_property
    def features(self) -> Tensor:
        """J over the training data, (N, C, P)."""
        return dense.fast_jacobian(self.model, self.names, self.inputs)

    @cached_property
    def test_features(self) -> Tensor:
        """J over the test data."""
        return dense.fast_jacobian(self.model, self.names, self.test_inputs)

    @cached_property
    def weights(self) -> Tensor:
        """B over the training data, (N, C, C)."""
        return dense.hessians(self.case.loss, self.model(self.inputs).detach(), self.targets)

    @cached_property
    def curvature(self) -> Tensor:
        """M."""
        return dense.curvature(self.features, self.weights)

    def fit(self, prior: sampla.Prior | str, **options: Any) -> sampla.LinearisedLaplace:
        """The front door on this problem, quietly; predictions of the posterior as it is."""
        options = {
            "likelihood": self.case.make(),
            "progress": False,
            "solver": sampla.Dense(),
            "width": "em",
            "chunks": (BATCH, 256),  # the preset is for larger networks: here most of the time would be calls
            **options,
        }
        loader = options.pop("loader", self.loader)
        checkpoint = options.pop("checkpoint", None)
        return sampla.LinearisedLaplace(self.model, prior=prior, **options).fit(loader, checkpoint)


def build_data(size: int = NUM_TRAIN) -> tuple[Tensor, Tensor, Tensor]:
    """The first digits: images (n, 1, 8, 8) in [0, 1], labels, and the image statistics as regression targets."""
    images, digits = load_digits(return_X_y=True)
    images = torch.from_numpy(images[:size]).view(-1, 1, 8, 8) / 16
    digits = torch.from_numpy(digits[:size]).long()
    return images, digits, _statistics(images, digits)


def build_problem(name: str) -> Problem:
    """Train the network of one row of LIKELIHOODS, always to the same weights."""
    case = LIKELIHOODS[name]
    images, digits, _ = build_data(NUM_TRAIN + NUM_TEST)
    targets = case.targets(images, digits)
    model = small_network(case.num_outputs)
    train(model, case.loss, images[:NUM_TRAIN], targets[:NUM_TRAIN])
    names = [name for name, _ in model.named_parameters()]
    return Problem(case, model, images[:NUM_TRAIN], targets[:NUM_TRAIN], images[NUM_TRAIN:], targets[NUM_TRAIN:], names)


def small_network(num_outputs: int) -> nn.Module:
    """A convolution, a hidden layer and a readout; 199 + 8 C parameters in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 2, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(18, 8), nn.Tanh()]
        return nn.Sequential(*layers, nn.Linear(8, num_outputs)).double().eval()


def train(model: nn.Module, loss: dense.Loss, inputs: Tensor, targets: Tensor, steps: int = 150) -> None:
    """Full-batch Adam: deterministic, a fraction of a second."""
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        torch.vmap(loss)(model(inputs), targets).mean().backward()
        optimiser.step()
    optimiser.zero_grad()


def batches(inputs: Tensor, targets: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """A loader: a list of batches."""
    return list(zip(inputs.split(size), targets.split(size), strict=True))


def linear_model(
    features: Features, likelihood: sampla.Likelihood, loader: Any, chunks: tuple[int, int] | None = None
) -> LinearModel:
    """A LinearModel that has seen its data once, as after the survey of a fit."""
    data = CheckedLoader(loader, features.like.device, Progress(False))
    model = LinearModel(features, likelihood, data, chunks=Chunks(*chunks) if chunks else None)
    model.survey()
    return model


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normals for test inputs."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


SPECTRA: dict[str, np.ndarray] = {  # eigenvalues of M
    "power law": 100 * np.arange(1.0, 61.0) ** -2,
    "clustered": np.repeat([30.0, 3.0, 0.3, 0.03], 15) * np.linspace(0.9, 1.1, 60),
    "flat": np.linspace(1, 2, 60),
    "low rank": np.r_[np.logspace(2, -1, 20), np.zeros(40)],
}


def spectrum_model(name: str, dtype: torch.dtype = torch.float64) -> tuple[LinearModel, Tensor]:
    """A Gaussian model of 90 data with noise 1 and a row of SPECTRA, and its M in float64; the targets are random."""
    rows = dense.prescribed(SPECTRA[name], 90).to(dtype)
    model = linear_model(
        sampla.DesignMatrix(60, dtype=dtype), sampla.Gaussian(1.0), batches(rows, randn(90, 1).to(dtype), 50)
    )
    return model, rows.double().mT @ rows.double()


def build_tiny(name: str) -> Problem:
    """A row of LIKELIHOODS on 6 principal components of a digit, with 3 outputs, 43 parameters and 150 data."""
    case = LIKELIHOODS[name]
    images, digits, statistics = build_data()
    flat = images.flatten(1) - images.flatten(1).mean(0)
    inputs = flat @ torch.linalg.svd(flat, full_matrices=False).Vh[:6].mT
    targets = statistics if name in GAUSSIANS else digits // 4 if name == "categorical" else _yes_no(images, digits)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double().eval()
    train(model, case.loss, inputs, targets)
    names = [name for name, _ in model.named_parameters()]
    return Problem(case, model, inputs, targets, inputs[:NUM_TEST], targets[:NUM_TEST], names)
