"""Block conjugate gradients and the Krylov space at P = 11 million in float32, against the exact answer.

    python benchmarks/eleven_million.py

The model is one linear layer of 11,000 inputs and 1,000 outputs with Gaussian noise: M = (X'X) (x) I, so that the exact
solution needs only the Gram matrix of N rows. Prints true and stated errors, passes, seconds and the peak of memory.
"""

import resource
from time import perf_counter

import torch

import sampla
from sampla._allocator import freed_memory_kept
from sampla.em import EM
from sampla.noise import PRIOR, standard_normal

INPUTS, OUTPUTS, DATA, K, ALPHA, NOISE = 11_000, 1_000, 96, 8, 1000.0, 1.0


def main() -> None:
    """Draw data whose inputs have a decaying spectrum, fit with a fixed and with a learnt precision, compare."""
    torch.manual_seed(0)
    x = torch.randn(DATA, INPUTS) * torch.logspace(0, -2, DATA)[:, None]
    y = torch.randn(DATA, OUTPUTS)
    layer = torch.nn.Linear(INPUTS, OUTPUTS, bias=False).eval()
    loader = [(x[:48], y[:48]), (x[48:], y[48:])]
    for prior in (sampla.Isotropic(ALPHA, learn=False), sampla.Isotropic()):
        start = perf_counter()
        la = sampla.LinearisedLaplace(
            layer, sampla.Gaussian(NOISE), prior, num_samples=K, em=EM(tolerance=0.01), log_evidence=prior.learn
        ).fit(loader)  # fmt: skip
        seconds = perf_counter() - start
        alpha = float(la.prior_precision_[0])
        print(la.report_)
        print(
            f"true error   {true_error(la, x, alpha):.2%} of a function draw, P = {INPUTS * OUTPUTS:,}, {seconds:.0f} s"
        )
        print(f"exact gamma  {exact_gamma(x, alpha):.1f}")
    print(f"peak memory  {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


def exact_gamma(x: torch.Tensor, alpha: float) -> float:
    """tr M (M + alpha)^-1 from the Gram matrix."""
    values = torch.linalg.eigvalsh(x.double() @ x.double().mT) * NOISE
    return OUTPUTS * float((values / (values + alpha)).sum())


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
