"""`sampla ct` from beginning to end: reconstruct, draw samples, compare with the usual references, write everything."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sampla
from sampla.apps.ct.data import Scan, write_tiff
from sampla.apps.ct.fitting import Fit, Method, facts, fitted, misfit
from sampla.apps.ct.illustrate import calibration_figure, images_figure, residual_figure, samples_panels
from sampla.apps.ct.report import page
from sampla.apps.page import Picture, write_html
from sampla.core import checkpoint
from sampla.core.checks import require
from sampla.tomography import (
    PATCH_SIZES,
    ImagePredictive,
    ImageScores,
    Operator,
    TotalVariation,
    Whitened,
    diagnose,
    filtered_back_projection,
    psnr_ssim,
    ray_transform,
    score,
    solve_tv,
)
from sampla.tomography.variational import MISSED

_NAMES = {"network": "deep image prior", "variational": "variational total variation"}


@dataclass(frozen=True)
class Settings:
    """What `sampla ct` is asked for."""

    out: Path = Path("sampla-ct")
    seed: int = 0
    num_samples: int | None = None
    """K; the method's own default unless given."""
    quiet: bool = False
    steps: int | None = None
    """Training steps instead of the recipe's."""
    device: str = "cpu"
    method: Method = "variational"
    save: Path | None = None
    """Folder for the fit itself, which LinearisedDIP.load or VariationalTV.load reads."""
    checkpoint: Path | None = None
    """Folder in which a fit that is stopped is kept, to go on from."""


@dataclass(frozen=True)
class Result:
    """Everything a run found; what the files say comes from here."""

    settings: Settings
    scan: Scan
    fit: Fit
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
    residual: Tensor
    """(A, D) y - T f over a measurement's standard deviation, noise and posterior together; NaN where none counts."""
    region: tuple[float, float] | None
    """Mean over the scan's region, and its standard deviation."""
    warning: str
    """What the scan's own check says; empty if all is well."""
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
    if settings.save is not None:
        result.fit.save(settings.save)
        say(f"the fit is in {settings.save}: {type(result.fit).__name__}.load reads it, given the same operator")
    say(f"{result.seconds:.0f} s; everything is in {settings.out}: open {settings.out / 'report.html'}")
    return result


def reconstruct(settings: Settings, scan: Scan, say: Callable[[str], None] = print) -> Result:
    """Everything but the files."""
    start = perf_counter()
    require(
        settings.method == "network" or settings.steps is None, "steps for the training of a network",
        f"{settings.steps} with method {settings.method!r}", "Say method network; or leave them out.",
    )  # fmt: skip
    say(
        f"{scan.name}: {scan.geometry.num_angles} views of {scan.geometry.num_bins} bins, "
        f"{' x '.join(map(str, scan.geometry.image_shape))} pixels"
    )
    warning = diagnose(scan.sinogram, scan.geometry, scan.kept).warning
    if warning:
        say(f"WARNING: {warning}")
    kept, whole = scan.counted.flatten(), ray_transform(scan.geometry, device=settings.device)
    operator = whole if bool(kept.all()) else whole.only(kept)
    given = None if scan.noise_std is None else scan.noise_std.flatten()[kept]
    measurements = scan.sinogram.flatten()[kept]
    fit = fitted(
        settings.method, operator, _like(measurements, scan), _like(given, scan), num_samples=settings.num_samples,
        seed=settings.seed, steps=settings.steps, quiet=settings.quiet, checkpoint=settings.checkpoint, say=say,
    )  # fmt: skip
    if misfit(fit) > MISSED:
        missed = f"the reconstruction misses the sinogram by {misfit(fit):.1f} times the noise seen in it."
        warning = warning or f"{missed} Its error bars do not know why."
        say(f"WARNING: {missed}")
    spread = fit.noise_std_ * (torch.ones_like(measurements) if given is None else given)
    back = filtered_back_projection(scan.filled(), scan.geometry)
    variation = _weighted_tv(operator, measurements, spread)
    references = {"filtered back-projection": torch.from_numpy(back).float(), "total variation": variation.image.cpu()}
    predictive = fit.posterior_.predict_image()
    measured = operator.forward(predictive.mean[None])[0].cpu()
    variance = operator.forward(predictive.deviations).square().mean(0).cpu() + spread.square()
    residual = torch.full(scan.sinogram.shape, float("nan"))
    residual[scan.counted] = ((measurements - measured) / variance.sqrt()).float()
    predictive = ImagePredictive(predictive.mean.cpu(), predictive.deviations.cpu(), predictive.floor)
    region = None if scan.region is None else predictive.region(scan.region)
    scores, alternatives, quality = None, {}, {}
    if scan.reference is not None:
        scores = score(predictive, scan.reference)
        level = float(predictive.variance.mean().sqrt())
        alternatives = {
            "measurement noise alone": score(
                ImagePredictive.uniform(predictive.mean, fit.posterior_.pixel_noise), scan.reference
            ),
            "equal deviations": score(ImagePredictive.uniform(predictive.mean, level), scan.reference),
        }
        methods = {**references, _NAMES[settings.method]: predictive.mean}
        quality = {name: psnr_ssim(image, scan.reference) for name, image in methods.items()}
    return Result(
        settings, scan, fit, predictive, references, variation, scores, alternatives, quality, residual, region,
        warning, perf_counter() - start,
    )  # fmt: skip


