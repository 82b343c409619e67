"""Runs the tutorials, scripts of `# %%` cells that notebooks open too, and makes pages of code, output and pictures.

A page is made anew when its script or the library has changed, and kept in build/tutorials otherwise. With
TUTORIALS=shown in the environment they are not run, and the pages show the code alone. Why no notebook tool: those
there are bring a kernel and some thirty packages, and put HTML into a page, past MkDocs's check of links.
"""

import ast
import contextlib
import hashlib
import io
import json
import os
import warnings
from pathlib import Path

import matplotlib
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = "docs/tutorials/*.py"
KEPT = ROOT / "build" / "tutorials"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """A page for each tutorial, its pictures, and the notebook."""
    for script in sorted(ROOT.glob(SCRIPTS)):
        source, uri = script.read_text(encoding="utf-8"), f"tutorials/{script.stem}"
        shown = os.environ.get("TUTORIALS") == "shown"
        page, pictures = ({}, {}) if shown else outputs(source, script.stem)
        files.append(File.generated(config, f"{uri}.md", content=written(source, script.stem, page)))
        files.append(File.generated(config, f"{uri}.ipynb", content=json.dumps(notebook(source))))
        for name, picture in pictures.items():
            files.append(File.generated(config, f"tutorials/{name}", content=picture))
    return files


def cells(source: str) -> list[tuple[str, str]]:
    """(kind, text) of the cells: "markdown", without its comment signs, or "code"."""
    found = []
    for part in ("\n" + source).split("\n# %%")[1:]:
        head, _, body = part.partition("\n")
        if "[markdown]" in head:
            found.append(
                ("markdown", "\n".join(line.removeprefix("#").removeprefix(" ") for line in body.splitlines()))
            )
        else:
            found.append(("code", body.strip("\n")))
    return found


def written(source: str, stem: str, page: dict[int, str]) -> str:
    """The page, in Markdown."""
    parts = []
    for number, (kind, text) in enumerate(cells(source)):
        parts.append(text if kind == "markdown" else f"```python\n{text}\n```")
        parts.append(page.get(number, ""))
    return "\n\n".join([*parts, f"[This page as a notebook]({stem}.ipynb).\n"])


def notebook(source: str) -> dict:
    """The same cells for Jupyter, not run."""
    made = []
    for number, (kind, text) in enumerate(cells(source)):
        code = {"execution_count": None, "outputs": []} if kind == "code" else {}
        lines = text.strip("\n").splitlines(keepends=True)
        made.append({"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": lines, **code})
    return {"cells": made, "metadata": {"language_info": {"name": "python"}}, "nbformat": 4, "nbformat_minor": 5}


def outputs(source: str, stem: str) -> tuple[dict[int, str], dict[str, bytes]]:
    """What the cells of a script print and draw, from the last run of the same script with the same library."""
    library = b"".join(path.read_bytes() for path in sorted((ROOT / "src").rglob("*.py")))
    place = KEPT / f"{stem}-{hashlib.sha256(source.encode() + library).hexdigest()[:16]}"
    if not (place / "page.json").exists():
        page, pictures = executed(source, stem)
        place.mkdir(parents=True, exist_ok=True)
        for name, picture in pictures.items():
            (place / name).write_bytes(picture)
        (place / "page.json").write_text(json.dumps(page), encoding="utf-8")
    page = json.loads((place / "page.json").read_text(encoding="utf-8"))
    return {int(number): text for number, text in page.items()}, {p.name: p.read_bytes() for p in place.glob("*.png")}


def executed(source: str, stem: str) -> tuple[dict[int, str], dict[str, bytes]]:
    """Runs the cells in one namespace; warnings but those of deprecation are errors."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.close("all")  # what others have left open in this process is none of this page's
    page, pictures, names = {}, {}, {"__name__": "__main__"}
    for number, (kind, text) in enumerate(cells(source)):
        if kind == "markdown":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's tensors in matplotlib
            run_cell(text, f"{stem}, cell {number}", names)
        parts = [f"```text\n{printed.getvalue().rstrip()}\n```"] if printed.getvalue().strip() else []
        for count, figure in enumerate(plt.get_fignums()):
            name, picture = f"{stem}-{number}-{count}.png", io.BytesIO()
            plt.figure(figure).savefig(picture, dpi=110)
            pictures[name] = picture.getvalue()
            parts.append(f"![What the cell draws]({name})")
        plt.close("all")
        page[number] = "\n\n".join(parts)
    return page, pictures


def run_cell(text: str, name: str, names: dict[str, object]) -> None:
    """Executes a cell; a text as its last expression is printed, as notebooks show it."""
    tree = ast.parse(text, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), names)
    value = None if last is None else eval(compile(ast.Expression(last.value), name, "eval"), names)
    if isinstance(value, str):
        print(value)
