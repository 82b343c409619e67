"""`sampla ct` from beginning to end: reconstruct, draw samples, compare with the usual references, write everything."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

import sampla
from sampla.apps.ct.data import Scan
from sampla.apps.ct.illustrate import calibration_figure, images_figure, samples_panels
from sampla.apps.ct.report import page
from sampla.apps.page import Picture, write_html
from sampla.core import checkpoint
from sampla.tomography import (
    PATCH_SIZES,
    ImagePredictive,
    ImageScores,
    LinearisedDIP,
    Recipe,
    TotalVariation,
    filtered_back_projection,
    psnr_ssim,
    ray_transform,
    score,
    solve_tv,
)


@dataclass(frozen=True)
class Settings:
    """What `sampla ct` is asked for."""

    out: Path = Path("sampla-ct")
    seed: int = 0
    num_samples: int = 16
    quiet: bool = False
    steps: int | None = None
    """Training steps instead of the recipe's."""


@dataclass(frozen=True)
class Result:
    """Everything a run found; what the files say comes from here."""

    settings: Settings
    scan: Scan
    dip: LinearisedDIP
    predictive: ImagePredictive
    references: dict[str, Tensor]
    """Name -> (H, W) of the usual methods."""
    variation: TotalVariation
    """How well one of them is known."""
    scores: ImageScores | None
    """Against the scan's reference image, if it has one."""
    alternatives: dict[str, ImageScores]
    """Name -> the same image with one standard deviation for all its pixels; empty without a reference."""
    quality: dict[str, tuple[float, float]]
    """Method -> PSNR and SSIM."""
    residual_ratio: Tensor
    """(m,) |y - T f| over the standard deviation of a measurement, noise and posterior together."""
    seconds: float


def run_ct(settings: Settings, scan: Scan, say: Callable[[str], None] = print) -> Result:
    """Reconstruct a scan with error bars and write all files to ``settings.out``.

    Args:
        settings: what to do.
        scan: from ``read_scan`` or ``demo_scan``.
        say: called with each line for the console.

    Raises:
        ValueError: if the scan cannot be reconstructed.
        ModuleNotFoundError: without ASTRA.
    """
    result = reconstruct(settings, scan, say)
    write_files(result)
    say(f"{result.seconds:.0f} s; everything is in {settings.out}: open {settings.out / 'report.html'}")
    return result


def reconstruct(settings: Settings, scan: Scan, say: Callable[[str], None] = print) -> Result:
    """Everything but the files."""
    start = perf_counter()
    operator = ray_transform(scan.geometry)
    say(
        f"{scan.name}: {scan.geometry.num_angles} views of {scan.geometry.num_bins} bins, "
        f"{' x '.join(map(str, scan.geometry.image_shape))} pixels"
    )
    recipe = Recipe() if settings.steps is None else Recipe(steps=settings.steps, start_steps=settings.steps)
    dip = LinearisedDIP(
        operator, scan.noise_std, learn_noise=True, num_samples=settings.num_samples, seed=settings.seed,
        recipe=recipe, progress=not settings.quiet,
    ).fit(scan.sinogram)  # fmt: skip
    say(f"trained {dip.training_.steps} steps in {dip.training_.seconds:.0f} s\n{dip.report_}\n{dip.plan_}")
    predictive = dip.posterior_.predict_image()
    spread = dip.noise_std_ * (torch.ones_like(scan.sinogram) if scan.noise_std is None else scan.noise_std).flatten()
    back = filtered_back_projection(scan.sinogram.double().numpy(), scan.geometry)
    variation = solve_tv(operator, scan.sinogram.flatten(), float(spread.square().mean().sqrt()))
    references = {"filtered back-projection": torch.from_numpy(back).float(), "total variation": variation.image}
    measured = operator.forward(predictive.mean[None])[0]
    variance = operator.forward(predictive.deviations).square().mean(0) + spread.square()
    ratio = (scan.sinogram.flatten() - measured).abs() / variance.sqrt()
    scores, alternatives, quality = None, {}, {}
    if scan.reference is not None:
        scores = score(predictive, scan.reference)
        level = float(predictive.variance.mean().sqrt())
        alternatives = {
            "measurement noise alone": score(dip.posterior_.predict_noise_only(), scan.reference),
            "equal deviations": score(ImagePredictive.uniform(predictive.mean, level), scan.reference),
        }
        methods = {**references, "deep image prior": predictive.mean}
        quality = {name: psnr_ssim(image, scan.reference) for name, image in methods.items()}
    return Result(
        settings, scan, dip, predictive, references, variation, scores, alternatives, quality, ratio,
        perf_counter() - start,
    )  # fmt: skip


