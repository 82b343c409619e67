"""Where in a network NaN and infinity come from."""

from collections.abc import Callable
from typing import Any

from torch import nn

from sampla.core.inputs import num_inputs, pick
from sampla.core.typing import Inputs
from sampla.features._modules import Call, describe_module, floating, watched


def where_not_finite(model: nn.Module, evaluate: Callable[[Inputs], Any], inputs: Inputs, position: int) -> str:
    """A sentence on the first module, and the first datum, that has NaN or infinity; empty if nothing has.

    Args:
        model: the network.
        evaluate: calls it.
        inputs: of a batch.
        position: number of its first datum.
    """

    def found(some: Inputs) -> list[str]:
        return _not_finite(model, lambda: evaluate(some))

    if not found(inputs):
        return ""
    count = num_inputs(inputs)
    if count is None:
        return f"NaN or infinity appear first in what {found(inputs)[0]}, for data from {position}. "
    for row in range(count):
        not_finite = found(pick(inputs, [row]))
        if not_finite:
            return f"NaN or infinity appear first in what {not_finite[0]}, for datum {position + row}. "
    return ""


def _not_finite(model: nn.Module, run: Callable[[], Any]) -> list[str]:
    """What is not finite on the way through the network, in words; the first entry came first."""
    found: list[str] = []

    def leave(call: Call) -> None:
        for tree, verb in (((call.args, call.kwargs), "is given"), (call.outputs, "returns")):
            if not all(bool(t.isfinite().all()) for t in floating(tree)):
                found.append(f"{describe_module(call.name, call.module)} {verb}")

    with watched(model, leave):
        run()
    return found
