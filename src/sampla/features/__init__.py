"""Feature maps phi: anything that can say phi v (jvp) and phi' u (vjp) for one batch of inputs."""

from sampla.features._base import Features, Linearisation, adjoint_error, check_adjoint
from sampla.features._outputs import OutputName
from sampla.features._products import Products
from sampla.features._selection import Selection, select_parameters
from sampla.features.chunked import Chunked
from sampla.features.compose import OutputsAt, ScaledFeatures
from sampla.features.matrix import DesignMatrix, Rows
from sampla.features.network import NetworkFeatures, functional_state

__all__ = [
    "Chunked",
    "DesignMatrix",
    "Features",
    "Linearisation",
    "NetworkFeatures",
    "OutputName",
    "OutputsAt",
    "Products",
    "Rows",
    "ScaledFeatures",
    "Selection",
    "adjoint_error",
    "check_adjoint",
    "functional_state",
    "select_parameters",
]
