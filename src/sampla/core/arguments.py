"""Turns names that users give, such as "block-cg", into objects, and checks ``chunks``."""

from typing import Any

from sampla.core.checks import require, require_known


def check_chunks(chunks: Any) -> None:
    """Refuse chunks that are neither two numbers nor None.

    Raises:
        ValueError: with what was given.
    """
    pair = isinstance(chunks, (tuple, list)) and len(chunks) == 2
    right = chunks is None or (pair and all(isinstance(n, int) and n >= 1 for n in chunks))
    require(right, "chunks as (data, vectors), at least (1, 1)", f"{chunks}", "None measures what is fastest.")


def named(given: Any, known: dict[str, Any], kind: type) -> Any:
    """Return an object of the given kind as it is, or make one with default settings from its name.

    Raises:
        ValueError: for an unknown name.
        TypeError: for another object, or a class in the place of an object.
    """
    what = kind.__name__.lower()
    if isinstance(given, str) and known:
        require_known(given, ["auto", *known] if what == "solver" else known, what)
        return known[given]()
    if not isinstance(given, kind):
        got = f"the class {given.__name__}: write {given.__name__}()" if isinstance(given, type) else repr(given)
        names = f" or one of {', '.join(map(repr, known))}" if known else f", as in {kind.__name__}(max_steps=50)"
        raise TypeError(f"expected a sampla.{kind.__name__}{names}, got {got}.")
    return given
