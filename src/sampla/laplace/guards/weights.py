"""Whether a network is still the one that a posterior is about."""

from sampla.core.checks import require
from sampla.features import NetworkFeatures

_SHOWN = 4
"""Names in the message, at most."""
_STATISTICS = ("running_mean", "running_var")


def check_weights(features: NetworkFeatures) -> None:
    """Refuse to answer for a network that has been changed since the fit.

    Raises:
        ValueError: naming what has changed.
    """
    changed = features.changed
    statistics = bool(changed) and all(name.endswith(_STATISTICS) for name in changed)
    names = ", ".join(map(repr, changed[:_SHOWN])) + (" ..." if len(changed) > _SHOWN else "")
    what = "running statistics of normalisation" if statistics else "weights"
    reason = "It was called in train mode since. " if statistics else ""
    require(
        not changed,
        f"the network that this posterior was fitted to, with the {what} that it had then",
        f"one in which {len(changed)} tensor{'s have' if len(changed) > 1 else ' has'} changed: {names}",
        f"{reason}Fit again, or load the weights of the fit into the network; where the network is to be trained on, "
        "fit with a copy of it: LinearisedLaplace(copy.deepcopy(model), ...).",
    )
