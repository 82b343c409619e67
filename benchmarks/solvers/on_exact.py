"""What EM finds against exact values, gamma, alpha and log evidence: dense in float64, by tests/dense.py.

The evidence is that of the Laplace approximation of the linear model with B at the network, exact for Gaussian noise.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from experiments.common.command import say
from tests import dense
from torch import Tensor, nn

from benchmarks.solvers.problem import SEED, Batches, Run
from benchmarks.solvers.spectra import KINDS, spectrum
from sampla.apps.demo.data import digits
from sampla.apps.demo.networks import Standardise
from sampla.apps.demo.training import RECIPES, train
from sampla.features import DesignMatrix, Features, NetworkFeatures, select_parameters
from sampla.inference.infer import EM, Inference, infer
from sampla.likelihoods import Categorical, Gaussian, Likelihood
from sampla.model import LinearModel
from sampla.priors import GPrior, Isotropic, Prior
from sampla.solvers import BlockCG

_COLUMNS, _CONDITION, _DIGITS = 32, 1e4, 600
METHODS = {
    "Krylov space, 8 probes": EM(tolerance=0.01, method="krylov"),
    "Krylov space, 32 probes": EM(tolerance=0.01, method="krylov", num_samples=32, max_rows=512),
    "16 samples": EM(tolerance=0.001, solve_tolerance=0.01, mode_tolerance=0.001, num_samples=16, method="samples"),
}
"""name -> how EM works: add a line for another one."""


@dataclass(frozen=True)
class ExactCase:
    """A small linear model, and the features (N, C, P), targets, loss -log p(y | f) and B (N, C, C) written out."""

    name: str
    features: Features
    likelihood: Likelihood
    batches: Batches
    prior: Prior
    rows: Tensor
    targets: Tensor
    loss: dense.Loss
    weights: Tensor

    def at(self, scale: Tensor) -> Callable[[float], dict[str, float]]:
        """Precision alpha -> its exact values, in the coordinates of a scale s."""
        rows = self.rows * scale.double()
        matrix = dense.curvature(rows, self.weights)
        values = torch.linalg.eigvalsh(matrix).clamp_min(0)

        def exact(alpha: float) -> dict[str, float]:
            precision = torch.full_like(values, alpha)
            evidence = dense.laplace_log_evidence(rows, self.targets, self.loss, self.weights, precision)
            return {"alpha": alpha, "gamma": float((values / (values + alpha)).sum()), "log_evidence": evidence}

        return exact

    def fixed_point(self, scale: Tensor, start: float) -> float:
        """MacKay's alpha = gamma(alpha) / |theta*(alpha)|^2."""
        group = torch.zeros(self.rows.shape[-1], dtype=torch.long)
        model = dense.Evidence(self.rows * scale.double(), self.targets, group, self.loss, self.weights)
        found = model.run(dense.Hyper(torch.tensor([start], dtype=torch.float64).log()), tolerance=1e-10)
        return float(found.log_precision.exp())


def run(given: Run) -> None:
    """Fill the store with ``exact/CASE``: spectra with unit Gaussian noise, and a small network on digits."""
    for kind in KINDS:
        name = f"{kind}, condition {_CONDITION:.0e}"
        say(f"exact values: {name}")
        given.store.once(f"exact/{name}", lambda kind=kind, name=name: compare(_spectrum_case(name, kind, given)))
    say("exact values: digits")
    given.store.once("exact/digits", lambda: compare(_digits_case(_DIGITS // 3 if given.sizes.quick else _DIGITS)))


def compare(case: ExactCase) -> dict[str, Any]:
    """Fit by every method, and put the exact values at its alpha, and at the exact fixed point, beside what it says."""
    rows: dict[str, Any] = {}
    best: dict[str, float] = {}
    for name, em in METHODS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = infer(
                LinearModel(case.features, case.likelihood, case.batches), case.prior, BlockCG(),
                num_samples=_COLUMNS, seed=SEED, em=em, tolerance=0.01,
            )  # fmt: skip
        # the g-prior's scale is estimated from the draws, which are the same for every method
        exact = case.at(found.prior.scale)
        best = best or exact(case.fixed_point(found.prior.scale, float(found.prior.precision[0])))
        rows[name] = _row(found, exact, em)
    return {"name": case.name, "P": found.model.num_parameters, "exact": best, "rows": rows}


def _row(found: Inference, exact: Callable[[float], dict[str, float]], em: EM) -> dict[str, Any]:
    """What the fit says, and what is exact at its own alpha."""
    alpha, evidence, last = float(found.prior.precision[0]), found.log_evidence, found.trace[-1]
    known = exact(alpha)
    return {
        "settled": found.settled, "products": found.model.ledger.products, "alpha": alpha,
        "gamma": last.effective_dimension[0], "gamma_exact": exact(last.precision[0])["gamma"],
        "log_evidence": None if evidence is None else evidence.value,
        "log_evidence_error": None if evidence is None else evidence.standard_error,
        "log_evidence_exact": known["log_evidence"],
        "sampling": sqrt(2 / (min(em.num_samples, _COLUMNS) * known["gamma"])),
    }  # fmt: skip


def _spectrum_case(name: str, kind: str, given: Run) -> ExactCase:
    case = spectrum(kind, _CONDITION, *given.sizes.spectra)
    noise = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    return ExactCase(
        name, DesignMatrix(case.rows.shape[1]), Gaussian(1.0), case.batches(), Isotropic(), case.rows[:, None],
        case.targets, lambda f, y: -noise.log_prob(y - f).sum(), torch.ones(len(case.rows), 1, 1).double(),
    )  # fmt: skip


def _digits_case(count: int) -> ExactCase:
    """Convolution and one linear layer, trained on all digits; the posterior is about the first few hundred."""
    data = digits(SEED)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = nn.Sequential(
            Standardise(data.train.images), nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(96, 10),
        )  # fmt: skip
    train(network, data.train, RECIPES["digits"], SEED, progress=False)
    network, few = network.double(), data.train.first(count)
    batches = [(images.double(), labels) for images, labels in few.batches(200)]
    names = select_parameters(network)[0]
    outputs = network(few.images.double()).detach()
    return ExactCase(
        "digits", NetworkFeatures(network, names), Categorical(), batches, GPrior(),
        dense.jacobian(network, names, few.images.double()), few.labels, dense.categorical_loss,
        dense.fast_hessians(dense.categorical_loss, outputs, few.labels),
    )  # fmt: skip
