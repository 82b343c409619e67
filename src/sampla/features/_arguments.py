"""How the network is called with inputs of each kind, and the same as text for messages."""

from collections.abc import Callable, Mapping
from inspect import Signature, signature
from typing import Any, TypeAlias

from torch import Tensor, nn

from sampla.core.typing import Inputs, Opaque

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
NetworkCall: TypeAlias = Callable[[nn.Module, Any], Any]
"""A call of the network that the user wrote: (network, inputs of a batch) to what it returns."""


def answered(model: nn.Module, inputs: Inputs, call: NetworkCall | None) -> Any:
    """What the network returns on inputs, called as the user says or as its signature does."""
    if call is not None:
        return call(model, inputs.content if isinstance(inputs, Opaque) else inputs)
    args, kwargs = call_arguments(model, inputs)
    return model(*args, **kwargs)


def call_arguments(model: nn.Module, inputs: Inputs) -> Arguments:
    """A tensor, list or object alone, the entries of a tuple by place, those of a mapping by name.

    A mapping whose names are no arguments of the network goes in as it is where the network takes one argument.
    """
    given = inputs.content if isinstance(inputs, Opaque) else inputs
    if isinstance(given, Mapping):
        return ((given,), {}) if _as_one(model, given) else ((), dict(given))
    if isinstance(inputs, (Opaque, Tensor, list)):
        return (given,), {}
    return tuple(given), {}


def describe_call(model: nn.Module, inputs: Inputs, call: NetworkCall | None = None) -> str:
    """The call that was made: "model(x)", "model(tokens=..., mask=...)"."""
    if call is not None:
        given = inputs.content if isinstance(inputs, Opaque) else inputs
        return f"call(model, data) with data a {type(given).__name__}"
    args, kwargs = call_arguments(model, inputs)
    if kwargs:
        return f"model({', '.join(f'{name}=...' for name in kwargs)})"
    if isinstance(args[0], Mapping):
        names = ", ".join(map(repr, args[0]))
        return f"model(data) with data a {type(args[0]).__name__} of {names}, none of which its forward takes by name"
    if isinstance(inputs, (Opaque, list)):
        return f"model(data) with data a {type(args[0]).__name__}"
    return "model(x)" if len(args) == 1 else f"model({', '.join(f'x{k + 1}' for k in range(len(args)))})"


def _as_one(model: nn.Module, given: Mapping[Any, Any]) -> bool:
    """Whether a mapping is one argument, as far as the signature of forward says: its names are not taken."""
    forward = getattr(model, "_orig_mod", model).forward  # a compiled network hides its own
    try:
        expected = signature(forward)
    except (TypeError, ValueError):
        return False
    if not all(isinstance(name, str) for name in given):
        return True
    if _binds(expected, (), given) or not _binds(expected, (given,), {}):
        return False
    return len(expected.parameters) == 1 or not set(given) & set(expected.parameters)  # one wrong name among right ones


def _binds(expected: Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    try:
        expected.bind(*args, **kwargs)
    except TypeError:
        return False
    return True
