"""Recipes of docs/extending.md, each followed as it stands there, and what it gives checked by another way."""

import re
from collections.abc import Callable, Iterator
from itertools import product
from math import hypot
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from experiments.common.metrics import MEASURES

import dense
import sampla
import test_solvers
from cases import SOLVERS, Problem, build_tiny
from sampla.solvers import solve
from sampla.tomography import FunctionOperator
from test_docs import snippets

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


def followed(title: str) -> dict[str, Any]:
    """The names that the snippets of one section leave behind."""
    (section,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"torch": torch}
    torch.manual_seed(0)
    for source in snippets(section):
        exec(compile(source, title, "exec"), names)
    return names


def test_a_column_in_an_experiments_table(tmp_path, monkeypatch, capsys):
    """Its value is p_y / |p|, it is in the table, and nothing was fitted or scored again."""
    before = dict(MEASURES)
    monkeypatch.chdir(tmp_path)
    names = followed("A column in an experiment's table")
    probs, labels = names["probs"].double().numpy(), names["labels"].numpy()
    expected = np.mean([p[y] / np.sqrt(np.sum(p**2)) for p, y in zip(probs, labels, strict=True)])
    row = names["store"].rows["network"]
    value, without = row["spherical"]["clean"][""]
    assert value == pytest.approx(expected, rel=1e-6)
    assert len(without) == 20
    assert row["fit_seconds"] == 1.0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split(" | ")[1:] == ["NLL", "spherical |"]
    assert f"**{expected:.4f} ± " in printed[2]
    assert before == MEASURES


def chord(source: np.ndarray, direction: np.ndarray, half: float) -> float:
    """Length of a ray in the square of this half width about the origin: between entering and leaving both strips."""
    with np.errstate(divide="ignore"):
        sides = np.sort((np.array([[-half], [half]]) - source) / direction, axis=0)
    return max(0.0, sides[1].min() - sides[0].max())


@pytest.fixture(scope="module")
def scan() -> dict[str, Any]:
    return followed("A scan geometry")


def test_rays_of_a_scan_geometry_are_as_long_as_the_image_is_wide(scan):
    rays = zip(scan["sources"], scan["directions"], strict=True)
    expected = np.array([chord(source, direction, scan["side"] / 2) for source, direction in rays])
    found = scan["operator"].forward(torch.ones(1, 16, 16))[0].numpy()
    assert expected.max() > 16
    np.testing.assert_allclose(found, expected, atol=2 * 80 / 400)
    assert np.abs(found - expected).mean() < 0.1
    middle = len(scan["fan"]) // 2
    assert hypot(*scan["sources"][middle]) == pytest.approx(scan["radius"])
    across = scan["operator"].scipy[[middle]].toarray().reshape(16, 16)  # straight up, between two columns
    assert set(np.flatnonzero(across.sum(0))) <= {7, 8}


def test_products_of_a_scan_geometry_are_adjoint(scan):
    operator, generator = scan["operator"].to(torch.float64), torch.Generator().manual_seed(1)
    images = torch.randn(3, 16, 16, generator=generator, dtype=torch.float64)
    cotangents = torch.randn(3, operator.num_measurements, generator=generator, dtype=torch.float64)
    pushed = (operator.forward(images) * cotangents).sum(1)
    torch.testing.assert_close(pushed, (operator.adjoint(cotangents) * images).sum((1, 2)))
    with pytest.raises(ValueError, match="adjoint"):
        FunctionOperator(operator.forward, lambda u: operator.adjoint(u).mT, (16, 16), 168, operator.like)


def test_a_scan_geometry_is_reconstructed(scan):
    image, found = scan["image"], scan["reconstruction"]
    assert found.deviations.shape == (16, 16, 16)
    assert float((found.mean - image).square().mean()) < 0.5 * float((image - image.mean()).square().mean())
    assert float(found.std.min()) > 0


@pytest.fixture(scope="module")
def regression() -> Problem:
    return build_tiny("gaussian-scalar")


def assert_exact(la: sampla.LinearisedLaplace, problem: Problem) -> None:
    """The covariance of a fit's samples on the data is J H^-1 J', with the alpha of the fit."""
    precision = float(la.prior_precision_) * torch.eye(problem.curvature.shape[0], dtype=torch.float64)
    covariance = dense.predictive_covariance(problem.features[:8], torch.linalg.inv(problem.curvature + precision))
    samples = torch.cat([la.samples_[name].flatten(1) for name in problem.names], 1)
    dense.assert_covariance(samples @ problem.features[:8].flatten(0, 1).mT, covariance)


@pytest.fixture(scope="module")
def galerkin() -> dict[str, Any]:
    return followed("A solver")


def takes_a_solver(test: Callable[..., None]) -> bool:
    return any(mark.args[0] == "solver" and "dense" in mark.args[1] for mark in getattr(test, "pytestmark", []))


INHERITED = [test for name, test in vars(test_solvers).items() if name.startswith("test_") and takes_a_solver(test)]


def arguments(test: Callable[..., None]) -> Iterator[dict[str, Any]]:
    """What a test's other parameters are in turn."""
    others = [mark.args for mark in test.pytestmark if mark.name == "parametrize" and mark.args[0] != "solver"]  # type: ignore[attr-defined]
    for values in product(*(values for _, values in others)):
        yield dict(zip((name for name, _ in others), values, strict=True))


