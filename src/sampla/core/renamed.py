"""Arguments that have a new name: the old one serves on, with a warning that says the new one."""

import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from sampla.core.checks import require

_P = ParamSpec("_P")
_R = TypeVar("_R")


def renamed_argument(
    old: str, new: str, since: str, values: Mapping[Any, Any] | None = None
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Let a function be called by an argument's former name, with a FutureWarning; until the next minor version.

    Args:
        old: the former name of a keyword.
        new: the keyword that has taken its place.
        since: the version in which it has.
        values: what the former values are called now; None: the same.

    Returns:
        A decorator.

    Raises:
        TypeError: by the function, where both names are given.
        ValueError: by the function, for a value that has no successor.
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        @wraps(function)
        def called(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            if old in kwargs:
                value = kwargs.pop(old)
                if new in kwargs:
                    raise TypeError(f"expected {new}= alone, got {old}= too, which is its former name. Leave it out.")
                if values is not None:
                    require(value in values, f"{old}= one of {list(values)}", repr(value), f"Use {new}= instead.")
                    value = values[value]
                kwargs[new] = value
                said = f"{old}= is called {new}= since version {since} and will be refused: write {new}={value!r}."
                warnings.warn(said, FutureWarning, stacklevel=2)
            return function(*args, **kwargs)

        return called

    return decorate
