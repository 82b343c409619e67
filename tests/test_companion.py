"""What goes along with products: the same answers as alone, from the readings of others."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import sampla
from cases import Problem, linear_model, randn
from sampla.core.chunks import Chunks
from sampla.features import ScaledFeatures
from sampla.linear_batch import Asked
from sampla.model import LinearModel
from sampla.solvers import AtZero, ModeSearch, linear_mode

CLASSIFIERS = ["categorical", "bernoulli"]


class Counted:
    """Batches that know how often they have been read."""

    def __init__(self, batches: Any) -> None:
        self.batches, self.readings = batches, 0

    def __iter__(self) -> Iterator[Any]:
        self.readings += 1
        return iter(self.batches)


class Asking:
    """A companion with one question."""

    def __init__(self, theta, vector=None, stride=1):
        self.asked: Asked | None = Asked(theta, vector, stride)
        self.answer: tuple[float, torch.Tensor, float] | None = None

    def told(self, loss, answer, products):
        self.asked, self.answer = None, (loss, answer, products)


def model_of(problem: Problem, columns: int = 64, tangent: bool = False, entries: int = 512) -> LinearModel:
    features = sampla.NetworkFeatures(problem.model, problem.names, tangent=tangent)
    scale = randn(features.layout.total, seed=7).exp()
    model = linear_model(ScaledFeatures(features, scale), problem.case.make(), Counted(problem.loader))
    model.chunks = Chunks(entries, columns)
    return model


@pytest.mark.parametrize("tangent", [False, True])
@pytest.mark.parametrize("columns", [64, 2])
@pytest.mark.parametrize("likelihood", CLASSIFIERS)
def test_an_answer_is_that_of_a_reading_of_its_own(problems, likelihood, columns, tangent):
    model = model_of(problems[likelihood], columns, tangent, entries=64)
    vectors, (theta, other) = randn(5, model.num_parameters), randn(2, model.num_parameters, seed=1).split(1)
    product, (loss, gradient) = model.curvature_product(vectors), model.loss_gradient(theta)
    for companion, answer in (
        (Asking(theta), gradient), (Asking(theta, other), model.newton_product(theta, other)),
    ):  # fmt: skip
        spent, sweeps = model.ledger.products, model.data.sweeps
        rows = len(companion.asked.rows)
        torch.testing.assert_close(model.carrying(companion).curvature_product(vectors), product)
        assert companion.answer is not None
        assert companion.answer[0] == pytest.approx(loss, rel=1e-10)
        torch.testing.assert_close(companion.answer[1], answer)
        assert model.ledger.products - spent == len(vectors) + rows == len(vectors) + companion.answer[2]
        assert model.data.sweeps - sweeps == 1
        with_nothing_to_ask = model.carrying(companion).curvature_product(vectors)
        assert torch.equal(with_nothing_to_ask, product)
    assert model.companion is None, "a model that is not told to carries nobody"


def test_products_less_exact_than_asked_for_leave_it_waiting(problems, monkeypatch):
    model = model_of(problems["categorical"])
    vectors, theta = randn(2, model.num_parameters), randn(1, model.num_parameters, seed=1)
    strided, coarse = Asking(theta), Asking(theta)
    model.carrying(strided).curvature_product(vectors, 2)
    parts = Asking(theta, theta, stride=2)  # wants less than a product reads: it would cost it more
    model.carrying(parts).curvature_product(vectors)
    monkeypatch.setattr(LinearModel, "reduced", True)
    model.carrying(coarse).curvature_product(vectors)
    assert all(each.answer is None for each in (strided, coarse, parts))


def test_where_memory_has_run_out_an_answer_takes_no_more_of_it(problems):
    chunks = Chunks(64, 4)
    assert chunks.ranges(8, 2) == [range(4), range(4, 10)]
    chunks.halve(16, 4, "")
    assert chunks.ranges(8, 2) == [range(3), range(3, 6), range(6, 10)]
    model = model_of(problems["categorical"])
    vectors, theta = randn(2, model.num_parameters), randn(1, model.num_parameters, seed=1)
    product, (loss, gradient) = model.curvature_product(vectors), model.loss_gradient(theta)
    model.chunks.halve(64, 1, "")  # one vector at a time, so that nothing but theta is in the last part
    companion = Asking(theta)
    torch.testing.assert_close(model.carrying(companion).curvature_product(vectors), product)
    assert companion.answer is not None
    assert companion.answer[0] == pytest.approx(loss, rel=1e-10)
    torch.testing.assert_close(companion.answer[1], gradient)


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("likelihood", CLASSIFIERS)
def test_a_search_needs_no_reading_of_its_own(problems, likelihood, check):
    """The same mode as alone; a better preconditioner on the way, and a tolerance that depends on the mode's size."""
    problem = problems[likelihood]
    model, diagonal = model_of(problem), torch.ones_like(problem.curvature.diagonal())
    precision, sizes = torch.full_like(diagonal, 3.0), []
    alone = linear_mode(model, precision, 10 * diagonal, tolerance=1e-6, check=check)

    def wanted(size: float) -> float:
        sizes.append(size)
        return 1e-6

    search = ModeSearch(model, precision, 10 * diagonal, tolerance=wanted, check=check)
    sweeps, passes = model.data.sweeps, 0
    while search.asked is not None:
        model.carrying(search).curvature_product(randn(2, model.num_parameters, seed=passes))
        passes += 1
        if passes == 3:
            search.precondition(sampla.solvers.Jacobi(5 * diagonal + precision))
    found = search.found()
    assert model.data.sweeps - sweeps == passes
    assert found.converged
    assert float((found.value - alone.value).norm()) < 1e-5 * float(alone.value.norm())
    assert found.products >= passes
    assert sizes[0] == 0
    assert sizes[-1] == pytest.approx(float(found.value.square().sum()))


