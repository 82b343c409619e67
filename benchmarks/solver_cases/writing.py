"""solvers.md and solvers.json from what the store holds; no number here is written by hand."""

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import sampla
from solver_cases.sections import accuracy, fits, measured, promises
from solver_cases.settings import Settings
from solver_cases.store import Store

_INTRODUCTION = """\
One pass is one product with M for each of the K samples. The error is |phi(z - z*)|_B / |phi z*|_B, the part of a
function draw that is missing, the root mean square over the columns, against a solution in float64. Passes count all
that a solver spends: sketches, inner products, products on part of the data as that part. 'stops' is the pass at which
`solve` would end at 2 %, measuring and proving counted in, with the error that it states and the truth beside it."""


def write(settings: Settings, store: Store) -> None:
    """Both files, from everything known so far."""
    results = store.all()
    everything = {"command": _command(settings), "machine": machine(), "source": store.source, "results": results}
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / f"{settings.name}.json").write_text(_lines(everything) + "\n", encoding="utf-8")
    pieces = [
        "# Solvers on problems with known answers\n\n" + _provenance(settings, store, results),
        _INTRODUCTION,
        _verdicts(results),
        *measured.sections(results),
        *fits.sections(results),
        *accuracy.sections(results),
        *promises.sections(results),
    ]
    text = "\n\n".join(piece for piece in pieces if piece) + "\n"
    (settings.out / f"{settings.name}.md").write_text(text, encoding="utf-8")


def _lines(value: dict[str, Any]) -> str:
    """JSON with a line for every result."""
    facts = {key: entry for key, entry in value.items() if key != "results"}
    rows = ",\n".join(f"{json.dumps(key)}: {json.dumps(entry)}" for key, entry in value["results"].items())
    return f'{json.dumps(facts)[:-1]}, "results": {{\n{rows}\n}}}}'


def machine() -> dict[str, Any]:
    """Facts that the times depend on."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "sampla": sampla.__version__,
        "python": platform.python_version(),
    }


def _command(settings: Settings) -> str:
    return "python benchmarks/solvers.py --root DATA --checkpoints DIR" + (" --quick" if settings.quick else "")


def _provenance(settings: Settings, store: Store, results: dict[str, Any]) -> str:
    facts = machine()
    seconds = {key.split("/")[1]: value for key, value in results.items() if key.startswith("seconds/")}
    spent = ", ".join(f"{part} {value:.0f} s" for part, value in seconds.items())
    lines = [
        f"Written by `{_command(settings)}` at commit {_commit()} (source {store.source}): torch {facts['torch']}, "
        f"{facts['cores']} cores, {facts['threads']} threads. Time of the parts: {spent or 'nothing yet'}."
    ]
    if settings.quick:
        lines.append("**Quick mode: small sizes, to see that everything works. The targets are not about these.**")
    if {source for known in store.sources.values() for source in known} - {store.source}:
        told = "; ".join(f"{part}: {', '.join(known)}" for part, known in store.sources.items())
        lines.append(f"**Rows measured with different states of the library's source stand side by side.** {told}.")
    return "\n\n".join(lines)


def _commit() -> str:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def _verdicts(results: dict[str, Any]) -> str:
    """All targets in one list, each met or not."""
    found = [verdict for module in (measured, fits, promises) for verdict in module.verdicts(results)]
    if not found:
        return ""
    lines = [f"- **{'met' if met else 'NOT MET'}** {target}: {detail}" for met, target, detail in found]
    return "## Targets\n\n" + "\n".join(lines)
