"""The command line of a script: the same words mean the same everywhere."""

import argparse
from pathlib import Path
from time import perf_counter

_START = perf_counter()


def parser(doc: str, out: Path, root: str = "", checkpoints: str = "", quick: str = "") -> argparse.ArgumentParser:
    """A parser with the options that scripts share.

    Args:
        doc: of the script.
        out: where its results go by default.
        root: what ``--root`` holds; empty: the script needs no data.
        checkpoints: what ``--checkpoints`` holds; empty: it needs none.
        quick: what ``--quick`` does; empty: there is no such option.
    """
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--out", type=Path, default=out, help="where the results go")
    found.add_argument("--cache", type=Path, help="where large files go (predictions, weights); default: OUT/cache")
    if root:
        found.add_argument("--root", type=Path, required=True, help=f"folder that holds {root}")
    if checkpoints:
        found.add_argument("--checkpoints", type=Path, help=f"folder that holds {checkpoints}")
    if quick:
        found.add_argument("--quick", action="store_true", help=quick)
    return found


def say(text: str) -> None:
    """A line, with the seconds since the start."""
    print(f"{perf_counter() - _START:7.0f} s  {text}", flush=True)
