"""Solvers: one table x systems of prescribed eigenvalues, against a dense solve, in the norm of function space."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import sampla
from cases import SOLVERS, batches, linear_model, randn
from dense import prescribed
from sampla.solvers import LinearSystem, RightHandSide, Status, solve, solve_balanced

NUM_DATA = 300
SYSTEMS = {  # eigenvalues of M, prior precision
    "well conditioned": (np.linspace(1, 10, 20), 1.0),
    "decaying spectrum": (np.logspace(3, -3, 30), 0.1),
    "low rank": (np.r_[np.logspace(2, 0, 10), np.zeros(10)], 0.5),
    "one eigenvalue": (np.ones(10), 1.0),
}
FLOOR = 1e-11  # rounding: an estimate below it cannot be told from the truth


class Case:
    """A system with K right-hand sides drawn as a fit draws them, and their exact solutions."""

    def __init__(self, name, num_samples, rows=None):
        eigenvalues, alpha = SYSTEMS[name]
        self.rows = prescribed(eigenvalues, NUM_DATA) if rows is None else rows
        size = self.rows.shape[1]
        targets = torch.zeros(NUM_DATA, 1).double()
        model = linear_model(sampla.DesignMatrix(size), sampla.Gaussian(1.0), batches(self.rows, targets, 100))
        self.precision = torch.full((size,), alpha).double()
        self.noise = model.draw_noise(1, num_samples)
        self.system = LinearSystem(model, self.precision, self.noise.diagonal)
        self.matrix = self.rows.mT @ self.rows + self.precision.diag()
        prior_part = self.precision.sqrt() * randn(num_samples, size)
        self.rhs = RightHandSide(self.noise.data_part, prior_part, num_samples, 1)

    def exact(self, rhs=None, matrix=None):
        total = (rhs or self.rhs).total
        return torch.linalg.solve(self.matrix if matrix is None else matrix, total.mT).mT

    def error(self, found, exact):
        return float((self.rows @ (found.value - exact).mT).norm() / (self.rows @ exact.mT).norm())

    def solve(self, solver, rhs=None, **options):
        return solve(SOLVERS[solver].make(), self.system, rhs or self.rhs, **options)


every_solver = pytest.mark.parametrize("solver", SOLVERS)
exact_solvers = pytest.mark.parametrize("solver", [name for name, line in SOLVERS.items() if line.exact])
shortfall_allowed = pytest.mark.filterwarnings("ignore::sampla.ConvergenceWarning")


@shortfall_allowed
@every_solver
@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("num_samples", [1, 8])
def test_solution_is_as_accurate_as_its_estimate_says(solver, name, num_samples):
    """Where noise or slow directions keep an error above what was asked, the status says so."""
    case, line = Case(name, num_samples), SOLVERS[solver]
    found = case.solve(solver, tolerance=line.tolerance, max_passes=100 if line.exact else 40)
    assert case.error(found, case.exact()) <= line.short * found.error + FLOOR
    assert (found.status is Status.CONVERGED) == (found.error <= line.tolerance)
    assert found.status is Status.CONVERGED or not line.exact
    assert case.error(found, case.exact()) < 0.7, "it must have gone most of the way"


@exact_solvers
@pytest.mark.parametrize("name", SYSTEMS)
def test_more_right_hand_sides_than_parameters(solver, name):
    case = Case(name, 40)
    found = case.solve(solver, tolerance=1e-8)
    assert found.status is Status.CONVERGED
    assert case.error(found, case.exact()) < 1e-10


@shortfall_allowed
@pytest.mark.parametrize("objective", ["regulariser", "targets"])
def test_sgd_with_a_small_step_goes_to_the_exact_solution(objective):
    """Pieces of 64 and 36 data: the limit is right only if every datum counts the same."""
    case = Case("well conditioned", 8)
    automatic = sampla.SGD(objective=objective).init(case.system, case.rhs, None).step_size
    solver = sampla.SGD(objective=objective, step_size=automatic / 40)
    found = solve(solver, case.system, case.rhs, tolerance=1e-5, max_passes=200)
    assert case.error(found, case.exact()) < 0.01


@shortfall_allowed
@every_solver
def test_curvature_of_the_solution_is_reported(solver):
    case = Case("decaying spectrum", 4)
    found = case.solve(solver, tolerance=0.05)
    expected = found.value @ case.rows.mT @ case.rows
    assert float((found.curvature_value - expected).norm() / expected.norm()) < 1e-8


def test_dense_reports_the_exact_effective_dimension():
    case = Case("decaying spectrum", 2)
    expected = torch.linalg.solve(case.matrix, case.matrix - case.precision.diag()).diagonal()
    torch.testing.assert_close(case.solve("dense").effective_dimension, expected, rtol=1e-9, atol=1e-12)


def test_dense_forgives_rounding_and_nothing_else():
    """Eigenvalues of M a little below zero are rounding; as far below as the prior is strong, a wrong curvature."""
    for lowest, status in ((-1e-12, Status.CONVERGED), (-0.5, Status.BROKE_DOWN)):
        case = Case("well conditioned", 2)
        spoiled = torch.linspace(1, 10, 20).double().index_fill(0, torch.tensor(0), lowest).diag()
        weak = LinearSystem(case.system.model, 1e-13 * case.precision, case.noise.diagonal)
        first = case.solve("dense")
        given = replace(first, reusable=(weak.model, spoiled))
        weak.model.curvature_product = lambda v, _=1, m=spoiled: v @ m
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", sampla.ConvergenceWarning)
            found = solve(sampla.Dense(), weak, case.rhs, guess=given)
        assert found.status is status


@every_solver
def test_zero_right_hand_side_has_the_zero_solution(solver):
    case = Case("well conditioned", 3)
    zero = RightHandSide(0 * case.rhs.data_part, 0 * case.rhs.prior_part, 0, 1)
    found = case.solve(solver, zero)
    assert found.status is Status.CONVERGED
    assert not bool(found.value.any())


@exact_solvers
def test_dependent_right_hand_sides_do_no_harm(solver):
    """Equal columns, a zero column and a linear combination: the block has rank 2 of 5."""
    case = Case("decaying spectrum", 2)
    mix = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 0], [2, -3]]).double()
    rhs = RightHandSide(mix @ case.rhs.data_part, mix @ case.rhs.prior_part, 5, 1)
    found = case.solve(solver, rhs, tolerance=1e-7)
    assert case.error(found, case.exact(rhs)) < 1e-6
    torch.testing.assert_close(found.value[0], found.value[1])
    assert not bool(found.value[3].any())


@exact_solvers
def test_duplicate_features_do_no_harm(solver):
    """M is singular: only the prior tells the two halves of the parameters apart."""
    half = prescribed(np.linspace(1, 10, 10), NUM_DATA)
    case = Case("well conditioned", 4, rows=torch.cat([half, half], 1))
    found = case.solve(solver, tolerance=1e-7)
    assert case.error(found, case.exact()) < 1e-6


@exact_solvers
def test_warm_start_after_a_change_of_the_prior(solver):
    case = Case("decaying spectrum", 4)
    first = case.solve(solver, tolerance=1e-6)
    changed = LinearSystem(case.system.model, 1.1 * case.precision, case.noise.diagonal)
    cold = solve(SOLVERS[solver].make(), changed, case.rhs, tolerance=1e-3)
    warm = solve(SOLVERS[solver].make(), changed, case.rhs, tolerance=1e-3, guess=first)
    exact = case.exact(matrix=case.matrix + 0.1 * case.precision.diag())
    assert case.error(warm, exact) < 1e-2
    assert warm.passes <= cold.passes
    torch.testing.assert_close(warm.curvature_value, warm.value @ case.rows.mT @ case.rows, rtol=1e-6, atol=1e-6)


@exact_solvers
def test_warm_start_from_the_answer_ends_at_once(solver):
    case = Case("well conditioned", 4)
    first = case.solve(solver, tolerance=1e-12, max_passes=30)
    again = solve(SOLVERS[solver].make(), case.system, case.rhs, tolerance=1e-6, guess=first)
    assert again.passes == 1
    assert case.error(again, case.exact()) < 1e-9


def test_dense_forms_the_matrix_once():
    case = Case("well conditioned", 2)
    first = case.solve("dense")
    spent = case.system.model.ledger.products
    columns = len(case.rhs.data_part)
    solve(
        sampla.Dense(), LinearSystem(case.system.model, 2 * case.precision, case.noise.diagonal), case.rhs, guess=first
    )
    assert case.system.model.ledger.products == spent + columns  # which measure the error


@pytest.mark.parametrize("solver", ["block-cg", "sgd-regulariser"])
def test_too_few_passes_are_said_in_plain_words(solver):
    case = Case("decaying spectrum", 2)
    asked = r"asked for a relative error of 1.0e-06, reached an estimated .* in 2 passes and stopped at max_passes"
    with pytest.warns(sampla.ConvergenceWarning, match=asked):
        found = case.solve(solver, tolerance=1e-6, max_passes=2)
    assert found.status is Status.MAX_PASSES
    assert found.passes == 2
    assert len(found.history) == 2


def test_a_solve_without_any_solution_is_an_error():
    case = Case("well conditioned", 2)
    with pytest.raises(ArithmeticError, match="SGD has no solution: in its first pass it met NaN"):
        solve(sampla.SGD(step_size=1e80), case.system, case.rhs)


def test_single_precision_that_allows_no_more_is_said():
    """Asked for more than float32 can give, on a spectrum over six decades."""
    case = Case("decaying spectrum", 2)
    model = linear_model(
        sampla.DesignMatrix(30, dtype=torch.float32), sampla.Gaussian(1.0),
        [(case.rows.float(), torch.zeros(NUM_DATA, 1))],
    )  # fmt: skip
    noise = model.draw_noise(1, 2)
    rhs = RightHandSide(noise.data_part, case.rhs.prior_part.float(), 2, 1)
    system = LinearSystem(model, case.precision.float(), noise.diagonal)
    with pytest.warns(sampla.ConvergenceWarning, match="BlockCG was asked"):
        found = solve(sampla.BlockCG(), system, rhs, tolerance=1e-13, max_passes=300)
    assert found.status in (Status.STAGNATED, Status.MAX_PASSES)


def test_diverging_sgd_says_what_to_change_and_keeps_the_last_good_iterate():
    case = Case("well conditioned", 2)
    with pytest.warns(sampla.ConvergenceWarning, match="for SGD, lower step_size"):
        found = solve(sampla.SGD(step_size=100.0), case.system, case.rhs, max_passes=100)
    assert found.status is Status.BROKE_DOWN
    assert bool(found.value.isfinite().all())


def test_noisy_targets_need_a_fixed_order():
    x, y = randn(60, 4), randn(60, 1, seed=1)
    loader = DataLoader(TensorDataset(x, y), 20, shuffle=True, generator=torch.Generator().manual_seed(0))
    model = linear_model(sampla.DesignMatrix(4), sampla.Gaussian(1.0), loader)
    noise, precision = model.draw_noise(0, 2), torch.ones(4).double()
    rhs = RightHandSide(noise.data_part, randn(2, 4), 2, 0)
    with pytest.raises(ValueError, match=r"fixed order for objective='targets'.*Use objective='regulariser'"):
        solve(SOLVERS["sgd-targets"].make(), LinearSystem(model, precision, noise.diagonal), rhs)


@pytest.mark.parametrize("method", ["fixed", "krylov", "samples"])
def test_samples_beside_a_mean_that_is_far_longer_are_as_exact_as_stated(method):
    """Data so precise that |phi mean| is a hundred times |phi z|: the error stated is that of the samples."""
    size = 100
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Linear(size, 1, bias=False).double().eval()
    x = prescribed(np.logspace(0, -5, size).tolist(), NUM_DATA)
    loader = [(x, x @ randn(size, 1) + 1e-3 * randn(NUM_DATA, 1, seed=1))]
    likelihood = sampla.Gaussian(1e6, learn=False)

    def fitted(solver, prior, **options):
        la = sampla.LinearisedLaplace(
            net, likelihood, prior, solver=solver, num_samples=8, progress=False, **options
        )  # fmt: skip
        return la.fit(loader)

    learn = method != "fixed"
    em = sampla.EM(method=method, mode_tolerance=0.05, solve_tolerance=0.05) if learn else None
    found = fitted("block-cg", sampla.Isotropic(1.0, learn=learn), tolerance=0.05, em=em)
    exact = fitted("dense", sampla.Isotropic(float(found.prior_precision_), learn=False))
    ours, truth = (x @ la.samples_["weight"][:, 0].mT for la in (found, exact))
    mean = x @ found.linear_mean_["weight"][0]
    assert mean.norm() > 50 * truth.norm() / 8**0.5
    error = float((ours - truth).norm() / truth.norm())
    assert error < 1.5 * 0.05
    assert found.report_.solve_error <= 0.05
    assert found.report_.solve_error > error / 3 or error < 1e-9  # the Krylov space is whole: rounding is left


def test_what_a_balanced_solve_is_given_comes_back_as_it_was():
    """Right-hand sides are scaled in place for a while: also after an interrupt they are the caller's again."""
    x, y = randn(60, 4), randn(60, 1, seed=1)
    model = linear_model(sampla.DesignMatrix(4), sampla.Gaussian(1e4, learn=False), batches(x, y, 20))
    noise = model.draw_noise(0, 2)
    target = -model.loss_gradient(torch.zeros(1, 4, dtype=noise.data_part.dtype))[1]
    part = torch.cat([noise.data_part, target])
    rhs = RightHandSide(part.clone(), torch.cat([randn(2, 4), torch.zeros(1, 4)]).to(part), 2, 0)
    system = LinearSystem(model, torch.ones_like(noise.diagonal), noise.diagonal)
    options = {"mean_size": 1e4 * float(y.square().sum()), "tolerance": 1e-8, "max_passes": 20}
    found = solve_balanced(sampla.BlockCG(), system, rhs, **options)
    torch.testing.assert_close(system.product(found.value), rhs.total)
    again = solve_balanced(sampla.BlockCG(), system, rhs, guess=found, **options)
    torch.testing.assert_close(again.value, found.value)

    def interrupt(_):
        raise KeyboardInterrupt

    kept = found.value.clone()
    with pytest.raises(KeyboardInterrupt):
        solve_balanced(sampla.BlockCG(), system, rhs, guess=found, say=interrupt, **options)
    assert torch.equal(rhs.data_part, part)
    assert torch.equal(found.value, kept)
