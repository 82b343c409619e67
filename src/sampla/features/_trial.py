"""Products of a network tried once, on a few inputs, before a fit depends on them."""

import warnings
from typing import Protocol

import torch
from torch import Tensor

from sampla.core.memory import is_of_the_machine
from sampla.core.noise import ADJOINT, standard_normal
from sampla.core.params import ParameterLayout
from sampla.core.typing import Inputs
from sampla.features._base import Linearisation

_VECTORS = 4
"""Enough for whatever is chosen by their number."""
_NO_CURE = ("mutate a captured Tensor", "called random operation")


class Network(Protocol):
    """What is needed of a network."""

    layout: ParameterLayout
    like: Tensor

    @property
    def device(self) -> torch.device:
        """Where products are computed."""

    def linearise(self, inputs: Inputs) -> Linearisation:
        """The features of one batch."""

    def entering(self, vectors: Tensor) -> Tensor:
        """Vectors in the form in which products take them."""


def _on_device(features: Network) -> Tensor:
    return features.like.to(features.device)


def failure_of(features: Network, inputs: Inputs) -> Exception | None:
    """What goes wrong when both products are taken with a few vectors, if anything."""
    size = features.layout.total
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")  # vmap loops over an operation: it works
            at = features.linearise(inputs)
            at.vjp(at.outputs.new_ones(_VECTORS, *at.outputs.shape))
            at.jvp(features.entering(_on_device(features).new_ones(_VECTORS, size)))
    except (RuntimeError, NotImplementedError) as error:
        if is_of_the_machine(error):
            raise
        return error
    return None


def deviation(features: Network, other: Network, inputs: Inputs) -> float:
    """|phi v - phi_other v| / |phi v| for a few random vectors."""
    like = _on_device(features)
    v = standard_normal(0, ADJOINT, range(_VECTORS), 0, (features.layout.total,), like)
    here, there = (each.linearise(inputs).jvp(each.entering(v)) for each in (features, other))
    size = float(here.norm())
    return float((here - there).norm()) / size if size > 0 else float(there.norm() > 0)


def agree(features: Network, other: Network, inputs: Inputs) -> bool:
    """Whether outputs and derivatives are the same up to rounding."""
    bound = 1e3 * torch.finfo(features.like.dtype).eps
    here, there = (each.linearise(inputs).outputs for each in (features, other))
    same = float((here - there).norm()) <= bound * float(here.norm())
    return same and deviation(features, other, inputs) <= bound


def shares_forward(features: Network, inputs: Inputs) -> bool:
    """Whether one forward can serve both products: reverse mode must go through what forward mode did."""
    try:
        features.linearise(inputs).product(
            _on_device(features).new_ones(2, features.layout.total), lambda _, pushed: pushed
        )
    except (RuntimeError, NotImplementedError) as error:
        if is_of_the_machine(error):
            raise
        return False
    return True


def refuse_hopeless(error: Exception, where: str) -> None:
    """Raise what the other way would not cure, or would hide."""
    if any(clue in str(error) for clue in _NO_CURE):
        raise error
    cause, modules = error.__cause__ or error, []
    trace = cause.__traceback__
    while trace is not None:
        modules.append(trace.tb_frame.f_globals.get("__name__"))
        trace = trace.tb_next
    if "torch.utils.checkpoint" in modules and "setup_context" in str(cause):
        raise RuntimeError(
            f"torch.utils.checkpoint with use_reentrant=True, in {where}, cannot be differentiated twice and loses "
            "gradients: call it with use_reentrant=False, or without checkpointing."
        ) from error
