"""The geometry of a scan: parallel or fan beam in two dimensions with a flat detector."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import hypot, isfinite
from typing import Any

import numpy as np

from sampla.core.checks import require, require_known

_REQUIRED = ("image_shape", "pixel", "angles", "num_bins", "bin_width")
_OPTIONAL = ("source_origin", "source_detector")
_ALSO = "centre"
_NEEDS = f"It needs {', '.join(_REQUIRED)}, and for a fan beam {' and '.join(_OPTIONAL)}."


@dataclass(frozen=True)
class Geometry:
    """A scan. All lengths share one unit, such as mm; attenuation is then per mm.

    With X to the right and Y up (image row 0 is the top) and the rotation at the image's centre, the detector's
    coordinate u = (j - (num_bins - 1) / 2 - centre) * bin_width grows in the direction (cos b, sin b) at angle b and
    the rays run in the direction (-sin b, cos b): parallel, or from a source at source_origin * (sin b, -cos b).

    Args:
        image_shape: (H, W) pixels of the reconstruction.
        pixel: width of a (square) pixel.
        angles: (A,) in radians.
        num_bins: D, detector elements; a sinogram is (A, D).
        bin_width: of a detector element.
        source_origin: distance from source to centre; None for parallel rays.
        source_detector: distance from source to detector; None for parallel rays.
        centre: bins by which the axis of rotation is seen beside the middle of the detector, towards higher numbers.

    Raises:
        ValueError: for no angle, sizes or distances that are not positive, one distance of two, or a source inside the
            image.
    """

    image_shape: tuple[int, int]
    pixel: float
    angles: tuple[float, ...]
    num_bins: int
    bin_width: float
    source_origin: float | None = None
    source_detector: float | None = None
    centre: float = 0.0

    def __post_init__(self) -> None:
        require(len(self.angles) > 0, "at least one angle", "none", "Give the angles of the views, in radians.")
        bad = sum(not isfinite(angle) for angle in self.angles)
        require(bad == 0, "finite angles", f"{bad} that are not", "Leave those views out.")
        square = len(self.image_shape) == 2 and min(self.image_shape) >= 1
        require(square, "an image shape (H, W)", f"{self.image_shape}", "Give the pixels of rows and columns.")
        require(self.num_bins >= 1, "at least one detector bin", f"{self.num_bins}", "Give the sinogram's columns.")
        for name in ("pixel", "bin_width"):
            value = getattr(self, name)
            require(0 < value < float("inf"), f"a positive {name}", f"{value}", "Give it in the unit of the image.")
        inside = isfinite(self.centre) and abs(self.centre) < self.num_bins / 2
        require(inside, "an axis of rotation that the detector sees", f"centre = {self.centre}", "It counts bins.")
        self._check_source()

    def _check_source(self) -> None:
        near, far = self.source_origin, self.source_detector
        both = (near is None) == (far is None)
        require(both, "both distances of a fan beam, or none", f"{near} and {far}", "Parallel rays need neither.")
        if near is None or far is None:
            return
        corner = self.pixel * hypot(*self.image_shape) / 2
        fits = corner < near < far < float("inf")
        require(
            fits, f"image corner ({corner:.3g}) < source_origin < source_detector", f"{near:g} and {far:g}",
            "Both distances are measured from the source, in the unit of the pixels.",
        )  # fmt: skip

    @property
    def num_angles(self) -> int:
        """A."""
        return len(self.angles)

    @property
    def magnification(self) -> float:
        """Size at the detector over size at the centre of rotation; 1 for parallel rays."""
        if self.source_origin is None or self.source_detector is None:
            return 1.0
        return self.source_detector / self.source_origin

    @property
    def places(self) -> np.ndarray:
        """(D,) u of the bins on the detector."""
        return (np.arange(self.num_bins) - (self.num_bins - 1) / 2 - self.centre) * self.bin_width

    @property
    def is_fan(self) -> bool:
        """Whether the rays come from one point."""
        return self.source_origin is not None

    def check_sinogram(self, shape: Sequence[int]) -> None:
        """Refuse a sinogram of another shape.

        Raises:
            ValueError: naming both shapes.
        """
        own = (self.num_angles, self.num_bins)
        turned = "It looks transposed. " if tuple(shape) == own[::-1] else ""
        require(
            tuple(shape) == own,
            f"a sinogram of shape {own}, (angles, bins) as the geometry says",
            f"{tuple(shape)}",
            f"{turned}Check angles and num_bins.",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Geometry":
        """The inverse of ``to_dict``; ``angles_deg`` may stand for ``angles``.

        Raises:
            ValueError: naming the entries that are missing or unknown.
        """
        known = dict(values)
        if "angles_deg" in known and "angles" not in known:
            known["angles"] = np.deg2rad(np.asarray(known.pop("angles_deg"), dtype=float))
        for name in known:
            require_known(name, (*_REQUIRED, *_OPTIONAL, _ALSO), "entry of a geometry")
        missing = [name for name in _REQUIRED if name not in known]
        require(not missing, "a complete geometry", f"one without {', '.join(missing)}", _NEEDS)
        angles = tuple(float(a) for a in np.atleast_1d(np.asarray(known["angles"], dtype=float)))
        height, width = (int(n) for n in known["image_shape"])
        near, far = (None if known.get(name) is None else float(known[name]) for name in _OPTIONAL)
        return cls(
            (height, width), float(known["pixel"]), angles, int(known["num_bins"]), float(known["bin_width"]),
            near, far, float(known.get(_ALSO) or 0.0),
        )  # fmt: skip
