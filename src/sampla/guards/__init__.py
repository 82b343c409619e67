"""What must be true of the user's network, which comes back as it was."""

from sampla.guards.modules import check_evaluation_mode, check_modules, only_device
from sampla.guards.network import check_network, located
from sampla.guards.untouched import apart, untouched

__all__ = [
    "apart",
    "check_evaluation_mode",
    "check_modules",
    "check_network",
    "located",
    "only_device",
    "untouched",
]
