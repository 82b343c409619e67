"""Every Python snippet in README.md and docs, and every example, runs as it stands there."""

import re
import runpy
import sys
from collections.abc import Collection
from functools import cache
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
START = ROOT / "docs" / "start.md"
ELSEWHERE = {START, ROOT / "docs" / "integrations.md"}
"""Pages whose snippets run in a test of their own, those of integrations as parts of examples in test_integrations."""
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
TUTORIALS = [ROOT / "docs" / "tutorials" / f"{name}.py" for name in ("large_design", "regression")]
"""Those that take least; `make docs-check` runs all."""
_SNIPPET = re.compile(r"^```python(?: title=\"[^\"]*\")?\n(.*?)^```", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"`(\w[\w./-]*\.(?:py|md|json|j2|cpp|html|toml|txt))`")
_LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


def snippets(text: str) -> list[str]:
    """The python blocks of a page, in order."""
    return _SNIPPET.findall(text)


def run(page: Path, names: dict[str, object]) -> None:
    """All snippets of one page share their names, as a reader who types them in would have it."""
    for number, source in enumerate(snippets(page.read_text()), start=1):
        exec(compile(source, f"{page.name}, snippet {number}", "exec"), names)


@pytest.mark.parametrize("page", [page for page in PAGES[1:] if page not in ELSEWHERE], ids=lambda p: p.name)
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(page, {})


def test_start_shows_what_its_snippets_print_and_the_readme_goes_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Word for word; the numbers may differ in their last digits between machines, the seconds more."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    run(START, names)
    printed = capsys.readouterr().out
    (shown,) = re.findall(r"^This prints:\n\n```\n(.*?)^```", START.read_text(), re.MULTILINE | re.DOTALL)
    assert re.sub(r"[\d.,-]+", "#", shown) == re.sub(r"[\d.,-]+", "#", printed)
    assert shown.splitlines()[0] == printed.splitlines()[0]
    x, y = names["x"], names["y"]
    assert names["model"].training is False
    run(PAGES[0], {"model": names["model"], "loader": names["loader"], "x_new": x[600:], "y_new": y[600:]})


def test_figures_of_the_readme_stand_on_the_pages_that_they_come_from() -> None:
    results = re.findall(r"^- \[[^]]+\]\(([^)]+)\): (.*(?:\n  .*)*)", PAGES[0].read_text(), re.MULTILINE)
    assert len(results) == 3
    for page, words in results:
        figures = re.findall(r"-?\d[\d.,]*%?(?<![.,])", words)
        stands = (ROOT / page).read_text()
        assert len(figures) > 1
        assert [figure for figure in figures if figure not in stands] == []


@pytest.mark.parametrize("example", [*EXAMPLES, *TUTORIALS], ids=lambda p: p.name)
def test_examples_run(example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(example)])  # at its small size
    matplotlib.use("Agg")
    runpy.run_path(str(example), run_name="__main__")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda p: p.name)
def test_no_merge_is_left_half_done(page: Path) -> None:
    assert re.findall(r"^(?:<{7}|={7}|>{7})(?: .*)?$", page.read_text(), re.MULTILINE) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    missing = [
        target
        for target in _LINK.findall(page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert missing == []


def files_that_are_missing(text: str, present: Collection[str]) -> list[str]:
    """Files named in backticks, by name or by the end of their path, that are not among those present."""
    return [name for name in _FILE.findall(text) if not any(f"/{path}".endswith(f"/{name}") for path in present)]


@cache
def files_that_are_there() -> list[str]:
    """Paths below the root."""
    folders = ("src", "tests", "experiments", "benchmarks", "examples", "docs", ".ci")
    below = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [str(path.relative_to(ROOT)) for path in [*ROOT.glob("*"), *below]]


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "experiments").glob("*.md"))], ids=lambda p: p.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    assert files_that_are_missing(page.read_text(), files_that_are_there()) == []


def test_missing_files_are_found() -> None:
    text = "`a/b.py`, `b.py` and `python -m b`; `c.py`, `x/b.py`, `.md`"
    assert files_that_are_missing(text, ["src/a/b.py", "bc.py"]) == ["c.py", "x/b.py"]


def sections_of_the_method() -> set[str]:
    """Numbers of its sections."""
    return set(re.findall(r"^## (\d+)\. ", (ROOT / "docs" / "method.md").read_text(), re.MULTILINE))


def test_pages_cite_sections_and_sources_of_the_method_that_exist() -> None:
    text = (ROOT / "docs" / "method.md").read_text()
    cited = set(re.findall(r"\bsections? (\d+)", text))
    for page in PAGES:
        cited |= set(re.findall(r"method\.md\)?,\s+sections? (\d+)", page.read_text()))
    assert len(cited) > 4
    assert cited <= sections_of_the_method()
    sources = set(re.findall(r"^- \[(\w+)\] ", text, re.MULTILINE))
    named = {key for keys in re.findall(r"\[([A-Z][A-Za-z]+\d\d[a-z]?(?:, \w+)*)\]", text) for key in keys.split(", ")}
    assert named == sources


def test_docstrings_cite_sections_of_the_method_that_exist() -> None:
    heads = sections_of_the_method()
    cited: set[str] = set()
    for path in sorted((ROOT / "src").rglob("*.py")):
        text = path.read_text()
        found = re.findall(r"docs/method\.md,\s+sections? ([\d, and]+)", text)
        assert text.count("method.md") == len(found), f"{path}: cite it as docs/method.md, section 1"
        cited |= {number for each in found for number in re.findall(r"\d+", each)}
    assert len(cited) > 4
    assert cited <= heads


def test_make_knows_every_command_that_the_pages_name() -> None:
    made = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        word for page in PAGES for word in re.findall(r"(?:`|^ {4})make ([a-z-]+)", page.read_text(), re.MULTILINE)
    }
    assert {"demo", "test"} <= named <= made


def test_snippets_are_found() -> None:
    page = 'text\n```python\na = 1\n```\nmore\n```\nno\n```\n```py\nno\n```\n```python title="b"\nb = 2\n```\n'
    assert snippets(page) == ["a = 1\n", "b = 2\n"]
