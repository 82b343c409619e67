"""The demo from beginning to end: train, fit, measure, and write everything down."""

import json
import platform
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from os import cpu_count
from pathlib import Path
from time import perf_counter
from typing import Any

import matplotlib
import numpy
import scipy
import sklearn
import torch
from torch import nn

import sampla
from sampla.apps.demo import table as tables
from sampla.apps.demo.data import DemoData, digits, mnist
from sampla.apps.demo.evaluate import ANGLES, NOISE_STDS, OOD_ANGLE, Evaluation, evaluate
from sampla.apps.demo.illustrate import pictures
from sampla.apps.demo.networks import count_parameters, network_for
from sampla.apps.demo.report import page, results_markdown
from sampla.apps.demo.training import RECIPES, Recipe, Training, train
from sampla.apps.page import write_html
from sampla.core import checkpoint

DATA_SETS = ("digits", "mnist")
_BATCH = 500
"""Images in a batch of the loader that ``fit`` reads; the result does not depend on it."""

_THREADS = {"digits": 1}
"""A second thread has too little to do on images of 8 x 8 pixels: waiting for it costs more than it brings."""


@dataclass(frozen=True)
class Settings:
    """What the demo is asked for."""

    data: str = "digits"
    root: Path | None = None
    """Folder with MNIST, for data = "mnist"."""
    out: Path = Path("sampla-demo")
    seed: int = 0
    num_samples: int = 16
    quiet: bool = False
    epochs: int | None = None
    """Instead of the recipe's, for tests."""
    train_images: int | None = None
    """Use only so many training images, for tests."""
    test_images: int | None = None


@dataclass(frozen=True)
class Result:
    """Everything a run of the demo found; what the files say comes from here."""

    settings: Settings
    recipe: Recipe
    data: DemoData
    network: nn.Module
    training: Training
    la: sampla.LinearisedLaplace
    evaluation: Evaluation
    rows: list[tables.Row]
    verdicts: list[tables.Verdict]
    timings: dict[str, float]
    """Stage -> seconds."""
    peak_memory: int
    """Largest resident size of the process so far, in bytes."""


def load_data(settings: Settings) -> DemoData:
    """The images that the settings name.

    Raises:
        FileNotFoundError: if MNIST is not where it should be.
        ValueError: if its files are damaged, or no root is given.
    """
    if settings.data == "mnist":
        if settings.root is None:
            raise ValueError("expected --root DIR with --data mnist, got none: the folder that holds mnist/.")
        data = mnist(settings.root)
    else:
        data = digits(settings.seed)
    return replace(data, train=data.train.first(settings.train_images), test=data.test.first(settings.test_images))


def run_demo(settings: Settings, data: DemoData, say: Callable[[str], None] = print) -> Result:
    """Train the network alone, give it a posterior, measure both, write all files to ``settings.out``.

    Args:
        settings: what to do.
        data: from ``load_data``.
        say: called with each line for the console.
    """
    with _threads(_THREADS.get(settings.data)):
        result = _trained_fitted_measured(settings, data, say)
        write_files(result)
    say("\n" + tables.as_text(result.rows) + "\n")
    for verdict in result.verdicts:
        say(f"{'met' if verdict.met else 'NOT MET':8} {verdict.target}: {verdict.detail}")
    out = settings.out
    say(f"\n{result.timings['total']:.0f} s; everything is in {out}: open {out / 'report.html'}")
    return result


def _trained_fitted_measured(settings: Settings, data: DemoData, say: Callable[[str], None]) -> Result:
    start = perf_counter()
    recipe = RECIPES[settings.data]
    recipe = recipe if settings.epochs is None else replace(recipe, epochs=settings.epochs)
    network = network_for(settings.data, data.train.images, settings.seed)
    say(
        f"{data.name}: {len(data.train):,} training images, {len(data.test):,} held out; "
        f"a network of {count_parameters(network):,} parameters"
    )
    training = train(network, data.train, recipe, settings.seed, progress=not settings.quiet)
    say(f"trained {recipe.epochs} epochs in {training.seconds:.1f} s: training loss {training.loss:.4f}")
    la = sampla.LinearisedLaplace(
        network, num_samples=settings.num_samples, seed=settings.seed, progress=not settings.quiet
    ).fit(data.train.batches(_BATCH))
    say(f"{la.report_}")
    fitted = perf_counter()
    evaluation = evaluate(la, data.test, settings.seed)
    timings = {
        "training": training.seconds,
        "fit": la.report_.seconds,
        "evaluation": perf_counter() - fitted,
    }
    rows = tables.table(evaluation)
    return Result(
        settings, recipe, data, network, training, la, evaluation, rows, tables.verdicts(rows),
        {**timings, "total": perf_counter() - start}, peak_memory(),
    )  # fmt: skip


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """At most so many threads inside; None leaves the number alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else min(count, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def write_files(result: Result) -> None:
    """summary.json, the trained network, the posterior, the pictures, report.html, and for MNIST results.md."""
    out = result.settings.out
    out.mkdir(parents=True, exist_ok=True)
    summary = summarise(result)
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    checkpoint.save(out / "network.safetensors", result.network.state_dict(), {"data": summary["data"]})
    result.la.save(out / "posterior.safetensors")
    la = result.la
    drawn = pictures(la.report_, result.evaluation, result.data.test, la.em.solve_tolerance, la.tolerance)
    for picture in drawn:
        (out / f"{picture.name}.png").write_bytes(picture.png)
    write_html(page(summary, str(result.la.report_), result.rows, result.verdicts, drawn), out / "report.html")
    if result.data.name == "mnist":
        joint = tables.joint_rows(result.evaluation)
        words = results_markdown(summary, str(result.la.report_), result.rows, joint, result.verdicts, drawn)
        (out / "results.md").write_text(words, encoding="utf-8")


def summarise(result: Result) -> dict[str, Any]:
    """The whole run as plain JSON types."""
    evaluation = result.evaluation
    settings = {k: v for k, v in asdict(result.settings).items() if k not in ("root", "out", "quiet")}
    return {
        "settings": {**settings, "prior": "g-prior", "recipe": asdict(result.recipe)},
        "data": {"name": result.data.name, "train": len(result.data.train), "test": len(result.data.test)},
        "network": {"layers": str(result.network), "parameters": count_parameters(result.network)},
        "training": asdict(result.training),
        "table": tables.as_json(result.rows),
        "verdicts": [asdict(verdict) for verdict in result.verdicts],
        "sets": [asdict(s) for s in (evaluation.clean, *evaluation.rotated, *evaluation.noisy)],
        "auroc": evaluation.auroc,
        "tests": {"angles": list(ANGLES), "noise_deviations": list(NOISE_STDS), "ood_angle": OOD_ANGLE},
        "fit": result.la.report_.to_dict(),
        "seconds": result.timings,
        "peak_memory_bytes": result.peak_memory,
        "machine": machine(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of Python and of every library whose arithmetic is used."""
    libraries = {m.__name__: m.__version__ for m in (sampla, torch, numpy, scipy, sklearn, matplotlib)}
    return {"python": platform.python_version(), **libraries}


def machine() -> dict[str, Any]:
    """Facts that the timings depend on."""
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": cpu_count(),
        "threads": torch.get_num_threads(),
    }


def peak_memory() -> int:
    """Bytes: the largest resident size of this process so far."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024
