"""The small exact experiment: MNIST digits from 20 noisy views, every figure beside the closed form in float64.

    python -m experiments.tomography.small --root DIR     # DIR holds mnist/t10k-images-idx3-ubyte.gz

Writes OUT/results.md and results.json. The reference is tests/dense_tomography.py, which shares no code with sampla.
"""

from functools import partial
from math import log
from time import perf_counter
from typing import Any

import numpy as np
import torch
from tests import dense_tomography
from torch import Tensor

from experiments.common.command import command, say
from experiments.common.page import RESULTS, provenance, table, write_page
from experiments.common.store import Store, save_arrays
from sampla.apps.demo.data import read_idx
from sampla.tomography import PATCH_SIZES, Geometry, LinearisedDIP, ray_transform, score

SIDE, VIEWS, BINS, NOISE = 28, 20, 43, 0.05


def measure(store: Store, key: str, image: Tensor, seed: int, samples: int) -> dict[str, Any]:
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
    model = dense_tomography.ImageModel(
        dense_tomography.image_jacobian(dip.network, list(posterior.features.layout.names), dip.input_),
        torch.from_numpy(operator.scipy.toarray()), dip.prior_.scale, sinogram.flatten() / posterior.scale,
    )  # fmt: skip
    alpha, beta = report.prior_precision[0], float(report.noise_precision)
    exact_alpha, exact_beta, exact_gamma = model.em(alpha, beta)
    covariance = model.covariance(alpha, beta) * posterior.scale**2
    predictive = posterior.predict_image()
    scores, noise_only = score(predictive, image), score(posterior.predict_noise_only(), image)
    log_prob = {
        size: dense_tomography.patch_log_prob(predictive.mean, covariance, image, size, predictive.floor)
        for size in PATCH_SIZES
    }
    draws = predictive.deviations.flatten(1)
    save_arrays(store.predictions(key), mean=predictive.mean, deviations=predictive.deviations, truth=image)
    square, trace = float(covariance.square().sum()), float(covariance.trace())
    return {
        "psnr": scores.psnr, "seconds": seconds, "rank": scores.rank_correlation,
        "noise": [std, exact_beta**-0.5 * posterior.scale, dip.noise_std_], "alpha": [exact_alpha, alpha],
        "gamma": [exact_gamma, report.effective_dimension[0]],
        "covariance": float((draws.mT @ draws / samples - covariance).norm()) / square**0.5,
        "expected": ((trace**2 + square) / samples / square) ** 0.5,
        "z of the trace": (float(draws.square().sum(1).mean()) - trace) / (2 * square / samples) ** 0.5,
        "log_prob": {s: [noise_only.log_prob[s], scores.log_prob[s], float(log_prob[s].mean()) / s**2]
                     for s in PATCH_SIZES},
    }  # fmt: skip


def page(store: Store) -> dict[str, Any]:
    """What the template is filled with."""
    rows = store.under("digit/")
    means = [[sum(r["log_prob"][str(s)][k] for r in rows.values()) / len(rows) for k in range(3)] for s in PATCH_SIZES]
    hyper = {
        "digit": "{key}", "PSNR, dB": "{psnr:.1f}", "noise, true": "{noise[0]:.4f}", "exact EM": "{noise[1]:.4f}",
        "sampla": "{noise[2]:.4f}", "alpha, exact EM": "{alpha[0]:.4g}", "sampla ": "{alpha[1]:.4g}",
        "gamma, exact": "{gamma[0]:.1f}", "sampla  ": "{gamma[1]:.1f}", "s": "{seconds:.0f}",
    }  # fmt: skip
    covariance = {
        "digit": "{key}", "error of S": "{covariance:.3f}", "expected": "{expected:.3f}",
        "z of the trace": "{z of the trace:+.2f}", "rank correlation of std and error": "{rank:.2f}",
    }  # fmt: skip
    call = f"experiments.tomography.small --root DIR --images {len(rows)} --samples {store.settings['samples']}"
    return {
        "provenance": provenance(store, call, "torch"), "images": len(rows), "samples": store.settings["samples"],
        "views": VIEWS, "bins": BINS, "noise": NOISE, "hyperparameters": table(rows, hyper, left=0),
        "covariance": table(rows, covariance, left=0), "sizes": PATCH_SIZES, "means": means,
        "alpha_off": max(abs(log(r["alpha"][1] / r["alpha"][0])) for r in rows.values()),
        "noise_off": max(abs(log(r["noise"][2] / r["noise"][1])) for r in rows.values()),
    }  # fmt: skip


def main() -> None:
    """Command line."""
    more = {"images": (10, "digits"), "samples": (64, "K")}
    asked = command(__doc__, RESULTS / "tomography-small", "mnist/", anew=True, threads=None, **more)
    store = Store(asked.out / "results.json", {"samples": asked.samples}, asked.cache, asked.anew)
    digits = torch.from_numpy(read_idx(asked.root / "mnist" / "t10k-images-idx3-ubyte.gz")[: asked.images] / 255)
    for seed, image in enumerate(digits):
        key = f"digit/{seed}"
        row = store.once(key, partial(measure, store, key, image, seed, asked.samples))
        say(f"{key}: {row['psnr']:.1f} dB")
    write_page(asked.out / "results.md", "experiments/tomography/small.md.j2", **page(store))


if __name__ == "__main__":
    main()
