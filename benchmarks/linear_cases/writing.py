"""linear_models.md from what is known; no number in it is written by hand."""

import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import sklearn
import torch

import sampla
from linear_cases.settings import AHEAD_FROM, DOUBLE, MEMMAP_GIB, PEERS, SLOPE, SPARSE_GIB, Sizes

Results = dict[str, dict[str, Any]]
_GIB = 2**30
_OURS, _FREE, _RIDGE = "sampla", "sampla, matrix-free", "BayesianRidge"

_INTRODUCTION = """\
Every case runs in a process of its own. Peak: ru_maxrss of that process, the most memory it ever held, the data and
their making included; 'data' is the design alone. Seconds are of `fit`, the making of the data left out, and only their
ratios within one run say something. 'error' is |f - f*| / |f*|, of the fitted function against the one behind the data.
sampla runs with its defaults; 'matrix-free' is solver="block-cg"."""


def write(path: Path, kept: dict[str, Any], sizes: Sizes, quick: bool) -> None:
    """The page, from everything known so far."""
    results: Results = kept["results"]
    pieces = [
        f"# Large linear models\n\n{_provenance(kept, quick)}",
        _INTRODUCTION,
        _verdicts(results, sizes),
        _by_size(results, sizes),
        _one(
            results,
            "sparse",
            f"A sparse matrix like text, {_shape(sizes.sparse)} with {_entries(sizes)} non-zeros, K = 16",
        ),
        _one(results, "file", f"A np.memmap of {sizes.file_gib:g} GiB, {sizes.file_columns:,} columns, K = 16"),
        _one(results, "outputs", f"{sizes.outputs[2]:,} outputs with full noise covariance, {_shape(sizes.outputs)}"),
    ]
    path.write_text("\n\n".join(piece for piece in pieces if piece) + "\n", encoding="utf-8")


def _provenance(kept: dict[str, Any], quick: bool) -> str:
    command = f"python benchmarks/linear_models.py --threads {kept['threads']}" + (" --quick" if quick else "")
    words = (
        f"Written by `{command}` at commit {_commit()}: sampla {sampla.__version__}, torch {torch.__version__}, "
        f"scikit-learn {sklearn.__version__}, numpy {np.__version__}, scipy {scipy.__version__}, python "
        f"{platform.python_version()}, {platform.system()} {platform.machine()}; {kept['threads']} thread(s) for every "
        "contestant."
    )
    return words + ("\n\n**Quick mode: small sizes. The targets are not about these.**" if quick else "")


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def _verdicts(results: Results, sizes: Sizes) -> str:
    found = [*_faster(results, sizes), *_near_linear(results, sizes)]
    for name, limit, what in (
        ("sparse", SPARSE_GIB, f"the sparse matrix within {SPARSE_GIB:g} GiB"),
        ("file", MEMMAP_GIB, f"{sizes.file_gib:g} GiB on disk within {MEMMAP_GIB:g} GiB"),
    ):
        if name in results:
            found.append(_within(results[name], limit, what))
    if "outputs" in results:
        result, outputs = results["outputs"], sizes.outputs[2]
        done = "failed" not in result and result["settled"]
        detail = _failure(result) or f"{result['seconds']:.0f} s, peak {result['peak'] / _GIB:.2f} GiB"
        found.append((done, f"{outputs:,} outputs with full noise covariance", detail))
    lines = [f"- **{'met' if met else 'NOT MET'}** {target}: {detail}" for met, target, detail in found]
    return "## Targets\n\n" + "\n".join(lines) if lines else ""


def _faster(results: Results, sizes: Sizes) -> list[tuple[bool, str, str]]:
    """sampla against BayesianRidge from a size on."""
    met, details = True, []
    for columns in sizes.columns:
        ours, peer = results.get(f"{columns}/{_OURS}"), results.get(f"{columns}/{_RIDGE}")
        if columns < AHEAD_FROM or ours is None or peer is None:
            continue
        if "failed" in ours:
            met = False
            details.append(f"P = {columns:,}: sampla {ours['failed']}")
            continue
        more = "failed" in peer
        if more and "limit" not in peer:
            details.append(f"P = {columns:,}: BayesianRidge {peer['failed']}")
            continue
        ratio = (peer["limit"] if more else peer["seconds"]) / ours["seconds"]
        met = met and (ratio > 1)
        details.append(f"P = {columns:,}: {'more than ' if more else ''}{ratio:.2g} times as fast")
    return [(met, f"ahead of BayesianRidge from P = {AHEAD_FROM:,} on", "; ".join(details))] if details else []


def _near_linear(results: Results, sizes: Sizes) -> list[tuple[bool, str, str]]:
    """Exponent of P in the matrix-free time of a pass and row."""
    points = []
    for columns in sizes.columns:
        result = results.get(f"{columns}/{_FREE}", results.get(f"{columns}/{_OURS}"))
        if result is not None and "failed" not in result and "block-cg" in result["solver"]:
            points.append((columns, _per_row(result)))
    if len(points) < 2:
        return []
    slope = float(np.polyfit(*np.log(np.array(points)).T, 1)[0])
    detail = f"exponent {slope:.2f} from P = {points[0][0]:,} to {points[-1][0]:,}"
    return [(slope <= SLOPE, f"time of a pass and row near linear in P (exponent at most {SLOPE:g})", detail)]