def test_what_is_asked_of_a_part_of_the_data_is_read_at_once(problems, monkeypatch):
    """So that the search goes along again."""
    model = model_of(problems["categorical"])
    monkeypatch.setattr(LinearModel, "hessian_stride", 2)
    precision = torch.ones(model.num_parameters).double()
    search = ModeSearch(model, precision, 10 * precision, tolerance=1e-3)
    model.carrying(search).curvature_product(randn(2, model.num_parameters))
    assert search.asked is not None
    assert search.asked.stride == 2
    sweeps = model.data.sweeps
    search.answer_parts()
    assert 1 <= model.data.sweeps - sweeps <= 2
    assert search.asked.vector is None
    sweeps = model.data.sweeps
    search.answer_parts()
    assert model.data.sweeps == sweeps
    before = search.asked
    model.carrying(search).curvature_product(randn(2, model.num_parameters))
    assert search.asked is not before


def test_a_search_from_zero_goes_on_from_what_a_companion_has_seen_there(problems):
    model = model_of(problems["categorical"])
    precision = torch.ones(model.num_parameters).double()
    begun = AtZero(model)
    assert begun.mode(precision) is None
    model.carrying(begun).curvature_product(randn(2, model.num_parameters))
    guess = begun.mode(precision)
    assert guess is not None
    sweeps = model.data.sweeps
    search = ModeSearch(model, precision, 10 * precision, guess=guess)
    assert model.data.sweeps == sweeps
    cold = ModeSearch(model, precision, 10 * precision)
    assert cold.asked is not None
    assert not cold.asked.theta.any()
    cold.told(*model.loss_gradient(cold.asked.theta), 1.0)
    assert search.asked is not None
    assert cold.asked is not None
    torch.testing.assert_close(search.asked.vector, cold.asked.vector)  # both at the first Newton step


def test_a_fit_reads_the_data_less_often_than_without(problems, monkeypatch):
    """And finds the same, whether the modes are searched beside products or alone."""
    problem, found = problems["categorical"], []
    for together in (True, False):
        if not together:
            monkeypatch.setattr(LinearModel, "carrying", lambda model, _: model)
        data = Counted(problem.loader)
        la = sampla.LinearisedLaplace(
            problem.model, "categorical", "g-prior", solver="block-cg", em=sampla.EM(tolerance=0.01, exact_up_to=0),
            progress=False, width="em", tolerance=0.01,
        ).fit(data)  # fmt: skip
        found.append((la.report_, data.readings))
    (beside, few), (alone, many) = found
    assert beside.settled
    assert alone.settled
    assert few <= many - 3
    assert few - 1 == beside.sweeps, "the first batch is read ahead"
    assert beside.prior_precision[0] == pytest.approx(alone.prior_precision[0], rel=0.01)
    assert beside.log_evidence == pytest.approx(alone.log_evidence, abs=0.05)
