"""The ray transform by ASTRA: the projector as a matrix, once, and sparse products from then on.

ASTRA's own forward and back projectors are not each other's transpose; the rows of its strip projector, used for both,
are. van Aarle et al., *Fast and flexible X-ray tomography using the ASTRA toolbox*, Optics Express 24, 2016.
"""

from dataclasses import replace
from math import ceil
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array

from sampla.tomography.geometry import Geometry
from sampla.tomography.operators import MatrixOperator

_MISSING = (
    "the ray transform needs the ASTRA toolbox, which is not installed: pip install 'sampla[tomography]', or give "
    "the system matrix yourself (sampla.tomography.MatrixOperator)."
)


def import_astra() -> Any:
    """The astra package.

    Raises:
        ModuleNotFoundError: saying how to install it.
    """
    try:
        import astra  # optional, and a second to import
    except ImportError as error:
        raise ModuleNotFoundError(_MISSING) from error
    return astra


def ray_transform(
    geometry: Geometry, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> MatrixOperator:
    """Line integrals of an image, averaged over each detector bin: (H, W) -> A * D measurements, angle by angle.

    Args:
        geometry: the scan.
        dtype: of the products.
        device: where they run.

    Raises:
        ModuleNotFoundError: without ASTRA.
    """
    return MatrixOperator(projector_matrix(geometry), geometry.image_shape, dtype, device)


def projector_matrix(geometry: Geometry) -> csr_array:
    """(A D, H W): length of each bin's strip in each pixel, in the geometry's unit, divided by the bin's width.

    An axis beside the middle of the detector: rows of a wider detector, between two of them linearly.
    """
    if geometry.centre == 0:
        return _centred_matrix(geometry)
    beyond = ceil(abs(geometry.centre)) + 1
    wide = replace(geometry, num_bins=geometry.num_bins + 2 * beyond, centre=0.0)
    matrix, first, part = _centred_matrix(wide), beyond - ceil(geometry.centre), ceil(geometry.centre) - geometry.centre
    views = np.arange(geometry.num_angles)[:, None] * wide.num_bins
    rows = (views + first + np.arange(geometry.num_bins)).flatten()
    return csr_array(matrix[rows] * (1 - part) + matrix[rows + 1] * part)


def _centred_matrix(geometry: Geometry) -> csr_array:
    astra = import_astra()
    volume, detector, kind = astra_geometries(geometry)
    projector = astra.create_projector(kind, detector, volume)
    handle = astra.projector.matrix(projector)
    try:
        return csr_array(astra.matrix.get(handle))
    finally:
        astra.matrix.delete(handle)
        astra.projector.delete(projector)


def astra_geometries(geometry: Geometry) -> tuple[Any, Any, str]:
    """The image's and the detector's geometry in ASTRA's words, and the name of its projector."""
    astra = import_astra()
    height, width = geometry.image_shape
    half_height, half_width = height * geometry.pixel / 2, width * geometry.pixel / 2
    volume = astra.create_vol_geom(height, width, -half_width, half_width, -half_height, half_height)
    angles = list(geometry.angles)
    if geometry.source_origin is None or geometry.source_detector is None:
        return volume, astra.create_proj_geom("parallel", geometry.bin_width, geometry.num_bins, angles), "strip"
    beyond = geometry.source_detector - geometry.source_origin
    distances = geometry.source_origin, beyond
    fan = astra.create_proj_geom("fanflat", geometry.bin_width, geometry.num_bins, angles, *distances)
    return volume, fan, "strip_fanflat"
