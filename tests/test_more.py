"""More samples after a fit: of the exact posterior, beside those that there were, with a certificate about all."""

from pathlib import Path

import pytest
import torch

import sampla
from cases import Problem
from dense import assert_covariance
from helpers import class_batches, classifier, inputs, laplace
from sampla.inference import more
from sampla.solvers import Solution, Status

FIXED = sampla.Isotropic(30.0, learn=False)


def covariance(problem: Problem) -> torch.Tensor:
    """H^-1 with A = 30."""
    return torch.linalg.inv(problem.curvature + 30 * torch.eye(len(problem.curvature)).double())


@pytest.mark.parametrize("name", ["categorical", "gaussian-full"])
def test_more_samples_have_the_covariance_of_the_posterior(problems: dict[str, Problem], name: str) -> None:
    problem = problems[name]
    la = problem.fit(FIXED, num_samples=3)
    before = {key: value.clone() for key, value in la.samples_.items()}
    mean = None if la.linear_mean_ is None else {key: value.clone() for key, value in la.linear_mean_.items()}
    assert la.more(200) is la
    for key, value in la.samples_.items():
        assert value.shape[0] == 203
        assert torch.equal(value[:3], before[key])
        assert mean is None or torch.equal(la.linear_mean_[key], mean[key])
    drawn = torch.cat([value[3:].flatten(1) for value in la.samples_.values()], 1)
    assert_covariance(drawn, covariance(problem))
    pred = la.predict(problem.test_inputs)
    assert pred.samples.shape[0] == 203
    features = problem.test_features
    expected = torch.einsum("ncp,pq,ncq->nc", features, covariance(problem), features)
    torch.testing.assert_close(pred.variance, expected, rtol=0.5, atol=0)


@pytest.mark.parametrize("prior", [FIXED, sampla.GPrior(2.0, learn=False)])
def test_what_is_kept_of_the_systems_is_that_of_all_samples(problems: dict[str, Problem], prior: sampla.Prior) -> None:
    """Exact samples solve H z = b: the combinations of right-hand sides are H times the same ones of samples."""
    problem = problems["gaussian-scalar"]
    la = problem.fit(prior, num_samples=5).more(6).more(2)
    inference = la._inference
    assert inference is not None
    assert inference.solution.value.shape[0] == 14  # and the mean behind them
    kept, samples = inference.posed, torch.cat([value.flatten(1) for value in la.samples_.values()], 1)
    scale = inference.prior.scale
    hessian = problem.curvature + (inference.prior.diagonal / scale**2).diag()
    assert kept.signs.shape == (4, 13)
    near = {"rtol": 1e-6, "atol": 1e-6 * float(hessian.diagonal().max().sqrt())}
    torch.testing.assert_close(kept.combined / scale, kept.signs @ samples @ hessian, **near)
    torch.testing.assert_close(inference.solution.curvature_value[:13] / scale, samples @ problem.curvature, **near)
    assert float(la.predict(problem.test_inputs, certificate=True).solve_error.max()) < 1e-6


def test_errors_of_both_solves_are_put_together_and_the_worse_end_is_told() -> None:
    def solution(count: int, error: float, status: Status, passes: int) -> Solution:
        rows = torch.zeros(count, 2)
        return Solution(rows, rows, status=status, error=error, passes=passes, errors=torch.full((count,), error))

    first, second = solution(2, 0.3, Status.CONVERGED, 7), solution(3, 0.1, Status.MAX_PASSES, 9)
    joined = more._joined(first, second, 1, 3)  # one sample, and a mean behind it
    assert joined.error == pytest.approx(((0.09 + 3 * 0.01) / 4) ** 0.5)
    assert joined.errors.tolist() == pytest.approx([0.3, 0.1, 0.1, 0.1, 0.3])
    assert (joined.status, joined.passes) == (Status.MAX_PASSES, 9)
    assert more._joined(second, first, 3, 2).status is Status.MAX_PASSES


def test_the_report_is_about_all_samples(problems: dict[str, Problem], tmp_path: Path) -> None:
    problem = problems["gaussian-scalar"]
    la = problem.fit("isotropic", solver=sampla.BlockCG(), num_samples=4, tolerance=0.05)
    before, ledger = la.report_, la._inference.model.ledger  # type: ignore[union-attr]
    products = ledger.products
    la.more(12)
    after = la.report_
    assert (after.num_samples, len(after.sample_errors)) == (16, 16)
    assert after.sample_errors[:4] == before.sample_errors
    assert after.solve_error <= 0.05
    assert after.passes == pytest.approx(ledger.products / 16)
    assert ledger.products > products
    assert after.sweeps > before.sweeps
    assert after.prior_precision == before.prior_precision
    assert after.trace == before.trace
    assert "16 posterior samples" in str(after)
    left = la.predict(problem.test_inputs, certificate=True).solve_error
    assert float(left.max()) < 0.5
    la.save(tmp_path / "posterior.safetensors")
    loaded = sampla.LinearisedLaplace.load(tmp_path / "posterior.safetensors", problem.model)
    assert torch.equal(loaded.predict(problem.test_inputs).deviations, la.predict(problem.test_inputs).deviations)
    assert str(loaded.report_) == str(la.report_)
    with pytest.raises(ValueError, match=r"expected a posterior that was fitted in this process, got one from a file"):
        loaded.more(4)


def test_a_sampled_effective_dimension_gets_more_certain(problems: dict[str, Problem]) -> None:
    la = problems["gaussian-scalar"].fit(FIXED, solver=sampla.BlockCG(), num_samples=4, log_evidence=False)
    before = la.report_.effective_dimension_error[0]
    la.more(60)
    exact = float(torch.trace(covariance(problems["gaussian-scalar"]) @ problems["gaussian-scalar"].curvature))
    after, error = la.report_.effective_dimension[0], la.report_.effective_dimension_error[0]
    assert error < 0.5 * before
    assert abs(after - exact) < 4 * error
    assert la.report_.effective_dimension_sum_error == pytest.approx(error)
    assert sum(la.report_.effective_dimension_by_layer.values()) == pytest.approx(after)


def test_each_call_draws_others_and_the_same_again() -> None:
    def samples() -> torch.Tensor:
        la = laplace(classifier()).fit(class_batches()).more(4).more(4)
        return torch.cat([value.flatten(1) for value in la.samples_.values()], 1)

    once = samples()
    assert torch.equal(once, samples())
    assert len(torch.unique(once, dim=0)) == 12
    other = torch.cat(
        [v.flatten(1) for v in laplace(classifier(), seed=1).fit(class_batches()).more(4).samples_.values()], 1
    )
    assert len(torch.unique(torch.cat([once, other]), dim=0)) == 20


def test_numbers_and_networks_that_do_not_fit() -> None:
    model = classifier()
    la = laplace(model)
    with pytest.raises(RuntimeError, match="not fitted yet"):
        la.more(2)
    la.fit(class_batches())
    with pytest.raises(ValueError, match="expected the number of new samples as an integer of at least 1, got 0"):
        la.more(0)
    before = la.predict(inputs()).deviations
    with torch.no_grad():
        model[0].bias[0] += 1
    with pytest.raises(ValueError, match="1 tensor has changed"):
        la.more(2)
    with torch.no_grad():
        model[0].bias.copy_(la._posterior.features.point["0.bias"])  # type: ignore[union-attr]
    assert torch.equal(la.predict(inputs()).deviations, before)
