"""The mode of the linear model against dense Newton in float64, and whether its certificate can be believed."""

import warnings

import pytest
import torch
from torch.nn.functional import softplus

import sampla
from cases import Problem, batches, linear_model, randn
from dense import curvature, fast_hessians, mode
from sampla import model as model_module
from sampla.core.stack import Stack
from sampla.solvers import linear_mode
from sampla.solvers._preconditioners import Jacobi, Preconditioner, Sketch
from sampla.solvers._secants import Secants, dot

CLASSIFIERS = ["categorical", "bernoulli"]


class Counts(sampla.Likelihood):
    """What a user might write: counts of rate softplus(f), not quadratic, log-concave, unlike every built-in."""

    def log_prob(self, outputs, targets):
        rate = softplus(outputs) + 1e-6
        return (targets * rate.log() - rate).flatten(1).sum(1)

    def curvature_product(self, outputs, vectors):  # the Fisher matrix: near the Hessian, not equal to it
        return torch.sigmoid(outputs).square() / (softplus(outputs) + 1e-6) * vectors

    def curvature_root_product(self, outputs, vectors):
        return torch.sigmoid(outputs) / (softplus(outputs) + 1e-6).sqrt() * vectors


class StudentT(Counts):
    """Not log-concave: its loss bends down far from the data."""

    def log_prob(self, outputs, targets):
        return -2 * torch.log1p((targets - outputs).square()).flatten(1).sum(1)

    def curvature_product(self, outputs, vectors):  # noqa: ARG002
        return vectors

    def curvature_root_product(self, outputs, vectors):  # noqa: ARG002
        return vectors


class OnlyAtZero(Counts):
    """Its log_prob is not a number as soon as an output moves away from zero."""

    def log_prob(self, outputs, targets):
        return torch.where(outputs == 0, outputs * targets, float("nan")).flatten(1).sum(1)


class NowhereDefined(Counts):
    """Its log_prob is not a number at all."""

    def log_prob(self, outputs, targets):
        return (targets * float("nan") * outputs).flatten(1).sum(1)


def model_of(problem: Problem):
    return linear_model(sampla.NetworkFeatures(problem.model, problem.names), problem.case.make(), problem.loader)


def sketch_of(problem: Problem, size: int = 40) -> Sketch:
    """The leading eigenvectors of M at the network, and the mean of what is left."""
    values, vectors = torch.linalg.eigh(problem.curvature)
    return Sketch(Stack([vectors[:, -size:].mT.contiguous()]), values[-size:].diag(), float(values[:-size].mean()))


def relative_error(found, exact, precision) -> float:
    """|theta - theta*|_A / |theta*|_A."""
    return float(((precision * (found - exact).square()).sum() / (precision * exact.square()).sum()).sqrt())


@pytest.mark.parametrize("likelihood", CLASSIFIERS)
@pytest.mark.parametrize(("alpha", "tolerance"), [(0.3, 1e-2), (10.0, 1e-7)])
def test_against_dense_newton(problems, likelihood, alpha, tolerance):
    problem = problems[likelihood]
    model, diagonal = model_of(problem), problem.curvature.diagonal()
    precision = torch.full_like(diagonal, alpha)
    exact = _exact(problem, precision)
    found = linear_mode(model, precision, diagonal, tolerance=tolerance)
    assert found.converged
    assert relative_error(found.value[0], exact, precision) < 3 * tolerance
    assert relative_error(found.value[0], exact, precision) <= found.bound
    warm = linear_mode(model, precision, diagonal, guess=found.value, tolerance=10 * tolerance)
    assert warm.steps <= 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_likelihood_of_a_user(dtype):
    """Newton with autograd's own Hessian is the reference; the likelihood's curvature is only near it."""
    rows, targets = randn(80, 6), randn(80, 1, seed=1).exp().round()
    precision = torch.full((6,), 0.1).double()

    def penalised(theta):
        return -Counts().log_prob(rows @ theta.view(6, 1), targets).sum() + 0.5 * (precision * theta.square()).sum()

    exact = torch.zeros(6).double()
    for _ in range(30):
        step = torch.linalg.solve(torch.func.hessian(penalised)(exact), torch.func.grad(penalised)(exact))
        exact = exact - step
    assert float(step.norm()) < 1e-12 * float(exact.norm())
    model = linear_model(sampla.DesignMatrix(6, dtype=dtype), Counts(), batches(rows.to(dtype), targets.to(dtype), 30))
    found = linear_mode(model, precision.to(dtype), torch.full((6,), 20.0, dtype=dtype), tolerance=1e-3)
    assert found.converged
    assert found.value.dtype == dtype
    assert relative_error(found.value[0].double(), exact, precision) < 1e-3


