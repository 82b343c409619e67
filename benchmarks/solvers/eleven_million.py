"""Block CG and the Krylov space at P = 11 million in float32, against the exact answer. Writes eleven_million.md.

    python -m benchmarks.solvers.eleven_million [--out benchmarks]

The model is one linear layer of 11,000 inputs and 1,000 outputs with Gaussian noise: M = (X'X) (x) I, so that the exact
solution needs only the Gram matrix of N rows. The targets are drawn from it, with the precision of the first fit.
"""

import math
import warnings
from time import perf_counter
from typing import Any

import torch
from experiments.common.command import command, say
from experiments.common.facts import GIB, environment, peak_memory
from experiments.common.page import BENCHMARKS, share, table, write_page
from scipy.optimize import brentq

import sampla
from sampla.core.allocator import freed_memory_kept
from sampla.core.noise import PRIOR, standard_normal
from sampla.inference.infer import EM

INPUTS, OUTPUTS, DATA, K, ALPHA, NOISE = 11_000, 1_000, 96, 8, 1000.0, 1.0
DECADES = 2
"""By how many powers of ten the inputs' scales fall from the first datum to the last."""


def main() -> None:
    """Draw data whose inputs have a decaying spectrum, fit with a fixed and with a learnt precision, compare."""
    out = command(__doc__, BENCHMARKS, threads=None).out
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
        say("\n".join([rows[name]["report"], *rows[name]["warnings"]]))
    write_page(
        out / "eleven_million.md", "benchmarks/solvers/eleven_million.md.j2", facts=environment(), rows=rows,
        size=INPUTS * OUTPUTS, data=DATA, outputs=OUTPUTS, samples=K, noise=NOISE, peak=peak_memory() / GIB,
        block=4 * K * INPUTS * OUTPUTS / GIB, table=table(rows, _COLUMNS),
    )  # fmt: skip


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
        "report": str(la.report_), "alpha": alpha, "best": best, "passes": la.report_.passes, "seconds": seconds,
        "warnings": [str(w.message) for w in caught if issubclass(w.category, sampla.ConvergenceWarning)],
        "stated": la.report_.solve_error, "true": true_error(la, x, alpha),
        "gamma": float(la.effective_dimension_.sum()), "exact": exact_gamma(x, alpha),
        "gamma_error": float(la.report_.effective_dimension_error[0]),
    }  # fmt: skip


_COLUMNS = {
    "precision": "{key}", "alpha": "{alpha:.4g}", "exact": "{best:.4g}", "passes": "{passes:.1f}",
    "seconds": "{seconds:.0f}", "error stated": lambda row: share(row["stated"]),
    "true": lambda row: share(row["true"]), "gamma": "{gamma:.1f}", "standard error": "{gamma_error:.1f}",
    "exact ": "{exact:.1f}",
}  # fmt: skip


def exact_gamma(x: torch.Tensor, alpha: float) -> float:
    """tr M (M + alpha)^-1 from the Gram matrix."""
    values = torch.linalg.eigvalsh(x.double() @ x.double().mT) * NOISE
    return OUTPUTS * float((values / (values + alpha)).sum())


def exact_alpha(x: torch.Tensor, y: torch.Tensor) -> float:
    """MacKay's fixed point alpha |mean|^2 = gamma by a bracketing search in log alpha, from the Gram matrix."""
    values, vectors = torch.linalg.eigh(x.double() @ x.double().mT)
    values = values.clamp_min(0) * NOISE
    rotated = (vectors.mT @ y.double()).square().sum(1) * NOISE

    def surplus(log_alpha: float) -> float:
        alpha = math.exp(log_alpha)
        gamma = OUTPUTS * (values / (values + alpha)).sum()
        return float(alpha * (values * rotated / (values + alpha).square()).sum() - gamma)

    return math.exp(brentq(surplus, -20.0, 40.0))


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
