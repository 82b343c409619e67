"""Pages from what a run left: all stages on one, and one for each set of images."""

from pathlib import Path
from typing import Any

from experiments.accelerator import classifiers
from experiments.accelerator.engine import BASE, WAYS
from experiments.accelerator.run import RESULTS
from experiments.accelerator.stage import DONE
from experiments.classification import report
from experiments.common.page import provenance, table, write_page
from experiments.common.store import Store

SETS = (classifiers.CIFAR100, *(f"cifar10-{depth}" for depth in classifiers.DEPTHS))
_COMMAND = "experiments.accelerator --root DIR --checkpoints DIR"


def write(folder: Path) -> None:
    """results.md, and SET/results.md with its picture for every set that has scores.

    Args:
        folder: that holds results.json and the sets' own files.
    """
    store = Store.opened(folder / RESULTS)
    found = [name for name in SETS if (folder / f"{name}.json").is_file()]
    for name in found:
        made = classifiers.experiment(name, store.settings["tiny"])
        scores = Store.opened(folder / f"{name}.json")
        report.write(classifiers.shown(made), scores, folder / name, store.settings["name"], _COMMAND)
    write_page(folder / "results.md", "experiments/accelerator/page.md.j2", **page(store, found))


def page(store: Store, found: list[str]) -> dict[str, Any]:
    """What the template is filled with.

    Args:
        store: of the stages.
        found: sets that have a page of their own.
    """
    said = {name: {"line": _said(row), "seconds": 0.0, "expected": 0.0} | row for name, row in store.rows.items()}
    stages = {"stage": "{key}", "found": "{line}", "s": "{seconds:.0f}", "expected, s": "{expected:.0f}"}
    engine = {
        "network": "{network}", "precision": "{precision}", "data": "{data}", "K": "{samples}",
        "forward + backward, ms": lambda row: f"{1e3 * row[BASE]:.2f}",
        "under bfloat16, ms": lambda row: f"{1e3 * row['under bfloat16']:.2f}",
        **{f"{way}, ms a vector": lambda row, way=way: f"{1e3 * row[way]:.2f}" for way in WAYS},
        "over forward + backward": lambda row: f"{min(row[way] for way in WAYS[:2]) / row[BASE]:.2f}",
        "TFLOP/s": lambda row: f"{row['rate'] / 1e12:.3g}",
        "of the peak": lambda row: "-" if row["share"] is None else f"{row['share']:.0%}",
        "GiB": lambda row: "-" if row["GiB"] is None else f"{row['GiB']:.1f}",
    }  # fmt: skip
    jax = {
        "network": "{network}", "K": "{samples}", "forward + backward, ms": lambda row: f"{1e3 * row[BASE]:.2f}",
        "published, ms a vector": lambda row: f"{1e3 * row[BASE] * row['published']:.2f}",
    }  # fmt: skip
    return {
        "settings": store.settings, "provenance": provenance(store, _COMMAND, "sampla torch"), "found": found,
        "stages": table(said, stages, left=2), "tomography": store.rows.get("tomography", {}),
        "engine": table(store.rows.get("engine", {}).get("rows", []), engine, left=2),
        "jax": table(store.rows.get("jax", {}).get("rows", []), jax),
    }  # fmt: skip


def _said(row: dict[str, Any]) -> str:
    if DONE in row:
        return str(row[DONE])
    return f"NOT BEGUN: {row['skipped']}" if "skipped" in row else f"FAILED: {row['failed']}"