@pytest.mark.parametrize("check", [False, True])
def test_the_estimated_error_is_true_and_the_bound_holds(problems, check):
    """Random cases, cold and warm: alpha over four decades, tolerance over two, two preconditioners.

    Where the error is measured, nothing is stated below the truth.
    """
    ratios = []
    for number in range(14 if check else 40):
        draw = torch.rand(3, generator=torch.Generator().manual_seed(number)).double()
        name = CLASSIFIERS[number % 2]
        problem, model = problems[name], model_of(problems[name])
        diagonal = problem.curvature.diagonal()
        spread = 4.0 ** (4 * torch.arange(len(diagonal)) // len(diagonal)) if number % 3 == 0 else 1.0
        precision = torch.full_like(diagonal, 10 ** (-1 + 4 * float(draw[0]))) * spread
        near = sketch_of(problem).at(precision) if number // 2 % 2 else Jacobi(diagonal + precision)
        exact = _exact(problem, precision)
        guess = _exact(problem, precision * 2 ** (2 * draw[1] - 1), exact)[None] if number % 5 < 3 else None
        tolerance = 10 ** (-1 - 2 * float(draw[2]))
        found = linear_mode(model, precision, near, guess=guess, tolerance=tolerance, check=check)
        assert found.converged
        assert relative_error(found.value[0], exact, precision) <= found.bound
        hessian = _loss_hessian(problem, exact) + precision.diag()
        missing = found.value[0] - exact
        truth = float((missing @ hessian @ missing / (precision * exact.square()).sum()).sqrt())
        ratios.append(found.error / truth)
    ratios = torch.tensor(ratios)
    if check:
        assert ratios.min() > 0.9
        assert ratios.max() < 5  # where the tolerance is proved, half of the bound is stated at least
        return
    assert ratios.min() > 1 / 4  # the Jacobi preconditioner on badly scaled features, alpha small
    assert ratios.max() < 3
    assert ((ratios > 0.5) & (ratios < 2)).double().mean() > 0.85
    assert (ratios < 0.5).double().mean() < 0.1


def test_an_error_that_is_measured_below_the_tolerance_is_no_reason_to_warn():
    """Where the search ends before its own estimate, from a poor preconditioner, says so."""
    rows, targets = randn(80, 6), (randn(80, 1, seed=1) > 0).double()
    model = linear_model(sampla.DesignMatrix(6, dtype=torch.float64), sampla.Bernoulli(), batches(rows, targets, 30))
    precision, poor = torch.full((6,), 1e-3).double(), Jacobi(torch.full((6,), 1e-3).double())
    near = linear_mode(model, precision, torch.full((6,), 20.0).double(), tolerance=1e-3).value
    settings = {"guess": near, "tolerance": 1e-3, "max_steps": 0}
    with pytest.warns(sampla.ConvergenceWarning, match="stopped at max_steps"):
        assert not linear_mode(model, precision, poor, **settings).converged
    found = linear_mode(model, precision, poor, check=True, **settings)
    assert found.converged
    assert found.error < 1e-3 < found.bound


def _exact(problem, precision, start=None):
    return mode(problem.features, problem.targets, problem.case.loss, precision, start)


def _loss_hessian(problem, theta):
    return curvature(problem.features, fast_hessians(problem.case.loss, problem.features @ theta, problem.targets))


@pytest.mark.parametrize("likelihood", CLASSIFIERS)
@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1])
def test_a_warm_start_costs_less_than_a_cold_one(problems, likelihood, factor):
    problem = problems[likelihood]
    model, precision = model_of(problem), torch.full_like(problem.curvature.diagonal(), 1.0)
    near = sketch_of(problem).at(precision)
    cold = linear_mode(model, precision, near)
    warm = linear_mode(model, precision, near, guess=_exact(problem, factor * precision)[None])
    assert warm.products < cold.products <= 25
    assert relative_error(warm.value[0], _exact(problem, precision), precision) < 0.01


@pytest.mark.parametrize("likelihood", CLASSIFIERS)
def test_a_good_preconditioner_saves_products(problems, likelihood):
    problem = problems[likelihood]
    model, precision = model_of(problem), torch.full_like(problem.curvature.diagonal(), 10.0)
    hessian = _loss_hessian(problem, _exact(problem, precision)) + precision.diag()
    perfect = linear_mode(model, precision, _Dense(hessian))
    poor = linear_mode(model, precision, Jacobi(torch.ones_like(precision)))
    assert perfect.converged
    assert poor.converged
    assert perfect.products < 0.6 * poor.products


