"""results.md from what is known; no number in it is written by hand."""

import platform
import subprocess
from pathlib import Path
from typing import Any

import gpytorch
import numpy as np
import oracle_tables
import sklearn
import torch
from config import (
    DISTANCES,
    FEATURES,
    LARGEST_KERNEL,
    LEARNT_ON_ALL,
    LEAST_NOISE,
    PROCESS,
    PROCESS_STEPS,
    RANDOM,
    RAW,
    RIDGE,
    SAMPLA,
    SETS,
    SPLITS,
    SUBSET,
)
from kept import Kept

import sampla

_INTRODUCTION = f"""\
Inputs and targets are standardised on each training split; RMSE and log-likelihood are in the targets' own units. Mean
and standard error over the standard splits, with their number where it is not all of them. Random Fourier features:
{FEATURES:,} of scikit-learn's RBFSampler, the length scale the median distance between training rows ({DISTANCES:,} of
them at most), drawn anew for each split and the same for every method. sampla and BayesianRidge run with their
defaults. The exact Gaussian process (GPyTorch, Cholesky, float64) has a constant mean and a Gaussian kernel with a
length scale for each input, learnt on the marginal likelihood by at most {PROCESS_STEPS} steps of L-BFGS from the
same median distance: it tunes what the random features hold fixed, and is here to say what that costs. Up to
{LEARNT_ON_ALL:,} training rows it learns on all of them, beyond on {SUBSET:,} drawn at random; it is always
conditioned on all. Sets whose kernel matrix is above {LARGEST_KERNEL / 2**30:.0f} GiB are left out."""


def write(out: Path, kept: Kept) -> None:
    """The file, from everything known so far."""
    pieces = [
        "# UCI regression: sampla, BayesianRidge and an exact Gaussian process\n\n" + _provenance(kept),
        _INTRODUCTION,
        *_scores(kept),
        _side_by_side(kept),
        _ways(kept),
        _process(kept),
        *oracle_tables.sections(kept),
    ]
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.md").write_text("\n\n".join(piece for piece in pieces if piece) + "\n", encoding="utf-8")


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, the first column text and the others numbers."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _provenance(kept: Kept) -> str:
    words = (
        f"Written by `python experiments/uci/run.py --root DIR` at commit {_commit()}: sampla {sampla.__version__}, "
        f"torch {torch.__version__}, scikit-learn {sklearn.__version__}, GPyTorch {gpytorch.__version__}, python "
        f"{platform.python_version()}, {torch.get_num_threads()} thread."
    )
    states = kept.sources()
    if len(states) > 1:
        words += f"\n\n**Results of {len(states)} states of the library's source stand side by side.**"
    return words


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def _of(kept: Kept, features: str, name: str, method: str) -> dict[str, dict[str, Any]]:
    """Split -> result."""
    return kept.results(f"{features}/{name}/{method}/")


def _scores(kept: Kept) -> list[str]:
    sections = []
    columns = [(RAW, SAMPLA), (RAW, RIDGE), (RANDOM, SAMPLA), (RANDOM, RIDGE), (RAW, PROCESS)]
    for measure, title in (("rmse", "Root mean square error"), ("log_likelihood", "Mean test log-likelihood")):
        rows = []
        for name in SETS:
            found = [_of(kept, features, name, method) for features, method in columns]
            if any(found):
                rows.append([name, *(_cell([r[measure] for r in results.values()], SPLITS[name]) for results in found)])
        head = ["set", "raw: sampla", "BayesianRidge", "random features: sampla", "BayesianRidge", PROCESS]
        sections.append(f"## {title}\n\n{table(head, rows)}" if rows else "")
    return sections


def _cell(values: list[float], all_splits: int) -> str:
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.4g} (1)"
    error = np.std(values, ddof=1) / len(values) ** 0.5
    count = "" if len(values) == all_splits else f" ({len(values)})"
    return f"{np.mean(values):.4g} ± {error:.2g}{count}"


def _side_by_side(kept: Kept) -> str:
    """sampla and BayesianRidge on the same splits."""
    rows = []
    for features in (RAW, RANDOM):
        for name in SETS:
            ours, theirs = (_of(kept, features, name, method) for method in (SAMPLA, RIDGE))
            both = sorted(set(ours) & set(theirs))
            if not both:
                continue
            rmse = [ours[s]["rmse"] / theirs[s]["rmse"] - 1 for s in both]
            likelihood = [ours[s]["log_likelihood"] - theirs[s]["log_likelihood"] for s in both]
            seconds = [sum(results[s]["seconds"] for s in both) / len(both) for results in (ours, theirs)]
            rows.append(
                [
                    f"{name}, {features}", f"{len(both)}", f"{max(rmse, key=abs):+.2%}",
                    f"{np.mean(likelihood):+.4f}", f"{max(likelihood, key=abs):+.4f}",
                    f"{seconds[0]:.2g}", f"{seconds[1]:.2g}",
                ]
            )  # fmt: skip
    if not rows:
        return ""
    head = ["", "splits", "RMSE, largest", "log-likelihood, mean", "largest", "s, sampla", "s, BayesianRidge"]
    words = (
        "Differences of sampla from BayesianRidge, split by split. sampla's intercept is uncertain and its "
        "hyperparameters have no hyperpriors; where it works with samples, these have an error of their own. Seconds "
        "a fit on a shared machine, one thread: benchmarks/linear_models.md has times that can be compared."
    )
    return f"## sampla beside BayesianRidge on the same splits\n\n{words}\n\n{table(head, rows)}"


def _ways(kept: Kept) -> str:
    """How sampla solved each set."""
    rows = []
    for features in (RAW, RANDOM):
        for name in SETS:
            found = list(_of(kept, features, name, SAMPLA).values())
            if found:
                ways = " / ".join(sorted({result["solver"] for result in found}))
                settled = sum(result["settled"] for result in found)
                dimension = np.mean([result["effective dimension"] for result in found])
                passes = np.mean([result["passes"] for result in found])
                rows.append(
                    [f"{name}, {features}", ways, f"{settled} of {len(found)}", f"{dimension:.1f}", f"{passes:.1f}"]
                )
    if not rows:
        return ""
    head = ["", "solver", "settled", "effective dimension", "passes"]
    return f"## How sampla solved them\n\n{table(head, rows)}"


def _process(kept: Kept) -> str:
    """How the exact Gaussian process came to its hyperparameters."""
    rows = []
    for name in SETS:
        found = list(_of(kept, RAW, name, PROCESS).values())
        if found:
            steps, seconds = (np.mean([result[measure] for result in found]) for measure in ("steps", "seconds"))
            broken = sum(result["broke off"] for result in found)
            raised = sum(result.get("least noise", LEAST_NOISE[0]) > LEAST_NOISE[0] for result in found)
            rows.append(
                [
                    name,
                    f"{len(found)}",
                    f"{found[0]['learnt on rows']:,}",
                    f"{steps:.0f}",
                    f"{broken}",
                    f"{raised}",
                    f"{seconds:.3g}",
                ]
            )
    if not rows:
        return ""
    head = ["set", "splits", "rows learnt on", "evaluations", "line search broke off", "least noise raised", "s"]
    words = (
        "Where the line search broke off (no Cholesky factor at a point it tried), the best point before is kept. "
        f"The noise's variance is at least {LEAST_NOISE[0]:g} of the targets'; where the kernel matrix of all rows "
        f"then had no Cholesky factor, all was done again with {LEAST_NOISE[1]:g}, GPyTorch's default. Splits are not "
        "all of them where a split takes too long."
    )
    return f"## The exact Gaussian process\n\n{words}\n\n{table(head, rows)}"
