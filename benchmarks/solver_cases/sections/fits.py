"""Whole fits: against one solve, and against the paper's schedule."""

from typing import Any

from solver_cases.paper import COLUMNS, EPOCHS, TARGET
from solver_cases.sections._table import Verdict, passes, share, table, under

_AGAINST_SOLVE = 1.5
_SOLVER = "block CG, K = {}"
"""The row of the solver that the fit uses."""


def sections(results: dict[str, Any]) -> list[str]:
    """One section, for the networks that were fitted."""
    fits = _fits(results)
    if not fits:
        return []
    pieces = ["## Whole fits\n\nEM to 1 % in alpha, then K samples at 2 %, by `sampla.em.infer` with its defaults."]
    head = ["network", "K", "EM steps", "alpha", "gamma", "passes", "of one solve", "ratio", "seconds"]
    pieces.append(table(head, [_fit_row(part, fit, results) for part, fit in fits]))
    pieces += [_steps(part, fit) for part, fit in fits]
    if "mnist/paper" in results:
        pieces.append(_paper(results["mnist/fit"], results["mnist/paper"]))
    return ["\n\n".join(pieces)]


def verdicts(results: dict[str, Any]) -> list[Verdict]:
    """Against one solve on every network, against the paper's schedule on MNIST."""
    found: list[Verdict] = []
    for part, fit in _fits(results):
        solve = one_solve(part, fit, results)
        if solve is None:
            continue
        ratio = fit["passes"] / solve
        detail = f"{passes(fit['passes'])} passes against {passes(solve)}, ratio {ratio:.2f}"
        target = (
            f"{part}, K = {fit['columns']}: a whole fit costs at most {_AGAINST_SOLVE} times one solve at fixed alpha"
        )
        found.append((ratio <= _AGAINST_SOLVE, target, detail))
    if "mnist/fit" in results and "mnist/paper" in results:
        fit, paper = results["mnist/fit"], results["mnist/paper"]
        ratio = paper["passes"] / fit["passes"]
        more = "" if paper["reached"] else "more than "
        detail = f"{more}{paper['passes']:.0f} passes against {passes(fit['passes'])}, ratio {more}{ratio:.1f}"
        found.append((ratio >= TARGET, f"a whole fit costs at most 1/{TARGET:.0f} of the paper's schedule", detail))
    return found


def _fits(results: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Network and fit, with the library's number of samples first."""
    parts = ("mnist", "resnet")
    keys = [(part, key) for part in parts for key in sorted(results) if key.split("-")[0] == f"{part}/fit"]
    return [(part, results[key]) for part, key in keys]


def one_solve(part: str, fit: dict[str, Any], results: dict[str, Any]) -> float | None:
    """Passes at which the fit's solver stops at 2 %, from zero, at the alpha that EM found."""
    row = under(results, f"{part}/rows/").get(_SOLVER.format(fit["columns"]))
    return None if row is None or row["stopped"] is None else row["stopped"]["passes"]


def _fit_row(part: str, fit: dict[str, Any], results: dict[str, Any]) -> list[str]:
    solve = one_solve(part, fit, results)
    return [
        part, str(fit["columns"]), f"{len(fit['steps'])}{'' if fit['settled'] else ' (not settled)'}",
        f"{fit['alpha']:.4g}", f"{fit['gamma']:.1f}", passes(fit["passes"]), passes(solve),
        "-" if solve is None else f"{fit['passes'] / solve:.2f}", f"{fit['seconds']:.0f}",
    ]  # fmt: skip


def _steps(part: str, fit: dict[str, Any]) -> str:
    each = "; ".join(
        f"alpha {step['alpha']:.4g}, gamma {step['gamma']:.1f}, change {step['change']:.1%}, "
        f"{step['products']:.0f} products"
        for step in fit["steps"]
    )
    said = f" It warned: {' '.join(fit['warnings'])}" if fit["warnings"] else ""
    final = f"Final samples: {fit['final_passes']} passes, stated error {share(fit['final_error'])}."
    return f"{part}, K = {fit['columns']}, EM (method {fit['method']}) step by step: {each}. {final}{said}"


def _paper(fit: dict[str, Any], paper: dict[str, Any]) -> str:
    timing = paper["timing"]
    total = (paper["passes"] - paper["mode_epochs"] / fit["columns"]) * timing["epoch"]
    total += paper["mode_epochs"] * timing["mode_epoch"]
    more = "" if paper["reached"] else "more than "
    trace = ", ".join(f"{alpha:.4g}" for alpha in paper["alphas"])
    words = (
        f"The paper's schedule on MNIST: {EPOCHS} epochs of SGD for every E-step and every mode, warm started, K = "
        f"{COLUMNS} (columns of SGD do not help one another, so passes per sample hold for every K), step sizes "
        f"{paper['chosen'][0]:.2g} (samples) and {paper['chosen'][1]:.2g} (mode) times the automatic one, the best of "
        f"a grid{' (at its edge)' if paper['edge'] else ''}. It is told the fixed point {paper['fixed_point']:.4g} "
        f"once alpha is within 1 % of it. alpha: {trace}. Given up after {paper['cap']} epochs; true error at the end "
        f"{share(paper['error']) if paper['error'] != float('inf') else 'not asked for, alpha was not found'}."
    )
    rows = [
        ["this library (measured as a whole)", passes(fit["passes"]), "", f"{fit['seconds']:.0f}"],
        ["the paper's schedule (passes x measured time)", f"{more}{paper['passes']:.0f}",
         f"{more}{paper['passes'] / fit['passes']:.1f}", f"{more}{total:.0f}"],
    ]  # fmt: skip
    pace = (
        f"Medians of interleaved repeats at K = {fit['columns']}: a pass {timing['pass']:.2f} s, an epoch of SGD "
        f"{timing['epoch']:.2f} s, an epoch for the mode {timing['mode_epoch']:.2f} s."
    )
    return words + "\n\n" + table(["whole fit", "passes", "ratio", "seconds"], rows) + "\n\n" + pace
