"""The large experiment: 501 x 501 pixels, 60 fan-beam angles x 128 bins, a U-Net of about 2 million parameters.

    python experiments/tomography_large/run.py --root DIR              # the whole fit: for a GPU
    python experiments/tomography_large/run.py --root DIR --measure    # a few products with K = 2, the rest projected

DIR holds ct/walnut_slice_1024.png. Writes results.md (and pictures, after a whole fit) beside this file.
"""

import argparse
import resource
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import torch
from skimage.io import imread
from skimage.transform import resize
from torch import Tensor

from sampla.apps.ct.illustrate import calibration_figure, images_figure
from sampla.features import NetworkFeatures, select_parameters
from sampla.tomography import (
    PATCH_SIZES,
    Geometry,
    LinearisedDIP,
    MatrixOperator,
    ProjectedFeatures,
    Recipe,
    fixed_input,
    ray_transform,
    score,
    unet_for,
)
from sampla.tomography.plan import plan

SIDE, ANGLES, BINS, NOISE, SAMPLES = 501, 60, 128, 0.05, 16
_STEPS, _PASSES, _PROBES, _ROWS = Recipe().steps, 10, 128, 300
"""What the projection counts: training steps; passes of the final solve and rows of EM's space, as at 128 x 128."""


def geometry() -> Geometry:
    """A fan beam over a full turn, source twice the image's diagonal away; the detector just sees the whole image."""
    diagonal = SIDE * 2**0.5
    near, far = 2 * diagonal, 4 * diagonal
    width = 2 * far * np.tan(np.arcsin(diagonal / 2 / near)) / BINS
    angles = tuple(np.linspace(0, 2 * np.pi, ANGLES, endpoint=False).tolist())
    return Geometry((SIDE, SIDE), 1.0, angles, BINS, float(width), near, far)


def measurement(root: Path, operator: MatrixOperator) -> tuple[Tensor, Tensor]:
    """The walnut in [0, 1], (501, 501), and its sinogram with 5 % noise."""
    grey = imread(root / "ct" / "walnut_slice_1024.png")[..., 0] / 255
    image = torch.from_numpy(resize(grey, (SIDE, SIDE), anti_aliasing=True)).float()
    clean = operator.forward(image[None])[0]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    return image, (clean + NOISE * clean.abs().mean() * noise).view(ANGLES, BINS)


def timed(function: Callable[[], object]) -> float:
    """CPU seconds of a call, after one to warm up: what others do on the machine hardly counts."""
    function()
    start = process_time()
    function()
    return process_time() - start


def measure(operator: MatrixOperator, sinogram: Tensor) -> str:
    """Cost of products with K = 2 and of a training step at the first weights, and what a whole fit would take."""
    network, given = unet_for((SIDE, SIDE)).eval(), fixed_input((SIDE, SIDE))
    features = ProjectedFeatures(NetworkFeatures(network, select_parameters(network, None)[0]), operator, given)
    generator, size = torch.Generator().manual_seed(0), features.layout.total
    vectors = torch.randn(2, size, generator=generator)
    cotangents = torch.randn(2, 1, operator.num_measurements, generator=generator)
    forward = timed(lambda: features.jvp(vectors)) / 2
    backward = timed(lambda: features.vjp(cotangents)) / 2

    def step() -> None:
        network.zero_grad()
        (operator(network(given)[0])[0] - sinogram.flatten()).square().sum().backward()

    training, product = timed(step), forward + backward
    planned = plan(size, operator, SAMPLES)
    products = _PROBES / 2 + _ROWS + _PASSES * (SAMPLES + 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return "\n".join([
        "## Measured on the CPU with K = 2, and projected", "",
        f"{size:,} parameters, {operator.num_measurements:,} measurements, {operator.scipy.nnz:,} entries of the "
        f"operator. CPU seconds, {torch.get_num_threads()} thread(s), torch {torch.__version__}.", "",
        "| | seconds |", "| --- | ---: |", f"| T J v, a vector | {forward:.2f} |",
        f"| J' T' u, a vector | {backward:.2f} |",
        f"| a product with M, a vector | {product:.2f} |", f"| a pass with K = {SAMPLES} and the mean | "
        f"{(SAMPLES + 1) * product:.0f} |", f"| a training step | {training:.2f} |", "",
        f"Projected: training {_STEPS * training / 3600:.1f} h ({_STEPS} steps at most); the posterior "
        f"{products * product / 3600:.1f} h: {_PROBES} half products for diag M, {_ROWS} for EM's space and "
        f"{_PASSES} passes with {SAMPLES + 1} columns, counts as they were at 128 x 128; without orthogonalisation.",
        "", f"Memory plan: {planned}. Peak of this process {peak:.1f} GiB.", "",
    ])  # fmt: skip


def whole(operator: MatrixOperator, image: Tensor, sinogram: Tensor, out: Path) -> str:
    """The fit, its scores and pictures."""
    start = perf_counter()
    dip = LinearisedDIP(operator, num_samples=SAMPLES).fit(sinogram)
    predictive = dip.posterior_.predict_image()
    scores, noise_only = score(predictive, image), score(dip.posterior_.predict_noise_only(), image)
    error = (image.to(predictive.mean) - predictive.mean).abs()
    panels = {
        "Walnut": (image, "image"), "Reconstruction": (predictive.mean, "image"),
        "Standard deviation": (predictive.std, "spread"), "|error|": (error, "spread"),
    }  # fmt: skip
    (out / "overview.png").write_bytes(images_figure(panels))
    (out / "calibration.png").write_bytes(calibration_figure({"pixels": (error / predictive.total_std).cpu()}))
    lines = [
        "## The whole fit", "", f"{perf_counter() - start:.0f} s on {operator.like.device}, of which training "
        f"{dip.training_.seconds:.0f} s. PSNR {scores.psnr:.2f} dB, SSIM {scores.ssim:.3f}, within 1, 2, 3 standard "
        f"deviations {', '.join(f'{s:.1%}' for s in scores.inside.values())}, rank correlation of the standard "
        f"deviation with the error {scores.rank_correlation:.2f}.", "",
        "| patch | noise only, nats per pixel | sampla |", "| --- | ---: | ---: |",
        *(f"| {p} x {p} | {noise_only.log_prob[p]:.3f} | {scores.log_prob[p]:.3f} |" for p in PATCH_SIZES),
        "", f"```\n{dip.report_}\n{dip.plan_}\n```", "",
        "![overview](overview.png)", "", "![calibration](calibration.png)", "",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    given = parser.parse_args()
    start = perf_counter()
    operator = ray_transform(geometry())
    assembled = perf_counter() - start
    image, sinogram = measurement(given.root, operator)
    text = (
        measure(operator, sinogram)
        if given.measure
        else whole(operator.to(torch.float32, given.device), image, sinogram.to(given.device), given.out)
    )
    flags = " --measure" if given.measure else f" --device {given.device}"
    head = (
        f"# {SIDE} x {SIDE} pixels, {ANGLES} fan-beam angles x {BINS} bins\n\nWritten by `python "
        f"experiments/tomography_large/run.py --root DIR{flags}`. A walnut slice with {NOISE:.0%} noise, g-prior, "
        f"K = {SAMPLES}, float32. The operator took {assembled:.1f} s to assemble.\n\n"
    )
    (given.out / "results.md").write_text(head + text, encoding="utf-8")


if __name__ == "__main__":
    main()
