"""One case, in a process of its own: make the data, fit, and say what it took and how good it is."""

import tempfile
import warnings
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from experiments.common.facts import peak_memory
from experiments.common.process import Case
from sklearn.linear_model import ARDRegression, BayesianRidge

import sampla
from benchmarks.linear.problems import Problem, many_outputs, on_disk, power_law, text

_ROWS = 300  # whose predictions are kept, to compare methods that ran in processes of their own
_JUDGED = 5000  # rows on which the fitted function is compared with the truth


def run(case: Case) -> Case:
    """A case by its kind: "size", "sparse", "file" or "outputs"."""
    if case["kind"] == "size":
        peers = {"BayesianRidge": BayesianRidge, "ARDRegression": ARDRegression}
        solver = "block-cg" if "free" in case["method"] else "auto"
        peer = peers.get(case["method"])
        return _measured(power_law(*case["sizes"]), _sampla(solver=solver) if peer is None else peer())
    if case["kind"] == "sparse":
        return _measured(text(*case["sizes"]), _sampla(standardize=True, num_samples=16))
    if case["kind"] == "outputs":
        return _measured(many_outputs(*case["sizes"]), _sampla(noise="full"))
    with tempfile.TemporaryDirectory() as folder:
        return _measured(on_disk(Path(folder) / "design.bin", *case["sizes"]), _sampla(num_samples=16))


def _sampla(**options: Any) -> sampla.BayesianLinearRegression:
    return sampla.BayesianLinearRegression(random_state=0, progress=False, **options)


def _measured(problem: Problem, model: Any) -> dict[str, Any]:
    before = peak_memory()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        start = perf_counter()
        model.fit(problem.x, problem.y)
        seconds = perf_counter() - start
    parts = (problem.x,) if isinstance(problem.x, np.ndarray) else (problem.x.data, problem.x.indices, problem.x.indptr)
    found: dict[str, Any] = {
        "seconds": seconds, "peak": peak_memory(), "peak before": before, "rows": problem.x.shape[0],
        "data": sum(part.nbytes for part in parts),
    }  # fmt: skip
    start = perf_counter()
    mean, std = model.predict(problem.x[:_ROWS], return_std=True)
    found["predict seconds"] = perf_counter() - start
    truth = problem.function[:_JUDGED]
    missed = model.predict(problem.x[:_JUDGED]) - truth
    found["error"] = float(np.linalg.norm(missed) / np.linalg.norm(truth - truth.mean(0)))
    if mean.ndim == 1:
        found |= {"mean": mean.tolist(), "std": std.tolist()}
    found["warnings"] = sorted({str(w.message).split("\n")[0] for w in caught})
    return found | _details(model)


def _details(model: Any) -> dict[str, Any]:
    """What is learnt, and sampla's certificate."""
    if not isinstance(model, sampla.BayesianLinearRegression):
        precision = getattr(model, "lambda_", 0.0)
        return {"noise": float(model.alpha_), "prior": float(precision) if np.ndim(precision) == 0 else None}
    report, noise = model.report_, model.noise_precision_
    found = {
        "solver": f"{report.solver}, {report.world}", "passes": report.passes, "fit seconds": report.seconds,
        "settled": bool(report.settled), "effective dimension": report.effective_dimension,
        "prior": model.prior_precision_, "noise": noise if np.ndim(noise) == 0 else None,
    }  # fmt: skip
    if report.fit is not None:
        found |= {
            "readings": report.fit.sweeps, "solve error": report.fit.solve_error,
            "prior error": report.fit.precision_error, "method": report.fit.method,
        }  # fmt: skip
    return found
