"""What `sampla ct` reads: a sinogram with its geometry from npz, or TIFF with JSON beside it; or a phantom it makes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from numpy.lib.format import read_array
from torch import Tensor

from sampla.core.checks import require, require_finite
from sampla.core.noise import DATA, standard_normal
from sampla.tomography import Geometry, ray_transform

_SKIMAGE = "the demo's phantom needs scikit-image, which is not installed: pip install 'sampla[tomography]'."
_TIFFFILE = "reading TIFF needs tifffile, which is not installed: pip install 'sampla[tomography]', or give npz."
DEMO_PIXELS, DEMO_VIEWS, DEMO_NOISE = 64, 20, 0.05


@dataclass(frozen=True)
class Scan:
    """One measurement, ready to be reconstructed."""

    name: str
    sinogram: Tensor
    """(A, D) line integrals, float32."""
    geometry: Geometry
    noise_std: Tensor | None = None
    """(A, D) relative standard deviations, where counts tell."""
    reference: Tensor | None = None
    """(H, W) what the image should look like, where that is known."""


def demo_scan(pixels: int = DEMO_PIXELS, views: int = DEMO_VIEWS, noise: float = DEMO_NOISE, seed: int = 0) -> Scan:
    """The Shepp-Logan phantom seen from few directions, with white noise of a part of the mean.

    Raises:
        ModuleNotFoundError: without scikit-image.
    """
    try:
        from skimage.data import shepp_logan_phantom
        from skimage.transform import resize
    except ImportError as error:
        raise ModuleNotFoundError(_SKIMAGE) from error
    image = torch.from_numpy(resize(shepp_logan_phantom(), (pixels, pixels), anti_aliasing=True)).float()
    angles = tuple(np.linspace(0, np.pi, views, endpoint=False))
    geometry = Geometry((pixels, pixels), 1.0, angles, int(1.5 * pixels) // 2 * 2 + 1, 1.0)
    clean = ray_transform(geometry).forward(image[None]).view(views, -1)
    std = noise * float(clean.abs().mean())
    drawn = standard_normal(seed, DATA, range(1), 0, tuple(clean.shape), clean)[0]
    return Scan(f"Shepp-Logan phantom, {views} views", clean + std * drawn, geometry, None, image)


def from_counts(counts: np.ndarray, open_beam: np.ndarray) -> tuple[Tensor, Tensor]:
    """Line integrals -log(counts / open beam) and the relative deviations counts^(-1/2) that Poisson noise gives them.

    Args:
        counts: (A, D) detected intensities.
        open_beam: intensity without an object: a number, one for each view (A,), or (A, D).

    Raises:
        ValueError: for NaN, or counts or open beams that are not positive.
    """
    seen = torch.from_numpy(np.asarray(counts, dtype=np.float64))
    beam = torch.from_numpy(np.asarray(open_beam, dtype=np.float64))
    beam = beam[:, None] if beam.ndim == 1 else beam
    for name, values in (("counts", seen), ("open-beam intensities", beam)):
        require_finite(values, name, "Leave those views out, or interpolate dead detector bins.")
        bad = int((values <= 0).sum())
        require(bad == 0, f"positive {name}", f"{bad} that are zero or negative", "Correct the dark current first.")
    spread = seen.rsqrt()
    return (beam / seen).log().float(), (spread / spread.mean()).float()


def read_scan(sinogram: Path, geometry: Path | None = None) -> Scan:
    """A scan from an npz file that holds both, or from a TIFF or npz and a JSON with the geometry.

    npz entries: ``sinogram``, or ``counts`` with ``open_beam``; those of ``Geometry``; ``reference`` if there is one.
    TIFF: the sinogram. JSON: the geometry.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if it cannot be read, or sinogram and geometry do not fit each other.
        ModuleNotFoundError: for TIFF without tifffile.
    """
    for path in (sinogram, geometry):
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"expected a file at {path}, found none.")
    known = _read_npz(sinogram) if sinogram.suffix == ".npz" else {"sinogram": _read_tiff(sinogram)}
    arrays = {name: known.pop(name, None) for name in ("sinogram", "counts", "open_beam", "reference")}
    entries = known if geometry is None else _read_json(geometry)
    scan_geometry = Geometry.from_dict(entries)
    spread = None
    counts, beam = arrays["counts"], arrays["open_beam"]
    if counts is not None:
        fix = "Add open_beam, the intensity without an object."
        require(beam is not None, "open_beam beside counts", "none", fix)
        scan_geometry.check_sinogram(np.shape(counts))
        measured, spread = from_counts(np.asarray(counts), np.asarray(beam))
    else:
        require(arrays["sinogram"] is not None, "an entry sinogram or counts", f"{sorted(known)}", "Name one of them.")
        measured = torch.from_numpy(np.asarray(arrays["sinogram"], dtype=np.float32))
    scan_geometry.check_sinogram(measured.shape)
    require_finite(measured, "measurements", "Interpolate dead detector bins, or leave those views out.")
    reference = arrays["reference"]
    if reference is not None:
        shape = scan_geometry.image_shape
        require(reference.shape == shape, f"a reference of shape {shape}", f"{reference.shape}", "Resize it.")
        reference = torch.from_numpy(np.asarray(reference, dtype=np.float32))
    return Scan(sinogram.stem, measured, scan_geometry, spread, reference)


def _read_npz(path: Path) -> dict[str, Any]:
    """Arrays of an npz file; object arrays, which would have to be unpickled, are refused."""
    found: dict[str, Any] = {}
    try:
        with ZipFile(path) as archive:
            for member in archive.namelist():
                with archive.open(member) as file:
                    array = read_array(file, allow_pickle=False)
                found[member.removesuffix(".npy")] = array if array.ndim else array.item()
    except (BadZipFile, OSError, ValueError) as error:
        raise ValueError(f"expected an npz file of plain arrays, got {path}: {error}") from error
    return found


def _read_tiff(path: Path) -> np.ndarray:
    try:
        from tifffile import TiffFileError, imread
    except ImportError as error:
        raise ModuleNotFoundError(_TIFFFILE) from error
    try:
        found: np.ndarray = imread(path)
    except TiffFileError as error:
        raise ValueError(f"expected a TIFF or npz file, got {path}: {error}") from error
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"expected a geometry as JSON in {path}: {error}") from error
    require(isinstance(found, dict), f"an object in {path}", type(found).__name__, "Write names and values.")
    return dict(found)