class _Dense(Preconditioner):
    """P = H itself."""

    def __init__(self, hessian):
        self._inverse = torch.linalg.inv(hessian)

    def solve(self, vectors):
        return vectors @ self._inverse


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("power", range(-6, 7, 3))
def test_any_prior_precision_is_survived_or_the_shortfall_said(dtype, power):
    """Separable data: without the prior the mode is at infinity."""
    rows = randn(60, 5).to(dtype)
    labels = (rows[:, :1] > 0).to(dtype)
    model = linear_model(sampla.DesignMatrix(5, dtype=dtype), sampla.Bernoulli(), batches(rows, labels, 25))
    precision = torch.full((5,), 10.0**power, dtype=dtype)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = linear_mode(model, precision, torch.full((5,), 10.0, dtype=dtype))
    exact = _separable_mode(rows.double(), labels.double(), precision.double())
    assert found.converged == (not said)
    assert relative_error(found.value[0].double(), exact, precision.double()) < (0.005 if found.converged else 0.1)
    if dtype == torch.float64:
        assert found.converged


def _separable_mode(rows, labels, precision):
    """Newton, following the mode down from a large precision."""
    theta = torch.zeros(rows.shape[1]).double()
    for factor in 10.0 ** torch.linspace(8, 0, 33).double():
        for _ in range(20):
            p = (rows @ theta).sigmoid()
            gradient = rows.mT @ (p - labels[:, 0]) + factor * precision * theta
            theta = theta - torch.linalg.solve((rows.mT * (p * (1 - p))) @ rows + (factor * precision).diag(), gradient)
    assert float(gradient.norm()) < 1e-6 * float((precision * theta).norm())
    return theta


def test_a_guess_far_away_does_no_harm(problems):
    """The curvature there is zero, and so is that of everything a secant sees on the way."""
    problem = problems["categorical"]
    model, precision = model_of(problem), torch.full_like(problem.curvature.diagonal(), 1.0)
    far = 1000 * randn(1, len(precision), seed=3)
    found = linear_mode(model, precision, problem.curvature.diagonal(), guess=far)
    assert found.converged
    assert relative_error(found.value[0], _exact(problem, precision), precision) < 0.01


def test_a_mode_that_is_not_reached_is_said(problems):
    problem = problems["categorical"]
    precision = torch.full((problem.features.shape[-1],), 0.1).double()
    expected = r"mode of the linear model was asked .*1\.0e-08.* after 1 steps and stopped at max_steps: allow more"
    with pytest.warns(sampla.ConvergenceWarning, match=expected):
        found = linear_mode(model_of(problem), precision, problem.curvature.diagonal(), tolerance=1e-8, max_steps=1)
    assert not found.converged
    assert found.steps == 1


def test_single_precision_that_allows_no_more_is_said_and_the_best_is_kept():
    rows = randn(200, 5).float()
    labels = (rows @ randn(5, 1, seed=1).float() + randn(200, 1, seed=2).float() > 0).float()
    model = linear_model(sampla.DesignMatrix(5, dtype=torch.float32), sampla.Bernoulli(), batches(rows, labels, 70))
    precision = torch.ones(5)
    with pytest.warns(sampla.ConvergenceWarning, match=r"rounding allows no more progress: use float64"):
        found = linear_mode(model, precision, torch.full((5,), 50.0), tolerance=1e-12)
    assert found.error < 1e-5
    exact = _separable_mode(rows.double(), labels.double(), precision.double())
    assert relative_error(found.value[0].double(), exact, precision.double()) < 1e-5


def test_nothing_to_learn_is_zero_at_once():
    model = linear_model(sampla.DesignMatrix(3), sampla.Bernoulli(), [(randn(8, 3), torch.full((8, 1), 0.5).double())])
    found = linear_mode(model, torch.ones(3).double(), torch.ones(3).double())
    assert (found.steps, found.products, found.error, found.bound) == (0, 1.0, 0.0, 0.0)
    assert not found.value.any()


def test_nan_where_it_starts_is_an_error():
    rows, targets = randn(20, 3), randn(20, 1, seed=1)
    model = linear_model(sampla.DesignMatrix(3), StudentT(), [(rows, targets)])
    one, nan = torch.ones(3).double(), torch.full((1, 3), float("nan")).double()
    with pytest.raises(ArithmeticError, match=r"not finite at the mode that was given"):
        linear_mode(model, one, one, guess=nan)
    with pytest.raises(ArithmeticError, match=r"not finite at theta = 0, .*check that the likelihood's log_prob"):
        linear_mode(linear_model(sampla.DesignMatrix(3), NowhereDefined(), [(rows, targets)]), one, one)


def test_nan_on_the_way_keeps_what_there_is_and_says_so():
    model = linear_model(sampla.DesignMatrix(3), OnlyAtZero(), [(randn(20, 3), randn(20, 1, seed=1))])
    one = torch.ones(3).double()
    with pytest.warns(sampla.ConvergenceWarning, match=r"met NaN or infinity however short the step"):
        found = linear_mode(model, one, one)
    assert torch.isfinite(found.value).all()


