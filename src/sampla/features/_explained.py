"""What to do where a network cannot be called."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from sampla.core.inputs import describe_inputs
from sampla.core.memory import is_of_the_machine
from sampla.core.typing import Inputs
from sampla.features._arguments import NetworkCall, describe_call

_CALL_IT = "It was called as {call}: do that with one batch of the loader; shapes, dtypes and devices must fit."
_NO_FORWARD_MODE = (
    "The network works, but one of its operations has no derivative that torch.func can take in forward and reverse "
    "mode: write it with ordinary torch operations, or give the autograd.Function setup_context, jvp and "
    "generate_vmap_rule = True."
)
_EXPORTED = (
    "An exported program takes the sizes it was exported for: export it with dynamic_shapes for the first axis, or "
    "pass the nn.Module it was made from."
)
_REMEDIES = {
    "not implemented for '": "This device does not have that operation in that type: model.float(), or model.cpu().",
    "must have the same dtype": "Convert the inputs to the dtype of the network, x.to(next(model.parameters()).dtype).",
    "setup_context": _NO_FORWARD_MODE,
    "the jvp function": _NO_FORWARD_MODE,
    "forward AD": _NO_FORWARD_MODE,
    "generate_vmap_rule": _NO_FORWARD_MODE,
    "mutate a captured Tensor": "The network changes one of its buffers in place in evaluation mode: leave that out.",
    "called random operation": "The network must be deterministic in evaluation mode: take the random operation out.",
    "FlexAttention": "Use torch.nn.functional.scaled_dot_product_attention with attn_mask=... in its place "
    "(the same numbers; in Hugging Face attn_implementation='sdpa'), or choose parameters that come after it.",
    "Guard failed": _EXPORTED,
    "Expected input at *args": _EXPORTED,  # what torch 2.6 says of it
}
"""What torch's message contains -> what to do."""


@contextmanager
def explained(model: nn.Module, inputs: Inputs, own: NetworkCall | None = None) -> Iterator[None]:
    """Add to what a call of the network raises how it was called, and what helps; what is the machine's passes.

    Raises:
        RuntimeError: in the place of any error of the network's.
    """
    try:
        yield
    except (RuntimeError, TypeError, LookupError, ValueError, AttributeError, AssertionError) as error:
        if is_of_the_machine(error):  # smaller chunks may do, or it is no call's fault
            raise
        call_it = _CALL_IT.format(call=describe_call(model, inputs, own))
        remedy = next((fix for clue, fix in _REMEDIES.items() if clue in str(error)), call_it)
        raise RuntimeError(
            f"the network could not be called on inputs of shape and dtype {describe_inputs(inputs)}: {error}\n{remedy}"
        ) from error
