"""Every method by its key, with the name it has in the tables."""

from collections.abc import Callable
from dataclasses import dataclass

from experiments.classification.experiment import Task
from experiments.classification.methods import Fitted, ensemble, network_alone, sampled, swag, temperature
from experiments.classification.peers import LAYERWISE, ella, parametric

SAMPLA, LAPLACE, OTHER = "sampla", "laplace-torch", "other"
NETWORK, REFERENCE, FULL = "network", "sampla-reference", "laplace-full"
"""FULL is planned where it does not fit."""


@dataclass(frozen=True)
class Method:
    """A row of the tables; its family is sampla, laplace-torch or other."""

    name: str
    fit: Callable[[Task], Fitted]
    family: str = OTHER


_PEERS = {
    "laplace-diag": ("diagonal", parametric("all", "diag")),
    "laplace-kron": ("Kronecker", parametric("all", "kron")),
    "laplace-kron-layers": ("Kronecker, a prior for each layer", parametric("all", "kron", LAYERWISE)),
    "laplace-last": ("last layer, full", parametric("last_layer", "full")),
    "laplace-last-kron": ("last layer, Kronecker", parametric("last_layer", "kron")),
    FULL: ("all weights, full", parametric("all", "full")),
    "laplace-ella": ("ELLA", ella),
}
_OURS = {
    "sampla-isotropic": ("isotropic", sampled("isotropic")),
    "sampla-g": ("g-prior", sampled("g-prior")),
    "sampla-isotropic-bfloat16": ("isotropic, EM in bfloat16", sampled("isotropic", precision="bfloat16")),
    "sampla-g-bfloat16": ("g-prior, EM in bfloat16", sampled("g-prior", precision="bfloat16")),
    "sampla-g-8": ("g-prior, K = 8", sampled("g-prior", samples=8)),
    "sampla-g-64": ("g-prior, K = 64", sampled("g-prior", samples=64)),
    "sampla-last": ("last layer alone, isotropic", sampled("isotropic", parameters="last-layer")),
    "sampla-g-scaled": ("g-prior, width chosen on held-out images", sampled("g-prior", scaled=True)),
    "sampla-isotropic-mode": ("isotropic, at the linear mode", sampled("isotropic", "linear-mode")),
    "sampla-g-mode": ("g-prior, at the linear mode", sampled("g-prior", "linear-mode")),
    REFERENCE: ("isotropic, reference", sampled("isotropic", reference=True)),
}
METHODS = {
    NETWORK: Method("network alone", network_alone),
    "temperature": Method("temperature scaling", temperature),
    "swag": Method("SWAG", swag),
    "ensemble": Method("ensemble", ensemble),
    **{key: Method(f"laplace-torch, {name}", fit, LAPLACE) for key, (name, fit) in _PEERS.items()},
    **{key: Method(f"sampla, {name}", fit, SAMPLA) for key, (name, fit) in _OURS.items()},
}
