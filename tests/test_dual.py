"""Stochastic dual descent: the transposed root, the dual form, answers, its bound, what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import sampla
from cases import FULL_NOISE, LIKELIHOODS, batches, linear_model, randn
from dense import assert_covariance, prescribed
from sampla.core.noise import DATA, standard_normal
from sampla.solvers import DualDescent, LinearSystem, RightHandSide, Status, solve

FLOOR = 1e-9  # the bound is exact up to rounding of z against w
shortfall_allowed = pytest.mark.filterwarnings("ignore::sampla.ConvergenceWarning")
LIKELIHOOD = {
    "categorical": sampla.Categorical,
    "bernoulli": sampla.Bernoulli,
    "gaussian-full": lambda: sampla.Gaussian(FULL_NOISE / 15),
}
SIZE, OUTPUTS, NUM_DATA = 30, 3, 24  # P = 90 > N C = 72


class Case:
    """A generalised linear model with fewer outputs than parameters, its system and everything dense about it."""

    def __init__(self, likelihood="categorical", columns=4, alpha=1.0, seed=0, dtype=torch.float64):
        inputs = prescribed(np.logspace(1.5, -1, NUM_DATA), SIZE, seed).mT.contiguous()  # (N, D), rank N
        inputs = inputs * NUM_DATA**0.5
        likelihood, at = LIKELIHOOD[likelihood](), randn(SIZE, OUTPUTS, seed=seed + 1) / 4
        targets = {"Categorical": torch.arange(NUM_DATA) % OUTPUTS, "Bernoulli": torch.ones(NUM_DATA, OUTPUTS)}
        targets = targets.get(type(likelihood).__name__, randn(NUM_DATA, OUTPUTS, seed=seed))
        targets = targets.to(dtype) if targets.is_floating_point() else targets
        features = sampla.DesignMatrix(SIZE, OUTPUTS, dtype=dtype, coefficients=at.to(dtype))
        self.model = linear_model(features, likelihood, batches(inputs.to(dtype), targets, 10))
        outputs = inputs @ at
        # root[n] = S_n, and rows (N C, P) of S' phi, one unit vector at a time
        units = torch.eye(OUTPUTS).double()[:, None, :].expand(-1, NUM_DATA, -1)
        root = likelihood.curvature_root_product(outputs, units).permute(1, 2, 0)
        phi = torch.einsum("nd,ce->ncde", inputs, torch.eye(OUTPUTS).double()).flatten(2)
        self.rows = torch.einsum("ncs,ncp->nsp", root, phi).flatten(0, 1)
        noise = self.model.draw_noise(seed, columns)
        self.precision = torch.linspace(0.5, 2, SIZE * OUTPUTS).double() * alpha  # not constant: A^-1 must be right
        self.xi_prior = randn(columns, SIZE * OUTPUTS, seed=seed + 2)
        prior_part = (self.precision.sqrt() * self.xi_prior).to(dtype)
        self.system = LinearSystem(self.model, self.precision.to(dtype), noise.diagonal)
        self.rhs = RightHandSide(noise.data_part, prior_part, columns, seed)
        self.matrix = self.rows.mT @ self.rows + self.precision.diag()
        self.exact = torch.linalg.solve(self.matrix, self.rhs.total.double().mT).mT
        self.columns, self.seed, self.before = columns, seed, self.model.ledger.products

    def error(self, value):
        return float((self.rows @ (value.double() - self.exact).mT).norm() / (self.rows @ self.exact.mT).norm())


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_transposed_root_is_the_transpose(name):
    """<S x, u> = <x, S' u>, also for the default by autograd, which is all that a user's likelihood has."""
    likelihood, outputs = LIKELIHOODS[name].make(), randn(5, 3, seed=1)
    x, u = randn(4, 5, 3, seed=2), randn(4, 5, 3, seed=3)
    left = (likelihood.curvature_root_product(outputs, x) * u).sum()
    for product in (likelihood.curvature_root_transpose_product, _by_autograd(likelihood)):
        with torch.no_grad():
            pulled = product(outputs, u)
        assert not pulled.requires_grad
        torch.testing.assert_close((x * pulled).sum(), left)
        composed = likelihood.curvature_root_product(outputs, product(outputs, u))
        torch.testing.assert_close(composed, likelihood.curvature_product(outputs, u))


def _by_autograd(likelihood):
    return lambda outputs, u: sampla.Likelihood.curvature_root_transpose_product(likelihood, outputs, u)


@pytest.mark.parametrize("likelihood", LIKELIHOOD)
def test_the_dual_form_is_matherons_rule_and_equals_the_primal_solution(likelihood):
    """z = A^-1/2 xi_0 + A^-1 phi' S u, (I + G) u = xi - S' phi A^-1/2 xi_0, from the very noise of the primal."""
    case = Case(likelihood)
    xi = standard_normal(case.seed, DATA, range(case.columns), 0, (NUM_DATA * OUTPUTS,), case.rows)
    inverse, prior = case.precision.reciprocal(), case.xi_prior / case.precision.sqrt()
    gram = (case.rows * inverse) @ case.rows.mT
    u = torch.linalg.solve(torch.eye(len(gram)).double() + gram, (xi - prior @ case.rows.mT).mT).mT
    torch.testing.assert_close(prior + u @ case.rows * inverse, case.exact)
    functions = case.exact @ case.rows.mT  # w = S' phi z = xi - u, with no noise in its equation
    torch.testing.assert_close(functions, xi - u)
    right = (case.rhs.total * inverse) @ case.rows.mT
    torch.testing.assert_close(functions + functions @ gram, right)


@pytest.mark.parametrize("likelihood", LIKELIHOOD)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_descent_goes_to_the_exact_solution(likelihood, momentum):
    case = Case(likelihood, alpha=30.0)
    found = solve(DualDescent(momentum), case.system, case.rhs, tolerance=1e-4, max_passes=300)
    assert found.status is Status.CONVERGED
    assert case.error(found.value) <= 1e-4
    expected = found.value @ case.rows.mT @ case.rows
    torch.testing.assert_close(found.curvature_value, expected)


@shortfall_allowed
@pytest.mark.parametrize("likelihood", LIKELIHOOD)
@pytest.mark.parametrize("seed", range(10))
def test_the_bound_is_never_below_the_error(likelihood, seed):
    """30 systems of every difficulty, 6 sweeps each: a proof, so no factor is allowed; and it is of some use."""
    case = Case(likelihood, (1, 3, 70)[seed % 3], 10.0 ** (seed % 4 - 1), seed)
    solver = DualDescent((0.0, 0.9)[seed % 2])
    state, bounds = solver.init(case.system, case.rhs, None), []
    for _ in range(6):
        state = solver.step(case.system, case.rhs, state)
        truth = case.error(state.value)
        bounds.append(solver.error(state))
        assert truth <= bounds[-1] * (1 + FLOOR) + FLOOR
        assert bounds[-1] <= 10 * truth + FLOOR or truth > 0.1


def test_samples_have_the_posterior_covariance():
    case = Case("categorical", 1500, alpha=10.0)
    found = solve(DualDescent(), case.system, case.rhs, tolerance=0.005, max_passes=100)
    assert found.status is Status.CONVERGED
    assert_covariance(found.value[:, :40], torch.linalg.inv(case.matrix)[:40, :40])


def test_the_mean_is_one_more_column():
    """A right-hand side without noise: sum phi' B y."""
    case = Case("gaussian-full", 3, alpha=20.0)
    target = -case.model.loss_gradient(torch.zeros(1, SIZE * OUTPUTS).double())[1]
    data = torch.cat([case.rhs.data_part, target])
    prior = torch.cat([case.rhs.prior_part, torch.zeros_like(target)])
    found = solve(DualDescent(), case.system, RightHandSide(data, prior, 3, 0), tolerance=1e-4, max_passes=200)
    exact = torch.linalg.solve(case.matrix, target[0])
    assert float((found.value[3] - exact).norm() / exact.norm()) < 1e-3


