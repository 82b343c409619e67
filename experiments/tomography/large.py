"""The large experiment: 501 x 501 pixels, 60 fan-beam angles x 128 bins, a U-Net of about 2 million parameters.

    python -m experiments.tomography.large --root DIR              # the whole fit: for a GPU
    python -m experiments.tomography.large --root DIR --measure    # a few products with K = 2, the rest projected

DIR holds ct/walnut_slice_1024.png. Writes OUT/results.md (and pictures, after a whole fit).
"""

from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from skimage.io import imread
from skimage.transform import resize
from torch import Tensor

from experiments.common.command import command
from experiments.common.facts import GIB, peak_memory
from experiments.common.page import RESULTS, write_page
from experiments.common.store import save_arrays
from sampla import tomography
from sampla.apps.ct.illustrate import calibration_figure, images_figure
from sampla.features import NetworkFeatures, select_parameters
from sampla.tomography import Geometry, LinearisedDIP, MatrixOperator, ProjectedFeatures, Recipe
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


def measure(operator: MatrixOperator, sinogram: Tensor) -> dict[str, Any]:
    """Cost of products with K = 2 and of a training step at the first weights, and what a whole fit would take."""
    network, given = tomography.unet_for((SIDE, SIDE)).eval(), tomography.fixed_input((SIDE, SIDE))
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
    products = _PROBES / 2 + _ROWS + _PASSES * (SAMPLES + 1)
    return {
        "size": size, "measurements": operator.num_measurements, "entries": operator.scipy.nnz, "forward": forward,
        "backward": backward, "product": product, "training": training, "hours of training": _STEPS * training / 3600,
        "hours": products * product / 3600, "plan": plan(size, operator, SAMPLES), "peak": peak_memory() / GIB,
        "steps": _STEPS, "probes": _PROBES, "rows": _ROWS, "passes": _PASSES,
    }  # fmt: skip


def whole(
    operator: MatrixOperator, image: Tensor, sinogram: Tensor, out: Path, cache: Path, samples: int = SAMPLES,
    recipe: Recipe | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The fit, its scores and pictures."""
    start = perf_counter()
    dip = LinearisedDIP(operator, num_samples=samples, recipe=recipe).fit(sinogram)
    predictive = dip.posterior_.predict_image()
    error = (image.to(predictive.mean) - predictive.mean).abs()
    panels = {
        "Walnut": (image, "image"), "Reconstruction": (predictive.mean, "image"),
        "Standard deviation": (predictive.std, "spread"), "|error|": (error, "spread"),
    }  # fmt: skip
    (out / "overview.png").write_bytes(images_figure(panels))
    (out / "calibration.png").write_bytes(calibration_figure({"pixels": (error / predictive.total_std).cpu()}))
    mean, deviations = predictive.mean.cpu(), predictive.deviations.cpu()
    save_arrays(cache / "predictions" / "walnut.npz", mean=mean, deviations=deviations, truth=image)
    return {
        "seconds": perf_counter() - start, "device": operator.like.device, "training": dip.training_.seconds,
        "scores": tomography.score(predictive, image), "certificate": f"{dip.report_}\n{dip.plan_}",
        "noise_only": tomography.score(dip.posterior_.predict_noise_only(), image), "patches": tomography.PATCH_SIZES,
    }  # fmt: skip


def main() -> None:
    """Command line."""
    more = {"measure": (False, "a few products, the rest projected"), "device": ("cpu", "of the whole fit")}
    asked = command(__doc__, RESULTS / "tomography-large", "ct/", threads=None, **more)
    start = perf_counter()
    operator = tomography.ray_transform(geometry())
    assembled = perf_counter() - start
    asked.out.mkdir(parents=True, exist_ok=True)
    image, sinogram = measurement(asked.root, operator)
    if asked.measure:
        found = measure(operator, sinogram)
    else:
        operator, sinogram = operator.to(torch.float32, asked.device), sinogram.to(asked.device)
        found = whole(operator, image, sinogram, asked.out, asked.cache or asked.out / "cache")
    write_page(
        asked.out / "results.md", "experiments/tomography/large.md.j2", found=found, assembled=assembled, side=SIDE,
        angles=ANGLES, bins=BINS, noise=NOISE, samples=SAMPLES, torch=torch.__version__,
        flags="--measure" if asked.measure else f"--device {asked.device}", threads=torch.get_num_threads(),
    )  # fmt: skip


if __name__ == "__main__":
    main()
