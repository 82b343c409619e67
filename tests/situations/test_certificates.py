"""The error stated by a solve against the true one, where products are inexact or starts are bad."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import sampla
from cases import randn
from sampla.model import LinearModel
from sampla.solvers import Iterate, LinearSystem, RightHandSide, Start, Status, solve

ROUNDING = 1e-5
"""Errors below are not stated to a factor 2: a hundred rounding errors of float32."""


def inexact(seed: int) -> tuple[LinearSystem, LinearSystem, RightHandSide, Tensor]:
    """H with products rounded to bfloat16, H with those of float32, B, and M in float64."""
    draw = torch.Generator().manual_seed(seed)
    size, columns = int(torch.randint(20, 60, (), generator=draw)), int(torch.randint(1, 40, (), generator=draw))
    basis = torch.linalg.qr(randn(size, size, seed=seed)).Q
    decades = 1 + 4 * float(torch.rand((), generator=draw))
    matrix = 10 ** (4 * float(torch.rand((), generator=draw))) * (basis * torch.logspace(0, -decades, size)) @ basis.mT

    def product(dtype: torch.dtype) -> Any:
        return lambda v, _=1: (v.to(dtype) @ matrix.to(dtype)).float()

    precision = torch.full(
        (size,), float(matrix.diagonal().max()) / 10 ** (1 + 2 * float(torch.rand((), generator=draw)))
    )
    root = basis * torch.linalg.eigvalsh(matrix).flip(0).clamp_min(0).sqrt()
    data, prior = randn(columns, size, seed=seed + 1) @ root.mT, randn(columns, size, seed=seed + 2)
    right = RightHandSide(data.float(), prior.float() * precision.sqrt(), columns, seed)
    rough, fine = (
        LinearSystem(
            cast(
                LinearModel,
                SimpleNamespace(curvature_product=product(dtype), num_parameters=size, rounding=torch.finfo(dtype).eps),
            ),
            precision,
            matrix.diagonal().float(),
        )
        for dtype in (torch.bfloat16, torch.float32)
    )
    return rough, fine, right, matrix


@pytest.mark.filterwarnings("ignore::sampla.ConvergenceWarning")
@pytest.mark.parametrize("seed", range(40))
def test_the_error_stated_is_not_below_half_of_the_true_one(seed: int) -> None:
    """After a solve with products in bfloat16, and from starts as far off as a diverged one leaves them."""
    rough, fine, right, matrix = inexact(seed)
    whole = matrix + fine.precision.double().diag()
    exact = torch.linalg.solve(whole, right.total.double().mT).mT
    start = solve(sampla.BlockCG(), rough, right, tolerance=0.02, max_passes=30)
    if seed % 2:  # whatever a longer one would have come to
        far = 10.0 ** (seed % 14) * randn(*exact.shape, seed=seed).float()
        start = Start(start.value + far, start.curvature_value)
    guess = Start(start.value, start.curvature_value, curvature_exact=False)
    found = solve(sampla.BlockCG(), fine, right, tolerance=0.02, max_passes=100, guess=guess)
    error, size = (float(((d @ matrix) * d).sum() ** 0.5) for d in (found.value.double() - exact, exact))
    assert 2 * found.error + ROUNDING > error / size
    assert found.status is Status.CONVERGED
    assert float((found.value * found.curvature_value).sum()) > 0


def trained() -> tuple[nn.Module, Tensor, Tensor]:
    x = torch.randn(200, 3)
    y = (x[:, :1] * 2).sin() + 0.2 * torch.randn(200, 1)
    net = nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 1))
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(300):
        optimiser.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimiser.step()
    return net.eval(), x, y


def test_after_products_in_reduced_precision_the_certificate_is_that_of_exact_ones() -> None:
    net, x, y = trained()
    exact, reduced = (
        sampla.LinearisedLaplace(
            net, sampla.Gaussian(25.0), sampla.Isotropic(1.0, learn=False), solver=solver, num_samples=64,
            progress=False, precision="bfloat16",
        ).fit([(x, y)])
        for solver in ("dense", "block-cg")
    )  # fmt: skip
    wanted, found = (la.predict(x).deviations.flatten(1) for la in (exact, reduced))
    error = float((wanted - found).norm() / wanted.norm())
    assert error < 0.02
    assert reduced.report_.solve_error > error / 2
    # the sampled one against the exact one
    torch.testing.assert_close(reduced.effective_dimension_, exact.effective_dimension_, rtol=0.2, atol=0)


def test_a_solver_that_has_lost_its_samples_is_found_out() -> None:
    """Negative z' M z: the image that the solver believes in is not that of its samples."""

    class Lost(sampla.BlockCG):
        def solution(self, system: LinearSystem, rhs: RightHandSide, state: Any) -> Iterate:
            found = super().solution(system, rhs, state)
            return Iterate(-found.value, found.curvature_value)

    _, system, right, _ = inexact(0)
    with pytest.warns(sampla.ConvergenceWarning, match="had parted"):
        found = solve(Lost(), system, right, tolerance=0.02, max_passes=50)
    assert found.status is Status.BROKE_DOWN
    assert found.error > 1
    assert float((found.value * found.curvature_value).sum()) > 0


