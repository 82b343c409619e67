"""Feature maps phi: anything that can say phi v (jvp) and phi' u (vjp) for one batch of inputs."""

from sampla.features._arguments import NetworkCall
from sampla.features._base import Features, Linearisation, Origin, adjoint_error, check_adjoint, displaced, predicted
from sampla.features._lock import NETWORK_LOCK, locked
from sampla.features._names import (
    functional_state,
    has_fingerprint,
    network_dtypes,
    network_fingerprint,
    plain_names,
    plain_parameters,
)
from sampla.features._outputs import OutputName
from sampla.features._products import Products
from sampla.features._selection import Selection, select_parameters
from sampla.features.chunked import Chunked
from sampla.features.compose import OutputsAt, ScaledFeatures
from sampla.features.matrix import DesignMatrix, Rows
from sampla.features.network import NetworkFeatures

__all__ = [
    "NETWORK_LOCK",
    "Chunked",
    "DesignMatrix",
    "Features",
    "Linearisation",
    "NetworkCall",
    "NetworkFeatures",
    "Origin",
    "OutputName",
    "OutputsAt",
    "Products",
    "Rows",
    "ScaledFeatures",
    "Selection",
    "adjoint_error",
    "check_adjoint",
    "displaced",
    "functional_state",
    "has_fingerprint",
    "locked",
    "network_dtypes",
    "network_fingerprint",
    "plain_names",
    "plain_parameters",
    "predicted",
    "select_parameters",
]