def _per_row(result: dict[str, Any]) -> float:
    """Seconds of the whole fit over passes and rows."""
    return float(result["fit seconds"] / result["passes"] / result["rows"])


def _within(result: dict[str, Any], limit: float, what: str) -> tuple[bool, str, str]:
    if "failed" in result:
        return False, what, _failure(result)
    met = result["peak"] <= limit * _GIB and result["settled"]
    settled = "settled" if result["settled"] else "NOT settled"
    return met, what, f"peak {result['peak'] / _GIB:.2f} GiB, {result['seconds']:.0f} s, {settled}"


def _failure(result: dict[str, Any]) -> str:
    return str(result.get("failed", ""))


def _by_size(results: Results, sizes: Sizes) -> str:
    rows = []
    for columns in sizes.columns:
        ours = results.get(f"{columns}/{_OURS}")
        for method in (_OURS, _FREE, *PEERS):
            result = results.get(f"{columns}/{method}")
            if result is not None:
                rows.append([f"{columns:,}, {method}", *_cells(result, ours)])
    if not rows:
        return ""
    head = "| P, method | s | times sampla's | peak GiB | data | error | prior | noise | passes | s a pass | settled |"
    body = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    agreement = _agreement(results, sizes)
    words = (
        "Correlated Gaussian columns whose covariance has eigenvalues 1 / i^2, float64 with N = 4 P up to P = "
        f"{DOUBLE:,}, then float32 with N = 2 P. A method that is missing was not tried: "
        "its cost grows with the cube of P. 'prior' and 'noise' are the precisions found."
    )
    return f"## As P grows\n\n{words}\n\n{head}\n| --- |{' ---: |' * 10}\n{body}\n\n{agreement}"


def _cells(result: dict[str, Any], ours: dict[str, Any] | None) -> list[str]:
    if "failed" in result:
        more = f"> {result['limit'] / ours['seconds']:.2g}" if "limit" in result and ours and "seconds" in ours else "-"
        return [_failure(result), more, *["-"] * 8]
    ratio = f"{result['seconds'] / ours['seconds']:.2g}" if ours and "seconds" in ours else "-"
    iterative = "block-cg" in result.get("solver", "")
    return [
        f"{result['seconds']:.3g}", ratio, f"{result['peak'] / _GIB:.2f}", f"{result['data'] / _GIB:.2f}",
        f"{result['error']:.4f}", _number(result["prior"]), _number(result["noise"]),
        f"{result['passes']:.1f}" if iterative else ("exact" if "passes" in result else "-"),
        f"{result['fit seconds'] / result['passes']:.3g}" if iterative else "-",
        {True: "yes", False: "NO"}.get(result.get("settled"), "-"),  # type: ignore[arg-type]
    ]  # fmt: skip


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _agreement(results: Results, sizes: Sizes) -> str:
    lines = []
    for columns in sizes.columns:
        peer = results.get(f"{columns}/{_RIDGE}", {})
        for method in (_OURS, _FREE):
            ours = results.get(f"{columns}/{method}", {})
            if "mean" in ours and "mean" in peer:
                mean, std = (np.array([r[what] for r in (ours, peer)]) for what in ("mean", "std"))
                apart = np.linalg.norm(mean[0] - mean[1]) / np.linalg.norm(mean[1])
                wide = np.abs(std[0] / std[1] - 1)
                lines.append(
                    f"- P = {columns:,}, {method}: predictions {apart:.2%} from BayesianRidge's, predictive standard "
                    f"deviations {np.sqrt(np.mean(wide**2)):.2%} (root mean square; {wide.max():.2%} at most)"
                )
    return "Agreement with BayesianRidge (defaults of both) on the same rows:\n\n" + "\n".join(lines) if lines else ""


def _one(results: Results, name: str, title: str) -> str:
    """A case without a peer."""
    result = results.get(name)
    if result is None:
        return ""
    if "failed" in result:
        return f"## {title}\n\nFailed: {_failure(result)}"
    lines = [
        f"- {result['seconds']:.0f} s for {result['passes']:.1f} passes"
        + (f" ({result['readings']} readings of the rows)" if "readings" in result else "")
        + f"; {result['solver']}; EM {'settled' if result['settled'] else 'has NOT settled'}",
        f"- peak {result['peak'] / _GIB:.2f} GiB, {result['peak before'] / _GIB:.2f} GiB of it before the fit; the "
        f"design is {result['data'] / _GIB:.2f} GiB",
        f"- error {result['error']:.4f} of the function; effective dimension {result['effective dimension']:,.0f}",
    ]
    if "solve error" in result:
        known = result["prior error"]
        lines.append(
            f"- certificate: samples to {result['solve error']:.2%} of a function draw"
            + (f", prior precision known to {known[0]:.2%} (iterations may change {known[1]:.2%})" if known else "")
        )
    lines += [f"- warned: {text}" for text in result["warnings"]]
    return f"## {title}\n\n" + "\n".join(lines)


def _shape(sizes: tuple[int, int, int]) -> str:
    return f"{sizes[0]:,} x {sizes[1]:,}"


def _entries(sizes: Sizes) -> str:
    return f"{sizes.sparse[0] * sizes.sparse[2]:,}"
