"""One lock for all products with networks, because torch keeps what they need per process, not per thread.

The levels of forward-mode derivatives, the parameters that torch.func.functional_call puts into a module, and the
kernels that are put aside meanwhile are seen by every thread. Two threads at once would give wrong numbers, zeros among
them. A thread waits for one product of another, not for its whole fit.
"""

from collections.abc import Callable
from functools import wraps
from threading import RLock
from typing import ParamSpec, TypeVar

from torch import Tensor

from sampla.core.interrupts import raise_deferred
from sampla.features._base import Linearisation, OutputCurvature

NETWORK_LOCK = RLock()
"""Held while a network is called or differentiated, and while its parameters are looked at."""

Given = ParamSpec("Given")
Result = TypeVar("Result")


def locked(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Decorate a function so that it holds the lock while it runs."""

    @wraps(function)
    def waiting(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        with NETWORK_LOCK:
            return function(*args, **kwargs)

    return waiting


class LockedLinearisation(Linearisation):
    """A linearisation whose products hold the lock."""

    def __init__(self, inner: Linearisation) -> None:
        self._inner = inner

    @property
    def outputs(self) -> Tensor:
        with NETWORK_LOCK:
            result = self._inner.outputs
        raise_deferred()
        return result

    def jvp(self, vectors: Tensor) -> Tensor:
        with NETWORK_LOCK:
            result = self._inner.jvp(vectors)
        raise_deferred()
        return result

    def vjp(self, cotangents: Tensor) -> Tensor:
        with NETWORK_LOCK:
            result = self._inner.vjp(cotangents)
        raise_deferred()
        return result

    def product(self, vectors: Tensor, output_curvature: OutputCurvature) -> Tensor:
        with NETWORK_LOCK:
            result = self._inner.product(vectors, output_curvature)
        raise_deferred()
        return result
