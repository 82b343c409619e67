"""What must be true of the user's network, which comes back as it was."""

from sampla.laplace.guards.modules import check_evaluation_mode, check_modules, only_device
from sampla.laplace.guards.network import check_network, not_finite_explained
from sampla.laplace.guards.untouched import apart, untouched
from sampla.laplace.guards.weights import check_weights

__all__ = [
    "apart",
    "check_evaluation_mode",
    "check_modules",
    "check_network",
    "check_weights",
    "not_finite_explained",
    "only_device",
    "untouched",
]
