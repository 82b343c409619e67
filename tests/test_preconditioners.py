"""Preconditioners against explicit matrices: what they invert, their determinants, and how near to H they are."""

from dataclasses import replace

import pytest
import torch

import sampla
from cases import SPECTRA, batches, linear_model, randn, spectrum_model
from dense import prescribed
from sampla.core.stack import Stack
from sampla.inference.krylov import krylov_space
from sampla.solvers import LinearSystem, RightHandSide, Status, solve
from sampla.solvers._preconditioners import Jacobi, Sketch, SubsetInverse, nystrom

SIZE = 60
every_spectrum = pytest.mark.parametrize("name", SPECTRA)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def precision_of(kind, dtype=torch.float64):
    spread = torch.logspace(-1, 1, SIZE).flip(0) if kind == "varying" else torch.ones(SIZE)
    return (0.3 * spread).to(dtype)


def explicit(sketch):
    """V' T V + c (I - V' V) in float64."""
    basis = sketch.basis.columns(slice(None)).double()
    outside = torch.eye(basis.shape[1]).double() - basis.mT @ basis
    return basis.mT @ sketch.gram @ basis + sketch.tail * outside


def assert_inverts(preconditioner, matrix, dtype=torch.float64):
    """solve is P^-1 to rounding times the condition number of P, and symmetric."""
    accuracy = 30 * torch.finfo(dtype).eps * float(torch.linalg.cond(matrix))
    found = preconditioner.solve(torch.eye(SIZE, dtype=dtype)).double()
    inverse = torch.linalg.inv(matrix)
    size = float(torch.linalg.matrix_norm(inverse, 2))
    torch.testing.assert_close(found, inverse, rtol=0, atol=accuracy * size)
    torch.testing.assert_close(found, found.mT, rtol=0, atol=accuracy * size)


def system_of(name, alpha, columns=4):
    model, matrix = spectrum_model(name)
    noise, precision = model.draw_noise(1, columns), torch.full((SIZE,), alpha).double()
    rhs = RightHandSide(noise.data_part, alpha**0.5 * randn(columns, SIZE, seed=2), columns, 1)
    return LinearSystem(model, precision, noise.diagonal), rhs, matrix


@both_dtypes
@pytest.mark.parametrize("kind", ["constant", "varying"])
@pytest.mark.parametrize("tail", [0.0, 0.5, 20.0])  # below, between and above what the sketch holds
@pytest.mark.parametrize("rank", [1, 8, 60])
def test_a_sketch_is_inverted_for_every_prior(rank, tail, kind, dtype):
    basis = torch.linalg.qr(randn(SIZE, rank)).Q.mT
    root = randn(rank, rank, seed=1)
    sketch = Sketch(Stack(basis.to(dtype).split(3)), root @ root.mT, tail)
    precision = precision_of(kind, dtype)
    assert_inverts(sketch.at(precision), explicit(sketch) + precision.double().diag(), dtype)


def test_the_diagonal():
    diagonal = 1 + randn(SIZE).square()
    assert_inverts(Jacobi(diagonal), diagonal.diag())


@every_spectrum
@pytest.mark.parametrize("rank", [20, 40, 60])
def test_nystrom_of_enough_rank_is_exact(name, rank):
    """Root epsilon in general: eigenvalues of W M W' below 10 epsilon of the largest are rounding, and left out."""
    model, matrix = spectrum_model(name)
    spent = model.ledger.products
    sketch = nystrom(model, rank)
    assert model.ledger.products - spent == rank
    if rank >= int((torch.as_tensor(SPECTRA[name]) > 0).sum()):
        size = float(torch.linalg.matrix_norm(matrix, 2))
        torch.testing.assert_close(explicit(replace(sketch, tail=0.0)), matrix, rtol=0, atol=1e-9 * size)
        precision = precision_of("varying")
        assert_inverts(sketch.at(precision), explicit(sketch) + precision.diag())


@every_spectrum
def test_nystrom_lies_below_the_matrix_and_within_the_error_of_its_theory(name):
    """Frangella, Tropp, Udell 2021, equation 1.5: the mean of 20 draws, where the bound is on the expectation.

    E |M - M_nys| <= (1 + 2 (r - p) / (p - 1)) lambda_(r - p + 1) + 2 e^2 r / (p^2 - 1) sum_(j > r - p) lambda_j for
    every 2 <= p <= r - 2; it is loose, so a quarter of it must do.
    """
    model, matrix = spectrum_model(name)
    rank, errors = 24, []
    falling = torch.linalg.eigvalsh(matrix).flip(0).clamp_min(0)
    for seed in range(20):
        sketch = nystrom(model, rank, seed)
        left = torch.linalg.eigvalsh(matrix - explicit(replace(sketch, tail=0.0)))
        assert float(left[0]) > -1e-10 * float(falling[0]), "not below M"
        assert float(torch.linalg.eigvalsh(sketch.gram)[0]) >= 0
        assert 0 <= sketch.tail <= float(falling[0])
        errors.append(float(left[-1]))
    bounds = [
        (1 + 2 * (rank - p) / (p - 1)) * falling[rank - p]
        + 2 * torch.e**2 * rank / (p**2 - 1) * falling[rank - p :].sum()
        for p in range(2, rank - 1)
    ]
    assert sum(errors) / 20 <= 0.25 * float(min(bounds)) + 1e-12 * float(falling[0])
    assert len(set(errors)) == 20, "a seed must change the draw"


