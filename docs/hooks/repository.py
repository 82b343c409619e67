"""Brings pages from outside of docs/ into the site, and turns links between files into links between pages."""

import ast
import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/*.md", "experiments/*.md", "experiments/accelerator/*.md")
RESULTS = ("experiments/results/*/*.md", "experiments/results/*/*.png", "experiments/results/*/cases/*.png")
EXAMPLES = ("examples/*.py", "examples/integrations/*.py")
PACKAGES = (
    "",
    "features",
    "integrations",
    "laplace",
    "likelihoods",
    "linear",
    "solvers",
    "tomography",
)  # whose __all__ is public
_LINK = re.compile(r"(!?)\[((?:[^][]|\[[^]]*\])*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
_TABLE = re.compile(r'^<!-- table of (\S+), "(.+)" -->$', re.MULTILINE)


def on_config(config: MkDocsConfig) -> None:
    """Every example has its place in the navigation."""
    pages = [path.relative_to(ROOT).with_suffix(".md").as_posix() for path in examples()]
    (section,) = (part for group in config.nav for part in next(iter(group.values())) if "Examples" in part)
    section["Examples"] = pages


def examples() -> list[Path]:
    """The scripts."""
    return [path for pattern in EXAMPLES for path in sorted(ROOT.glob(pattern))]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Pages, pictures and examples under their path in the repository; what git does not keep is left out."""
    for pattern in (*PAGES, *RESULTS):
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for path in examples():
        uri = path.relative_to(ROOT).with_suffix(".md").as_posix()
        files.append(File.generated(config, uri, content=example(path)))
    return files


def example(path: Path) -> str:
    """The page of an example: its docstring, and the whole script."""
    source = path.read_text(encoding="utf-8")
    return f"# {path.name}\n\n```python\n{source}```\n"


def on_page_markdown(markdown: str, page: Page, files: Files, **_: object) -> str:
    """Tables put in, links turned."""
    return turned(_TABLE.sub(lambda found: table(*found.groups()), markdown), page.file, files)


def table(path: str, heading: str) -> str:
    """The first table below the heading of a page that begins with these words, as it stands there."""
    text = (ROOT / path).read_text(encoding="utf-8")
    found = re.search(rf"^#+ {re.escape(heading)}.*\n(?:(?!#).*\n)*?((?:\|.*\n)+)", text, re.MULTILINE)
    if not found:
        raise PluginError(f"expected a table below the heading {heading!r} of {path}, got none.")
    return found.group(1)


def turned(markdown: str, file: File, files: Files) -> str:
    """Links to files of the repository, as links to their pages; to files that have none, as their text alone."""
    elsewhere = file.generated_by is not None and not file.src_uri.startswith("tutorials/")
    here = PurePosixPath(file.src_uri if elsewhere else f"docs/{file.src_uri}").parent

    def turn(found: re.Match[str]) -> str:
        picture, text, target, anchor = found.groups()
        if "://" in target or target.startswith("mailto:"):
            return found.group(0)
        path = normpath(here / target)
        uri = path.removeprefix("docs/")
        if re.fullmatch(r"(?:docs/tutorials|examples)/[\w/]+\.py", path):
            uri = uri.removesuffix(".py") + ".md"
        if files.get_file_from_path(uri) is None and (ROOT / path).exists():
            return text
        return f"{picture}[{text}]({relpath(uri, PurePosixPath(file.src_uri).parent)}{anchor or ''})"

    return _LINK.sub(turn, markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Every public name has its place in the reference: under its package, or under another that has it, too."""
    pages = [path.read_text(encoding="utf-8") for path in (Path(config.site_dir) / "api").glob("*.html")]
    shown = {name.split(".")[-1] for text in pages for name in re.findall(r'id="sampla\.((?:[a-z_]+\.)*\w+)"', text)}
    missing = sorted(public_names() - shown)
    if missing:
        raise PluginError(f"expected every public name in docs/api, got none of {missing}: document them.")


def public_names() -> set[str]:
    """What the packages list in __all__."""
    names: set[str] = set()
    for package in PACKAGES:
        module = ast.parse((ROOT / "src/sampla" / package / "__init__.py").read_text(encoding="utf-8"))
        for node in module.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                names |= set(ast.literal_eval(node.value))
    return names
