"""A result as one self-contained HTML page: pictures and words."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from sampla.apps.figures import STYLE


@dataclass(frozen=True)
class Picture:
    """A PNG on a page."""

    name: str
    """File name without ending."""
    title: str
    caption: str
    png: bytes

    @property
    def width(self) -> int:
        """At which a page shows it, in pixels: its own width at 100 dots per inch."""
        return int(int.from_bytes(self.png[16:20], "big") * STYLE["figure.dpi"] / STYLE["savefig.dpi"])

    @property
    def data_uri(self) -> str:
        """The picture itself, to be put where an address would stand."""
        return "data:image/png;base64," + b64encode(self.png).decode()


@dataclass(frozen=True)
class Page:
    """What the HTML report says, in the order in which it says it."""

    title: str
    summary: str
    story: Sequence[str]
    """Paragraphs in plain words."""
    verdicts: Sequence[Any]
    """With target, met and detail."""
    columns: Sequence[str]
    rows: Sequence[Any]
    """With measure, cells() and verdict()."""
    notes: Sequence[str]
    """How to read the table."""
    certificate: str
    pictures: Sequence[Picture]
    costs: Mapping[str, str]
    excluded: Mapping[str, str]
    """Parameter -> why it is not in the posterior."""
    footer: str = field(default="")


def write_html(page: Page, path: Path) -> None:
    """Write the page with everything it needs inside it."""
    path.write_text(render("report.html", page=page), encoding="utf-8")


def render(template: str, **values: Any) -> str:
    """Fill in a template of the folder ``templates``; what HTML would misread is escaped in HTML only."""
    environment = Environment(
        loader=PackageLoader("sampla.apps", "templates"), autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=template.endswith(".md"),
    )  # fmt: skip
    return environment.get_template(template).render(**values)