def pieces(stride):
    """300 data of 20 columns, of which 20 vectors at once see 12 pieces of 25; and M of every stride-th, times it."""
    rows = prescribed(torch.linspace(1, 30, 20).tolist(), 300)
    targets = torch.zeros(300, 1).double()
    model = linear_model(sampla.DesignMatrix(20), sampla.Gaussian(1.0), batches(rows, targets, 100))
    part = rows.view(12, 25, 20)[::stride].flatten(0, 1)
    return model, stride * part.mT @ part


@pytest.mark.parametrize("stride", [1, 3])
def test_nystrom_from_a_part_is_the_part_scaled_to_all_data(stride):
    model, matrix = pieces(stride)
    spent = model.ledger.products
    torch.testing.assert_close(explicit(nystrom(model, 20, stride=stride)), matrix, rtol=0, atol=1e-9)
    assert model.ledger.products - spent == pytest.approx(20 / stride)


@pytest.mark.parametrize("stride", [1, 3])
def test_the_inverse_on_a_part_is_the_inverse_of_the_part(stride):
    model, matrix = pieces(stride)
    precision = torch.full((20,), 0.5).double()
    inverse = SubsetInverse(model, precision, matrix.diagonal(), stride, tolerance=1e-10)
    vectors = randn(20, 20)
    expected = torch.linalg.solve(matrix + precision.diag(), vectors.mT).mT
    torch.testing.assert_close(inverse.solve(vectors), expected, rtol=0, atol=1e-8)


def test_a_preconditioner_from_a_third_of_the_data_is_near():
    """A part of N / 3 = 4000 data has, in directions that the data determine, a curvature within 2 sqrt(P 3 / N)
    of all data's; where the prior is stronger it is nearer. Rows are drawn independently: any part is as good."""
    rows = randn(12000, 30) * torch.logspace(0, -2, 30).double()
    model = linear_model(
        sampla.DesignMatrix(30), sampla.Gaussian(1.0), batches(rows, torch.zeros(12000, 1).double(), 1000)
    )
    precision = torch.full((30,), 2.0).double()
    hessian = rows.mT @ rows + precision.diag()
    inverse = nystrom(model, 30, stride=3).at(precision).solve(torch.eye(30).double())
    ratios = torch.linalg.eigvals(inverse @ hessian).real
    spread = 2 * (3 * 30 / 12000) ** 0.5
    assert 1 - spread < float(ratios.min())
    assert float(ratios.max()) < 1 / (1 - spread)
    assert float(ratios.max() / ratios.min()) > 1.02, "a part is not all"


@pytest.mark.parametrize("rank", [0, -1, 61])
def test_a_rank_that_cannot_be_is_refused(rank):
    with pytest.raises(ValueError, match=rf"expected a rank from 1 to 60, got {rank}. 64 is usual"):
        nystrom(spectrum_model("flat")[0], rank)


def test_nystrom_of_nothing_is_the_prior_alone():
    rows = torch.zeros(10, SIZE).double()
    model = linear_model(
        sampla.DesignMatrix(SIZE), sampla.Gaussian(1.0), batches(rows, torch.zeros(10, 1).double(), 10)
    )
    precision = precision_of("varying")
    assert_inverts(nystrom(model, 4).at(precision), precision.diag())


@every_spectrum
def test_the_inverse_on_all_data_is_the_inverse(name):
    """Conjugate gradients to a relative residual of 1e-10, in the norm of the diagonal's inverse."""
    system, rhs, matrix = system_of(name, 0.1)
    inverse = SubsetInverse(
        system.model, system.precision, system.diagonal, stride=1, tolerance=1e-10, max_products=500
    )
    hessian = matrix + system.precision.diag()
    expected = torch.linalg.solve(hessian, rhs.total.mT).mT
    accuracy = 1e-10 * float(torch.linalg.cond(hessian))
    torch.testing.assert_close(inverse.solve(rhs.total), expected, rtol=0, atol=accuracy * float(expected.abs().max()))
    found = solve(
        sampla.BlockCG(), replace(system, preconditioner=inverse), rhs, tolerance=1e-6, max_passes=4
    )  # fmt: skip
    assert found.status is Status.CONVERGED
    torch.testing.assert_close(found.value, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_the_inverse_stops_at_its_products_and_leaves_zero_alone():
    system, rhs, _ = system_of("power law", 1e-3)
    inverse = SubsetInverse(system.model, system.precision, system.diagonal, stride=1, max_products=3)
    spent = system.model.ledger.products
    found = inverse.solve(torch.cat([rhs.total, torch.zeros(1, SIZE).double()]))
    assert system.model.ledger.products - spent == 3 * 5
    assert not bool(found[-1].any())
    assert bool(found.isfinite().all())


@every_spectrum
def test_a_krylov_space_is_a_sketch_of_what_it_has_seen(name):
    """M on the space exactly, the lowest quarter of the Ritz values outside; as a preconditioner it saves passes."""
    system, rhs, _ = system_of(name, 1e-2)
    space = krylov_space(rhs.data_part)
    for _ in range(4):
        space = space.grown(system.model)
    sketch = space.sketch()
    values = torch.linalg.eigvalsh(space.gram)
    torch.testing.assert_close(sketch.gram, space.gram, rtol=0, atol=1e-12 * float(values[-1]))
    assert sketch.tail == pytest.approx(float(values.quantile(0.25)), rel=1e-9)
    preconditioner = sketch.at(system.precision)
    assert_inverts(preconditioner, explicit(sketch) + system.precision.diag())
    found = [
        solve(sampla.BlockCG(), replace(system, preconditioner=each), rhs, tolerance=1e-3)
        for each in (None, preconditioner)
    ]
    assert found[1].status is Status.CONVERGED
    assert found[1].passes <= found[0].passes
    assert name == "flat" or found[1].passes < found[0].passes
