"""Block conjugate gradients over the outputs, where N C < P: against dense references in float64."""

from types import SimpleNamespace

import pytest
import torch

import sampla
from cases import batches, linear_model, randn
from sampla.inference.output_space import as_output_space, output_space
from sampla.inference.quadrature import estimated, gamma, log_determinant
from sampla.solvers import KrylovDual, LinearSystem, OutputBasis, OutputProducts, RightHandSide, Start, Status, solve

ROWS, COLUMNS, PROBES = 60, 150, 6


def posed(dtype: torch.dtype, alpha: float, spread: float = 1.0) -> tuple[LinearSystem, torch.Tensor]:
    """Eigenvalues of M from 1e6 down to 1e-2, precisions from alpha to ``spread`` alpha; and the design in float64."""
    left, right = torch.linalg.qr(randn(ROWS, ROWS)).Q, torch.linalg.qr(randn(COLUMNS, ROWS, seed=1)).Q
    design = ((left * torch.logspace(3, -1, ROWS).double()) @ right.mT).to(dtype)
    features = sampla.DesignMatrix(COLUMNS, dtype=dtype)
    model = linear_model(features, sampla.Gaussian(4.0), batches(design, randn(ROWS, 1).to(dtype), 11))
    precision = alpha * torch.linspace(1, spread, COLUMNS).to(dtype)
    return LinearSystem(model, precision, torch.ones(COLUMNS).to(dtype)), design.double()


def right_hand_side(system: LinearSystem, design: torch.Tensor, columns: int = 5) -> RightHandSide:
    """Posterior samples' own."""
    data = 2 * randn(columns, ROWS, seed=2) @ design
    prior = system.precision.double().sqrt() * randn(columns, COLUMNS, seed=4)
    return RightHandSide(data.to(system.precision), prior.to(system.precision), columns, 0)


def true_error(system: LinearSystem, design: torch.Tensor, rhs: RightHandSide, value: torch.Tensor) -> float:
    """|z - z*|_M / |z*|_M of the block."""
    curvature = 4 * design.mT @ design
    exact = torch.linalg.solve(curvature + system.precision.double().diag(), rhs.total.double().mT).mT
    wrong, size = (float(((each @ curvature) * each).sum()) ** 0.5 for each in (value.double() - exact, exact))
    return wrong / size