def _like(values: Tensor | None, scan: Scan) -> Any:
    """Measurements that count, (A, D) if all do: along the detector noise is seen best."""
    whole = values is not None and values.numel() == scan.sinogram.numel()
    return values.view(scan.sinogram.shape) if whole and values is not None else values


def _weighted_tv(operator: Operator, measurements: Tensor, spread: Tensor) -> TotalVariation:
    """Least total variation, every measurement in units of its own noise."""
    white = Whitened(operator, spread.double())
    return solve_tv(white, measurements / spread, 1.0)


def write_files(result: Result) -> None:
    """summary.json, images.safetensors, the pictures and report.html."""
    out, predictive = result.settings.out, result.predictive
    out.mkdir(parents=True, exist_ok=True)
    summary = summarise(result)
    (out / "summary.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    tensors = {"reconstruction": predictive.mean, "std": predictive.std, "samples": predictive.samples}
    for name, tensor in tensors.items():
        np.save(out / f"{name}.npy", tensor.float().numpy())
        write_tiff(out / f"{name}.tif", tensor.float().numpy())
    checkpoint.save(out / "images.safetensors", tensors, {"geometry": result.scan.geometry.to_dict()})
    drawn = pictures(result)
    for picture in drawn:
        (out / f"{picture.name}.png").write_bytes(picture.png)
    write_html(page(summary, str(result.fit.report_), drawn), out / "report.html")


def pictures(result: Result) -> list[Picture]:
    """The reconstruction beside the references, samples, calibration."""
    predictive, reference = result.predictive, result.scan.reference
    unit = f"1/{result.scan.unit}" if result.scan.unit else ""
    panels = {"Reconstruction": (predictive.mean, "image"), "Standard deviation": (predictive.std, "spread")}
    panels |= {name.capitalize(): (image, "image") for name, image in result.references.items()}
    ratios = {}
    if reference is not None:
        error = (reference - predictive.mean).abs()
        known = ~reference.isnan()
        panels = {
            "Reference": (reference, "image"), **panels, "|Reference - reconstruction|": (error, "spread"),
        }  # fmt: skip
        ratios["pixels, against the reference"] = (error / predictive.total_std)[known]
    ratios["measurements that were fitted"] = result.residual[result.scan.counted].abs()
    return [
        Picture(
            "overview", "The reconstruction and its error bars",
            "Bright in the map of standard deviations: where other images explain the sinogram about as well. Grey "
            "scales are shared.",
            images_figure(panels, unit),
        ),
        Picture(
            "samples", "Images that explain the sinogram about as well",
            "Joint samples of the posterior, and how each departs from the reconstruction: errors of neighbouring "
            "pixels go together.",
            images_figure(samples_panels(predictive), unit),
        ),
        Picture(
            "residual", "What the reconstruction leaves of the sinogram",
            "Measurement less projection of the reconstruction, in units of its standard deviation (noise and "
            "posterior together). It should be noise: edges of the object, whole bins or views that stand out are "
            "errors of the model, such as a wrong axis or a dead bin, that the error bars know nothing of.",
            residual_figure(result.residual),
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
    fit, scan = result.fit, result.scan
    settings = {k: v for k, v in asdict(result.settings).items() if k not in ("out", "quiet", "save", "checkpoint")}
    return {
        "name": scan.name,
        "settings": settings,
        "geometry": scan.geometry.to_dict(),
        "noise_std": fit.noise_std_,
        "noise_is_relative": scan.noise_std is not None,
        "pixel_noise": fit.posterior_.pixel_noise,
        "mean_std": float(result.predictive.std.mean()),
        "shrinkage": {size: result.predictive.shrinkage(size) for size in _sizes(result)},
        "quality": {name: {"psnr": p, "ssim": s} for name, (p, s) in result.quality.items()},
        "warning": result.warning,
        "unit": scan.unit,
        "measurements": int(scan.counted.sum()),
        "region": None if result.region is None else {"mean": result.region[0], "std": result.region[1]},
        "total_variation": {"status": result.variation.status, "converged": result.variation.converged},
        "scores": None if result.scores is None else asdict(result.scores),
        "alternatives": {
            name: {"inside": other.inside, "log_prob": other.log_prob} for name, other in result.alternatives.items()
        },
        **facts(fit),
        "misfit": misfit(fit),
        "solver": type(fit.solver).__name__,
        "fit": fit.report_.to_dict(),
        "seconds": result.seconds,
        "versions": {"sampla": sampla.__version__, "torch": torch.__version__},
    }


def _sizes(result: Result) -> list[int]:
    return [size for size in PATCH_SIZES if size <= min(result.scan.geometry.image_shape)]
