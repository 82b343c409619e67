"""The front door's EM and its log evidence: against a dense EM, the density of y, and Laplace's formula written out."""

import re
from dataclasses import replace
from math import log
from types import SimpleNamespace

import pytest
import torch

import dense
import sampla
from cases import FULL_NOISE, LIKELIHOODS, Problem, build_tiny
from dense import Evidence, Hyper
from sampla.inference import e_step, final
from sampla.inference.checkpointing import save_state
from sampla.inference.report import FitReport
from sampla.laplace import linearised as front_door

GROUPS = {"rest": ["0.", "2.bias"], "readout": ["2.weight"]}
PRIORS = {
    "isotropic": sampla.Isotropic,
    "g-prior": sampla.GPrior,
    "layerwise": lambda **options: sampla.Layerwise(groups=GROUPS, **options),
}
LEARNT = {"categorical": sampla.Categorical, "gaussian-scalar": lambda: sampla.Gaussian(1.0, learn=True)}
"""What is learnt in EM's own tests; a Gaussian with its noise, from far away."""
EXACT = sampla.EM(tolerance=1e-3, mode_tolerance=5e-5, max_steps=200)
PROBED = replace(EXACT, exact_up_to=0)
"""With probes, as in a problem that is not small."""
every_prior = pytest.mark.parametrize("prior", PRIORS)


@pytest.fixture(scope="module")
def tiny() -> dict[str, Problem]:
    return {name: build_tiny(name) for name in LIKELIHOODS}


def parts(problem, la):
    """The features in the coordinates of the fit's prior, and the diagonal of A there."""
    prior = la._inference.prior
    return problem.features * prior.scale, prior.precision[prior.group]


def exact_log_evidence(problem, la, curvature_at="network"):
    features, precision = parts(problem, la)
    noise = la.noise_precision_
    if noise is not None:
        noise = noise.double() * torch.eye(3).double() if noise.ndim < 2 else noise.double()
        return dense.gaussian_log_evidence(features, problem.targets, noise.expand(len(features), 3, 3), precision)
    weights, loss = problem.weights, problem.case.loss
    if curvature_at == "linear-mode":
        found = dense.mode(features, problem.targets, loss, precision)
        weights = dense.hessians(loss, features @ found, problem.targets)
    return dense.laplace_log_evidence(features, problem.targets, loss, weights, precision)


def final_curvature(problem, la):
    """M in the coordinates of the fit's prior, at the noise it ended with."""
    data = problem.curvature * la._inference.prior.scale[:, None] * la._inference.prior.scale
    noise = la.noise_precision_
    return data if noise is None or noise.ndim else data * float(noise) / 15  # the table's Gaussian has 15


def fit(problem, prior, name=None, **options):
    """A fit with its prior learnt (and the noise of a scalar Gaussian), unless options say otherwise."""
    likelihood = LEARNT.get(name, problem.case.make)()
    return problem.fit(PRIORS[prior](), likelihood=likelihood, num_samples=16, **options)


# The evidence


@pytest.mark.parametrize(("name", "learn"), [*((n, False) for n in LIKELIHOODS), *((n, True) for n in LEARNT)])
@every_prior
def test_dense_evidence_is_exact(tiny, name, prior, learn):
    """Gaussian: the density of y to rounding. Others: the mode is found at the alpha before the last update, which
    EM's tolerance of 1e-3 allows to be 1e-3 away: lower by at most 1e-6 / 2 gamma, with gamma below 43."""
    problem = tiny[name]
    made = PRIORS[prior]() if learn else PRIORS[prior](precision=0.7, learn=False)
    likelihood = LEARNT.get(name, problem.case.make)() if learn else problem.case.make()
    la = problem.fit(made, likelihood=likelihood, log_evidence=True, em=EXACT)
    expected = exact_log_evidence(problem, la)
    assert la.log_evidence_ == pytest.approx(expected, abs=1e-7 if problem.case.make().is_quadratic else 2e-5)
    spread, open_end = la.report_.log_evidence_error
    assert spread == 0
    assert open_end < 2e-5, "what the mode's own error leaves"
    assert la.report_.method == ("samples" if learn else "fixed")


