"""Scans that are read wrongly: each mistake is named, and a right scan passes."""

import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

import dense_tomography
from sampla.tomography import Geometry, diagnose, estimated_centre, ray_transform
from sampla.tomography.diagnosis import dead_bins


@cache
def scan(fan: bool = True, centre: float = 0.0) -> tuple[torch.Tensor, Geometry]:
    """Discs off the middle, 40 views, 2 % noise."""
    angles = tuple(np.linspace(0, 2 * np.pi if fan else np.pi, 40, endpoint=False))
    geometry = Geometry(
        (32, 32), 1.0, angles, 47, 1.5 if fan else 1.0, *((90.0, 140.0) if fan else (None, None)), centre
    )
    discs = ((3.0, 4.0, 8.0), (5.0, 5.0, 3.0), (-7.0, -4.0, 3.0))
    image = sum(torch.from_numpy(dense_tomography.disc_image((32, 32), 1.0, disc)) for disc in discs)
    clean = ray_transform(geometry, torch.float64).forward(image[None]).view(40, 47)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (clean + 0.02 * clean.mean() * noise).float(), geometry


def turned(geometry: Geometry, change) -> Geometry:
    return replace(geometry, angles=tuple(change(np.asarray(geometry.angles)).tolist()))


@pytest.mark.parametrize("fan", [False, True], ids=["parallel", "fan"])
def test_a_right_scan_passes(fan):
    found = diagnose(*scan(fan))
    assert found.warning == ""
    assert found.misfit < 1.1


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda s, g: (s, turned(g, lambda a: -a)), "clockwise"),
        (lambda s, g: (s, turned(g, np.rad2deg)), "angles in degrees"),
        (lambda s, g: (s, turned(g, np.deg2rad)), "taken for degrees"),
        (lambda s, g: (1e4 * torch.exp(-s / 10), g), "measurements as counts"),
        (lambda s, g: (torch.where(torch.arange(47) == 15, 0, s), g), "15 left out as dead"),
        (lambda s, g: (s.roll(2, 1), g), r"axis of rotation \+2.0"),
    ],
    ids=["clockwise", "degrees", "radians", "counts", "dead bin", "axis"],
)
def test_mistakes_are_named(spoil, cause):
    found = diagnose(*spoil(*scan()))
    assert found.better
    assert re.search(cause, found.warning)


def test_what_has_no_name_is_told_too():
    sinogram, geometry = scan()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    found = diagnose(sinogram[order], geometry)
    assert "no image explains the sinogram" in found.warning
    assert "Not better with: " in found.warning


@pytest.mark.parametrize("centre", [0.0, 1.5, -2.25])
def test_axis_of_rotation_is_seen_by_opposite_rays(centre):
    sinogram, geometry = scan(centre=centre)
    found = estimated_centre(sinogram.double().numpy(), replace(geometry, centre=0.0))
    assert found == pytest.approx(centre, abs=0.15)
    assert estimated_centre(scan(False)[0].double().numpy(), scan(False)[1]) is None  # half a turn has none


def test_bins_that_are_left_out_are_not_dead_again():
    sinogram = scan()[0].clone()
    sinogram[:, 15] = 0
    kept = torch.ones_like(sinogram, dtype=torch.bool)
    assert 15 in dead_bins(sinogram)
    kept[:, 15] = False
    assert 15 not in dead_bins(sinogram, kept)
