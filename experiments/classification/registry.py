"""Every method by its key, with the name it has in the tables."""

from collections.abc import Callable
from dataclasses import dataclass

from classification import methods, peers
from classification.methods import Fitted
from classification.settings import Task


@dataclass(frozen=True)
class Method:
    """A row of the tables."""

    name: str
    fit: Callable[[Task], Fitted]
    family: str
    """sampla, laplace-torch, or other."""
    samples: bool = True
    """Whether its predictions come from K samples."""


SAMPLA, LAPLACE, OTHER = "sampla", "laplace-torch", "other"
NETWORK = "network"
REFERENCE = "sampla-reference"
FULL = "laplace-full"
"""Planned where it does not fit."""
METHODS = {
    NETWORK: Method("network alone", methods.network_alone, OTHER, samples=False),
    "temperature": Method("temperature scaling", methods.temperature, OTHER, samples=False),
    "swag": Method("SWAG", methods.swag, OTHER),
    "ensemble": Method("ensemble", methods.ensemble, OTHER, samples=False),
    "laplace-diag": Method("laplace-torch, diagonal", peers.parametric("all", "diag"), LAPLACE),
    "laplace-kron": Method("laplace-torch, Kronecker", peers.parametric("all", "kron"), LAPLACE),
    "laplace-kron-layers": Method(
        "laplace-torch, Kronecker, a prior for each layer", peers.parametric("all", "kron", peers.LAYERWISE), LAPLACE
    ),
    "laplace-last": Method("laplace-torch, last layer, full", peers.parametric("last_layer", "full"), LAPLACE),
    "laplace-last-kron": Method(
        "laplace-torch, last layer, Kronecker", peers.parametric("last_layer", "kron"), LAPLACE
    ),
    FULL: Method("laplace-torch, all weights, full", peers.parametric("all", "full"), LAPLACE),
    "laplace-ella": Method("laplace-torch, ELLA", peers.ella, LAPLACE),
    "sampla-isotropic": Method("sampla, isotropic", methods.sampled("isotropic"), SAMPLA),
    "sampla-g": Method("sampla, g-prior", methods.sampled("g-prior"), SAMPLA),
    "sampla-g-scaled": Method(
        "sampla, g-prior, scaled on held-out images", methods.sampled("g-prior", scaled=True), SAMPLA
    ),
    "sampla-isotropic-mode": Method(
        "sampla, isotropic, at the linear mode", methods.sampled("isotropic", "linear-mode"), SAMPLA
    ),
    "sampla-g-mode": Method("sampla, g-prior, at the linear mode", methods.sampled("g-prior", "linear-mode"), SAMPLA),
    REFERENCE: Method("sampla, isotropic, reference", methods.sampled("isotropic", reference=True), SAMPLA),
}