def test_a_sweep_costs_two_passes():
    """One for the coordinates, one for the certificate; the start has one too, and the step size is not free."""
    case, solver = Case(columns=4), DualDescent()
    state = solver.init(case.system, case.rhs, None)
    assert case.model.ledger.products - case.before == 5 + 4
    solver.step(case.system, case.rhs, state)
    assert case.model.ledger.products - case.before == 5 + 3 * 4


def test_a_warm_start_is_worth_having():
    case, solver = Case(alpha=10.0), DualDescent()
    first = solve(solver, case.system, case.rhs, tolerance=1e-3, max_passes=200)
    again = solve(solver, case.system, case.rhs, tolerance=1e-3, max_passes=200, guess=first)
    assert again.passes < first.passes / 3
    assert case.error(again.value) <= 1e-3


def test_steps_that_are_too_long_are_cut():
    case = Case(alpha=10.0)
    automatic = DualDescent().init(case.system, case.rhs, None).step_size
    found = solve(DualDescent(step_size=30 * automatic), case.system, case.rhs, tolerance=1e-2, max_passes=300)
    assert found.status is Status.CONVERGED
    assert case.error(found.value) <= 1e-2


def test_single_precision_is_good_for_what_is_usually_asked():
    case = Case(alpha=10.0, dtype=torch.float32)
    found = solve(DualDescent(), case.system, case.rhs, tolerance=1e-2, max_passes=200)
    assert case.error(found.value) <= 1e-2


