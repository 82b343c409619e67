"""The command line of a script: the same words mean the same everywhere."""

import argparse
from collections.abc import Collection
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

_START = perf_counter()


def command(
    doc: str, out: Path, root: str = "", checkpoints: str = "", quick: str = "", only: Collection[str] = (),
    anew: bool = False, threads: int | None = 1, **more: tuple[Any, str],
) -> argparse.Namespace:  # fmt: skip
    """What the command line asks for; the number of threads is set.

    Args:
        doc: of the script.
        out: where its results go by default; those of a quick run go to ``quick`` in it.
        root: what ``--root`` holds; empty: the script needs no data.
        checkpoints: what ``--checkpoints`` holds; empty: it needs none.
        quick: what ``--quick`` does; empty: there is no such option.
        only: what ``--only`` may name; empty: there is no such option.
        anew: whether there is ``--anew``.
        threads: of torch, by default; None: as many as torch takes.
        more: the script's own options: the default (or a type, where that is None; or a tuple, any of which may be
            chosen, several times too), and what it means.
    """
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--out", type=Path, default=out, help="where the results go")
    found.add_argument("--cache", type=Path, help="where large files go (predictions, weights); default: OUT/cache")
    found.add_argument("--threads", type=int, default=threads or torch.get_num_threads(), help="of torch")
    for name, holds in (("--root", root), ("--checkpoints", checkpoints)):
        if holds:
            found.add_argument(name, type=Path, default=Path(name[2:]), help=f"folder that holds {holds}")
    if quick:
        found.add_argument("--quick", action="store_true", help=quick)
    if anew:
        found.add_argument("--anew", action="store_true", help="compute anew where the library's source has changed")
    if only:
        more = {"only": (tuple(only), "nothing but this")} | more
    for name, (default, meaning) in more.items():
        how: dict[str, Any] = {"type": type(default), "default": default}
        if isinstance(default, bool):
            how = {"action": "store_true"}
        elif isinstance(default, type):
            how = {"type": default}
        elif isinstance(default, tuple):
            how = {"action": "append", "choices": default}
        found.add_argument(f"--{name}", help=meaning, **how)
    asked = found.parse_args()
    if quick and asked.quick and asked.out == out:
        asked.out = out / "quick"
    torch.set_num_threads(asked.threads)
    return asked


def say(text: str) -> None:
    """A line, with the seconds since the start."""
    print(f"{perf_counter() - _START:7.0f} s  {text}", flush=True)
