"""Every "expected ..., got ..." message that more than one file needs."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from numbers import Integral, Real
from warnings import warn

import torch
from torch import Tensor

_SHOWN = 12
"""Names listed in a message, at most."""


class ConvergenceWarning(UserWarning):
    """A solve or an EM loop stopped before it reached the accuracy that was asked for."""


_Complaints = dict[str, list[tuple[float, str]]]
_complaints: ContextVar[_Complaints | None] = ContextVar("complaints", default=None)


def complain(kind: str, size: float, message: str) -> None:
    """Issue a ConvergenceWarning, now or at the end of the fit that is running in this thread.

    Args:
        kind: of which a fit issues one warning.
        size: how bad it is, among its kind.
        message: what was asked, what was reached and what to do.
    """
    waiting = _complaints.get()
    if waiting is None:
        warn(message, ConvergenceWarning, stacklevel=3)
    else:
        waiting.setdefault(kind, []).append((size, message))


@contextmanager
def one_of_each(stacklevel: int) -> Iterator[None]:
    """Collect the ConvergenceWarnings raised inside and issue the worst of each kind, with a count, at the end.

    Inside another, that one does. An exception passes, and nothing is issued.
    """
    if _complaints.get() is not None:
        yield
        return
    waiting: _Complaints = {}
    token = _complaints.set(waiting)
    try:
        yield
    finally:
        _complaints.reset(token)
    for found in waiting.values():
        message = max(found, key=lambda one: (one[0] == one[0], one[0]))[1]
        count = f" This is the worst of {len(found)} such cases in this fit." if len(found) > 1 else ""
        warn(message + count, ConvergenceWarning, stacklevel=stacklevel)


def require(condition: bool, expected: str, got: str, remedy: str) -> None:
    """Raise ValueError in the one form all messages have.

    Raises:
        ValueError: if ``condition`` is false.
    """
    if not condition:
        raise ValueError(f"expected {expected}, got {got}. {remedy}")


def require_finite(tensor: Tensor, what: str, remedy: str) -> None:
    """Refuse NaN and infinity in a real or complex tensor (integers pass).

    Raises:
        ValueError: naming how many entries are not finite.
    """
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return
    bad = int((~torch.isfinite(tensor)).sum())
    require(bad == 0, f"finite {what}", f"{bad} NaN or infinite entries of {tensor.numel()}", remedy)


def require_count(value: object, what: str, least: int, remedy: str) -> None:
    """Refuse what is not an integer of at least ``least``; NumPy's integers are, True is not.

    Raises:
        ValueError: naming the setting.
    """
    fits = isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least
    require(fits, f"{what} as an integer of at least {least}", f"{value!r}", remedy)


def require_fraction(value: object, what: str, remedy: str) -> None:
    """Refuse what is not a number in (0, 1).

    Raises:
        ValueError: naming the setting.
    """
    fits = isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) < 1
    require(fits, f"{what} in (0, 1)", f"{value!r}", remedy)


def require_known(name: str, known: Iterable[str], what: str) -> None:
    """Refuse a name that is not in ``known``, suggesting the nearest one.

    Raises:
        ValueError: if ``name`` is unknown.
    """
    names = list(known)
    if name in names:
        return
    near = get_close_matches(str(name), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    shown = ", ".join(map(repr, names[:_SHOWN])) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    raise ValueError(f"unknown {what} {name!r}: expected one of {shown}.{hint}")


def device_here(given: torch.device | str, what: str) -> torch.device:
    """A device that tensors can be put on, with its number.

    Raises:
        ValueError: if it is not there.
    """
    try:
        place = torch.empty(0, device=given).device
    except (RuntimeError, AssertionError, TypeError) as error:
        text = str(error).partition("\n")[0]
        raise ValueError(f"expected {what} as a device that is here, such as 'cpu', got {given!r}: {text}") from error
    require(place.type != "meta", f"{what} as a device with memory", "'meta'", "'cpu' is usual.")
    return place