@pytest.mark.parametrize("inherited", INHERITED, ids=lambda test: test.__name__)
def test_a_solver_inherits_the_tests_of_the_table(inherited, galerkin, monkeypatch):
    """All of them, because its line says that it is exact."""
    ((name, line),) = galerkin["line"].items()
    assert line.exact
    monkeypatch.setitem(SOLVERS, name, line)
    for others in arguments(inherited):
        inherited(name, **others)


def test_a_solver_inherits_many_tests():
    assert len(INHERITED) >= 8


def test_samples_of_a_solver_are_those_of_the_posterior(galerkin, regression):
    la = regression.fit(sampla.Isotropic(2.0, learn=False), solver=galerkin["Galerkin"](), num_samples=400)
    assert la.report_.solve_error <= 0.02
    assert_exact(la, regression)


@pytest.fixture(scope="module")
def readout_cg() -> dict[str, Any]:
    return followed("A preconditioner")


def test_a_preconditioner_is_the_block_and_the_diagonal_and_saves_passes(readout_cg):
    """Ten columns that are alike, before ten that are nearly dependent and of eigenvalues over six decades."""
    rows = torch.cat([dense.prescribed(np.ones(10), 300), dense.prescribed(np.logspace(4, -2, 10), 300, seed=1)], 1)
    case, solver = test_solvers.Case("well conditioned", 4, rows=rows), readout_cg["ReadoutCG"](size=10)
    expected = (case.noise.diagonal + case.precision).diag()
    expected[-10:, -10:] = case.matrix[-10:, -10:]
    found = solver.preconditioner(case.system).solve(torch.eye(20, dtype=torch.float64))
    torch.testing.assert_close(found, torch.linalg.inv(expected))
    plain, helped = (solve(each, case.system, case.rhs, tolerance=1e-6) for each in (sampla.BlockCG(), solver))
    assert case.error(helped, case.exact()) < 1e-5
    assert helped.passes < plain.passes


def test_samples_with_a_preconditioner_are_those_of_the_posterior(readout_cg, regression):
    solver = readout_cg["ReadoutCG"](size=15)
    assert_exact(regression.fit(sampla.Isotropic(2.0, learn=False), solver=solver, num_samples=400), regression)


def test_a_rule_for_stopping_ends_em_where_the_samples_tell_no_more(regression):
    """No later than the tolerance does, and as near to the dense fixed point as the samples allow."""
    rule, found = followed("Another rule for stopping EM")["AsFarAsSamplesTell"], []
    told = SimpleNamespace(effective_dimension=[20.0, 0.01, 5.0], effective_dimension_error=[2.0, 0.0, 1.0])
    assert [rule().has_settled([told], ahead) for ahead in (0.049, 0.051)] == [True, False]
    assert not rule().has_settled([told], 0.0, 0.011)
    for kind in (sampla.EM, rule):
        em = kind(method="samples", exact_up_to=0, tolerance=0.002)
        likelihood = sampla.Gaussian(15.0, learn=False)
        found.append(regression.fit("isotropic", likelihood=likelihood, solver="block-cg", em=em, num_samples=8))
    usual, la = found
    assert 2 <= len(la.report_.trace) <= len(usual.report_.trace)
    group = torch.zeros(regression.features.shape[-1], dtype=torch.int64)
    reference = dense.Evidence(regression.features, regression.targets, group)
    noise = torch.eye(3, dtype=torch.float64) / 15
    settled = reference.run(dense.Hyper(torch.zeros(1, dtype=torch.float64), noise))
    error = float(la.prior_precision_.log() - settled.log_precision[0])
    assert abs(error) < 3 * float(reference.standard_errors(settled, 8)[0])
    distance = abs(float(la.prior_precision_.log() - usual.prior_precision_.log()))
    last = la.report_.trace[-1]
    assert distance <= last["effective_dimension_error"][0] / last["effective_dimension"][0]


def test_a_front_door_finds_the_fixed_point_and_the_posterior_of_dense_algebra():
    names = followed("A front door")
    features, x, y = names["features"] if "features" in names else names["gp"].features, names["x"], names["y"]
    rows = (2 / 100) ** 0.5 * torch.cos(x @ features.frequencies + features.phases)
    group = torch.zeros(100, dtype=torch.int64)
    reference = dense.Evidence(rows[:, None], y, group, structure="scalar")
    start = dense.Hyper(torch.zeros(1, dtype=torch.float64), torch.full((1, 1), 0.01, dtype=torch.float64))
    settled = reference.run(start)
    gp = names["GaussianProcess"](features, num_samples=400).fit(x, y)
    found = gp.posterior_
    assert float(found.prior.precision.log() - settled.log_precision) == pytest.approx(0, abs=0.02)
    assert float(found.model.likelihood.noise_precision * settled.noise) == pytest.approx(1, abs=0.02)
    alpha, beta = found.prior.precision, found.model.likelihood.noise_precision
    hessian = beta * rows.mT @ rows + alpha * torch.eye(100, dtype=torch.float64)
    new = torch.linspace(0, 6, 20, dtype=torch.float64)[:, None]
    at = (2 / 100) ** 0.5 * torch.cos(new @ features.frequencies + features.phases)
    predictive = gp.predict(new)
    mean = at @ torch.linalg.solve(hessian, beta * rows.mT @ y)
    torch.testing.assert_close(predictive.mean, mean, rtol=0, atol=0.02 * float(mean.std()))
    dense.assert_covariance(predictive.deviations[:, :, 0], at @ torch.linalg.inv(hessian) @ at.mT)
    apart = (x - x.mT).square()
    assert float((rows @ rows.mT - torch.exp(-apart / 2)).abs().max()) < 0.5