def test_a_loss_that_is_not_convex_has_no_bound():
    rows, weights = randn(60, 4), randn(4, 1, seed=1)
    targets = 5 * rows @ weights
    model = linear_model(sampla.DesignMatrix(4), StudentT(), [(rows, targets)])
    found = linear_mode(model, torch.full((4,), 0.1).double(), torch.full((4,), 60.0).double(), tolerance=1e-4)
    assert found.converged
    assert found.bound == float("inf")


def test_curvature_from_part_of_the_data_finds_the_same_mode(monkeypatch):
    rows, weights = randn(4000, 12), randn(12, 1, seed=1)
    labels = (rows @ weights + randn(4000, 1, seed=2) > 0).double()
    model = linear_model(sampla.DesignMatrix(12), sampla.Bernoulli(), [(rows, labels)])
    precision, diagonal = torch.full((12,), 2.0).double(), torch.full((12,), 500.0).double()
    whole = linear_mode(model, precision, diagonal, tolerance=1e-9)
    assert model.hessian_stride == 1
    monkeypatch.setattr(model_module, "_PLENTY", 500)
    assert model.hessian_stride == 8
    part = linear_mode(model, precision, diagonal, tolerance=1e-6)
    assert relative_error(part.value, whole.value, precision) < 1e-5
    assert 0 < part.products < part.steps + 1 + 2 * 1.5 + 1


def test_the_ledger_and_the_products_agree(problems):
    problem = problems["bernoulli"]
    model, precision = model_of(problem), torch.full_like(problem.curvature.diagonal(), 10.0)
    model.ledger.products = 7.0
    found = linear_mode(model, precision, problem.curvature.diagonal())
    assert model.ledger.products == pytest.approx(7 + found.products)
    assert found.products >= found.steps + 1


def test_secants_are_the_bfgs_update_and_stay_positive():
    """Against the formula with explicit matrices; a pair of negative curvature is not learnt."""
    hessian = randn(6, 6) @ randn(6, 6).mT + torch.eye(6).double()
    precondition = torch.rand(6, generator=torch.Generator().manual_seed(1)).double() + 0.5
    secants, matrix = Secants(Jacobi(precondition)), precondition.reciprocal().diag()
    steps = [randn(1, 6, seed=seed) for seed in (2, 3, 4)]
    for s in steps:
        secants = secants.taught(s, s @ hessian)
    matrix = matrix * secants.scale
    for s in steps:
        y, identity = s @ hessian, torch.eye(6).double()
        left = identity - s.mT @ y / dot(s, y)
        matrix = left @ matrix @ left.mT + s.mT @ s / dot(s, y)
    vector = randn(1, 6, seed=5)
    torch.testing.assert_close(secants.solve(vector), vector @ matrix)
    torch.testing.assert_close(secants.solve(steps[-1] @ hessian), steps[-1])
    assert secants.taught(steps[0], -steps[0]) is secants
    assert secants.cautious().scale == max(1.0, secants.scale)


@pytest.mark.filterwarnings("error::sampla.ConvergenceWarning")
@pytest.mark.parametrize("level", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("likelihood", [sampla.Poisson(), sampla.NegativeBinomial(10.0)])
def test_counts_far_above_those_at_zero(likelihood, level):
    """At theta = 0, where the search begins, the rate is one: a Newton step there is 10^6 times too long or too short.

    A few columns, as of a network's last layer, whose sum is nearly the logarithm of the rate.
    """
    rows = torch.cat([torch.ones(60, 1), 0.3 * randn(60, 3, seed=5)], 1).double()
    counts = torch.poisson((rows[:, 1:2] * 0.3).exp() * level, torch.Generator().manual_seed(0)).double()
    data = linear_model(sampla.DesignMatrix(4, dtype=torch.float64), likelihood, [(rows, counts)])
    found = linear_mode(data, torch.ones(4).double(), Jacobi(rows.square().sum(0) + 1), tolerance=1e-6)
    theta = torch.zeros(4, dtype=torch.float64)
    theta[0] = torch.tensor(level).double().log()  # Newton's method is at home there
    for _ in range(50):
        free = theta.clone().requires_grad_()

        def objective(at):
            return -likelihood.log_prob((rows @ at)[:, None], counts).sum() + at.square().sum() / 2

        (gradient,) = torch.autograd.grad(objective(free), free)
        theta = theta - torch.linalg.solve(torch.autograd.functional.hessian(objective, theta), gradient)
    assert relative_error(found.value[0], theta, torch.ones(4)) < 1e-5
