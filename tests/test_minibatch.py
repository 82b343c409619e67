"""Minibatch steps between exact residuals: answers, what it says about its error, what it costs, what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import sampla
from cases import batches, linear_model, randn
from dense import assert_covariance, prescribed
from sampla.solvers import LinearSystem, Minibatch, RightHandSide, Status, solve
from sampla.solvers._preconditioners import nystrom

SPECTRA = {  # eigenvalues of M, prior precision: 25, 15 and 40 effective dimensions
    "power law": (np.arange(1, 61) ** -2.0 * 1e3, 1.0),
    "steep": (np.logspace(4, -2, 60), 1.0),
    "flat": (np.linspace(1, 2, 40), 0.01),
}
FLOOR = 1e-11  # rounding: an estimate below it cannot be told from the truth
shortfall_allowed = pytest.mark.filterwarnings("ignore::sampla.ConvergenceWarning")


class Case:
    """N data of known spectrum with K right-hand sides drawn as a fit draws them, and their exact solutions."""

    def __init__(self, spectrum="power law", columns=8, num_data=4000, seed=0, order=None, dtype=torch.float64):
        eigenvalues, alpha = SPECTRA[spectrum] if isinstance(spectrum, str) else spectrum
        self.rows = prescribed(eigenvalues, num_data, seed)
        self.rows = self.rows if order is None else self.rows[order(self.rows)]
        size, rows = self.rows.shape[1], self.rows.to(dtype)
        self.model = linear_model(
            sampla.DesignMatrix(size, dtype=dtype), sampla.Gaussian(1.0), batches(rows, rows[:, :1], 500)
        )
        noise = self.model.draw_noise(seed, columns)
        precision = torch.full((size,), alpha, dtype=dtype)
        self.system = LinearSystem(self.model, precision, noise.diagonal)
        prior_part = precision.sqrt() * randn(columns, size, seed=seed, dtype=dtype)
        self.rhs = RightHandSide(noise.data_part, prior_part, columns, seed)
        self.matrix = self.rows.mT @ self.rows + alpha * torch.eye(size).double()
        self.exact = torch.linalg.solve(self.matrix, self.rhs.total.double().mT).mT
        self.columns, self.before = columns, self.model.ledger.products

    def error(self, value):
        return float((self.rows @ (value - self.exact).mT).norm() / (self.rows @ self.exact.mT).norm())

    @property
    def passes(self):
        """All products since the right-hand sides, in passes."""
        return (self.model.ledger.products - self.before) / self.columns

    def solve(self, solver=None, **options):
        return solve(solver or Minibatch(), self.system, self.rhs, **options)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("columns", [1, 8, 70])
def test_the_answer_is_as_accurate_as_its_estimate_says(spectrum, columns):
    case = Case(spectrum, columns, num_data=1500)
    found = case.solve(tolerance=1e-5, max_passes=60)
    assert found.status is Status.CONVERGED
    assert case.error(found.value) <= 2e-5
    assert case.error(found.value) <= 3 * found.error + FLOOR
    expected = found.value @ case.rows.mT @ case.rows
    torch.testing.assert_close(found.curvature_value, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("seed", range(4))
def test_every_stage_states_an_honest_error(spectrum, seed):
    """12 systems, 4 stages each; and the estimate is not a mere safety margin either."""
    case, solver = Case(spectrum, (1, 2, 8, 16)[seed], 1000 + 1000 * seed, seed), Minibatch()
    state = solver.init(case.system, case.rhs, None)
    for _ in range(4):
        state = solver.step(case.system, case.rhs, state)
        truth = case.error(state.value)
        assert truth <= 3 * solver.error(state) + FLOOR
        assert solver.error(state) <= 5 * truth + FLOOR or truth > 0.2


def test_a_plateau_is_not_called_converged():
    """A flat spectrum of condition 1e6 and no prior: what stages gain says nothing of the last direction."""
    case = Case((np.linspace(1, 1e-6, 200), 1e-6), 16, 500)
    with pytest.warns(sampla.ConvergenceWarning, match="could not rule out"):
        found = case.solve(tolerance=0.02, max_passes=40)
    assert found.error < 0.02 < 1.5 * 0.02 < case.error(found.value)
    assert found.status is Status.UNVERIFIED


def test_a_budget_too_small_for_an_exact_residual_ends_without_proof():
    case = Case("power law", 4, 20000)
    with pytest.warns(sampla.ConvergenceWarning, match="could not rule out.*read the error as an estimate"):
        found = case.solve(Minibatch(budget=0.5), tolerance=0.3)
    assert found.status is Status.UNVERIFIED
    assert case.error(found.value) < 0.3


@shortfall_allowed
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("budget", [0.3, 0.7])
@pytest.mark.parametrize("seed", range(5))
def test_part_of_a_pass_states_an_honest_error_and_keeps_to_its_budget(spectrum, budget, seed):
    """30 runs; with no exact residual the estimate has no proof, so it is held to what it is documented to be."""
    case = Case(spectrum, (2, 8, 8, 16, 32)[seed], 8000, seed)
    found = case.solve(Minibatch(budget=budget), tolerance=1e-3)
    assert case.passes <= budget + 0.03
    assert found.status is Status.SPENT
    assert not found.curvature_exact
    truth = case.error(found.value)
    assert truth / 3 <= found.error <= 6 * truth
    assert truth < 0.9


def test_a_fraction_of_a_pass_goes_further_than_three_passes_of_block_cg():
    """What it is for: N hundreds of times the effective dimension, few columns."""
    case = Case("power law", 4, 20000)
    with pytest.warns(sampla.ConvergenceWarning, match=r"Minibatch was asked .* and spent its budget .*: raise budget"):
        part = case.solve(Minibatch(budget=0.5), tolerance=0.01)
    assert case.passes < 0.53
    with pytest.warns(sampla.ConvergenceWarning):
        three = case.solve(sampla.BlockCG(), tolerance=0.01, max_passes=3)
    assert case.error(part.value) < 0.2
    assert case.error(part.value) < 0.5 * case.error(three.value)


def test_a_budget_of_some_passes_ends_with_a_run_without_a_snapshot():
    case = Case(columns=8)
    with pytest.warns(sampla.ConvergenceWarning, match="spent its budget"):
        found = case.solve(Minibatch(budget=2.5), tolerance=1e-9)
    assert case.passes <= 2.53
    assert len(found.history) == 2
    assert case.error(found.value) <= 3 * found.error


@pytest.mark.parametrize("inner", [0.25, 1.0])
def test_a_stage_costs_what_it_says(inner):
    case, solver = Case(), Minibatch(inner=inner)
    state = solver.init(case.system, case.rhs, None)
    assert state.spent == pytest.approx(case.passes)
    assert case.passes < 0.9  # sketch and step size; 4000 data are few for 8 columns
    for _ in range(2):
        before, spent = case.passes, state.spent
        state = solver.step(case.system, case.rhs, state)
        assert case.passes - before == pytest.approx(1 + inner, abs=0.03)
        assert state.spent - spent == pytest.approx(case.passes - before)


def test_sorted_data_are_read_as_cross_sections():
    """Sorted by size, one part of the data has nearly all the curvature."""
    case = Case("power law", 8, 6000, order=lambda rows: rows.norm(dim=1).argsort())
    with pytest.warns(sampla.ConvergenceWarning):
        found = case.solve(Minibatch(budget=0.6), tolerance=0.01)
    assert case.error(found.value) < 0.25
    assert case.error(found.value) <= 3 * found.error


def test_a_given_preconditioner_is_used_and_nothing_else_is_made():
    case = Case("steep", 8)
    given = nystrom(case.model, 40).at(case.system.precision)
    case.before = case.model.ledger.products
    solver, system = Minibatch(), replace(case.system, preconditioner=given)
    state = solver.init(system, case.rhs, None)
    assert case.passes < 0.1
    assert state.inverse is given


def test_the_sketch_serves_every_prior():
    case = Case("steep", 4)
    first = case.solve(tolerance=1e-3)
    changed = replace(case.system, precision=0.5 * case.system.precision)
    before = case.passes
    state = Minibatch().init(changed, case.rhs, first)
    assert state.sketch is first.reusable[1]
    assert case.passes - before < 0.2
    found = solve(Minibatch(), changed, case.rhs, guess=first, tolerance=1e-3)
    exact = torch.linalg.solve(case.matrix - 0.5 * torch.eye(60).double(), case.rhs.total.mT).mT
    assert float((found.value - exact).norm() / exact.norm()) < 1e-2


def test_an_estimated_product_is_made_exact_before_it_is_started_from():
    """Another solver would take the residual of such a guess for the true one, and end elsewhere."""
    case = Case()
    with pytest.warns(sampla.ConvergenceWarning):
        guess = case.solve(Minibatch(budget=0.5), tolerance=1e-6)
    before = case.passes
    found = case.solve(sampla.BlockCG(), guess=guess, tolerance=1e-6)
    assert found.passes + 1 <= case.passes - before < found.passes + 2
    assert found.curvature_exact
    assert case.error(found.value) < 1e-5


def test_steps_that_diverge_are_made_smaller():
    """A step a hundred times too long: the stages before the repair still do what preconditioned CG does."""
    case = Case("steep", 8)
    automatic = Minibatch().init(case.system, case.rhs, None).step_size
    found = case.solve(Minibatch(step_size=100 * automatic), tolerance=1e-3, max_passes=40)
    assert found.status is Status.CONVERGED
    assert case.error(found.value) < 3e-3


def test_single_precision_that_allows_no_more_is_said():
    case = Case("power law", 4, 1500, dtype=torch.float32)
    with pytest.warns(sampla.ConvergenceWarning, match=r"rounding allows no more progress"):
        found = case.solve(tolerance=1e-12, max_passes=60)
    assert case.error(found.value) < 1e-4


@pytest.mark.parametrize("zero", ["right-hand side", "data"])
def test_nothing_to_do(zero):
    """b = 0, and M = 0: then H = A, and the answer is there at once."""
    case = Case(columns=3, num_data=600)
    if zero == "data":
        rows = torch.zeros(600, 60).double()
        case.model = linear_model(sampla.DesignMatrix(60), sampla.Gaussian(1.0), batches(rows, rows[:, :1], 100))
        case.system = replace(case.system, model=case.model)
        case.rhs = replace(case.rhs, data_part=torch.zeros_like(case.rhs.data_part))
    else:
        case.rhs = RightHandSide(0 * case.rhs.data_part, 0 * case.rhs.prior_part, 3, 0)
    found = case.solve()
    assert found.status is Status.CONVERGED
    torch.testing.assert_close(found.value, case.rhs.total / case.system.precision)


def test_samples_have_the_posterior_covariance():
    size, count, columns = 48, 256, 16
    rows = prescribed(np.logspace(2, -1, size), 1500)
    model = linear_model(sampla.DesignMatrix(size), sampla.Gaussian(1.0), batches(rows, rows[:, :1], 300))
    noise, precision = model.draw_noise(3, count), torch.full((size,), 0.7).double()
    prior_part = precision.sqrt() * randn(count, size, seed=4)
    pairs = zip(noise.data_part.split(columns), prior_part.split(columns), strict=True)
    parts = [RightHandSide(data, prior, columns, 3) for data, prior in pairs]
    system = LinearSystem(model, precision, noise.diagonal, nystrom(model, columns).at(precision))
    found = [solve(Minibatch(), system, part, tolerance=5e-3) for part in parts]
    assert min(each.passes for each in found) > 2  # of so few columns they have to iterate
    draws = torch.cat([each.value for each in found])
    assert_covariance(draws, torch.linalg.inv(rows.mT @ rows + precision.diag()))


class _Broken(sampla.Gaussian):
    """A curvature that is not positive, or no number at all, once the first look at the data has passed it."""

    factor = 1.0

    def __init__(self):
        super().__init__(1.0)

    def curvature_product(self, outputs, vectors):  # noqa: ARG002
        return self.factor * vectors


@pytest.mark.parametrize("factor", [torch.nan, -1.0])
@pytest.mark.parametrize(("step_size", "message"), [(None, "no step size"), (1e-3, "NaN or infinite|negative curv")])
def test_a_curvature_that_is_none_is_refused(factor, step_size, message):
    case = Case(columns=2, num_data=600)
    likelihood = _Broken()
    model = linear_model(sampla.DesignMatrix(60), likelihood, batches(case.rows, case.rows[:, :1], 100))
    likelihood.factor = factor
    system = replace(case.system, model=model, preconditioner=case.system.inverse)
    with pytest.raises(ArithmeticError, match=f"Minibatch has no solution: in its first pass it met .*({message})"):
        solve(Minibatch(step_size=step_size), system, case.rhs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 0.0}, "expected a positive budget, got 0"),
        ({"budget": -1.0}, "expected a positive budget, got -1"),
        ({"inner": 0.0}, "expected a positive inner, got 0"),
        ({"step_size": float("nan")}, "expected a positive step_size, got nan"),
        ({"rank": 0}, "expected a rank of at least 1, got 0"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        Minibatch(**settings)


def test_a_budget_that_buys_nothing_is_refused():
    with pytest.raises(ArithmeticError, match="the budget is too small"):
        Case(num_data=600).solve(Minibatch(budget=0.01))
