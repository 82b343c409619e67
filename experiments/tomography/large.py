"""The large experiment: 501 x 501 pixels, 60 fan-beam angles x 128 bins, a U-Net of about 2 million parameters.

    python -m experiments.tomography.large --root DIR [--device cuda]

DIR holds ct/walnut_slice_1024.png. Training, posterior and the peer are kept in the cache as they come, so that a run
that was stopped goes on. Writes OUT/results.md, results.json and pictures.
"""

from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from scipy.ndimage import binary_fill_holes, binary_opening, label
from skimage.io import imread
from skimage.transform import resize
from torch import Tensor

from experiments.common.command import command, say
from experiments.common.facts import GIB, peak_memory
from experiments.common.page import RESULTS, provenance, states, write_page
from experiments.common.store import Row, Store, save_arrays
from experiments.tomography.dropout import dropout_dip
from sampla import tomography
from sampla.apps.ct.illustrate import calibration_figure, images_figure
from sampla.tomography import Geometry, ImagePredictive, LinearisedDIP, MatrixOperator, Recipe, VariationalTV, score

SIDE, ANGLES, BINS, NOISE, SAMPLES = 501, 60, 128, 0.05, 16
_OURS, _VARIATIONAL, _DROPOUT = "sampla", "VariationalTV", "MC dropout"
_EARLIER = "VariationalTV around its mean (an earlier version)"
"""A run of all methods has it where it is older than the row of VariationalTV alone."""


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


def inside(image: Tensor) -> Tensor:
    """(H, W) the image where the object is, NaN elsewhere: the largest region above a quarter of its most, filled."""
    regions, count = label(binary_opening(image.numpy() > float(image.max()) / 4, iterations=2))
    sizes = np.bincount(regions.ravel(), minlength=count + 1)
    sizes[0] = 0
    return image.where(torch.from_numpy(binary_fill_holes(regions == sizes.argmax())), torch.nan)


def fitted(
    operator: MatrixOperator, sinogram: Tensor, cache: Path, samples: int = SAMPLES, recipe: Recipe | None = None
) -> tuple[LinearisedDIP, dict[str, float]]:
    """The fit, or the one that the cache holds, and the memory it took."""
    folder, memory = cache / "fit", cache / "memory"
    if folder.is_dir() and memory.is_file():
        return LinearisedDIP.load(folder, operator), {"GiB": float(memory.read_text(encoding="utf-8"))}
    dip = LinearisedDIP(operator, num_samples=samples, recipe=recipe)
    dip.fit(sinogram, checkpoint=cache / "checkpoint").save(folder)
    memory.write_text(f"{peak_memory() / GIB}\n", encoding="utf-8")
    return dip, {"GiB": peak_memory() / GIB}


def peer(dip: LinearisedDIP, sinogram: Tensor, cache: Path) -> tuple[ImagePredictive, float]:
    """MC dropout and its seconds, made here or taken from the cache."""
    path = cache / "dropout.npz"
    if not path.is_file():
        found, seconds = dropout_dip(dip, sinogram)
        save_arrays(path, mean=found.mean.cpu(), deviations=found.deviations.cpu(), seconds=torch.tensor(seconds))
    with np.load(path) as kept:
        mean, deviations, seconds = (torch.from_numpy(kept[name]) for name in ("mean", "deviations", "seconds"))
    return ImagePredictive.stabilised(mean.float(), deviations.float()), float(seconds)


