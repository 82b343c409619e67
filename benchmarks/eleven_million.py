"""Block CG and the Krylov space at P = 11 million in float32, against the exact answer. Writes eleven_million.md.

    python benchmarks/eleven_million.py [--out benchmarks]

The model is one linear layer of 11,000 inputs and 1,000 outputs with Gaussian noise: M = (X'X) (x) I, so that the exact
solution needs only the Gram matrix of N rows. The targets are drawn from it, with the precision of the first fit.
"""

import argparse
import math
import os
import platform
import resource
import warnings
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import sampla
from sampla._allocator import freed_memory_kept
from sampla.em import EM
from sampla.noise import PRIOR, standard_normal

INPUTS, OUTPUTS, DATA, K, ALPHA, NOISE = 11_000, 1_000, 96, 8, 1000.0, 1.0
DECADES = 2
"""By how many powers of ten the inputs' scales fall from the first datum to the last."""


def main() -> None:
    """Draw data whose inputs have a decaying spectrum, fit with a fixed and with a learnt precision, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where eleven_million.md goes")
    out = parser.parse_args().out
    torch.manual_seed(0)
    x = torch.randn(DATA, INPUTS) * torch.logspace(0, -DECADES, DATA)[:, None]
    weights = torch.randn(INPUTS, OUTPUTS) * ALPHA**-0.5
    y = x @ weights + torch.randn(DATA, OUTPUTS) * NOISE**-0.5
    del weights
    layer = torch.nn.Linear(INPUTS, OUTPUTS, bias=False).eval()
    loader = [(x[: DATA // 2], y[: DATA // 2]), (x[DATA // 2 :], y[DATA // 2 :])]
    rows = {}
    for name, prior in (("fixed", sampla.Isotropic(ALPHA, learn=False)), ("learnt by EM", sampla.Isotropic())):
        rows[name] = fitted(layer, prior, loader, x, ALPHA if name == "fixed" else exact_alpha(x, y))
        print(rows[name]["report"], *rows[name]["warnings"], sep="\n", flush=True)
    (out / "eleven_million.md").write_text(words(rows), encoding="utf-8")


def fitted(
    layer: torch.nn.Module, prior: sampla.Isotropic, loader: Any, x: torch.Tensor, best: float
) -> dict[str, Any]:
    """A fit, what it says, and what is true of it; ``best`` is the alpha that it should find."""
    start = perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", sampla.ConvergenceWarning)
        la = sampla.LinearisedLaplace(
            layer, sampla.Gaussian(NOISE), prior, num_samples=K, em=EM(tolerance=0.01), log_evidence=prior.learn
        ).fit(loader)  # fmt: skip
    seconds, alpha = perf_counter() - start, float(la.prior_precision_[0])
    return {
        "report": str(la.report_),
        "warnings": [str(w.message) for w in caught if issubclass(w.category, sampla.ConvergenceWarning)],
        "alpha": alpha,
        "best": best,
        "passes": la.report_.passes,
        "seconds": seconds,
        "stated": la.report_.solve_error,
        "true": true_error(la, x, alpha),
        "gamma": float(la.effective_dimension_.sum()),
        "gamma_error": float(la.report_.effective_dimension_error[0]),
        "exact": exact_gamma(x, alpha),
    }


def words(rows: dict[str, dict[str, Any]]) -> str:
    """The results file."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    lines = [
        "# Eleven million parameters in float32",
        "",
        f"Written by `python benchmarks/eleven_million.py`: torch {torch.__version__}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, {platform.system()} {platform.machine()}. P = {INPUTS * OUTPUTS:,}, "
        f"{DATA} data of {OUTPUTS:,} outputs, K = {K}, Gaussian noise of precision {NOISE:g}. Truth: the Gram matrix "
        f"of the data in float64. Peak memory {peak:.1f} GiB; one block of K vectors is "
        f"{4 * K * INPUTS * OUTPUTS / 2**30:.2f} GiB.",
        "",
        "| precision | alpha | exact | passes | seconds | error stated | true | gamma | standard error | exact |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['alpha']:.4g} | {row['best']:.4g} | {row['passes']:.1f} | {row['seconds']:.0f} | "
            f"{row['stated']:.2%} | {row['true']:.2%} | "
            f"{row['gamma']:.1f} | {row['gamma_error']:.1f} | {row['exact']:.1f} |"
        )
    lines += [
        "",
        "The error is that of a function draw: stated for all samples, true for the first one. The exact alpha is "
        "MacKay's fixed point.",
    ]
    for name, row in rows.items():
        lines += ["", f"Precision {name}:", "", "```", row["report"], *row["warnings"], "```"]
    return "\n".join(lines) + "\n"


def exact_gamma(x: torch.Tensor, alpha: float) -> float:
    """tr M (M + alpha)^-1 from the Gram matrix."""
    values = torch.linalg.eigvalsh(x.double() @ x.double().mT) * NOISE
    return OUTPUTS * float((values / (values + alpha)).sum())


def exact_alpha(x: torch.Tensor, y: torch.Tensor) -> float:
    """MacKay's fixed point alpha |mean|^2 = gamma by bisection in log alpha, from the Gram matrix."""
    values, vectors = torch.linalg.eigh(x.double() @ x.double().mT)
    values = values.clamp_min(0) * NOISE
    rotated = (vectors.mT @ y.double()).square().sum(1) * NOISE
    low, high = -20.0, 40.0
    for _ in range(100):
        alpha = math.exp((low + high) / 2)
        gamma = OUTPUTS * (values / (values + alpha)).sum()
        mean = (values * rotated / (values + alpha).square()).sum()
        low, high = (math.log(alpha), high) if alpha * mean < gamma else (low, math.log(alpha))
    return math.exp(low)


def true_error(la: sampla.LinearisedLaplace, x: torch.Tensor, alpha: float) -> float:
    """|phi (z - z*)| / |phi z*| of the first sample, whose right-hand side is drawn again.

    With b = X'(noise) + sqrt(alpha) xi the exact functions are X z* = (G + alpha / B)^-1 X b / B, G = X X'.
    """
    inference = la._inference
    assert inference is not None
    draw = inference.model.draw_noise(0, 1).data_part
    xi = standard_normal(0, PRIOR, range(1), 0, (INPUTS * OUTPUTS,), draw)
    b = (draw + alpha**0.5 * xi).view(OUTPUTS, INPUTS).double()
    gram, pushed = x.double() @ x.double().mT, x.double() @ b.mT  # (N, C)
    exact = torch.linalg.solve(NOISE * gram + alpha * torch.eye(DATA).double(), pushed)
    found = x.double() @ inference.samples[0].view(OUTPUTS, INPUTS).double().mT
    return float((found - exact).norm() / exact.norm())


if __name__ == "__main__":
    with freed_memory_kept():
        main()
