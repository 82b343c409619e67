"""The measured scans: sparse views of the HTC2022 phantoms and of a bell pepper, binned to the image asked for."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage.measure import block_reduce

from sampla.apps.ct import Scan, from_counts
from sampla.tomography import Geometry

PHANTOMS, VIEWS, DOSES, PEPPER_VIEWS = ("ta", "tb", "07b"), (60, 30, 15), ("high", "low"), 60
_POSE = {"high": 0.0, "low": -3.9}
"""Degrees by which the pepper was turned between its two scans."""
CASES = (*(f"{name}-{views}" for name in PHANTOMS for views in VIEWS), *(f"pepper-{dose}" for dose in DOSES))


def load(root: Path, case: str, factor: int) -> Scan:
    """One case; ``factor`` detector bins and image pixels of the original become one."""
    name, _, kind = case.partition("-")
    return _pepper(root, kind, factor) if name == "pepper" else _phantom(root, name, int(kind), factor)


def every_view(root: Path, case: str) -> tuple[np.ndarray, Geometry]:
    """Line integrals of the whole turn that a case's reference is from, as the detector has them; their geometry."""
    name, _, _ = case.partition("-")
    if name == "pepper":
        with np.load(root / "ct" / "bell_pepper.npz") as data:
            sinogram, _ = from_counts(data["counts_high"].astype(float), data["I0_high"])
            return np.asarray(sinogram), _geometry(
                data, data["angles_deg"], data["recon_fbp_high"].shape, sinogram.shape[1], 1
            )
    with np.load(root / "ct" / f"htc2022_{name}.npz") as data:
        sinogram = data["sinogram"][:720].astype(float)
        return sinogram, _geometry(data, data["angles_deg"][:720], data["recon_fbp"].shape, sinogram.shape[1], 1)


def _phantom(root: Path, name: str, views: int, factor: int) -> Scan:
    with np.load(root / "ct" / f"htc2022_{name}.npz") as data:
        every = slice(0, 720, 720 // views)
        sinogram = _binned(data["sinogram"][every], factor)
        reference = _means(data["recon_fbp"] / data["eff_pixel_mm"], (factor, factor))
        geometry = _geometry(data, data["angles_deg"][every], reference.shape, sinogram.shape[1], factor)
    seen = _seen(reference, geometry)
    return Scan(f"HTC2022 {name}, {views} of 720 views", torch.from_numpy(sinogram).float(), geometry, None, seen)


def _pepper(root: Path, dose: str, factor: int) -> Scan:
    with np.load(root / "ct" / "bell_pepper.npz") as data:
        every = slice(0, 360, 360 // PEPPER_VIEWS)
        counts = _binned(data[f"counts_{dose}"][every].astype(float), factor)
        sinogram, spread = from_counts(counts, data[f"I0_{dose}"][every])
        reference = _means(data["recon_fbp_high"], (factor, factor))
        angles = data["angles_deg"][every] + _POSE[dose]
        geometry = _geometry(data, angles, reference.shape, sinogram.shape[1], factor)
    name = f"bell pepper, {dose} dose, {PEPPER_VIEWS} of 360 views"
    return Scan(name, sinogram, geometry, spread, _seen(reference, geometry))


def _binned(rows: np.ndarray, factor: int) -> np.ndarray:
    """Means over so many bins, from the middle of the detector."""
    left = rows.shape[1] % factor // 2
    return _means(rows[:, left:], (1, factor))


def _means(image: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """Over blocks of pixels; what is left over is dropped."""
    height, width = (n // side * side for n, side in zip(image.shape, block, strict=True))
    return block_reduce(image[:height, :width], block, np.mean)


def _seen(image: np.ndarray, geometry: Geometry) -> torch.Tensor:
    """NaN outside of the circle that every view sees: nobody knows the truth there."""
    assert geometry.source_origin is not None
    assert geometry.source_detector is not None
    half = geometry.num_bins * geometry.bin_width / 2
    radius = geometry.source_origin * np.sin(np.arctan(half / geometry.source_detector)) / geometry.pixel
    rows, columns = (np.arange(n) - (n - 1) / 2 for n in image.shape)
    return torch.from_numpy(np.where(np.hypot(rows[:, None], columns) <= radius, image, np.nan)).float()


def _geometry(data: Any, degrees: np.ndarray, shape: tuple[int, ...], bins: int, factor: int) -> Geometry:
    return Geometry(
        (shape[0], shape[1]), float(data["eff_pixel_mm"]) * factor, tuple(np.deg2rad(degrees).tolist()), bins,
        float(data["det_pixel_mm"]) * factor, float(data["dist_source_origin_mm"]),
        float(data["dist_source_detector_mm"]),
    )  # fmt: skip
