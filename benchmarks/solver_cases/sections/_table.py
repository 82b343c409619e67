"""Markdown tables and numbers."""

from collections.abc import Sequence
from typing import Any

Verdict = tuple[bool, str, str]
"""Met, the target, what was found."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; all columns but the first ``left`` are right-aligned."""
    rule = ["---" if number < left else "---:" for number in range(len(head))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def passes(value: float | None) -> str:
    """One decimal where it is not whole, a dash where it was not reached."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value - round(value)) < 0.05 else f"{value:.1f}"


def share(value: float | None) -> str:
    """A relative error, in per cent down to a hundredth, then in powers of ten."""
    if value is None:
        return "-"
    return f"{value:.2%}" if 1e-4 <= value < 10 else f"{value:.0e}"


def under(results: dict[str, Any], prefix: str) -> dict[str, Any]:
    """What is stored under a prefix, without it, and without what does not apply."""
    found = {key.removeprefix(prefix): value for key, value in results.items() if key.startswith(prefix)}
    return {key: value for key, value in found.items() if value is not None}
