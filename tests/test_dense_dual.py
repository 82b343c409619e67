"""The dense solver over the outputs, where N C < P: against a dense reference, in float32, and what it refuses.

It also runs over the tables of cases.py with every likelihood.
"""

import warnings

import pytest
import torch

import sampla
from cases import batches, linear_model, randn
from sampla.core.checks import ConvergenceWarning
from sampla.solvers import (
    DenseDual,
    LinearSystem,
    OutputKernel,
    RightHandSide,
    Start,
    Status,
    output_kernel,
    solve,
)


def system(dtype: torch.dtype, alpha: float, rows: int = 30, columns: int = 80) -> tuple[LinearSystem, torch.Tensor]:
    """Eigenvalues of M from 1e4 down to 1, and a null space; and M in float64."""
    left, right = torch.linalg.qr(randn(rows, rows)).Q, torch.linalg.qr(randn(columns, rows, seed=1)).Q
    design = ((left * torch.logspace(2, 0, rows).double()) @ right.mT).to(dtype)
    features = sampla.DesignMatrix(columns, dtype=dtype)
    model = linear_model(features, sampla.Gaussian(1.0), batches(design, randn(rows, 1).to(dtype), 11))
    precision = alpha * torch.linspace(1, 2, columns).to(dtype)
    return LinearSystem(model, precision, torch.ones(columns).to(dtype)), design.double().mT @ design.double()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 5e-4)])
@pytest.mark.parametrize("alpha", [1e-2, 1.0, 1e4])
def test_solution_is_the_dense_one(dtype, bound, alpha):
    """In float32 at alpha = 1e-2 a single solve is off by much more than this: the refinement is needed."""
    posed, curvature = system(dtype, alpha)
    data, prior = (randn(5, 30, seed=2) @ randn(30, 80, seed=3)).to(dtype), randn(5, 80, seed=4).to(dtype)
    right = RightHandSide((data @ curvature.to(dtype)) / 100, prior, 5, 0)
    found = solve(DenseDual(), posed, right, tolerance=0.01, max_passes=5)
    whole = curvature + posed.precision.double().diag()
    exact = torch.linalg.solve(whole, right.total.double().mT).mT
    error, size = ((d @ curvature * d).sum().sqrt() for d in (found.value.double() - exact, exact))
    assert float(error / size) < bound
    assert found.log_determinant == pytest.approx(float(torch.linalg.slogdet(whole).logabsdet), rel=10 * bound)
    assert float(found.error) < bound


def test_too_many_outputs_and_shuffled_loaders():
    posed, _ = system(torch.float64, 1.0)
    right = RightHandSide(randn(2, 80), randn(2, 80), 2, 0)
    with pytest.raises(ValueError, match="at most 20 outputs"):
        solve(DenseDual(max_outputs=20), posed, right, tolerance=0.01, max_passes=5)
    posed.model.data.fixed_order = False
    with pytest.raises(ValueError, match="a loader with a fixed order"):
        solve(DenseDual(), posed, right, tolerance=0.01, max_passes=5)


@pytest.mark.parametrize("top", [3.2, 3.4, 3.6, 4.0, 5.0])
def test_a_solve_that_rounding_spoils_does_not_pass_for_converged(top):
    """Eigenvalues of G from 10^(2 top) to 1e-4 in float32, whose rounding hides the small ones."""
    posed, design = wide(torch.float32, top)
    curvature = design.mT @ design
    right = RightHandSide((randn(8, 200, seed=2) @ design).float(), randn(8, 600, seed=4).float(), 8, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = solve(DenseDual(), posed, right, tolerance=0.01, max_passes=5)
    exact = torch.linalg.solve(curvature + torch.eye(600).double(), right.total.double().mT).mT
    error, size = ((d @ curvature * d).sum().sqrt() for d in (found.value.double() - exact, exact))
    if float(error / size) > 0.015:
        assert found.status is not Status.CONVERGED
    if found.status is Status.CONVERGED:
        assert found.error > float(error / size) / 2
    if top >= 4:
        assert found.status is not Status.CONVERGED
        double, _ = wide(torch.float64, top)
        right = RightHandSide(right.data_part.double(), right.prior_part.double(), 8, 0)
        assert solve(DenseDual(), double, right, tolerance=0.01, max_passes=5).status is Status.CONVERGED


def test_one_kernel_serves_every_alpha_and_noise():
    """Given at alpha = 1 and another noise: no product with M but those that measure the error."""
    posed, _ = wide(torch.float64, 2.0)
    right = RightHandSide(randn(2, 600, seed=2), randn(2, 600, seed=4), 2, 0)
    kernel = output_kernel(posed.model)
    other = LinearSystem(
        posed.model.replaced(likelihood=sampla.Gaussian(7.0)), 0.3 * posed.precision, posed.diagonal
    )  # fmt: skip
    fresh = solve(DenseDual(), other, right, tolerance=1e-6, max_passes=5)
    before, nothing = posed.model.ledger.products, torch.zeros(2, 600).double()
    again = solve(
        DenseDual(), other, right, tolerance=1e-6, max_passes=5, guess=Start(nothing, nothing, reusable=kernel)
    )  # fmt: skip
    assert posed.model.ledger.products - before < 40
    torch.testing.assert_close(again.value, fresh.value)
    groups = LinearSystem(other.model, torch.linspace(1, 2, 600).double(), posed.diagonal)
    assert kernel.at(groups) is None
    assert OutputKernel(wide(torch.float64, 2.0)[0].model, kernel.matrix).at(posed) is None


def wide(dtype, top):
    """A system with A = 1, and its design matrix (200, 600) in float64."""
    left, right = torch.linalg.qr(randn(200, 200)).Q, torch.linalg.qr(randn(600, 200, seed=1)).Q
    design = ((left * torch.logspace(top, -2, 200).double()) @ right.mT).to(dtype)
    features = sampla.DesignMatrix(600, dtype=dtype)
    model = linear_model(features, sampla.Gaussian(1.0), batches(design, randn(200, 1).to(dtype), 50))
    return LinearSystem(model, torch.ones(600).to(dtype), torch.ones(600).to(dtype)), design.double()
