"""The small exact experiment: MNIST digits from 20 noisy views, every figure beside the closed form in float64.

    python experiments/tomography_small/run.py --root DIR     # DIR holds mnist/t10k-images-idx3-ubyte.gz

Writes results.md beside this file. The reference is tests/dense_tomography.py, which shares no code with sampla.
"""

import argparse
import gzip
import sys
from dataclasses import dataclass
from math import log
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
import dense_tomography
from sampla.tomography import PATCH_SIZES, Geometry, LinearisedDIP, fixed_input, ray_transform, score

SIDE, VIEWS, BINS, NOISE = 28, 20, 43, 0.05


@dataclass(frozen=True)
class Row:
    """One digit."""

    psnr: float
    noise: tuple[float, float, float]
    """True, by the closed form's EM, by sampla's."""
    alpha: tuple[float, float]
    """Exact, sampla's."""
    gamma: tuple[float, float]
    covariance: tuple[float, float]
    """|S - C| / |C| in the Frobenius norm, and what K draws of C have on average."""
    trace: float
    """z of the trace of S."""
    log_prob: dict[int, tuple[float, float, float]]
    """Patch size -> noise only, sampla, exact covariance; nats per pixel."""
    rank: float
    seconds: float


def digits(root: Path, count: int) -> Tensor:
    """The first test images, (count, 28, 28) in [0, 1]."""
    raw = gzip.decompress((root / "mnist" / "t10k-images-idx3-ubyte.gz").read_bytes())
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=16).reshape(-1, SIDE, SIDE)[:count] / 255)


def measure(image: Tensor, seed: int, samples: int) -> Row:
    """Simulate, fit, and compare with the closed form at the same hyperparameters."""
    start = perf_counter()
    scan = Geometry((SIDE, SIDE), 1.0, tuple(np.linspace(0, np.pi, VIEWS, endpoint=False)), BINS, 1.0)
    operator = ray_transform(scan, torch.float64)
    clean = operator.forward(image[None])[0]
    std = NOISE * float(clean.abs().mean())
    noise = torch.randn(len(clean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sinogram = (clean + std * noise).view(VIEWS, BINS)
    dip = LinearisedDIP(operator, num_samples=samples, seed=seed, progress=False).fit(sinogram)
    seconds, posterior, report = perf_counter() - start, dip.posterior_, dip.report_
    given = fixed_input((SIDE, SIDE), seed).double()
    model = dense_tomography.ImageModel(
        dense_tomography.image_jacobian(dip.network, list(posterior.features.layout.names), given),
        torch.from_numpy(operator.scipy.toarray()), dip.prior_.scale, sinogram.flatten() / posterior.scale,
    )  # fmt: skip
    alpha, beta = report.prior_precision[0], float(report.noise_precision)
    exact_alpha, exact_beta, exact_gamma = model.em(alpha, beta)
    covariance = model.covariance(alpha, beta) * posterior.scale**2
    predictive = posterior.predict_image()
    scores, noise_only = score(predictive, image), score(posterior.predict_noise_only(), image)
    exact = {
        size: float(dense_tomography.patch_log_prob(predictive.mean, covariance, image, size, predictive.floor).mean())
        / size**2
        for size in PATCH_SIZES
    }
    draws = predictive.deviations.flatten(1)
    square = float(covariance.square().sum())
    trace = float((draws.square().sum(1).mean() - covariance.trace()) / (2 * square / samples) ** 0.5)
    return Row(
        scores.psnr, (std, exact_beta**-0.5 * posterior.scale, dip.noise_std_), (exact_alpha, alpha),
        (exact_gamma, report.effective_dimension[0]),
        (
            float((draws.mT @ draws / samples - covariance).norm()) / square**0.5,
            ((float(covariance.trace()) ** 2 + square) / samples / square) ** 0.5,
        ),
        trace, {s: (noise_only.log_prob[s], scores.log_prob[s], exact[s]) for s in PATCH_SIZES},
        scores.rank_correlation, seconds,
    )  # fmt: skip


def results(rows: list[Row], samples: int) -> str:
    """results.md."""
    lines = [
        "# Ten digits against the closed form", "",
        f"Written by `python experiments/tomography_small/run.py --root DIR --images {len(rows)} --samples {samples}`. "
        f"The first {len(rows)} test images of MNIST, {VIEWS} parallel views of {BINS} bins over half a turn, white "
        f"noise of {NOISE:.0%} of the mean, float64, K = {samples}; nothing is told of the noise. "
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s).", "",
        "## Hyperparameters", "",
        "Exact: MacKay's updates repeated to 1e-12 in the dense kernel's eigenbasis. gamma: what the data determine.",
        "",
        "| digit | PSNR, dB | noise, true | exact EM | sampla | alpha, exact EM | sampla | gamma, exact | sampla | s |",
        "|" + " ---: |" * 10,
    ]  # fmt: skip
    lines += [
        f"| {n} | {r.psnr:.1f} | {r.noise[0]:.4f} | {r.noise[1]:.4f} | {r.noise[2]:.4f} | {r.alpha[0]:.4g} | "
        f"{r.alpha[1]:.4g} | {r.gamma[0]:.1f} | {r.gamma[1]:.1f} | {r.seconds:.0f} |"
        for n, r in enumerate(rows)
    ]
    worst = max(abs(log(r.alpha[1] / r.alpha[0])) for r in rows)
    lines += [
        "", f"Largest |log ratio| to the exact fixed point: alpha {worst:.3f}, noise "
        f"{max(abs(log(r.noise[2] / r.noise[1])) for r in rows):.3f}.", "",
        "## Covariance of the image", "",
        "S from the samples, C by conditioning the Gaussian, at sampla's hyperparameters. Expected: the error of "
        "K draws, sqrt((tr(C)^2 + |C|^2) / K) / |C|. z: of the trace, standard normal if the samples are exact.", "",
        "| digit | error of S | expected | z of the trace | rank correlation of std and error |", "|" + " ---: |" * 5,
    ]  # fmt: skip
    lines += [
        f"| {n} | {r.covariance[0]:.3f} | {r.covariance[1]:.3f} | {r.trace:+.2f} | {r.rank:.2f} |"
        for n, r in enumerate(rows)
    ]
    lines += [
        "", "## Log-likelihood of patches, nats per pixel, mean over the digits", "",
        "Noise only: what the measurement noise leaves in a pixel if all others are known. sampla: K samples, "
        "stabilised (tomography/image.py). Exact: the dense covariance with the same s^2.", "",
        "| patch | noise only | sampla | exact covariance |", "|" + " ---: |" * 4,
    ]  # fmt: skip
    for size in PATCH_SIZES:
        means = [sum(r.log_prob[size][k] for r in rows) / len(rows) for k in range(3)]
        lines.append(f"| {size} x {size} | " + " | ".join(f"{m:.3f}" for m in means) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    given = parser.parse_args()
    rows = []
    for seed, image in enumerate(digits(given.root, given.images)):
        rows.append(measure(image, seed, given.samples))
        print(seed, rows[-1], flush=True)
    (given.out / "results.md").write_text(results(rows, given.samples), encoding="utf-8")


if __name__ == "__main__":
    main()
