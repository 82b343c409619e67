"""Every method by its key, with the name it has in the tables."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from experiments.classification import methods, peers
from experiments.classification.experiment import Task
from experiments.classification.methods import Fitted


@dataclass(frozen=True)
class Method:
    """A row of the tables."""

    name: str
    fit: Callable[[Task], Fitted]
    family: str
    """sampla, laplace-torch, or other."""


SAMPLA, LAPLACE, OTHER = "sampla", "laplace-torch", "other"
NETWORK, REFERENCE, FULL = "network", "sampla-reference", "laplace-full"
"""FULL is planned where it does not fit."""


def _peer(name: str, *how: str) -> Method:
    return Method(f"laplace-torch, {name}", peers.parametric(*how), LAPLACE)


def _ours(name: str, *how: Any, **options: Any) -> Method:
    return Method(f"sampla, {name}", methods.sampled(*how, **options), SAMPLA)


METHODS = {
    NETWORK: Method("network alone", methods.network_alone, OTHER),
    "temperature": Method("temperature scaling", methods.temperature, OTHER),
    "swag": Method("SWAG", methods.swag, OTHER),
    "ensemble": Method("ensemble", methods.ensemble, OTHER),
    "laplace-diag": _peer("diagonal", "all", "diag"),
    "laplace-kron": _peer("Kronecker", "all", "kron"),
    "laplace-kron-layers": _peer("Kronecker, a prior for each layer", "all", "kron", peers.LAYERWISE),
    "laplace-last": _peer("last layer, full", "last_layer", "full"),
    "laplace-last-kron": _peer("last layer, Kronecker", "last_layer", "kron"),
    FULL: _peer("all weights, full", "all", "full"),
    "laplace-ella": Method("laplace-torch, ELLA", peers.ella, LAPLACE),
    "sampla-isotropic": _ours("isotropic", "isotropic"),
    "sampla-g": _ours("g-prior", "g-prior"),
    "sampla-g-scaled": _ours("g-prior, scaled on held-out images", "g-prior", scaled=True),
    "sampla-isotropic-mode": _ours("isotropic, at the linear mode", "isotropic", "linear-mode"),
    "sampla-g-mode": _ours("g-prior, at the linear mode", "g-prior", "linear-mode"),
    REFERENCE: _ours("isotropic, reference", "isotropic", reference=True),
}
