"""Products of a network tried once, on a few inputs, before a fit depends on them."""

import warnings
from typing import Protocol

import torch
from torch import Tensor

from sampla.core.memory import is_of_the_machine
from sampla.core.params import ParameterLayout
from sampla.core.typing import Inputs
from sampla.features._base import Linearisation

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


def _on_device(features: Network) -> Tensor:
    return features.like.to(features.device)


def failure_of(features: Network, inputs: Inputs) -> Exception | None:
    """What goes wrong when both products are taken with two vectors, if anything."""
    size = features.layout.total
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")  # vmap loops over an operation: it works
            at = features.linearise(inputs)
            at.vjp(at.outputs.new_ones(2, *at.outputs.shape))
            at.jvp(_on_device(features).new_ones(2, size))
    except (RuntimeError, NotImplementedError) as error:
        if is_of_the_machine(error):
            raise
        return error
    return None


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
