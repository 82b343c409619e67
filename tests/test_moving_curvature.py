"""B at the linear mode from a Krylov space for each B: against EM in float64 that takes all of it anew in each step."""

from dataclasses import replace
from math import exp, log

import pytest
import torch

import sampla
from cases import Problem, build_tiny
from dense import Evidence, Hyper, assert_covariance, curvature, hessians, laplace_log_evidence, predictive_covariance
from sampla.inference.moving_step import _proposed
from sampla.inference.trace import EMStep

EXACTLY = sampla.EM(tolerance=1e-3, mode_tolerance=1e-5)
"""43 parameters: traces are exact."""


@pytest.fixture(scope="module", params=["categorical", "bernoulli"])
def tiny(request: pytest.FixtureRequest) -> Problem:
    return build_tiny(request.param)


def fit(problem: Problem, prior: str, **options: object) -> sampla.LinearisedLaplace:
    return problem.fit(prior, **{"solver": "block-cg", "curvature_at": "linear-mode", "width": "em", **options})


def reference(problem: Problem, la: sampla.LinearisedLaplace) -> Evidence:
    """In the coordinates of the fit's own scale, which test_priors.py checks; B at the mode wherever that is."""
    features = problem.features * la._inference.prior.scale
    group = torch.zeros(features.shape[-1], dtype=torch.int64)
    return Evidence(features, problem.targets, group, problem.case.loss)


@pytest.mark.parametrize("prior", ["isotropic", "g-prior"])
def test_hyperparameters_mode_and_evidence_are_those_of_the_dense_fixed_point(tiny: Problem, prior: str) -> None:
    la = fit(tiny, prior, em=EXACTLY, num_samples=4, tolerance=1e-6)
    evidence = reference(tiny, la)
    exact = evidence.run(Hyper(torch.zeros(1).double()))
    theta = evidence.mode(exact)
    scale, inference = la._inference.prior.scale, la._inference
    weights = hessians(tiny.case.loss, evidence.features @ theta, tiny.targets)
    expected = laplace_log_evidence(evidence.features, tiny.targets, tiny.case.loss, weights, evidence.diagonal(exact))
    assert la.report_.settled
    assert la.report_.method == "krylov"
    torch.testing.assert_close(la.prior_precision_.log(), exact.log_precision, rtol=0, atol=1e-3)
    torch.testing.assert_close(la.effective_dimension_, evidence.gamma(exact), rtol=1e-3, atol=0)
    torch.testing.assert_close(inference.mean / scale, theta, rtol=0, atol=1e-3 * float(theta.norm()))
    assert la.log_evidence_ == pytest.approx(expected, abs=0.02)
    assert abs(la.log_evidence_ - expected) <= sum(la.report_.log_evidence_error)
    at_network = replace(evidence, weights=tiny.weights).run(Hyper(torch.zeros(1).double()))
    assert abs(float(at_network.log_precision - exact.log_precision)) > 0.05, "B elsewhere is another fixed point"


def test_with_probes_alpha_is_within_its_errors(tiny: Problem) -> None:
    la = fit(tiny, "g-prior", em=sampla.EM(num_samples=32, exact_up_to=0), num_samples=32)
    exact = reference(tiny, la).run(Hyper(torch.zeros(1).double()))
    spread, left = la.report_.precision_error
    away = abs(float(la.prior_precision_.log() - exact.log_precision))
    assert la.report_.settled
    assert away < 4 * spread + 4 * left
    assert 0 < spread < 0.2
    assert left < 0.06


def test_samples_have_the_covariance_of_the_posterior_with_b_at_its_mode() -> None:
    tiny, draws = build_tiny("categorical"), []
    for seed in range(2):
        la = fit(tiny, "isotropic", em=EXACTLY, num_samples=400, seed=seed, tolerance=1e-4)
        draws.append(la.predict(tiny.test_inputs).deviations.flatten(1))
    evidence, hyper = reference(tiny, la), Hyper(la.prior_precision_.log())
    weights = hessians(tiny.case.loss, evidence.features @ evidence.mode(hyper), tiny.targets)
    matrix = curvature(evidence.features, weights)
    inverse = torch.linalg.inv(matrix + evidence.diagonal(hyper).diag())
    assert_covariance(torch.cat(draws), predictive_covariance(tiny.test_features, inverse))


@pytest.mark.parametrize("learn", [False, True])
def test_a_given_precision_is_kept_or_started_from(learn: bool) -> None:
    tiny = build_tiny("categorical")
    la = tiny.fit(
        sampla.Isotropic(3.0, learn=learn), solver="block-cg", curvature_at="linear-mode", em=EXACTLY, width="em",
        log_evidence=True, num_samples=4,
    )  # fmt: skip
    evidence = reference(tiny, la)
    hyper = Hyper(la.prior_precision_.log())
    weights = hessians(tiny.case.loss, evidence.features @ evidence.mode(hyper), tiny.targets)
    arguments = evidence.features, tiny.targets, tiny.case.loss, weights, evidence.diagonal(hyper)
    assert la.log_evidence_ == pytest.approx(laplace_log_evidence(*arguments), abs=2e-3)
    assert (float(la.prior_precision_) == 3.0) is not learn
    assert la.report_.trace[0]["precision"] == [3.0] if learn else not la.report_.trace


@pytest.mark.parametrize("steps", [1, 2])
def test_b_that_still_moves_is_not_settled_and_says_so(steps: int) -> None:
    problem = build_tiny("categorical")
    with pytest.warns(sampla.ConvergenceWarning, match="the curvature at the linear mode still moves"):
        la = fit(problem, "isotropic", em=sampla.EM(tolerance=1e-3, max_steps=steps), num_samples=4)
    assert not la.report_.settled
    assert "still moves" in la.report_.unsettled
    assert la.report_.curvature_rounds == steps - 1
    evidence, hyper = reference(problem, la), Hyper(la.prior_precision_.log())  # of the posterior it does give
    torch.testing.assert_close(la.effective_dimension_, evidence.gamma(hyper), rtol=2e-3, atol=0)


def test_the_report_says_how_often_b_has_moved() -> None:
    problem = build_tiny("categorical")
    report = fit(problem, "isotropic", num_samples=4).report_
    assert report.curvature_rounds in (1, 2, 3)
    assert report.curvature_moves < 0.01
    assert f"at the linear mode, found in {report.curvature_rounds} round" in str(report)
    elsewhere = fit(problem, "isotropic", num_samples=4, curvature_at="network").report_
    assert elsewhere.curvature_rounds is None
    assert "curvature " not in str(elsewhere)


def test_it_costs_less_than_samples_in_every_step() -> None:
    problem = build_tiny("categorical")
    cost = {
        method: fit(problem, "isotropic", num_samples=8, em=sampla.EM(exact_up_to=0, method=method)).report_.passes
        for method in (None, "samples")
    }
    assert cost[None] < 0.75 * cost["samples"]


def test_the_line_through_two_rounds_meets_the_fixed_point() -> None:
    """log g(alpha) = .4 log alpha + 1, whose fixed point is e^(1 / .6)."""

    def updated(alpha: float) -> float:
        return exp(0.4 * log(alpha) + 1)

    trace = [EMStep([20.0], [updated(20.0)], None, [1.0], [0.0], 1.0, 1.0, 0, 0.0, rounds=1)]
    alpha, slope = _proposed(trace, 2, 2.0, updated(2.0))
    assert slope == pytest.approx(0.4)
    assert log(alpha) == pytest.approx(1 / 0.6)
