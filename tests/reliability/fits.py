"""Small fits of every kind that goes on from a checkpoint, for whatever interrupts, kills or spoils them."""

from typing import Any

import torch
from torch import Tensor, nn

import sampla
from helpers import laplace

DATA = torch.randn(48, 4, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(48, 2, generator=torch.Generator().manual_seed(1))


def network(outputs: int) -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, outputs)).eval()


REAL = torch.sin(DATA[:, :2]) + 0.3 * NOISE
CLASSES = (DATA[:, 0] > 0).long() + (DATA[:, 1] + NOISE[:, 0] > 1).long()
KINDS: dict[str, tuple[Any, int, Tensor, dict[str, Any]]] = {
    "gaussian": (sampla.Gaussian(), 2, REAL, {"em": sampla.EM(exact_up_to=0)}),
    "gaussian, exact traces": (sampla.Gaussian(), 2, REAL, {"prior": "isotropic"}),
    "gaussian, noise by output": (sampla.Gaussian(structure="diagonal"), 2, REAL, {"em": sampla.EM(max_steps=6)}),
    "gaussian, full noise": (sampla.Gaussian(structure="full"), 2, REAL, {"em": sampla.EM(max_steps=6)}),
    "gaussian, by layer": (sampla.Gaussian(), 2, REAL, {"prior": "layerwise"}),
    "categorical": (sampla.Categorical(), 3, CLASSES, {}),
    "categorical, isotropic": (sampla.Categorical(), 3, CLASSES, {"prior": "isotropic"}),
    "categorical, linear mode": (sampla.Categorical(), 3, CLASSES, {"curvature_at": "linear-mode"}),
    "categorical, linear mode, probes": (
        sampla.Categorical(),
        3,
        CLASSES,
        {"curvature_at": "linear-mode", "em": sampla.EM(exact_up_to=0)},
    ),
    "categorical, linear mode, by layer": (
        sampla.Categorical(),
        3,
        CLASSES,
        {"curvature_at": "linear-mode", "prior": "layerwise"},
    ),
    "categorical, dense": (sampla.Categorical(), 3, CLASSES, {"solver": "dense"}),
    "bernoulli": (sampla.Bernoulli(), 2, (REAL > 0).float(), {}),
}


def batches(name: str) -> list[tuple[Tensor, Tensor]]:
    """The data of a kind, in three batches."""
    return list(zip(DATA.split(16), KINDS[name][2].split(16), strict=True))


def door(name: str, **changes: Any) -> sampla.LinearisedLaplace:
    likelihood, outputs, _, settings = KINDS[name]
    return laplace(network(outputs), likelihood, **{"solver": "block-cg", "prior": "g-prior", **settings, **changes})


def same(one: sampla.LinearisedLaplace, other: sampla.LinearisedLaplace) -> bool:
    """Whether two fits are equal to the bit: samples, hyperparameters and evidence."""
    samples = all(torch.equal(other.samples_[name], sample) for name, sample in one.samples_.items())
    learnt = torch.equal(one.prior_precision_, other.prior_precision_)
    return samples and learnt and one.report_.log_evidence == other.report_.log_evidence