@pytest.mark.filterwarnings("ignore::sampla.ConvergenceWarning")
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("solver", ["dense", "dense-dual"])
def test_dense_solvers_in_float32_measure_their_error(solver: str, seed: int) -> None:
    """G up to 1e6 times the identity: what float32 products cannot tell is not called exact."""
    rows, columns = 12, 30
    alpha = 10.0 ** (2 - seed)
    left, right = torch.linalg.qr(randn(rows, rows, seed=seed)).Q, torch.linalg.qr(randn(columns, rows, seed=9)).Q
    design = ((left * torch.logspace(1.5, -1.5, rows).double()) @ right.mT).float()
    model = LinearModel(
        sampla.DesignMatrix(columns, dtype=torch.float32), sampla.Gaussian(1.0), [(design, randn(rows, 1).float())]
    )
    model.survey()
    matrix = design.double().mT @ design.double()
    system = LinearSystem(model, torch.full((columns,), alpha), matrix.diagonal().float())
    data = randn(6, rows, seed=1) @ design.double()
    b = RightHandSide(data.float(), alpha**0.5 * randn(6, columns, seed=2).float(), 6, 0)
    chosen: Any = sampla.Dense() if solver == "dense" else sampla.solvers.DenseDual()
    found = solve(chosen, system, b, tolerance=0.02, max_passes=20)
    exact = torch.linalg.solve(matrix + alpha * torch.eye(columns).double(), b.total.double().mT).mT
    error, size = (float(((d @ matrix) * d).sum() ** 0.5) for d in (found.value.double() - exact, exact))
    assert found.error > error / size / 2
    assert found.error > 0
    if found.status is Status.CONVERGED:
        assert error / size < 0.02


@pytest.mark.parametrize("curvature_at", ["network", "linear-mode"])
@pytest.mark.parametrize("tolerance", [0.2, 0.05])
def test_the_error_of_the_evidence_holds_that_of_a_mode_that_is_known_badly(
    curvature_at: str, tolerance: float
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)).double().eval()
    x = torch.randn(60, 2).double()
    data = [(x, (x @ torch.randn(2, 3).double()).argmax(1))]

    def fitted(mode_tolerance: float) -> sampla.LinearisedLaplace:
        return sampla.LinearisedLaplace(
            network, prior=sampla.Isotropic(10.0, learn=False), solver="dense", log_evidence=True,
            curvature_at=curvature_at, em=sampla.EM(mode_tolerance=mode_tolerance), progress=False,
        ).fit(data)  # fmt: skip

    rough, exact = fitted(tolerance), fitted(1e-7)
    spread, stated = rough.report_.log_evidence_error
    missed = abs(rough.log_evidence_ - exact.log_evidence_)
    assert spread == 0  # the determinant is exact
    assert 1e-4 < missed < 4 * stated
    assert exact.report_.log_evidence_error[1] < 1e-4
