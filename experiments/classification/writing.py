"""results.md from what is known; no number in it is written by hand."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

import sampla
from classification import sections
from classification.keeping import Kept, fingerprint
from classification.pictures import draw
from classification.rows import rows_of
from classification.settings import Experiment, Settings


def write(experiment: Experiment, settings: Settings, kept: Kept, out: Path) -> None:
    """The page and its picture, from everything known so far."""
    rows = rows_of(kept.methods, experiment.methods)
    shifts = experiment.shifts(settings)
    picture = draw(out / "shifts.png", rows, shifts, experiment.angles) if rows else False
    pieces = [
        f"# {experiment.title}\n\n{_provenance(kept, out, experiment)}",
        experiment.introduction,
        _sizes(settings, kept),
        sections.verdicts(rows, shifts, experiment.classes),
        sections.clean(rows, settings),
        sections.shifted(rows, shifts, settings, experiment.angles, experiment.classes),
        "![NLL and joint NLL under shift](shifts.png)\n\nLower is better." if picture else "",
        sections.costs(kept.methods, experiment.methods),
        sections.scaling(kept.methods, experiment.methods, settings.images, experiment.scale_to),
        sections.not_run(kept.methods, experiment.methods),
        sections.traces(kept.methods, experiment.methods),
    ]
    text = "\n\n".join(piece for piece in pieces if piece) + "\n"
    (out / "results.md").write_text(text, encoding="utf-8")


def _provenance(kept: Kept, out: Path, experiment: Experiment) -> str:
    folder = experiment.folder.name
    versions = ", ".join(f"{name} {_version(name)}" for name in ("laplace-torch", "curvlinops-for-pytorch"))
    words = (
        f"Written by `python experiments/{folder}/run.py --root DIR` at commit {_commit()}: sampla "
        f"{sampla.__version__}, torch {torch.__version__}, {versions}, python {platform.python_version()}; every "
        "method in a process of its own, one thread. Times are CPU seconds: the machine was shared with other work."
    )
    states = {entry["source"] for entry in kept.methods.values() if "source" in entry}
    if states - {fingerprint()}:
        what = f"{len(states)} states of the library's source, not all of them"
        what = what if len(states) > 1 else "one state of the library's source, not"
        words += f"\n\n**Results of {what} the present one.**"
    return words if out == experiment.folder else words + "\n\nA run with other settings than the folder's own."


def _sizes(settings: Settings, kept: Kept) -> str:
    assert kept.prepared is not None
    facts = kept.prepared["members"][0]
    shifted = f"shifted sets: the first {settings.shifted:,} of them; " if settings.shifted else ""
    said = "; ".join(f"{name}: {_number(value)}" for name, value in facts.items())
    return (
        f"Posteriors are fitted to {settings.images:,} training images, without weights or augmentation. "
        f"{settings.held_out:,} other images (never scored) set the temperature, ELLA's prior and "
        "the factor of rows that are scaled. Scores: "
        f"{settings.test:,} test images; {shifted}foreign sets: "
        f"{settings.foreign:,} images each. K = {settings.samples} samples of every method that samples; Monte Carlo "
        f"averages over linearised networks take {settings.draws} draws from the Gaussian with these samples' "
        f"covariance, the same for every posterior. Network: {said}."
    )


def _number(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
