"""The one tensor that the likelihood is about, among all that a network returns."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

OutputName: TypeAlias = str | int | tuple[str | int, ...] | None
"""Which of a network's outputs is meant: a name, an index, several side by side, or None for the only one."""
_LOGITS = "logits"
_CHOOSE = "Choose one with output=..., its name or its index."


def pick_output(outputs: Any, output: OutputName) -> Tensor:
    """The tensor of floating-point outputs.

    Args:
        outputs: what the network returned: a tensor, a tuple or list, a named tuple, a mapping or a dataclass.
        output: its name (key or field) or index; of several (n, C_h) they are put side by side; None takes the only
            floating-point tensor, or the entry "logits".

    Raises:
        TypeError: if there is no such entry, if it is not a floating-point tensor, or if several could be meant.
    """
    if isinstance(outputs, Tensor) and output is None:
        return _floating(outputs, "the network's output")
    entries = _entries(outputs)
    if isinstance(output, (tuple, list)):
        return torch.cat([pick_output(outputs, each) for each in output], -1)
    if isinstance(output, int):
        values = list(entries.values())
        if not -len(values) <= output < len(values):
            raise TypeError(f"expected an entry {output} in the network's output, got {_listed(entries)}. {_CHOOSE}")
        return _floating(values[output], f"entry {output} of the network's output")
    if output is not None:
        if output not in entries:
            raise TypeError(f"expected an entry {output!r} in the network's output, got {_listed(entries)}. {_CHOOSE}")
        return _floating(entries[output], f"entry {output!r} of the network's output")
    candidates = [value for value in entries.values() if isinstance(value, Tensor) and value.is_floating_point()]
    if len(candidates) == 1:
        return candidates[0]
    if isinstance(entries.get(_LOGITS), Tensor):
        return _floating(entries[_LOGITS], f"entry {_LOGITS!r} of the network's output")
    raise TypeError(
        f"expected the network to return one floating-point tensor, got {type(outputs).__name__} with "
        f"{_listed(entries)}. {_CHOOSE}"
    )


def _entries(outputs: Any) -> dict[Any, Any]:
    """Name or index -> entry, in order."""
    if isinstance(outputs, Mapping):
        return dict(outputs)
    if is_dataclass(outputs) and not isinstance(outputs, type):
        return {field.name: getattr(outputs, field.name) for field in fields(outputs)}
    if isinstance(outputs, (tuple, list)):
        names = getattr(outputs, "_fields", range(len(outputs)))
        return dict(zip(names, outputs, strict=True))
    return {0: outputs}


def _listed(entries: dict[Any, Any]) -> str:
    shown = [f"{name!r}: {_described(value)}" for name, value in entries.items()]
    return "{" + ", ".join(shown) + "}" if shown else "nothing"


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__


def _floating(value: Any, what: str) -> Tensor:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value
    if isinstance(value, Tensor) and value.is_complex():
        raise TypeError(
            f"expected real outputs, got {_described(value)} as {what}. Wrap the network in a module that returns "
            "torch.view_as_real(outputs).flatten(1), or their absolute value: what the targets are about."
        )
    raise TypeError(
        f"expected one floating-point tensor as {what}, got {_described(value)}. "
        "Choose another one with output=..., or wrap the network in a module that returns the tensor the likelihood "
        "is about."
    )