def test_dense_evidence_with_the_curvature_at_the_linear_mode(tiny):
    """The determinant moves with the mode, by its error to first order."""
    problem = tiny["categorical"]
    la = fit(problem, "g-prior", curvature_at="linear-mode", em=sampla.EM(mode_tolerance=1e-6))
    assert la.log_evidence_ == pytest.approx(exact_log_evidence(problem, la, "linear-mode"), abs=1e-4)
    assert abs(exact_log_evidence(problem, la) - la.log_evidence_) > 0.1, "B elsewhere is another approximation"


@pytest.mark.parametrize("name", LIKELIHOODS)
@every_prior
def test_estimated_evidence_is_within_its_errors(tiny, name, prior):
    """Four standard errors and four truncation errors (what ``settled_error`` allows), and errors worth having."""
    problem = tiny[name]
    la = fit(problem, prior, name, solver="block-cg", em=sampla.EM(exact_up_to=0))
    assert la.report_.method == ("samples" if prior == "layerwise" else "krylov")
    spread, open_end = la.report_.log_evidence_error
    assert abs(la.log_evidence_ - exact_log_evidence(problem, la)) < 4 * spread + 4 * open_end
    determinant = dense.log_determinant(final_curvature(problem, la), parts(problem, la)[1])
    assert 0 < spread < 0.2 * determinant
    assert 0 <= open_end < 0.02 * determinant


@pytest.mark.parametrize("name", LEARNT)
@every_prior
def test_estimated_evidence_is_that_of_its_probes(tiny, name, prior, monkeypatch):
    """All but the determinant is exact, and the determinant what the first eight draws see, taken again from the model.

    Off by what EM's last step leaves, as with the dense solver; the space grows until it is whole. A prior with
    several alphas is fixed here: EM in samples is tested with the dense solver.
    """
    monkeypatch.setattr(e_step, "_SHARE", 0.0)
    problem = tiny[name]
    if prior == "layerwise":
        made = PRIORS[prior](precision=0.7, learn=False)
        la = problem.fit(made, solver="block-cg", log_evidence=True, num_samples=16, tolerance=1e-4, em=PROBED)
    else:
        la = fit(problem, prior, name, solver="block-cg", tolerance=1e-4, em=PROBED)
    _, precision = parts(problem, la)
    matrix = final_curvature(problem, la)
    probes = la._inference.model.draw_noise(0, 8).data_part
    seen = dense.probed_log_determinant(matrix, precision, probes)
    expected = exact_log_evidence(problem, la) + dense.log_determinant(matrix, precision) / 2 - seen / 2
    assert la.report_.log_evidence_error[1] < 1e-4
    assert la.log_evidence_ == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("prior", ["isotropic", "g-prior"])
def test_samples_belong_to_the_noise_that_was_learnt(tiny, prior):
    """gamma from the final samples: within four standard errors of the exact one at the hyperparameters of the end."""
    problem = tiny["gaussian-scalar"]
    la = problem.fit(PRIORS[prior](), likelihood=sampla.Gaussian(1.0, learn=True), solver="block-cg", num_samples=128)
    _, precision = parts(problem, la)
    matrix = final_curvature(problem, la)
    product = torch.linalg.solve(matrix + precision.diag(), matrix)
    spread = float((2 * (product @ product).trace() / 128) ** 0.5)
    assert abs(float(la.effective_dimension_[0] - product.trace())) < 4 * spread
    assert spread < 0.05 * float(product.trace())


def test_standard_errors_of_the_evidence_are_honest(tiny):
    """12 seeds at a fixed prior: z of Student's t with 7 degrees of freedom, mean square 1.4 +- 0.8."""
    problem, scores = tiny["gaussian-scalar"], []
    for seed in range(12):
        la = problem.fit(
            sampla.Isotropic(3.0, learn=False), solver="block-cg", log_evidence=True, num_samples=8, seed=seed,
            em=sampla.EM(exact_up_to=0),
        )  # fmt: skip
        exact = exact_log_evidence(problem, la)
        scores.append((la.log_evidence_ - exact) / la.report_.log_evidence_error[0])
    scores = torch.tensor(scores)
    assert abs(float(scores.mean())) < 3 * (1.4 / 12) ** 0.5
    assert 0.3 < float(scores.square().mean()) < 1.4 + 3 * 0.8


