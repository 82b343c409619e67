"""The small exact experiment: MNIST digits from 20 noisy views, every figure beside the closed form in float64.

    python -m experiments.tomography.small --root DIR     # DIR holds mnist/t10k-images-idx3-ubyte.gz

Writes OUT/results.md and results.json. The reference is tests/dense_tomography.py, which shares no code with sampla.
"""

from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from math import log
from time import perf_counter
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.common.command import parser, say
from experiments.common.page import RESULTS, ROOT, provenance, table, write_page
from experiments.common.store import Store, save_arrays
from sampla.apps.demo.data import read_idx
from sampla.tomography import PATCH_SIZES, Geometry, LinearisedDIP, fixed_input, ray_transform, score

SIDE, VIEWS, BINS, NOISE = 28, 20, 43, 0.05


def _closed_form() -> ModuleType:
    """tests/dense_tomography.py, which is in no package."""
    spec = spec_from_file_location("dense_tomography", ROOT / "tests" / "dense_tomography.py")
    assert spec is not None
    assert spec.loader is not None
    found = module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


dense_tomography = _closed_form()


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
    log_prob = {
        size: dense_tomography.patch_log_prob(predictive.mean, covariance, image, size, predictive.floor)
        for size in PATCH_SIZES
    }
    draws = predictive.deviations.flatten(1)
    arrays = {"mean": predictive.mean, "deviations": predictive.deviations, "truth": image}
    save_arrays(store.predictions(key), {name: value.numpy() for name, value in arrays.items()})
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
        "digit": lambda pair: pair[0],
        "PSNR, dB": lambda pair: f"{pair[1]['psnr']:.1f}",
        "noise, true": lambda pair: f"{pair[1]['noise'][0]:.4f}",
        "exact EM": lambda pair: f"{pair[1]['noise'][1]:.4f}",
        "sampla": lambda pair: f"{pair[1]['noise'][2]:.4f}",
        "alpha, exact EM": lambda pair: f"{pair[1]['alpha'][0]:.4g}",
        "sampla ": lambda pair: f"{pair[1]['alpha'][1]:.4g}",
        "gamma, exact": lambda pair: f"{pair[1]['gamma'][0]:.1f}",
        "sampla  ": lambda pair: f"{pair[1]['gamma'][1]:.1f}",
        "s": lambda pair: f"{pair[1]['seconds']:.0f}",
    }
    covariance = {
        "digit": lambda pair: pair[0],
        "error of S": lambda pair: f"{pair[1]['covariance']:.3f}",
        "expected": lambda pair: f"{pair[1]['expected']:.3f}",
        "z of the trace": lambda pair: f"{pair[1]['z of the trace']:+.2f}",
        "rank correlation of std and error": lambda pair: f"{pair[1]['rank']:.2f}",
    }
    command = f"experiments.tomography.small --root DIR --images {len(rows)} --samples {store.settings['samples']}"
    return {
        "provenance": provenance(store, command, "torch"), "images": len(rows), "samples": store.settings["samples"],
        "views": VIEWS, "bins": BINS, "noise": NOISE, "hyperparameters": table(rows.items(), hyper, left=0),
        "covariance": table(rows.items(), covariance, left=0), "sizes": PATCH_SIZES, "means": means,
        "alpha_off": max(abs(log(r["alpha"][1] / r["alpha"][0])) for r in rows.values()),
        "noise_off": max(abs(log(r["noise"][2] / r["noise"][1])) for r in rows.values()),
    }  # fmt: skip


def main() -> None:
    """Command line."""
    options = parser(__doc__, RESULTS / "tomography-small", "mnist/")
    options.add_argument("--images", type=int, default=10)
    options.add_argument("--samples", type=int, default=64)
    given = options.parse_args()
    store = Store(given.out / "results.json", {"samples": given.samples}, given.cache)
    digits = torch.from_numpy(read_idx(given.root / "mnist" / "t10k-images-idx3-ubyte.gz")[: given.images] / 255)
    for seed, image in enumerate(digits):
        key = f"digit/{seed}"
        store.once(key, partial(measure, store, key, image, seed, given.samples))
        say(f"{key}: {store.rows[key]['psnr']:.1f} dB")
    write_page(given.out / "results.md", "experiments/tomography/small.md.j2", **page(store))


if __name__ == "__main__":
    main()