def test_too_few_sweeps_are_said():
    case = Case(alpha=0.1)
    with pytest.warns(sampla.ConvergenceWarning, match=r"DualDescent was asked for .* in 2 passes and stopped at max"):
        found = solve(DualDescent(), case.system, case.rhs, tolerance=1e-3, max_passes=2)
    assert found.status is Status.MAX_PASSES


def test_more_outputs_than_parameters_are_refused():
    inputs = randn(40, 10)
    model = linear_model(sampla.DesignMatrix(10), sampla.Gaussian(1.0), batches(inputs, inputs[:, :1], 20))
    noise, precision = model.draw_noise(0, 2), torch.ones(10).double()
    rhs = RightHandSide(noise.data_part, randn(2, 10), 2, 0)
    with pytest.raises(ValueError, match=r"fewer outputs than parameters, N C < P = 10, got N C = 40.*BlockCG"):
        solve(DualDescent(), LinearSystem(model, precision, noise.diagonal), rhs)


def test_a_shuffled_loader_is_refused():
    inputs = randn(8, 10)
    loader = DataLoader(
        TensorDataset(inputs, inputs[:, :1]), 4, shuffle=True, generator=torch.Generator().manual_seed(0)
    )
    model = linear_model(sampla.DesignMatrix(10), sampla.Gaussian(1.0), loader)
    noise, precision = model.draw_noise(0, 2), torch.ones(10).double()
    rhs = RightHandSide(noise.data_part, randn(2, 10), 2, 0)
    with pytest.raises(ValueError, match="fixed order, by which the coordinates are kept, got a shuffled one"):
        solve(DualDescent(), LinearSystem(model, precision, noise.diagonal), rhs)


class _Curvature(sampla.Gaussian):
    """B = factor I with its root."""

    def __init__(self, factor):
        super().__init__(1.0)
        self.factor = factor

    def curvature_root_product(self, outputs, vectors):  # noqa: ARG002
        return self.factor * vectors


def test_no_curvature_leaves_the_prior():
    case = Case("gaussian-full")
    system = replace(case.system, model=case.model.replaced(likelihood=_Curvature(0.0)))
    rhs = replace(case.rhs, data_part=torch.zeros_like(case.rhs.data_part))
    found = solve(DualDescent(), system, rhs)
    assert found.status is Status.CONVERGED
    torch.testing.assert_close(found.value, rhs.total / case.precision)


def test_nan_is_no_solution():
    case = Case("gaussian-full")
    system = replace(case.system, model=case.model.replaced(likelihood=_Curvature(torch.nan)))
    with pytest.raises(ArithmeticError, match="DualDescent has no solution: in its first pass it met NaN"):
        solve(DualDescent(), system, case.rhs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 1.0}, r"expected a momentum in \[0, 1\), got 1"),
        ({"momentum": -0.1}, "expected a momentum"),
        ({"step_size": 0.0}, "expected a positive step_size, got 0"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        DualDescent(**settings)
