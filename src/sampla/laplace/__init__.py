"""The front door for trained networks."""

from sampla.laplace.linearised import LinearisedLaplace

__all__ = ["LinearisedLaplace"]