def variational(operator: MatrixOperator, image: Tensor, sinogram: Tensor, out: Path, cache: Path) -> dict[str, Any]:
    """Total variation as the prior, at its defaults: scores, cost, picture."""
    fit = VariationalTV(operator).fit(sinogram, checkpoint=cache / "weights")
    found = fit.posterior_.predict_image()
    found = ImagePredictive(found.mean.cpu(), found.deviations.cpu(), found.floor)
    save_arrays(cache / "predictions" / f"{_VARIATIONAL}.npz", mean=found.mean, deviations=found.deviations)
    panels = {
        "Walnut": (image, "image"), _VARIATIONAL: (found.mean, "image"),
        "Standard deviation": (found.std, "spread"), "|error|": ((image - found.mean).abs(), "spread"),
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    (out / "variational.png").write_bytes(images_figure(panels))
    ratios = {_VARIATIONAL: (image - found.mean).abs() / found.total_std}
    (out / "variational-calibration.png").write_bytes(calibration_figure(ratios))
    return {
        **_scored({_VARIATIONAL: found}, {}, inside(image)), "whole image": _scored({_VARIATIONAL: found}, {}, image),
        "seconds": fit.report_.seconds, "memory": peak_memory() / GIB, "samples": len(found.deviations),
        "steps": len(fit.steps_), "settled": fit.settled_, "noise_std": fit.noise_std_, "strength": fit.strength_,
        "spread_strength": fit.spread_strength_,
        "certificate": f"{fit.report_}",
    }  # fmt: skip


def whole(
    operator: MatrixOperator, image: Tensor, sinogram: Tensor, out: Path, cache: Path, samples: int = SAMPLES,
    recipe: Recipe | None = None, others: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """The fit beside others, their scores and pictures."""
    begun = perf_counter()
    dip, memory = fitted(operator, sinogram, cache, samples, recipe)
    ours = dip.posterior_.predict_image()
    ours = ImagePredictive(ours.mean.cpu(), ours.deviations.cpu(), ours.floor)
    level = float(ours.variance.mean().sqrt())
    found = {
        _OURS: ours, "measurement noise alone": ImagePredictive.uniform(ours.mean, dip.posterior_.pixel_noise),
        "equal deviations": ImagePredictive.uniform(ours.mean, level),
    }  # fmt: skip
    rest = dip.report_.seconds - dip.training_.seconds
    seconds = {"training": dip.training_.seconds, "total variation and posterior": rest}
    if others:
        found[_DROPOUT], seconds[_DROPOUT] = peer(dip, sinogram, cache)
    start, scale = dip.start_, dip.prepare(sinogram).scale
    references, notes = {}, []
    if start is not None:
        references["total variation"] = (start.image * scale).cpu()
        notes.append(f"Total variation {start.status}.")
    _draw(out, image, found, references)
    for name, one in found.items():
        if one.deviations.any():
            save_arrays(cache / "predictions" / f"{name}.npz", mean=one.mean, deviations=one.deviations, truth=image)
    return {
        "samples": len(dip.posterior_.samples), "device": str(operator.like.device), "pixels": list(image.shape),
        "parameters": dip.posterior_.samples.shape[1], "measurements": operator.num_measurements,
        **_scored(found, references, inside(image)), "whole image": _scored(found, references, image),
        "share inside": float(inside(image).isfinite().float().mean()),
        "cost": seconds | {"all of this run": perf_counter() - begun}, "memory": memory["GiB"], "notes": notes,
        "certificate": f"{dip.report_}", "misfit": dip.training_.final_misfit,
    }  # fmt: skip


def _scored(found: dict[str, ImagePredictive], references: dict[str, Tensor], image: Tensor) -> dict[str, Any]:
    return {
        "scored": {name: asdict(score(one, image)) for name, one in found.items()},
        "quality": {name: list(tomography.psnr_ssim(one, image)) for name, one in references.items()},
    }


def _draw(out: Path, image: Tensor, found: dict[str, ImagePredictive], references: dict[str, Tensor]) -> None:
    """overview.png, samples.png and calibration.png."""
    out.mkdir(parents=True, exist_ok=True)
    ours = found[_OURS]
    panels = {"Walnut": (image, "image"), "Reconstruction": (ours.mean, "image")}
    panels |= {name.capitalize(): (one, "image") for name, one in references.items()}
    panels |= {"Standard deviation": (ours.std, "spread"), "|error|": ((image - ours.mean).abs(), "spread")}
    if _DROPOUT in found:
        panels[f"{_DROPOUT}: standard deviation"] = (found[_DROPOUT].std, "spread")
    (out / "overview.png").write_bytes(images_figure(panels))
    drawn = {f"Sample {k + 1}": (ours.mean + ours.deviations[k], "image") for k in range(min(3, len(ours.deviations)))}
    (out / "samples.png").write_bytes(images_figure(drawn))
    shown = (_OURS, _DROPOUT)
    ratios = {name: (image - one.mean).abs() / one.total_std for name, one in found.items() if name in shown}
    (out / "calibration.png").write_bytes(calibration_figure(ratios))


def main() -> None:
    """Command line."""
    asked = command(__doc__, RESULTS / "tomography-large", "ct/", anew=True, threads=None, device=("cpu", "of the fit"))
    store = Store(
        asked.out / "results.json", {"pixels": SIDE, "views": ANGLES, "device": asked.device}, asked.cache, asked.anew
    )
    operator = tomography.ray_transform(geometry())
    image, sinogram = measurement(asked.root, operator)
    operator, sinogram = operator.to(torch.float32, asked.device), sinogram.to(asked.device)
    kept = store.cache / store.source  # what another state of the library has begun is not gone on with
    store.once(f"walnut/{_VARIATIONAL}", lambda: variational(operator, image, sinogram, asked.out, kept))
    store.once("walnut", lambda: whole(operator, image, sinogram, asked.out, kept))
    write_page(asked.out / "results.md", "experiments/tomography/large.md.j2", **page(store))
    say(store.rows["walnut"]["certificate"])


def page(store: Store) -> dict[str, Any]:
    """What the template is filled with."""
    call = f"experiments.tomography.large --root DIR --device {store.settings['device']}"
    row, beside = dict(store.rows["walnut"]), store.rows[f"walnut/{_VARIATIONAL}"]
    earlier = _VARIATIONAL in row["scored"]
    row |= _together(row, beside) | {"whole image": _together(row["whole image"], beside["whole image"])}
    cost = {name if name != _VARIATIONAL else _EARLIER: seconds for name, seconds in row["cost"].items()}
    row["cost"] = cost | {_VARIATIONAL: beside["seconds"]}
    return {
        "provenance": provenance(store, call, "torch", f", {store.environment['threads']} thread(s)"), "row": row,
        "beside": beside, "earlier": _EARLIER if earlier else "", "states": states(store),
        "angles": ANGLES, "bins": BINS, "noise": NOISE,
        "pictures": ["overview", "samples", "calibration", "variational", "variational-calibration"],
    }  # fmt: skip


def _together(row: Row | dict[str, Any], beside: dict[str, Any]) -> dict[str, Any]:
    """The scores of both rows, those of an earlier VariationalTV under that name."""
    scored = {name if name != _VARIATIONAL else _EARLIER: score for name, score in row["scored"].items()}
    return {"scored": scored | beside["scored"], "quality": row["quality"]}


if __name__ == "__main__":
    main()
