"""What must be true of the types in which a network computes."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch import Tensor, nn

from sampla.core.checks import require
from sampla.core.memory import is_of_the_machine
from sampla.core.typing import Inputs
from sampla.features import NetworkFeatures

_OFF = 30.0
"""Rounding errors of a network's own type by which its outputs may differ from those in float32, at most."""
_TAKE_OUT = (
    "Take torch.autocast, or the cast, out of forward (in training wrap the call instead: with torch.autocast(...): "
    "model(x)); the posterior's derivatives need results in the type of the parameters."
)


@contextmanager
def without_autocast(model: nn.Module, said: bool = False) -> Iterator[bool]:
    """An autocast around the call put aside; yields whether there was one.

    Args:
        model: the network.
        said: whether to warn that this is done.
    """
    kinds = {"cpu", *(p.device.type for p in model.parameters())}
    active = [kind for kind in kinds if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)]
    if not active:
        yield False
        return
    if said:
        warnings.warn(
            "called under torch.autocast, which is put aside meanwhile: results are those without it. For faster "
            'products use LinearisedLaplace(..., precision="auto").',
            stacklevel=6,
        )
    with torch.autocast(active[0], enabled=False), torch.autocast(active[-1], enabled=False):
        yield True


def require_liftable(features: NetworkFeatures, inputs: Inputs) -> None:
    """Refuse a network of bfloat16 or float16 that is another function with the same numbers in float32.

    What its own type limits is kept for the report.

    Raises:
        ValueError: if it does not run so, or its outputs differ by more than rounding.
        RuntimeError: if it cannot be called on the inputs in its own type.
    """
    own_type = str(features.types.coarsest).removeprefix("torch.")
    with torch.no_grad():
        own = features.own_outputs(inputs)
        try:
            outputs = features.call(features.point, inputs)
        except RuntimeError as error:
            if is_of_the_machine(error):
                raise
            words, where = features.coarse_results(inputs)
            got = f"{words or 'a failure'}; {where} then fails with: {str(error.__cause__ or error).splitlines()[0]}"
            raise ValueError(
                f"expected a network of {own_type} that can be linearised with the same numbers in float32, got {got}. "
                "Take the cast out of forward (x.to(weight.dtype) works in any type), or convert the network with "
                "model.float()."
            ) from error
    off = _relative(own - outputs, outputs)
    bound = _OFF * torch.finfo(features.types.coarsest).eps
    if bool(outputs.isfinite().all()):
        require(
            off <= bound,
            f"a network of {own_type} whose outputs are those in float32 up to rounding ({bound:.0%} of their size)",
            f"a difference of {off:.0%}",
            f"It overflows or loses all digits in {own_type}: convert it with model.float() and look at its outputs.",
        )
    features.set_limit(
        f"network of {own_type}, linearised in float32; its own outputs are rounded by about {off:.1e} of their size"
    )


def _relative(difference: Tensor, outputs: Tensor) -> float:
    size = float(outputs.double().norm())
    return float(difference.double().norm()) / size if size > 0 else 0.0


def explain_coarse(features: NetworkFeatures, inputs: Inputs, error: Exception) -> NoReturn:
    """Raise what a check has found, or, where the network computes in a coarser type on the way, that.

    Raises:
        ValueError: naming the type and the module.
    """
    words, _ = features.coarse_results(inputs)
    if not words:
        raise error
    raise ValueError(f"expected a network that computes in the type of its parameters, got {words}. {_TAKE_OUT}") from (
        error
    )