@pytest.mark.parametrize("prior", ["isotropic", "g-prior"])
def test_alpha_that_em_finds_has_more_evidence_than_others(tiny, prior):
    """For a Gaussian MacKay's fixed point is where the evidence is stationary: exactly, by the dense solver."""
    problem = tiny["gaussian-scalar"]
    found = problem.fit(PRIORS[prior](), em=sampla.EM(tolerance=1e-8, max_steps=1000))
    alpha = float(found.prior_precision_[0])

    def at(factor):
        made = PRIORS[prior](precision=alpha * factor, learn=False)
        return problem.fit(made, log_evidence=True).log_evidence_

    assert at(1) == pytest.approx(found.log_evidence_, abs=1e-6)
    assert max(at(3), at(1 / 3)) < found.log_evidence_ - 0.5
    assert abs(at(1.01) - at(1 / 1.01)) < 1e-4
    sampled = problem.fit(PRIORS[prior](), solver="block-cg", num_samples=64, em=sampla.EM(num_samples=64))
    near = at(float(sampled.prior_precision_[0]) / alpha)
    assert max(at(3), at(1 / 3)) < near <= found.log_evidence_ + 1e-9


@pytest.mark.parametrize("solver", ["dense", "block-cg"])
@pytest.mark.parametrize("name", ["categorical", "gaussian-scalar"])
def test_a_fixed_prior_has_an_evidence_only_if_asked(tiny, name, solver, tmp_path):
    problem, fixed = tiny[name], sampla.GPrior(0.5, learn=False)
    without = problem.fit(fixed, solver=solver)
    with pytest.raises(RuntimeError, match=r"log evidence was not estimated.*log_evidence=True"):
        _ = without.log_evidence_
    assert "evidence" not in str(without.report_)
    la = problem.fit(fixed, solver=solver, log_evidence=True)
    spread, open_end = la.report_.log_evidence_error
    assert abs(la.log_evidence_ - exact_log_evidence(problem, la)) < 4 * spread + open_end + 1e-3
    la.save(tmp_path / "fit.safetensors")
    loaded = sampla.LinearisedLaplace.load(tmp_path / "fit.safetensors", problem.model)
    assert loaded.log_evidence_ == la.log_evidence_
    assert loaded.report_ == la.report_
    assert str(loaded.report_) == str(la.report_)


def test_no_evidence_where_it_is_not_wanted(tiny):
    la = tiny["gaussian-scalar"].fit("isotropic", log_evidence=False)
    assert la.report_.log_evidence is la.report_.log_evidence_error is None
    with pytest.raises(RuntimeError, match="log_evidence=True"):
        _ = la.log_evidence_


# EM


def dense_fixed_point(problem, la, name):
    """EM with exact quantities from where the fit started, in the coordinates of the fit's scale."""
    features, _ = parts(problem, la)
    group, start = torch.zeros(43, dtype=torch.int64), torch.zeros(1).double()
    if name == "categorical":
        evidence = Evidence(features, problem.targets, group, problem.case.loss, problem.weights)
        return evidence, evidence.run(Hyper(start))
    residual = problem.targets - problem.model(problem.inputs).detach()
    noise = residual.square().mean() * torch.eye(3).double()
    evidence = Evidence(features, problem.targets, group, structure="scalar")
    return evidence, evidence.run(Hyper(start, noise))


@pytest.mark.parametrize("name", LEARNT)
@pytest.mark.parametrize("prior", ["isotropic", "g-prior"])
def test_every_method_finds_the_alpha_of_exact_em_within_its_error(tiny, name, prior):
    """dense: to the tolerance, over what MacKay's update contracts by. krylov: to its tolerance, four of its own
    standard errors and what it left open. samples: as dense, and four of the standard errors that 16 samples leave."""
    problem = tiny[name]
    em = sampla.EM(
        tolerance=4e-3, mode_tolerance=1e-3, solve_tolerance=0.01, num_samples=16, max_steps=200, exact_up_to=0
    )
    la = {
        "dense": fit(problem, prior, name, em=em),
        "krylov": fit(problem, prior, name, em=em, solver="block-cg"),
        "samples": fit(problem, prior, name, em=replace(em, method="samples"), solver="block-cg"),
    }
    assert [la[m].report_.method for m in la] == ["samples", "krylov", "samples"]
    errors = {"dense": 0.02, "krylov": 0.004, "samples": 0.02}
    report = la["krylov"].report_
    errors["krylov"] += 4 * report.precision_error[0] + report.precision_error[1]
    evidence, exact = dense_fixed_point(problem, la["dense"], name)  # one seed, one scale
    sampled = float(evidence.standard_errors(exact, 16)[0])
    errors["samples"] += 4 * sampled
    stated = {method: fitted.report_.precision_error[0] / sampled for method, fitted in la.items()}
    assert 0.55 < stated["krylov"] < 1.8, "its own standard error must be that of 16 samples"
    assert 0.3 < stated["samples"] < 3.5, "its slope is a secant, which the noise's own updates disturb"
    assert stated["dense"] == 0
    for method, fitted in la.items():
        away = abs(log(float(fitted.prior_precision_[0])) - float(exact.log_precision[0]))
        assert away < errors[method], f"{method}: log alpha off by {away:.3f}, {errors[method]:.3f} allowed"
        assert fitted.report_.settled


