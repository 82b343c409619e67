"""What `sampla ct` reads: a sinogram with its geometry from npz, or TIFF with JSON beside it; or a phantom it makes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from numpy.lib.format import read_array
from torch import Tensor

from sampla.core.checks import require, require_finite
from sampla.core.noise import DATA, standard_normal
from sampla.tomography import Geometry, estimated_centre, ray_transform

_SKIMAGE = "the demo's phantom needs scikit-image, which is not installed: pip install 'sampla[tomography]'."
_TIFFFILE = "reading TIFF needs tifffile, which is not installed: pip install 'sampla[tomography]', or give npz."
_ARRAYS = ("sinogram", "counts", "open_beam", "reference", "mask", "region")
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
    """(H, W) what the image should look like, NaN where nobody knows."""
    kept: Tensor | None = None
    """(A, D) which measurements count; None: all."""
    region: Tensor | None = None
    """(H, W) booleans, a region whose mean is asked for."""
    unit: str = ""
    """Of the geometry's lengths; attenuation is then per unit."""

    @property
    def counted(self) -> Tensor:
        """(A, D) which measurements count."""
        return torch.ones_like(self.sinogram, dtype=torch.bool) if self.kept is None else self.kept

    def filled(self) -> np.ndarray:
        """(A, D) sinogram with linear interpolation along the detector where measurements do not count."""
        rows, kept, places = (
            self.sinogram.double().numpy().copy(),
            self.counted.numpy(),
            np.arange(self.sinogram.shape[1]),
        )
        for row, known in zip(rows, kept, strict=True):
            if known.any():
                row[~known] = np.interp(places[~known], places[known], row[known])
        return rows

    def without(self, bins: Sequence[int] = (), views: Sequence[int] = ()) -> "Scan":
        """The scan without some detector bins and views.

        Raises:
            ValueError: for numbers that there are not, or if nothing is left.
        """
        kept = self.counted.clone()
        for name, numbers, most in (("bins", bins, kept.shape[1]), ("views", views, kept.shape[0])):
            wrong = [n for n in numbers if not 0 <= n < most]
            require(not wrong, f"numbers of {name} from 0 to {most - 1}", f"{wrong}", "They count from zero.")
        kept[:, list(bins)] = False
        kept[list(views)] = False
        require(bool(kept.any()), "measurements that count", "none", "Leave fewer of them out.")
        return replace(self, kept=kept)


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

    NaN where nothing was counted: what is said of such a ray is only that it is long.

    Args:
        counts: (A, D) detected intensities.
        open_beam: intensity without an object: a number, one for each view (A,), or (A, D).

    Raises:
        ValueError: for NaN, open beams that are not positive, or counts of which half are not.
    """
    seen = torch.from_numpy(np.asarray(counts, dtype=np.float64))
    beam = torch.from_numpy(np.asarray(open_beam, dtype=np.float64))
    beam = beam[:, None] if beam.ndim == 1 else beam
    for name, values in (("counts", seen), ("open-beam intensities", beam)):
        require_finite(values, name, "Leave those views out, or interpolate dead detector bins.")
        bad, most = int((values <= 0).sum()), values.numel() // 2 if name == "counts" else 0
        require(bad <= most, f"positive {name}", f"{bad} that are zero or negative", "Correct the dark current first.")
    seen = torch.where(seen > 0, seen, torch.nan)
    spread = seen.rsqrt()
    return (beam / seen).log().float(), (spread / spread.nanmean()).float()


ENTRIES = (
    "sinogram (A views, D bins) of line integrals, or counts (A, D) with open_beam (a number, (A,) or (A, D)); "
    "image_shape (H, W), pixel, angles (A,) in radians or angles_deg, num_bins, bin_width; for a fan beam "
    "source_origin and source_detector; all lengths in one unit. If there are: centre (bins by which the axis of "
    "rotation is seen beside the detector's middle), mask (A, D) of measurements that count, reference (H, W) with NaN "
    "where nobody knows, region (H, W) whose mean is wanted, unit (of lengths, such as mm)"
)
"""What a file must and may hold."""


def read_scan(sinogram: Path, geometry: Path | None = None, page: int | None = None) -> Scan:
    """A scan from an npz file that holds both, or from a TIFF or npz and a JSON with the geometry.

    npz: ``ENTRIES``. TIFF: the sinogram, or a stack with one axis more. JSON: the geometry, and a unit.

    Args:
        sinogram: the npz or TIFF.
        geometry: the JSON.
        page: of a stack of sinograms, or row of a stack of projections; None: the middle one.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if it cannot be read, or sinogram and geometry do not fit each other.
        ModuleNotFoundError: for TIFF without tifffile.
    """
    for path in (sinogram, geometry):
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"expected a file at {path}, found none.")
    known = _read_npz(sinogram) if sinogram.suffix == ".npz" else {"sinogram": _read_tiff(sinogram)}
    arrays = {name: known.pop(name, None) for name in _ARRAYS}
    entries = known if geometry is None else _read_json(geometry)
    unit = str(entries.pop("unit", ""))
    try:
        scan_geometry = Geometry.from_dict(entries)
    except ValueError as error:
        raise ValueError(f"{error} A scan's entries are: {ENTRIES}.") from error
    for name in ("sinogram", "counts"):
        stack = np.asarray(0.0 if arrays[name] is None else arrays[name])
        if stack.ndim == 3:
            arrays[name] = _page(stack, scan_geometry, page)
    spread = None
    counts, beam = arrays["counts"], arrays["open_beam"]
    if counts is not None:
        fix = "Add open_beam, the intensity without an object."
        require(beam is not None, "open_beam beside counts", "none", fix)
        scan_geometry.check_sinogram(np.shape(counts))
        measured, spread = from_counts(np.asarray(counts), np.asarray(beam))
    else:
        fix = f"Name one of them. A scan's entries are: {ENTRIES}."
        require(arrays["sinogram"] is not None, "an entry sinogram or counts", f"{sorted(known)}", fix)
        measured = torch.from_numpy(np.asarray(arrays["sinogram"], dtype=np.float32))
    scan_geometry.check_sinogram(measured.shape)
    kept = torch.ones_like(measured, dtype=torch.bool) if counts is None else measured.isfinite()
    if arrays["mask"] is not None:
        shape = tuple(np.shape(arrays["mask"]))
        own = tuple(measured.shape)
        require(shape == own, f"a mask of shape {own}, like the sinogram", f"{shape}", "True is what counts.")
        kept &= torch.from_numpy(np.asarray(arrays["mask"]).astype(bool))
    fix = "Leave those bins or views out by a mask, false where measurements do not count."
    require_finite(measured[kept], "measurements", fix)
    require(bool(kept.any()), "measurements that count", "none", "The mask is true where they do.")
    measured = torch.where(kept, measured, 0)
    spread = None if spread is None else torch.where(kept, spread, 1)
    reference, region = (_image(arrays[name], name, scan_geometry) for name in ("reference", "region"))
    return Scan(
        sinogram.stem, measured, scan_geometry, spread, reference, None if bool(kept.all()) else kept,
        None if region is None else region != 0, unit,
    )  # fmt: skip


def _image(array: Any, name: str, geometry: Geometry) -> Tensor | None:
    if array is None:
        return None
    shape, found = geometry.image_shape, np.shape(array)
    require(found == shape, f"a {name} of shape {shape}", f"{found}", "Resize it.")
    return torch.from_numpy(np.asarray(array, dtype=np.float32))


def _page(stack: np.ndarray, geometry: Geometry, page: int | None) -> np.ndarray:
    """One sinogram (A, D) of a stack of sinograms (S, A, D), or of projections (A, S, D)."""
    own, shape = (geometry.num_angles, geometry.num_bins), stack.shape
    axis = 0 if shape[1:] == own else 1 if (shape[0], shape[2]) == own else None
    require(
        axis is not None,
        f"a stack of sinograms (slices, {own[0]}, {own[1]}) or of projections ({own[0]}, slices, {own[1]})",
        f"{shape}", "Check angles and num_bins.",
    )  # fmt: skip
    number = shape[axis or 0] // 2 if page is None else page
    last = shape[axis or 0] - 1
    require(0 <= number <= last, f"a slice from 0 to {last}", f"{number}", "Choose one with --slice.")
    found: np.ndarray = stack.take(number, axis or 0)
    return found


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


def write_tiff(path: Path, image: np.ndarray) -> None:
    """An image (H, W), or a stack of them, where tifffile is installed."""
    try:
        from tifffile import imwrite
    except ImportError:
        return
    imwrite(path, image, photometric="minisblack")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"expected a geometry as JSON in {path}: {error}") from error
    require(isinstance(found, dict), f"an object in {path}", type(found).__name__, "Write names and values.")
    return dict(found)


def adjusted(scan: Scan, centre: str | None, bins: Sequence[int], views: Sequence[int], region: str, unit: str) -> Scan:
    """The scan with what is given on the command line.

    Args:
        scan: as it was read.
        centre: of rotation in bins beside the middle, "auto" to find it from opposite rays, or None to leave it.
        bins: of the detector to leave out.
        views: to leave out.
        region: "rows,columns" as slices "from:to", or nothing.
        unit: of lengths, or nothing.

    Raises:
        ValueError: for what cannot be read, or an axis that opposite rays do not tell.
    """
    if bins or views:
        scan = scan.without(bins, views)
    if centre is not None:
        found = estimated_centre(scan.filled(), scan.geometry) if centre == "auto" else _number(centre)
        fix = "Give --centre as a number of bins."
        require(found is not None, "views that oppose each other, to find the axis", "too few", fix)
        scan = replace(scan, geometry=replace(scan.geometry, centre=float(found or 0.0)))
    if region:
        scan = replace(scan, region=_region(region, scan.geometry.image_shape))
    return replace(scan, unit=unit) if unit else scan


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"expected --centre as a number of bins or auto, got {text!r}.") from error


def _region(text: str, shape: tuple[int, int]) -> Tensor:
    parts = [part.split(":") for part in text.split(",")]
    fits = len(parts) == 2 and all(len(part) == 2 and all(end.strip().isdigit() for end in part) for part in parts)
    require(fits, "a region as rows,columns such as 10:20,5:30", repr(text), "Rows count from the top, from 0.")
    rows, columns = (slice(int(first), int(last)) for first, last in parts)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[rows, columns] = True
    require(bool(mask.any()), f"a region inside of the image of {shape}", repr(text), "The end does not count.")
    return mask
