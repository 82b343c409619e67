"""What EM finds against exact values: gamma, alpha, log evidence."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from experiments.common.command import say
from torch import Tensor, nn

from benchmarks.solvers.exact import Dense, DenseCategorical, DenseGaussian
from benchmarks.solvers.problem import SEED, Batches
from benchmarks.solvers.sizes import Run
from benchmarks.solvers.spectra import KINDS, spectrum
from sampla.apps.demo.data import digits
from sampla.apps.demo.networks import Standardise
from sampla.apps.demo.training import RECIPES, train
from sampla.features import Features, NetworkFeatures, select_parameters
from sampla.features.matrix import DesignMatrix
from sampla.inference.infer import EM, Inference, infer
from sampla.likelihoods import Categorical, Gaussian, Likelihood
from sampla.model import LinearModel
from sampla.priors import GPrior, Isotropic, Prior
from sampla.solvers import BlockCG

_COLUMNS = 32
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


METHODS = {
    "Krylov space, 8 probes": EM(tolerance=0.01, method="krylov"),
    "Krylov space, 32 probes": EM(tolerance=0.01, method="krylov", num_samples=32, max_rows=512),
    "16 samples": EM(tolerance=0.001, solve_tolerance=0.01, mode_tolerance=0.001, num_samples=16, method="samples"),
}
"""name -> how EM works: add a line for another one."""


def run(given: Run) -> None:
    """Fill the store with ``exact/CASE``."""
    for name, build in cases(given).items():
        say(f"exact values: {name}")
        given.store.once(f"exact/{name}", lambda build=build: compare(build()))


def cases(given: Run) -> dict[str, Callable[[], ExactCase]]:
    """Spectra with unit Gaussian noise, and a small network on digits."""
    found: dict[str, Callable[[], ExactCase]] = {
        f"{kind}, condition {_CONDITION:.0e}": lambda kind=kind: _spectrum_case(kind, given) for kind in KINDS
    }
    return {**found, "digits": lambda: _digits_case(given)}


def compare(case: ExactCase) -> dict[str, Any]:
    """Fit by every method, and put the exact values at its alpha, and at the exact fixed point, beside what it says."""
    rows: dict[str, Any] = {}
    exact: dict[str, float] = {}
    for name, em in METHODS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inference = infer(
                LinearModel(case.features, case.likelihood, case.batches), case.prior, BlockCG(),
                num_samples=_COLUMNS, seed=SEED, em=em, tolerance=0.01,
            )  # fmt: skip
        # the g-prior's scale is estimated from the draws, which are the same for every method
        dense = case.dense(inference.prior.scale.double())
        exact = exact or exact_values(dense, float(inference.prior.precision[0]))
        rows[name] = _row(inference, dense, em)
    return {"name": case.name, "P": inference.model.num_parameters, "exact": exact, "rows": rows}


def exact_values(dense: Dense, start: float) -> dict[str, float]:
    """At the exact fixed point of MacKay's update."""
    alpha = dense.fixed_point(start)
    return {
        "alpha": alpha,
        "gamma": dense.gamma(alpha),
        "log_determinant": dense.log_determinant(alpha),
        "log_evidence": dense.log_evidence(alpha),
    }


def _row(inference: Inference, dense: Dense, em: EM) -> dict[str, Any]:
    """What the fit says, and what is exact at its own alpha."""
    alpha, evidence = float(inference.prior.precision[0]), inference.log_evidence
    gamma, columns = dense.gamma(alpha), min(em.num_samples, _COLUMNS)
    return {
        "settled": inference.settled,
        "products": inference.model.ledger.products,
        "alpha": alpha,
        "gamma": inference.trace[-1].effective_dimension[0],
        "gamma_exact": dense.gamma(inference.trace[-1].precision[0]),
        "log_evidence": None if evidence is None else evidence.value,
        "log_evidence_error": None if evidence is None else evidence.standard_error,
        "log_evidence_exact": dense.log_evidence(alpha),
        "sampling": sqrt(2 / (columns * gamma)),
    }


def _spectrum_case(kind: str, given: Run) -> ExactCase:
    case = spectrum(kind, _CONDITION, *given.sizes.spectra)
    features = DesignMatrix(case.rows.shape[1])
    return ExactCase(
        f"{kind}, condition {_CONDITION:.0e}", features, Gaussian(1.0), case.batches(), Isotropic(),
        lambda scale: DenseGaussian(case.rows * scale, case.targets[:, 0]),
    )  # fmt: skip


def _digits_case(given: Run) -> ExactCase:
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
    few = data.train.first(_DIGITS // 3 if given.quick else _DIGITS)
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