def test_what_no_single_space_serves_goes_to_samples(tiny):
    for name, prior, options in (
        ("categorical", "layerwise", {"curvature_at": "linear-mode"}),
        ("gaussian-scalar", "isotropic", {"likelihood": sampla.Gaussian(structure="diagonal")}),
    ):
        problem = tiny[name]
        la = problem.fit(PRIORS[prior](), **{"solver": "block-cg", "em": sampla.EM(tolerance=0.5), **options})
        assert la.report_.method == "samples"


@pytest.mark.parametrize(
    ("name", "prior", "options"),
    [
        ("categorical", "layerwise", {}),
        ("categorical", "layerwise", {"curvature_at": "linear-mode"}),
        ("gaussian-scalar", "isotropic", {"likelihood": sampla.Gaussian(structure="diagonal")}),
        ("gaussian-scalar", "g-prior", {"likelihood": sampla.Gaussian(FULL_NOISE, learn=True)}),
    ],
)
def test_a_krylov_space_that_cannot_serve_is_refused(tiny, name, prior, options):
    match = r"expected one alpha, and scalar or fixed noise, for EM\(method='krylov'\), got .*"
    with pytest.raises(ValueError, match=match + r"Use EM\(method='samples'\)"):
        tiny[name].fit(PRIORS[prior](), em=sampla.EM(method="krylov"), solver="block-cg", **options)


def test_a_krylov_space_may_be_asked_of_any_solver(tiny):
    """The dense solver with alpha from the space: only the final solve is its own."""
    la = tiny["categorical"].fit("isotropic", em=sampla.EM(method="krylov"))
    assert la.report_.method == "krylov"
    assert la.report_.solve_error < 1e-9


# A fit that was stopped


@pytest.mark.parametrize("name", LEARNT)
@pytest.mark.parametrize("prior", ["isotropic", "g-prior"])
def test_a_fit_stopped_in_the_middle_of_em_goes_on(tiny, name, prior, tmp_path, monkeypatch):
    """Gaussian: to 1e-9, the Krylov space is all there is. Otherwise the search for the mode goes on without what it
    had learnt, so the mode differs by its tolerance: |mode|^2 and alpha by a few times that."""
    problem, options = (
        tiny[name],
        {"solver": "block-cg", "em": sampla.EM(tolerance=0.004, mode_tolerance=0.001, exact_up_to=0)},
    )
    whole = fit(problem, prior, name, **options)
    count = 0

    def stopping(*arguments):
        nonlocal count
        save_state(*arguments)
        count += 1
        if count == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(front_door, "save_state", stopping)
        with pytest.raises(KeyboardInterrupt):
            fit(problem, prior, name, checkpoint=tmp_path, **options)
    resumed = fit(problem, prior, name, checkpoint=tmp_path, **options)
    assert len(whole.report_.trace) > 2, "it must have been stopped before the end"
    quadratic = name != "categorical"
    rows = [[row["precision"] for row in la.report_.trace] for la in (whole, resumed)]
    assert rows[0][:3] == rows[1][:3], "the steps before are remembered, not repeated"
    close = {"rtol": 1e-9 if quadratic else 0.01, "atol": 0}
    torch.testing.assert_close(resumed.prior_precision_, whole.prior_precision_, **close)
    assert resumed.log_evidence_ == pytest.approx(whole.log_evidence_, abs=1e-6 if quadratic else 0.05)
    for part in ("precision_error", "log_evidence_error", *(["noise_error"] if quadratic else [])):
        stated = (getattr(la.report_, part)[0] for la in (resumed, whole))
        assert next(stated) == pytest.approx(next(stated), rel=1e-6 if quadratic else 0.3)
    assert resumed.report_.settled
    variances = [la.predict(problem.test_inputs).variance for la in (resumed, whole)]
    torch.testing.assert_close(*variances, rtol=1e-6 if quadratic else 0.05, atol=1e-12)
    again = fit(problem, prior, name, checkpoint=tmp_path, **options)
    assert torch.equal(again.prior_precision_, resumed.prior_precision_)
    assert len(again.report_.trace) == len(resumed.report_.trace)
    assert again.log_evidence_ == pytest.approx(resumed.log_evidence_, abs=1e-9)
    for part in ("precision_error", *(["noise_error"] if quadratic else [])):
        assert getattr(again.report_, part) == pytest.approx(getattr(resumed.report_, part), abs=1e-9)


