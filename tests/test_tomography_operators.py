"""Operators: line integrals against chords of a disc, exact adjoints, whitening, and what is refused."""

import sys

import numpy as np
import pytest
import torch
from scipy import sparse

import dense_tomography
from sampla.tomography import FunctionOperator, Geometry, MatrixOperator, Whitened, ray_transform
from sampla.tomography.operators import operator_adjoint_error

DISC = (3.0, 2.0, 4.0)
FAN = (40.0, 90.0)


def geometry(fan: bool, **changes) -> Geometry:
    """24 x 20 pixels of 0.8, 7 angles; bins that cover the image."""
    settings = {
        "image_shape": (24, 20), "pixel": 0.8, "angles": tuple(np.linspace(0, np.pi, 7, endpoint=False)),
        "num_bins": 41, "bin_width": 1.8 if fan else 0.8,
    }  # fmt: skip
    distances = {"source_origin": FAN[0], "source_detector": FAN[1]} if fan else {}
    return Geometry(**{**settings, **distances, **changes})


def random_matrix(rows: int = 30, columns: int = 24) -> sparse.csr_array:
    values, kept = np.random.default_rng(0).random((2, rows, columns))
    return sparse.csr_array(values * (kept < 0.2))


def operators() -> dict:
    matrix = random_matrix()
    torch_matrix = torch.from_numpy(matrix.toarray())
    double = torch.empty(0, dtype=torch.float64)
    return {
        "parallel": ray_transform(geometry(False), torch.float64),
        "fan": ray_transform(geometry(True), torch.float64),
        "float32": ray_transform(geometry(True)),
        "scipy coo": MatrixOperator(matrix.tocoo(), (4, 6), torch.float64),
        "torch sparse": MatrixOperator(torch_matrix.to_sparse_csr(), (4, 6), torch.float64),
        "torch dense": MatrixOperator(torch_matrix, (4, 6), torch.float64),
        "functions": FunctionOperator(
            lambda x: x.flatten(1) @ torch_matrix.mT, lambda u: (u @ torch_matrix).view(-1, 4, 6), (4, 6), 30, double
        ),
        "whitened": Whitened(MatrixOperator(matrix, (4, 6), torch.float64), torch.linspace(1, 3, 30)),
    }


@pytest.mark.parametrize("name", operators())
def test_adjoint_is_exact(name):
    operator = operators()[name]
    eps = torch.finfo(operator.like.dtype).eps
    assert all(operator_adjoint_error(operator, seed) < 20 * eps for seed in range(5))


@pytest.mark.parametrize("name", operators())
def test_autograd_goes_through_the_adjoint(name):
    operator = operators()[name]
    x = torch.randn(2, *operator.image_shape, generator=torch.Generator().manual_seed(0)).to(operator.like)
    u = torch.randn(2, operator.num_measurements, generator=torch.Generator().manual_seed(1)).to(operator.like)
    x.requires_grad_()
    (operator(x) * u).sum().backward()
    torch.testing.assert_close(x.grad, operator.adjoint(u))


