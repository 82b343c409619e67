"""Growing subsets as a warm start: the same answer, from a start that is nearer than zero where data abound."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import sampla
from cases import batches, linear_model, randn
from dense import prescribed
from sampla.solvers import LinearSystem, RightHandSide, growing_guess, solve

SIZE, NUM_DATA, ALPHA = 12, 6000, 1.0


@pytest.fixture(scope="module")
def problem():
    rows = prescribed(np.logspace(2, 0, SIZE), NUM_DATA)
    loader = batches(rows, torch.zeros(NUM_DATA, 1).double(), 250)
    model = linear_model(sampla.DesignMatrix(SIZE), sampla.Gaussian(1.0), loader)
    precision = torch.full((SIZE,), ALPHA).double()
    draw = model.draw_noise(0, 4)
    rhs = RightHandSide(draw.data_part, randn(4, SIZE), 4, 0)
    exact = torch.linalg.solve(rows.mT @ rows + precision.diag(), rhs.total.mT).mT
    return rows, LinearSystem(model, precision, draw.diagonal), rhs, exact


def error(rows, value, exact):
    return float((rows @ (value - exact).mT).norm() / (rows @ exact.mT).norm())


def test_the_guess_is_near_and_costs_parts_of_passes(problem):
    rows, system, rhs, exact = problem
    before = system.model.ledger.products
    guess = growing_guess(sampla.BlockCG(), system, rhs)
    spent = (system.model.ledger.products - before) / len(exact)
    assert error(rows, guess.value, exact) < 0.3
    parts = 4 * (1 / 8 + 1 / 4 + 1 / 2) + 1 / 4 + 1 / 2  # four iterations on each, and M of the start on the later ones
    assert spent == pytest.approx(parts, rel=0.1)


def test_a_solve_from_the_guess_is_the_same_solution(problem):
    rows, system, rhs, exact = problem
    guess = growing_guess(sampla.BlockCG(), system, rhs)
    found = solve(sampla.BlockCG(), system, rhs, tolerance=1e-6, guess=guess)
    assert error(rows, found.value, exact) < 1e-5
    torch.testing.assert_close(found.curvature_value, found.value @ (rows.mT @ rows), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("strides", [(), (1,), (2, 4)])
def test_strides_must_fall_to_two(problem, strides):
    _, system, rhs, _ = problem
    with pytest.raises(ValueError, match="expected falling strides of at least 2"):
        growing_guess(sampla.BlockCG(), system, rhs, strides=strides)


def test_a_shuffled_loader_is_refused(problem):
    rows, system, rhs, _ = problem
    data = TensorDataset(rows, torch.zeros(NUM_DATA, 1).double())
    model = linear_model(sampla.DesignMatrix(SIZE), sampla.Gaussian(1.0), DataLoader(data, 250, shuffle=True))
    model.survey()
    shuffled = LinearSystem(model, system.precision, system.diagonal)
    with pytest.raises(ValueError, match="expected a loader with a fixed order"):
        growing_guess(sampla.BlockCG(), shuffled, rhs)