@pytest.mark.parametrize("spread", [1.0, 30.0], ids=["one alpha", "many"])
@pytest.mark.parametrize("alpha", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("tolerance", [1e-1, 1e-6])
def test_solution_is_the_dense_one_and_the_error_stated_a_bound(alpha, spread, tolerance):
    system, design = posed(torch.float64, alpha, spread)
    rhs = right_hand_side(system, design)
    found = solve(KrylovDual(), system, rhs, tolerance=tolerance, max_passes=30)
    true = true_error(system, design, rhs, found.value)
    assert found.status is Status.CONVERGED
    assert true <= 1.2 * found.error <= 1.2 * tolerance  # the columns have about one length
    assert found.error < 1_000 * true + 1e-8  # and no idle one
    torch.testing.assert_close(found.curvature_value, 4 * found.value @ design.mT @ design)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("alpha", [1e-2, 1e2])
def test_float32_says_how_far_it_came(alpha, seed):
    system, design = posed(torch.float32, alpha)
    rhs = right_hand_side(system, design)
    rhs = RightHandSide(rhs.data_part.roll(seed, 1), rhs.prior_part, rhs.num_samples, seed)
    with pytest.warns(match="KrylovDual"):
        found = solve(KrylovDual(), system, rhs, tolerance=1e-7, max_passes=30)
    assert found.status is Status.STAGNATED
    for column in range(5):
        one = RightHandSide(rhs.data_part[column, None], rhs.prior_part[column, None], 1, 0)
        assert true_error(system, design, one, found.value[column, None]) < 1.05 * float(found.errors[column])
    assert alpha < 1 or found.error < 0.01


def test_a_space_that_is_known_saves_passes():
    system, design = posed(torch.float64, 3.0)
    rhs = right_hand_side(system, design)
    space = output_space(randn(PROBES, ROWS, seed=7))
    for _ in range(5):
        space = space.grown(OutputProducts(system.model))
    whole = 4 * design @ design.mT
    torch.testing.assert_close(space.images.parts[0], torch.cat(space.basis.parts) @ whole, rtol=1e-9, atol=1e-6)
    known = OutputBasis(system.model, space.basis, space.images)
    nothing = torch.zeros_like(rhs.total)
    cold = solve(KrylovDual(), system, rhs, tolerance=1e-3, max_passes=30)
    warm = solve(
        KrylovDual(), system, rhs, tolerance=1e-3, max_passes=30, guess=Start(nothing, nothing, reusable=known)
    )
    assert warm.passes < cold.passes - 2
    assert true_error(system, design, rhs, warm.value) <= 1e-3
    other, _ = posed(torch.float64, 3.0)  # another model: what is known is not of it
    again = solve(
        KrylovDual(), other, rhs, tolerance=1e-3, max_passes=30, guess=Start(nothing, nothing, reusable=known)
    )
    assert again.passes == cold.passes


def test_a_long_column_does_not_hide_the_others():
    system, design = posed(torch.float64, 3.0)
    rhs = right_hand_side(system, design)
    longer = torch.ones(5, 1).double()
    longer[-1] = 1e6
    rhs = RightHandSide(longer * rhs.data_part, longer * rhs.prior_part, 4, 0)
    found = solve(KrylovDual(), system, rhs, tolerance=1e-2, max_passes=30)
    for column in range(5):
        one = RightHandSide(rhs.data_part[column, None], rhs.prior_part[column, None], 1, 0)
        true = true_error(system, design, one, found.value[column, None])
        assert true <= 1.01 * float(found.errors[column]) < 0.03
    assert found.error == pytest.approx(float(found.errors.square().mean().sqrt()))


def test_shuffled_loaders_are_refused():
    system, design = posed(torch.float64, 1.0)
    system.model.data.fixed_order = False
    with pytest.raises(ValueError, match="a loader with a fixed order"):
        solve(KrylovDual(), system, right_hand_side(system, design), tolerance=0.01, max_passes=5)


@pytest.mark.parametrize(
    ("form", "of"), [(gamma, lambda x, a: x / (x + a)), (log_determinant, lambda x, a: (1 + x / a).log())]
)
@pytest.mark.parametrize("ratio", [1e-1, 1e1, 1e3])
def test_quadratures_enclose_what_each_probe_sees(form, of, ratio):
    """x' f(G) x for each probe, below and above at every iteration, and exact in the end."""
    system, design = posed(torch.float64, 1.0)
    values, vectors = torch.linalg.eigh(4 * design @ design.mT)
    probes = randn(PROBES, ROWS, seed=7)
    exact = (probes @ vectors).square() @ of(values.clamp_min(0), ratio)
    space = output_space(probes)
    for _ in range(ROWS // PROBES):
        space = space.grown(OutputProducts(system.model))
        lower, upper = form(space.gauss, ratio), form(space.gauss_radau, ratio)
        assert bool((lower <= exact * (1 + 1e-6) + 1e-9).all())
        assert bool((upper >= exact * (1 - 1e-6) - 1e-9).all())
    torch.testing.assert_close(form(space.quadrature, ratio), exact, rtol=1e-6, atol=1e-9)
    found = estimated(space, PROBES, form, ratio)
    truth = float(of(values.clamp_min(0), ratio).sum())
    assert abs(found.value - truth) < 4 * found.standard_error


def test_standard_error_is_the_spread_over_probes():
    """Over 300 blocks of probes, G diagonal: they see no rotation. A block's own error is known to some 5 %."""
    values = torch.logspace(6, -2, 4 * PROBES, dtype=torch.float64)
    products = SimpleNamespace(curvature_product=lambda vectors: vectors * values)
    found, errors = [], []
    for seed in range(300):
        space = output_space(randn(PROBES, len(values), seed=100 + seed))
        while not space.complete and len(space.basis) < len(values):
            space = space.grown(products)
        one = estimated(as_output_space(space), PROBES, gamma, 10.0)
        found.append(one.value)
        errors.append(one.standard_error)
    spread = float(torch.tensor(found).std())
    assert spread == pytest.approx(sum(errors) / len(errors), rel=0.15)
    assert sum(found) / len(found) == pytest.approx(float((values / (values + 10)).sum()), abs=4 * spread / 300**0.5)
