"""Filtered back-projection of a disc: views evenly spread or missing, arcs, and rays that are seen twice."""

import numpy as np
import pytest
import torch

import dense_tomography
from sampla.tomography import filtered_back_projection, ray_transform
from sampla.tomography.fbp import ray_weights
from sampla.tomography.rays import projector_matrix
from test_tomography_operators import geometry

DISC = (1.0, 2.0, 4.0)
HALF, WHOLE = np.arange(180.0), np.arange(360.0)
LOST = [20, 21, 22, 70]


@pytest.mark.parametrize(
    ("fan", "degrees"),
    [
        (False, HALF), (False, np.append(HALF, 180)), (False, WHOLE[::2]), (False, np.delete(HALF, LOST)),
        (False, np.concatenate([HALF[::2], HALF[1::2] + 180])),
        (True, WHOLE), (True, np.append(WHOLE, 360)), (True, np.delete(WHOLE, LOST)), (True, WHOLE[:230] + 100),
        (True, WHOLE[:300]), (True, -WHOLE[:260]),
    ],
    ids=[
        "parallel", "both ends", "full turn", "missing", "turned halfway", "fan", "fan with both ends", "fan, missing",
        "short scan", "longer scan", "clockwise",
    ],
)  # fmt: skip
def test_back_projection_recovers_a_disc(fan, degrees):
    image, disc, inner = back_projected(fan, degrees)
    assert abs(image[inner].mean() - 1) < 0.005
    assert np.linalg.norm(image - disc) < 0.15 * np.linalg.norm(disc)
    assert np.abs(image[disc == 0]).mean() < 0.02


def test_a_limited_angle_is_not_stretched():
    """A wedge that nothing was seen of stays dark: two thirds of the views, two thirds of the mean."""
    weights = ray_weights(geometry(False, angles=tuple(np.deg2rad(HALF[:120]))))
    np.testing.assert_allclose(weights, np.deg2rad(1))
    image, _, inner = back_projected(False, HALF[:120])
    assert abs(image[inner].mean() - 2 / 3) < 0.01


def test_even_views_are_worth_the_same_and_one_view_all():
    for fan, degrees in ((False, HALF), (True, WHOLE), (False, HALF[::60]), (False, np.zeros(1)), (True, np.zeros(1))):
        weights = ray_weights(geometry(fan, angles=tuple(np.deg2rad(degrees))))
        np.testing.assert_allclose(weights, np.pi / len(degrees))


def back_projected(fan, degrees):
    """The image, the disc, and where the disc's inside is."""
    scan = geometry(fan, angles=tuple(np.deg2rad(degrees)))
    disc, inner = (dense_tomography.disc_image(scan.image_shape, scan.pixel, (*DISC[:2], r)) for r in (DISC[2], 3.0))
    sinogram = ray_transform(scan, torch.float64).forward(torch.from_numpy(disc)[None]).view(len(degrees), -1)
    return filtered_back_projection(sinogram.numpy(), scan), disc, inner == 1


@pytest.mark.parametrize("fan", [False, True], ids=["parallel", "fan"])
@pytest.mark.parametrize("centre", [3.0, -2.0, 0.5, -1.25])
def test_an_axis_beside_the_middle_of_the_detector(fan, centre):
    """The same rays as with more bins on one side, and the same disc."""
    angles = tuple(np.deg2rad(WHOLE if fan else HALF))
    scan = geometry(fan, angles=angles, centre=centre)
    wide = geometry(fan, angles=angles, num_bins=scan.num_bins + 8)
    if centre == int(centre):
        rows = np.arange(4 - int(centre), 4 - int(centre) + scan.num_bins)
        expected = projector_matrix(wide).toarray().reshape(len(angles), wide.num_bins, -1)[:, rows]
        found = projector_matrix(scan).toarray().reshape(len(angles), scan.num_bins, -1)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    disc, inner = (dense_tomography.disc_image(scan.image_shape, scan.pixel, (*DISC[:2], r)) for r in (DISC[2], 3.0))
    sinogram = ray_transform(scan, torch.float64).forward(torch.from_numpy(disc)[None]).view(len(angles), -1).numpy()
    image = filtered_back_projection(sinogram, scan)
    assert abs(image[inner == 1].mean() - 1) < 0.01
    assert np.linalg.norm(image - disc) < 0.2 * np.linalg.norm(disc)
    beams = (scan.source_origin, scan.source_detector) if fan else None
    chords = np.array([[dense_tomography.chord(scan.angles[v], u, DISC, beams) for u in scan.places] for v in (0, 50)])
    assert np.linalg.norm(sinogram[[0, 50]] - chords) < 0.1 * np.linalg.norm(chords)


def test_an_axis_outside_of_the_detector():
    with pytest.raises(ValueError, match="an axis of rotation that the detector sees"):
        geometry(True, centre=40.0)