def test_noise_that_the_residuals_contradict_is_said(tiny):
    """A space of 16 rows, 9 after one product: the noise read off it is not that of the mean that the solver finds."""
    problem, said = tiny["gaussian-scalar"], []
    with pytest.warns(sampla.ConvergenceWarning) as caught:
        la = fit(problem, "isotropic", "gaussian-scalar", solver="block-cg", em=sampla.EM(max_rows=16, exact_up_to=0))
    said = [str(warning.message) for warning in caught]
    assert any(re.search("the residuals at the posterior mean say .* off: rounding, or too small a", m) for m in said)
    assert any(re.search("EM was asked to settle", m) for m in said)
    assert la.report_.noise_error[1] > 0.04


# The printed report


def report(**changes) -> FitReport:
    """Of a fit that could not have gone better, but for the changes."""
    values = {
        "num_data": 100, "num_parameters": 1234, "num_samples": 32, "prior_precision": [0.5], "prior_groups": ["all"],
        "noise_precision": None, "effective_dimension": [12.5], "effective_dimension_error": [0.3],
        "trace": [{"change": 0.01}, {"change": 0.002}], "settled": True, "status": "reached the tolerance",
        "final_passes": 3, "solve_error": 0.01, "solve_history": [0.01], "passes": 4.5, "sweeps": 9,
        "vector_bytes": 8, "seconds": 1.5, "adjoint_error": 0.0, "excluded_parameters": {}, "dead_parameters": [],
        "precision_error": [0.02, 0.001], "log_evidence": -1234.5, "log_evidence_error": [0.8, 0.01],
        "mean_error": 0.004, "method": "krylov",
    }  # fmt: skip
    return FitReport(**{**values, **changes})


LONG = "stopped because rounding allows no more progress: use float64, or ask for less accuracy"
ADVICE = [
    ({}, "the number of samples limits the accuracy: num_samples=128 halves the 12%"),
    ({"num_samples": 8}, "num_samples=32 halves the 25%"),
    ({"solve_error": 0.05, "status": "stopped at max_passes"}, r"missed the tolerance of 2%: raise max_passes"),
    ({"solve_error": 0.05, "status": LONG}, r"missed the tolerance of 2%: use float64"),
    ({"solve_error": 0.05, "tolerance": 0.1}, "number of samples limits"),
    ({"settled": False}, r"EM has not settled: raise EM\(max_steps=\.\.\.\)$"),
    ({"settled": False, "unsettled": "rounding of float32: use float64"}, "EM has not settled: rounding .* float64$"),
    ({"precision_error": [0.3, 0.0]}, r"alpha is known to 30% only: raise EM\(num_samples=\.\.\.\)"),
    ({"precision_error": None}, "number of samples limits"),
    # What comes first: a wrong answer before a hyperparameter that moves, and that before one that is uncertain.
    ({"solve_error": 0.05, "settled": False, "precision_error": [0.3, 0.0]}, "missed the tolerance"),
    ({"settled": False, "precision_error": [0.3, 0.0]}, "EM has not settled"),
]


@pytest.mark.parametrize(("changes", "said"), ADVICE)
def test_advice_names_what_to_change_first(changes, said):
    assert re.search(said, report(**changes).advice)
    assert f"to improve   {report(**changes).advice}" in str(report(**changes))


