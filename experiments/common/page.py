"""Pages from templates (the Markdown beside each script) and one table writer; no number is written by hand."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from experiments.common.facts import GIB
from experiments.common.store import Store

ROOT = Path(__file__).resolve().parents[2]
RESULTS, BENCHMARKS = ROOT / "experiments" / "results", ROOT / "benchmarks"
"""A folder for each experiment; benchmarks have their pages in their own folder."""

Columns = Mapping[str, str | Callable[[Any], str]]
"""Head of a column -> what it shows of a row: a format string, such as "{seconds:.1f}", or a function."""
Target = tuple[bool, str, str]
"""Met, what was to be shown, what was found."""


def write_page(path: Path, template: str, **values: Any) -> None:
    """Fill in a template.

    Args:
        path: of the page.
        template: its path below the root of the repository.
        values: what it names.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(template, **values), encoding="utf-8")


def render(template: str, **values: Any) -> str:
    """The text of a page: what is missing leaves no empty lines."""
    text = _ENVIRONMENT.get_template(template).render(**values)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def table(rows: Iterable[Any], columns: Columns, left: int = 1) -> str:
    """A Markdown table.

    Args:
        rows: what the lines are about; of a mapping its values, which have their key as "key".
        columns: head -> cell of a row; heads may repeat if they differ in white space at their end.
        left: so many columns are text, the others numbers.
    """
    if isinstance(rows, Mapping):
        rows = [{"key": key, **row} for key, row in rows.items()]
    cells = [[c.format_map(row) if isinstance(c, str) else c(row) for c in columns.values()] for row in rows]
    return grid([head.rstrip() for head in columns], cells, left)


def grid(head: list[str], lines: list[list[str]], left: int = 1) -> str:
    """The same from the cells themselves; nothing where there are no lines."""
    if not lines:
        return ""
    rule = ["---" if number < left else "---:" for number in range(len(head))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *lines))


def verdicts(targets: Iterable[Target]) -> str:
    """A list of what was to be shown, each met or not."""
    return "\n".join(f"- **{'met' if met else 'NOT MET'}** {what}: {found}" for met, what, found in targets)


def provenance(store: Store, command: str, packages: str, more: str = "") -> str:
    """Where the figures of a page come from.

    Args:
        store: of the run.
        command: that writes the page.
        packages: whose versions are told, with blanks between them.
        more: what is to be said of the machine.
    """
    facts = store.environment
    told = ", ".join(f"{name} {facts.get(name, '(not installed)')}" for name in packages.split())
    return (
        f"Written by `python -m {command}`, results as of commit {facts['commit']}: {told}, python "
        f"{facts['python']}{more}."
    )


def states(store: Store) -> str:
    """A warning where rows come from several states of the library's source; empty where they do not."""
    count = len({row.source for row in store.rows.values()} - {None})
    return f"**Results of {count} states of the library's source stand side by side.**" if count > 1 else ""


def share(value: float | None) -> str:
    """A relative error, in per cent down to a hundredth, then in powers of ten."""
    return "-" if value is None else f"{value:.2%}" if 1e-4 <= value < 10 else f"{value:.0e}"


def passes(value: float | None) -> str:
    """One decimal where it is not whole, a dash where it was not reached."""
    return "-" if value is None else f"{value:.0f}" if abs(value - round(value)) < 0.05 else f"{value:.1f}"


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(ROOT), trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, autoescape=False
)
_ENVIRONMENT.globals |= {"table": table, "grid": grid, "verdicts": verdicts, "GIB": GIB}
_ENVIRONMENT.filters |= {"f": lambda value, spec: format(value, spec), "share": share, "passes": passes}