@pytest.mark.parametrize("name", ["scipy coo", "torch sparse", "torch dense", "functions"])
def test_products_are_those_of_the_dense_matrix(name):
    matrix, operator = torch.from_numpy(random_matrix().toarray()), operators()[name]
    x = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(operator.forward(x), x.flatten(1) @ matrix.mT)
    u = torch.randn(3, 30, generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(operator.adjoint(u), (u @ matrix).view(3, 4, 6))


@pytest.mark.parametrize("fan", [False, True], ids=["parallel", "fan"])
def test_line_integrals_are_chords_of_a_disc(fan):
    """Averaged over each bin; pixels blur the disc's edge, so the sinogram as a whole is compared, and its place."""
    scan = geometry(fan)
    image = dense_tomography.disc_image(scan.image_shape, scan.pixel, DISC)
    found = ray_transform(scan, torch.float64).forward(torch.from_numpy(image)[None]).view(scan.num_angles, -1)
    parts = (np.arange(10) + 0.5) / 10 - 0.5
    exact = np.array(
        [
            [
                np.mean([
                    dense_tomography.chord(angle, (j + part - 20) * scan.bin_width, DISC, FAN if fan else None)
                    for part in parts
                ])
                for j in range(scan.num_bins)
            ]
            for angle in scan.angles
        ]
    )  # fmt: skip
    difference = found.numpy() - exact
    assert np.linalg.norm(difference) < 0.04 * np.linalg.norm(exact)
    assert abs(difference.sum()) < 0.01 * exact.sum()


def test_a_matrix_is_copied_not_shared():
    matrix = random_matrix()
    before = matrix.copy()
    MatrixOperator(matrix, (4, 6))
    assert (matrix != before).nnz == 0


def test_geometry_survives_json():
    for fan in (False, True):
        scan = geometry(fan)
        assert Geometry.from_dict(scan.to_dict()) == scan
    degrees = {**geometry(True).to_dict(), "angles_deg": [0, 90]}
    del degrees["angles"]
    np.testing.assert_allclose(Geometry.from_dict(degrees).angles, [0, np.pi / 2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"angles": ()}, "at least one angle"),
        ({"angles": (0.0, float("nan"))}, "finite angles, got 1"),
        ({"pixel": 0.0}, "positive pixel"),
        ({"bin_width": -1.0}, "positive bin_width"),
        ({"num_bins": 0}, "at least one detector bin"),
        ({"image_shape": (0, 4)}, "an image shape"),
        ({"source_origin": 40.0}, "both distances of a fan beam"),
        ({"source_origin": 5.0, "source_detector": 90.0}, "image corner"),
        ({"source_origin": 50.0, "source_detector": 40.0}, "source_origin < source_detector"),
    ],
)
def test_bad_geometry(changes, message):
    with pytest.raises(ValueError, match=message):
        geometry(False, **changes)


def test_bad_entries_of_a_geometry():
    known = geometry(True).to_dict()
    with pytest.raises(ValueError, match="without num_bins"):
        Geometry.from_dict({k: v for k, v in known.items() if k != "num_bins"})
    with pytest.raises(ValueError, match=r"unknown entry of a geometry 'pixl'.*'pixel'"):
        Geometry.from_dict({**known, "pixl": 1.0})


def test_sinogram_that_does_not_match():
    scan = geometry(True)
    scan.check_sinogram((7, 41))
    with pytest.raises(ValueError, match=r"\(7, 41\).*got \(41, 7\).*transposed"):
        scan.check_sinogram((41, 7))
    with pytest.raises(ValueError, match=r"got \(7, 40\)"):
        scan.check_sinogram((7, 40))


def test_bad_operators():
    matrix, double = random_matrix(), torch.empty(0, dtype=torch.float64)
    with pytest.raises(ValueError, match="a column for each of 5 x 6 = 30 pixels"):
        MatrixOperator(matrix, (5, 6))
    spoiled = matrix.copy()
    spoiled.data[3] = np.nan
    with pytest.raises(ValueError, match="finite entries of the operator"):
        MatrixOperator(spoiled, (4, 6))
    with pytest.raises(TypeError, match="use FunctionOperator"):
        MatrixOperator([[1.0]], (1, 1))
    with pytest.raises(ValueError, match="adjoint must be the transpose"):
        FunctionOperator(lambda x: x.flatten(1), lambda u: 1.01 * u.view(-1, 4, 6), (4, 6), 24, double)
    with pytest.raises(ValueError, match="from adjoint of the operator"):
        FunctionOperator(lambda x: x.flatten(1), lambda u: u, (4, 6), 24, double)
    operator = MatrixOperator(matrix, (4, 6))
    with pytest.raises(ValueError, match="30 standard deviations"):
        Whitened(operator, torch.ones(29))
    with pytest.raises(ValueError, match="positive standard deviations, got 0"):
        Whitened(operator, torch.zeros(30))


def test_without_astra(monkeypatch):
    monkeypatch.setitem(sys.modules, "astra", None)
    with pytest.raises(ModuleNotFoundError, match=r"sampla\[tomography\]"):
        ray_transform(geometry(True))