SAID = [
    ({}, r"^32 posterior samples of 1,234 parameters from 100 data$"),
    ({}, r"^cost         4.5 passes \(9 readings of the loader\), 1.5 s$"),
    ({"kept_on": "cuda:0"}, r" \(9 readings of the data, which were kept on cuda:0 after the second\), 1.5 s$"),
    ({}, r"^samples      error 1.0% of a function draw \(estimated\); the solve reached the tolerance$"),
    ({"sample_errors": [0.01, 0.03]}, r"^samples .*estimated\), 3.0% for the worst; the solve"),
    ({}, r"^sampling     a standard deviation is known to about 12% with K = 32$"),
    ({}, r"^prior        precision 0.5 \(known to 2.0%\); EM settled in 2 steps \(last change 0.2%\)$"),
    ({"precision_error": [0.0, 0.001]}, r"^prior        precision 0.5 \(exact up to 0.1%\);"),
    ({"precision_error": [0.02, 0.01]}, r"^prior .*known to 2.0%, iterations may change 1.0%\)"),
    ({"settled": False}, r"^prior .*EM has NOT settled in 2 steps$"),
    ({"trace": [{"change": 3.0}]}, r"^prior .*EM settled in 1 step$"),
    ({"trace": [], "precision_error": None}, r"^prior        precision 0.5; fixed by the user$"),
    ({"prior_precision": [1.0] * 9}, r"^prior        precision (1, ){7}1 \.\.\."),
    ({}, r"^data         determine 12.5 \(standard error 0.3\) of 1,234 parameters$"),
    ({"effective_dimension_error": [0.0]}, r"^data         determine 12.5 \(exact\)"),
    ({}, r"^mean         error 0.40% of the linear model's mean \(estimated\)$"),
    ({}, r"^evidence     log p\(y\) = -1,234.5 nats of y around J theta, standard error 0.8$"),
    ({"linear_model": "tangent"}, r"^evidence .* nats of y around f \+ J \(theta - w\), standard error 0.8$"),
    ({"products": ""}, r"^evidence     log p\(y\) = -1,234.5 nats, standard error 0.8$"),
    (
        {"log_evidence_error": [0.0, 0.004]},
        r"^evidence     log p\(y\) = -1,234.5 nats of y around J theta, exact up to 0.004$",
    ),
    ({"log_evidence_error": [0.8, 0.4]}, r"^evidence .*standard error 0.8, iterations may change 0.4$"),
    ({"noise_precision": 4.0}, r"^noise        precision 4 \(std 0.5\)$"),
    ({"noise_precision": 4.0, "noise_error": [0.01, 0.0]}, r"^noise        precision 4 \(known to 1.0%\) \(std 0.5\)$"),
    ({"excluded_parameters": {"a": "frozen", "b": "frozen"}}, r"^left out     2 parameter tensors: frozen$"),
    ({"dead_parameters": ["a"]}, r"^dead         a: the data say nothing about them$"),
]


@pytest.mark.parametrize(("changes", "said"), SAID)
def test_the_printed_report_says(changes, said):
    assert any(re.search(said, line) for line in str(report(**changes)).splitlines()), str(report(**changes))


def test_lines_without_anything_to_say_are_left_out():
    words = str(report(mean_error=None, log_evidence=None, log_evidence_error=None, products=""))
    starts = [line.split()[0] for line in words.splitlines()]
    assert starts == ["32", "cost", "samples", "sampling", "prior", "data", "to"]


def test_the_report_of_a_fit_has_its_lines_and_survives_json(tiny):
    la = fit(tiny["gaussian-scalar"], "g-prior", "gaussian-scalar", solver="block-cg", em=sampla.EM(exact_up_to=0))
    starts = [line.split()[0] for line in str(la.report_).splitlines()]
    model = ["prior", "data", "width", "layers", "products", "mean", "evidence", "noise"]
    assert starts == ["16", "cost", "samples", "sampling", *model, "in", "to"]
    assert FitReport.from_dict(la.report_.to_dict()) == la.report_
    assert la.report_.mean_error < 0.02
    assert len(la.report_.sample_errors) == 16
    assert la.report_.noise_error[0] > 0


def test_an_error_of_the_mode_that_overflows_leaves_the_evidence_open():
    """It is measured in floats of Python, whose power raises where a product is infinite."""
    state = SimpleNamespace(
        prior=SimpleNamespace(diagonal=torch.ones(3)), model=SimpleNamespace(likelihood=sampla.Poisson())
    )
    assert final._excess(state, None, torch.ones(3), 1e200) == float("inf")
    assert final._excess(state, None, torch.ones(3), 0.1) == pytest.approx(0.015)
