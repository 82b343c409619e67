"""Taking the user's batches apart: where in them inputs and targets are."""

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any, TypeAlias

from sampla.core.checks import require

Unpack: TypeAlias = Callable[[Any], tuple[Any, Any]]
"""What makes (inputs, targets) of a batch of the user's."""

_LABELS = ("labels", "label", "targets", "target", "y")


def unpacking(labels: str | None, unpack: Unpack | None) -> Unpack | None:
    """How to make (inputs, targets) of a batch, from what the user says of it.

    Args:
        labels: the entry of each batch, a mapping, that holds the targets; the other entries are the inputs.
        unpack: a function of the batch.

    Raises:
        ValueError: if both are given.
        TypeError: if they are not what they should be.
    """
    require(labels is None or unpack is None, "labels= or unpack=", "both", "unpack says all: leave labels out.")
    if labels is None:
        if unpack is not None and not callable(unpack):
            raise TypeError(
                f"expected unpack as a function of a batch that returns (inputs, targets), got {type(unpack).__name__}."
            )
        return unpack
    if not isinstance(labels, str):
        raise TypeError(f"expected labels as the name of an entry of each batch, got {type(labels).__name__}.")

    def split(batch: Any) -> tuple[Any, Any]:
        if not isinstance(batch, Mapping):
            raise TypeError(
                f"expected batches that are mappings with an entry {labels!r}, got {type(batch).__name__}. "
                "Leave labels= out, or use unpack=."
            )
        names = ", ".join(map(repr, batch))
        require(labels in batch, f"an entry {labels!r} in each batch", f"entries {names}", "Give labels= its name.")
        require(len(batch) > 1, f"entries beside {labels!r}, for the network", "none", "Keep the inputs in the batch.")
        if isinstance(batch, dict) and type(batch) is not dict:
            inputs = copy(batch)
            del inputs[labels]
            return inputs, batch[labels]
        return {name: value for name, value in batch.items() if name != labels}, batch[labels]

    return split


def pair_of(item: Any, where: str, unpack: Unpack | None) -> tuple[Any, Any]:
    """Inputs and targets of what the loader gives."""
    given = item if unpack is None else unpack(item)
    if isinstance(given, (tuple, list)) and len(given) == 2:
        return given[0], given[1]
    length = f" of length {len(given)}" if isinstance(given, (tuple, list)) else ""
    if unpack is not None:
        raise TypeError(f"{where}: expected unpack to return (inputs, targets), got {type(given).__name__}{length}.")
    if isinstance(given, Mapping):
        named = next((name for name in _LABELS if name in given), None)
        names = ", ".join(map(repr, given))
        help_ = (
            f"Say where its targets are: fit(loader, labels={named!r})."
            if named
            else "Say where its targets are: fit(loader, labels=...), or unpack=lambda batch: (inputs, targets)."
        )
        raise TypeError(f"{where}: expected a pair (inputs, targets), got {type(given).__name__} with {names}. {help_}")
    raise TypeError(
        f"{where}: expected a pair (inputs, targets), got {type(given).__name__}{length}. Several inputs go into one "
        f"tuple or dict, ((x1, x2), y); fit(loader, unpack={_suggested(given)}) takes any batch apart."
    )


def _suggested(given: Any) -> str:
    if isinstance(given, tuple) and len(given) > 2:
        return "lambda batch: (batch[:-1], batch[-1])"
    if getattr(given, "y", None) is not None:
        return "lambda batch: (batch, batch.y)"
    return "lambda batch: (inputs, targets)"