def write_files(result: Result) -> None:
    """summary.json, images.safetensors, the pictures and report.html."""
    out, predictive = result.settings.out, result.predictive
    out.mkdir(parents=True, exist_ok=True)
    summary = summarise(result)
    (out / "summary.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    tensors = {"reconstruction": predictive.mean, "std": predictive.std, "samples": predictive.samples}
    checkpoint.save(out / "images.safetensors", tensors, {"geometry": result.scan.geometry.to_dict()})
    drawn = pictures(result)
    for picture in drawn:
        (out / f"{picture.name}.png").write_bytes(picture.png)
    write_html(page(summary, str(result.dip.report_), drawn), out / "report.html")


def pictures(result: Result) -> list[Picture]:
    """The reconstruction beside the references, samples, calibration."""
    predictive, reference = result.predictive, result.scan.reference
    panels = {"Reconstruction": (predictive.mean, "image"), "Standard deviation": (predictive.std, "spread")}
    panels |= {name.capitalize(): (image, "image") for name, image in result.references.items()}
    ratios = {}
    if reference is not None:
        error = (reference - predictive.mean).abs()
        panels = {
            "Reference": (reference, "image"), **panels, "|Reference - reconstruction|": (error, "spread"),
        }  # fmt: skip
        ratios["pixels, against the reference"] = error / predictive.total_std
    ratios["measurements that were fitted"] = result.residual_ratio
    return [
        Picture(
            "overview", "The reconstruction and its error bars",
            "Bright in the map of standard deviations: where other images explain the sinogram about as well. Grey "
            "scales are shared.",
            images_figure(panels),
        ),
        Picture(
            "samples", "Images that explain the sinogram about as well",
            "Joint samples of the posterior, and how each departs from the reconstruction: errors of neighbouring "
            "pixels go together.",
            images_figure(samples_panels(predictive)),
        ),
        Picture(
            "calibration", "Do the error bars keep their promise?",
            "The share of pixels (or measurements) that lie within central intervals of a given probability. On the "
            "dashed line they agree; above it the error bars are wider than needed, below it too narrow. Measurements "
            "were fitted, so that they lie a little nearer than new ones would.",
            calibration_figure(ratios),
        ),
    ]  # fmt: skip


def summarise(result: Result) -> dict[str, Any]:
    """The whole run as plain JSON types."""
    dip, scan = result.dip, result.scan
    settings = {k: v for k, v in asdict(result.settings).items() if k not in ("out", "quiet")}
    return {
        "name": scan.name,
        "settings": settings,
        "geometry": scan.geometry.to_dict(),
        "noise_std": dip.noise_std_,
        "noise_is_relative": scan.noise_std is not None,
        "pixel_noise": dip.posterior_.pixel_noise,
        "mean_std": float(result.predictive.std.mean()),
        "shrinkage": {size: result.predictive.shrinkage(size) for size in _sizes(result)},
        "quality": {name: {"psnr": p, "ssim": s} for name, (p, s) in result.quality.items()},
        "total_variation": {"status": result.variation.status, "converged": result.variation.converged},
        "scores": None if result.scores is None else asdict(result.scores),
        "alternatives": {
            name: {"inside": other.inside, "log_prob": other.log_prob} for name, other in result.alternatives.items()
        },
        "training": {k: v for k, v in asdict(dip.training_).items() if k != "misfits"}
        | {"steps": dip.training_.steps, "last_misfit": dip.training_.misfits[-1]},
        "plan": str(dip.plan_),
        "solver": type(dip.solver).__name__,
        "fit": dip.report_.to_dict(),
        "seconds": result.seconds,
        "versions": {"sampla": sampla.__version__, "torch": torch.__version__},
    }


def _sizes(result: Result) -> list[int]:
    return [size for size in PATCH_SIZES if size <= min(result.scan.geometry.image_shape)]
