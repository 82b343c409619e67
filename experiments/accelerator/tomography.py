"""The large scan of experiments/tomography in full: 501 x 501 pixels, training and posterior."""

from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array

from experiments.accelerator.stage import DONE, FIT, Cost, Place, Stage
from experiments.common.devices import forward_flop
from experiments.common.process import Case
from experiments.tomography import large
from sampla.tomography import Geometry, MatrixOperator, Recipe, unet_for
from sampla.tomography.unet import INPUT_CHANNELS

_RAYS = 4
"""Of a detector bin: the mean of their line integrals stands for that of its strip."""
_TINY_PIXELS, _TINY_VIEWS, _TINY_OPTIONS = 16, 8, {"samples": 4, "recipe": Recipe(steps=20, start_steps=10)}
_DOUBLE = 5e12
"""FLOP/s of convolutions in float64, assumed."""
_WALNUT = "ct/walnut_slice_1024.png"


def tomography(case: Case) -> Case:
    """The fit with its scores; pictures go to the results."""
    place = Place.of(case)
    if place.tiny:
        angles = tuple(np.linspace(0, np.pi, _TINY_VIEWS, endpoint=False).tolist())
        geometry, options = Geometry((_TINY_PIXELS,) * 2, 1.0, angles, _TINY_PIXELS, 1.5), _TINY_OPTIONS
        operator = MatrixOperator(line_matrix(geometry), geometry.image_shape, device=place.device)
        image = torch.zeros(geometry.image_shape)
        image[4:10, 5:12], image[6:8, 7:9] = 1.0, 0.5
        sinogram = operator.forward(image[None].to(place.device))[0]
        sinogram += 0.05 * torch.randn(sinogram.shape, generator=torch.Generator().manual_seed(0)).to(sinogram)
    else:
        geometry, options = large.geometry(), dict[str, Any]()
        operator = MatrixOperator(line_matrix(geometry), geometry.image_shape)
        image, sinogram = large.measurement(place.root, operator)
        operator, sinogram = operator.to(torch.float32, place.device), sinogram.to(place.device)
    found = large.whole(operator, image, sinogram, place.out, place.cache, others=False, **options)
    spent, psnr = found["cost"], found["scored"]["sampla"]["psnr"]
    said = f"training {spent['training']:.0f} s of {sum(spent.values()):.0f} s; PSNR {psnr:.1f} dB"
    return {**found, DONE: f"{operator.image_shape}: {said}"}


def line_matrix(geometry: Geometry, rays: int = _RAYS) -> csr_array:
    """(A D, H W): mean line integral of ``rays`` rays through each detector bin, interpolated between pixels.

    Joseph's method (1982): a ray is followed from row to row (or column to column, whichever it crosses more steeply),
    and takes from the two pixels beside it. It needs no ASTRA.
    """
    (height, width), pixel = geometry.image_shape, geometry.pixel
    angles = np.repeat(np.asarray(geometry.angles), geometry.num_bins * rays)
    bins = np.tile(np.repeat(np.arange(geometry.num_bins), rays), len(geometry.angles))
    fine = np.tile((np.arange(rays) + 0.5) / rays - 0.5, len(geometry.angles) * geometry.num_bins)
    along = (bins - (geometry.num_bins - 1) / 2 + fine) * geometry.bin_width
    forward, across = (np.stack([-np.sin(angles), np.cos(angles)]), np.stack([np.cos(angles), np.sin(angles)]))
    if geometry.source_origin is None or geometry.source_detector is None:
        point, direction = along * across, forward
    else:
        point = -geometry.source_origin * forward
        direction = point + geometry.source_detector * forward + along * across - point
        direction = direction / np.linalg.norm(direction, axis=0)
    measured = np.arange(len(angles)) // rays
    steep = np.abs(direction[1]) >= np.abs(direction[0])  # crosses rows
    parts = []
    for mask, axis, count, other in ((steep, 1, height, width), (~steep, 0, width, height)):
        start, heading = point[:, mask], direction[:, mask]
        at = (np.arange(count) - (count - 1) / 2) * pixel * (-1 if axis == 1 else 1)  # row 0 is the top
        shift = (at[None, :] - start[axis][:, None]) / heading[axis][:, None]
        place = (start[1 - axis][:, None] + shift * heading[1 - axis][:, None]) / pixel
        place = (place if axis == 1 else -place) + (other - 1) / 2
        low = np.floor(place).astype(np.int64)
        length = np.broadcast_to((pixel / np.abs(heading[axis]) / rays)[:, None], place.shape)
        row = np.broadcast_to(measured[mask][:, None], place.shape)
        line = np.broadcast_to(np.arange(count)[None, :], place.shape)
        for beside, weight in ((low, 1 - (place - low)), (low + 1, place - low)):
            inside = (beside >= 0) & (beside < other) & (shift > 0 if geometry.source_origin is not None else True)
            number = line * width + beside if axis == 1 else beside * width + line
            parts.append((row[inside], number[inside], (weight * length)[inside]))
    rows, columns, values = (np.concatenate(each) for each in zip(*parts, strict=True))
    shape = (len(geometry.angles) * geometry.num_bins, height * width)
    return csr_array(coo_array((values.astype(np.float32), (rows, columns)), shape=shape))


def _cost(place: Place) -> Cost:
    """Training, and products in float64 for every tenth measurement; what kernels wait for is a minute."""
    if place.tiny:
        return {"seconds": 5.0}
    side, recipe, measurements = large.SIDE, Recipe(), large.ANGLES * large.BINS
    flop = forward_flop(unet_for((side, side)), (1, INPUT_CHANNELS, side, side))
    steps = recipe.start_steps + recipe.steps
    return {FIT: 3 * flop * steps, "seconds": 60.0 + 4 * flop * measurements / 10 / _DOUBLE}


STAGES = (
    Stage(
        "tomography", tomography, _cost, files=lambda place: [] if place.tiny else [place.root / _WALNUT],
        modules=("skimage", "matplotlib"),
    ),
)  # fmt: skip
