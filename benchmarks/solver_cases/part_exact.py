"""What EM finds against exact values: gamma, alpha, log evidence."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from sampla.demo.data import digits
from sampla.demo.networks import Standardise
from sampla.demo.training import RECIPES, train
from sampla.em import EM, Inference, infer
from sampla.features import Features, NetworkFeatures, select_parameters
from sampla.features.matrix import DesignMatrix
from sampla.likelihoods import Categorical, Gaussian, Likelihood
from sampla.model import LinearModel
from sampla.priors import GPrior, Isotropic, Prior
from sampla.solvers import BlockCG
from solver_cases.exact import Dense, DenseCategorical, DenseGaussian
from solver_cases.problem import SEED, Batches
from solver_cases.settings import Settings
from solver_cases.spectra import KINDS, spectrum
from solver_cases.store import Store

_COLUMNS = 16
_CONDITION = 1e4
_DIGITS = 600


@dataclass(frozen=True)
class ExactCase:
    """A small linear model, and how to write it out in the coordinates of a scale s."""

    name: str
    features: Features
    likelihood: Likelihood
    batches: Batches
    prior: Prior
    dense: Callable[[Tensor], Dense]
    """(P,) s -> the model with features phi diag(s)."""


@dataclass(frozen=True)
class Found:
    """What a method says; None where it says nothing."""

    alpha: float
    gamma: float | None = None
    gamma_error: float | None = None
    """Its own standard error."""
    log_determinant: float | None = None
    log_evidence: float | None = None


def from_samples(inference: Inference) -> Found:
    """EM with K posterior samples: the paper's estimator."""
    gamma, error = float(inference.effective_dimension.sum()), float(inference.effective_dimension_error.sum())
    return Found(float(inference.prior.precision[0]), gamma, error)


METHODS: dict[str, Callable[[Inference], Found]] = {"EM, K = 16 samples": from_samples}
"""name -> what it reads off a fit: add a line for another estimator of gamma or of the evidence."""


def run(settings: Settings, store: Store) -> None:
    """Fill the store with ``exact/CASE``."""
    for name, build in cases(settings).items():
        settings.say(f"exact values: {name}")
        store.once(f"exact/{name}", lambda build=build: compare(build()))


def cases(settings: Settings) -> dict[str, Callable[[], ExactCase]]:
    """Spectra with unit Gaussian noise, and a small network on digits."""
    found: dict[str, Callable[[], ExactCase]] = {
        f"{kind}, condition {_CONDITION:.0e}": lambda kind=kind: _spectrum_case(kind, settings) for kind in KINDS
    }
    return {**found, "digits": lambda: _digits_case(settings)}


def compare(case: ExactCase) -> dict[str, Any]:
    """Fit, then for each method: the exact values at its alpha, and the exact fixed point."""
    model = LinearModel(case.features, case.likelihood, case.batches)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inference = infer(
            model, case.prior, BlockCG(), num_samples=_COLUMNS, seed=SEED,
            em=EM(tolerance=0.001, solve_tolerance=0.01, mode_tolerance=0.001), tolerance=0.01,
        )  # fmt: skip
    dense = case.dense(inference.prior.scale.double())
    rows = {name: _row(method(inference), dense) for name, method in METHODS.items()}
    values = exact_values(dense, float(inference.prior.precision[0]))
    return {"name": case.name, "P": model.num_parameters, "exact": values, "settled": inference.settled, "rows": rows}


def exact_values(dense: Dense, start: float) -> dict[str, float]:
    """At the exact fixed point of MacKay's update."""
    alpha = dense.fixed_point(start)
    gamma = dense.gamma(alpha)
    return {
        "alpha": alpha,
        "gamma": gamma,
        "log_determinant": dense.log_determinant(alpha),
        "log_evidence": dense.log_evidence(alpha),
        "sampling": sqrt(2 / (_COLUMNS * gamma)),
    }


def _row(found: Found, dense: Dense) -> dict[str, Any]:
    """Beside what is exact at the method's own alpha."""
    return {
        "alpha": found.alpha,
        "gamma": found.gamma,
        "gamma_error": found.gamma_error,
        "gamma_exact": dense.gamma(found.alpha),
        "log_determinant": found.log_determinant,
        "log_determinant_exact": dense.log_determinant(found.alpha),
        "log_evidence": found.log_evidence,
        "log_evidence_exact": dense.log_evidence(found.alpha),
    }


def _spectrum_case(kind: str, settings: Settings) -> ExactCase:
    case = spectrum(kind, _CONDITION, *settings.spectra_size)
    features = DesignMatrix(case.rows.shape[1])
    return ExactCase(
        f"{kind}, condition {_CONDITION:.0e}", features, Gaussian(1.0), case.batches(), Isotropic(),
        lambda scale: DenseGaussian(case.rows * scale, case.targets[:, 0]),
    )  # fmt: skip


def _digits_case(settings: Settings) -> ExactCase:
    """Convolution and one linear layer, trained on all digits; the posterior is about the first few hundred."""
    data = digits(SEED)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = nn.Sequential(
            Standardise(data.train.images), nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(96, 10),
        )  # fmt: skip
    train(network, data.train, RECIPES["digits"], SEED, progress=False)
    network = network.double()
    few = data.train.first(_DIGITS // 3 if settings.quick else _DIGITS)
    batches = [(images.double(), labels) for images, labels in few.batches(200)]
    features = NetworkFeatures(network, select_parameters(network)[0])

    def dense(scale: Tensor) -> Dense:
        at = features.linearise(few.images.double())
        jacobian = torch.cat([_rows(features, images) for images, _ in batches])
        return DenseCategorical(jacobian * scale, few.labels, at.outputs)

    return ExactCase("digits", features, Categorical(), batches, GPrior(), dense)


def _rows(features: NetworkFeatures, images: Tensor) -> Tensor:
    """(n C, P) the Jacobian, datum by datum."""
    rows = []
    for image in images:
        at = features.linearise(image[None])
        identity = torch.eye(at.outputs.numel(), dtype=at.outputs.dtype)
        rows.append(at.vjp(identity.view(-1, *at.outputs.shape)))
    return torch.cat(rows)
