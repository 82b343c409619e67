"""A prior N(mu, A^-1) that is known: mean, covariance, evidence and EM against dense float64, and what must not change.

With Gaussian noise mu is the same as other targets, y - J mu, and theta* is then mu more: all answers must be those.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dense
import sampla
from cases import Problem, build_tiny, linear_model, randn
from sampla.features import OutputsAt, ScaledFeatures

KINDS = ("surrogate", "tangent")
QUIET: dict[str, Any] = {"progress": False, "width": "em"}


@pytest.fixture(scope="module")
def tiny() -> dict[str, Problem]:
    return {name: build_tiny(name) for name in ("gaussian-scalar", "gaussian-full", "categorical")}


def known(problem: Problem) -> tuple[Tensor, Tensor]:
    """(P,) the diagonal of A over two orders of magnitude, and mu as large as a prior draw."""
    size = problem.features.shape[-1]
    A = 10 ** (1.5 + randn(size, seed=1).clamp(-1, 1))
    return A, randn(size, seed=2) * A.rsqrt()


def given(problem: Problem, **options: Any) -> sampla.Given:
    return sampla.Given(*known(problem), **options)


def flat(values: dict[str, Tensor] | None) -> Tensor:
    """(P,) of a mean, (K, P) of samples."""
    assert values is not None
    return torch.cat([value.flatten() for value in values.values()])


def samples(la: sampla.LinearisedLaplace) -> Tensor:
    return torch.cat([value.flatten(1) for value in la.samples_.values()], 1)


def offset(problem: Problem, kind: str) -> Tensor:
    """(N, C) what the linear model says at theta = 0."""
    outputs = problem.model(problem.inputs).detach()
    if kind == "surrogate":
        return torch.zeros_like(outputs)
    named = dict(problem.model.named_parameters())
    return outputs - problem.features @ torch.cat([named[name].detach().flatten() for name in problem.names])


def mode(problem: Problem, kind: str, A: Tensor, mu: Tensor) -> Tensor:
    """argmin sum_n loss(o_n + J_n theta, y_n) + (theta - mu)' A (theta - mu) / 2 by Newton's method."""
    theta, o, J = mu.clone(), offset(problem, kind), problem.features

    def objective(at: Tensor) -> float:
        return loss_at(problem, kind, at) + 0.5 * float((A * (at - mu).square()).sum())

    for _ in range(100):
        at = (o + J @ theta).requires_grad_()
        (slope,) = torch.autograd.grad(torch.vmap(problem.case.loss)(at, problem.targets).sum(), at)
        gradient = torch.einsum("ncp,nc->p", J, slope) + A * (theta - mu)
        B = dense.hessians(problem.case.loss, at.detach(), problem.targets)
        step = torch.linalg.solve(dense.curvature(J, B) + A.diag(), gradient)
        length = 1.0
        while objective(theta - length * step) > objective(theta) + 1e-12 * abs(objective(theta)):
            length /= 2
        theta = theta - length * step
        if float(step.norm()) < 1e-10 * float(theta.norm()):
            return theta
    raise AssertionError("the reference's own iteration did not converge")


def loss_at(problem: Problem, kind: str, theta: Tensor) -> float:
    at = offset(problem, kind) + problem.features @ theta
    return float(torch.vmap(problem.case.loss)(at, problem.targets).sum())


@pytest.mark.parametrize("solver", ["dense", "block-cg"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["gaussian-scalar", "gaussian-full"])
def test_mean_and_evidence_with_gaussian_noise(tiny: dict[str, Problem], name: str, kind: str, solver: str) -> None:
    problem = tiny[name]
    A, mu = known(problem)
    la = problem.fit(given(problem), solver=solver, linear_model=kind, log_evidence=True, tolerance=1e-6)
    J, B = problem.features, problem.weights
    missed = problem.targets - offset(problem, kind)
    right = torch.einsum("ncp,ncd,nd->p", J, B, missed) + A * mu
    expected = torch.linalg.solve(problem.curvature + A.diag(), right)
    torch.testing.assert_close(flat(la.linear_mean_), expected, rtol=1e-4, atol=1e-6)
    evidence = dense.gaussian_log_evidence(J, missed - J @ mu, B, A)
    assert abs(la.log_evidence_ - evidence) < 4 * sum(la.report_.log_evidence_error) + 1e-6 * abs(evidence)
    assert la.report_.linear_model == kind


@pytest.mark.parametrize("curvature_at", ["network", "linear-mode"])
@pytest.mark.parametrize("kind", KINDS)
def test_mode_covariance_and_evidence_of_classes(tiny: dict[str, Problem], kind: str, curvature_at: str) -> None:
    problem = tiny["categorical"]
    A, mu = known(problem)
    em = sampla.EM(mode_tolerance=1e-6)
    la = problem.fit(
        given(problem), num_samples=300, linear_model=kind, curvature_at=curvature_at, log_evidence=True, em=em
    )
    expected = mode(problem, kind, A, mu)
    assert float((flat(la.linear_mean_) - expected).norm() / expected.norm()) < 1e-4
    M = problem.curvature
    if curvature_at == "linear-mode":
        at = offset(problem, kind) + problem.features @ expected
        M = dense.curvature(problem.features, dense.hessians(problem.case.loss, at, problem.targets))
    dense.assert_covariance(samples(la), torch.linalg.inv(M + A.diag()))
    size = float((A * (expected - mu).square()).sum())
    evidence = -loss_at(problem, kind, expected) - size / 2 - dense.log_determinant(M, A) / 2
    assert abs(la.log_evidence_ - evidence) < 4 * sum(la.report_.log_evidence_error) + 1e-3


@pytest.mark.parametrize("solver", ["dense", "block-cg"])
@pytest.mark.parametrize("name", ["gaussian-scalar", "categorical"])
def test_one_factor_is_learnt_about_the_mean(tiny: dict[str, Problem], name: str, solver: str) -> None:
    """alpha = gamma(alpha) / |theta* - mu|^2 in units of the given diagonal, whatever unit that is given in."""
    problem = tiny[name]
    A, mu = known(problem)
    em = sampla.EM(tolerance=1e-4, mode_tolerance=1e-5, max_steps=200)
    la = problem.fit(given(problem, learn=True), solver=solver, em=em, tolerance=1e-4)
    alpha = float(la.prior_precision_)
    H = problem.curvature + alpha * A.diag()
    gamma = torch.linalg.solve(H, problem.curvature).trace()
    away = mode(problem, "surrogate", alpha * A, mu) - mu
    slack = 5e-3 if solver == "dense" else 5e-3 + 4 * sum(la.report_.precision_error or [0.0])
    assert abs(float((gamma / (A * away.square()).sum()).log()) - np.log(alpha)) < slack
    other = problem.fit(sampla.Given(7 * A, mu, learn=True), solver=solver, em=em, tolerance=1e-4)
    assert float(other.prior_precision_) * 7 == pytest.approx(alpha, rel=slack)


@pytest.mark.parametrize("prior", ["isotropic", "g-prior"])
def test_without_a_mean_it_is_what_others_have_found(tiny: dict[str, Problem], prior: str) -> None:
    problem = tiny["categorical"]
    first = problem.fit(prior, log_evidence=True)
    bound = first._inference.prior  # type: ignore[union-attr]
    A = bound.precision[bound.group] / bound.scale.square()
    if prior == "isotropic":
        A = A[0]
    again = problem.fit(sampla.Given(A), log_evidence=True, em=sampla.EM(mode_tolerance=1e-6))
    torch.testing.assert_close(samples(again), samples(first), rtol=1e-6, atol=1e-9)
    assert again.log_evidence_ == pytest.approx(first.log_evidence_, abs=1e-3)


@pytest.mark.parametrize("learn", [False, True])
def test_a_mean_is_as_good_as_other_targets(tiny: dict[str, Problem], learn: bool) -> None:
    """Noise, width, leave-one-out, influence, certificate, more samples and new data, all at once."""
    problem = tiny["gaussian-scalar"]
    A, mu = known(problem)
    moved = (problem.features @ mu).view_as(problem.targets)
    noise, em, found = sampla.Gaussian(15.0, learn=learn), sampla.EM(tolerance=1e-4, max_steps=100), []
    for prior, targets in ((sampla.Given(A, mu), problem.targets), (sampla.Given(A), problem.targets - moved)):
        data = list(zip(problem.inputs.split(25), targets.split(25), strict=True))
        la = problem.fit(prior, likelihood=noise, loader=data[:-1], width="loo", num_samples=8, tolerance=1e-7, em=em)
        la.more(4).update(data[-1:])
        found.append((la, data))
    (own, data), (other, moved_data) = found
    close = {"rtol": 2e-3, "atol": 1e-4} if learn else {"rtol": 1e-5, "atol": 1e-8}
    torch.testing.assert_close(own.noise_precision_, other.noise_precision_, **close)
    torch.testing.assert_close(flat(own.linear_mean_), flat(other.linear_mean_) + mu, **close)
    torch.testing.assert_close(samples(own), samples(other), **close)
    assert own.report_.width["marginal"] == pytest.approx(other.report_.width["marginal"], rel=1e-3)
    assert own.report_.num_data == len(problem.inputs)
    left, right = own.leave_one_out(data), other.leave_one_out(moved_data)
    torch.testing.assert_close(left.log_prob, right.log_prob, rtol=1e-3, atol=1e-3)
    batch, moved_batch = data[0], moved_data[0]
    at_mode = [
        la.influence(train, test, at="linear-mode").change
        for la, train, test in ((own, data, batch), (other, moved_data, moved_batch))
    ]
    torch.testing.assert_close(at_mode[0], at_mode[1], rtol=5e-3, atol=float(at_mode[1].abs().max()) * 1e-3)
    assert float(own.predict(problem.test_inputs, certificate=True).solve_error.max()) < 1e-3


@pytest.mark.parametrize("made", ["plain", "scaled", "scaled before", "curvature at the linear mode"])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_count_from_the_mean(tiny: dict[str, Problem], kind: str, made: str) -> None:
    """The loss at o + J (s u + mu) in u, however the features are wrapped."""
    problem = tiny["categorical"]
    mu, scale = known(problem)[1], torch.ones_like(known(problem)[1])
    features: Any = sampla.NetworkFeatures(problem.model, problem.names, tangent=kind == "tangent")
    if made != "plain":
        scale = randn(len(mu), seed=4).exp()
    before = ScaledFeatures(features, scale).about(mu / scale)
    features = before if made == "scaled before" else ScaledFeatures(features.about(mu), scale)
    if made == "curvature at the linear mode":
        features = OutputsAt(features, randn(1, len(mu), seed=5))
    u = randn(1, len(mu), seed=6)
    value, gradient = linear_model(features, problem.case.make(), problem.loader).loss_gradient(u)
    assert value == pytest.approx(loss_at(problem, kind, scale * u[0] + mu), rel=1e-10)

    def loss(at: Tensor) -> Tensor:
        pushed = offset(problem, kind) + problem.features @ (scale * at + mu)
        return torch.vmap(problem.case.loss)(pushed, problem.targets).sum()

    torch.testing.assert_close(gradient[0], torch.func.grad(loss)(u[0]), rtol=1e-8, atol=1e-8)


def orthogonal(rows: int, size: int, seed: int) -> Tensor:
    """(rows, size) with orthogonal columns of different lengths."""
    return torch.linalg.qr(randn(rows, size, seed=seed)).Q * torch.linspace(1, 4, size).double()


def test_sequential_is_joint_where_the_diagonal_is_the_posterior() -> None:
    """Orthogonal columns: H is diagonal, so a diagonal prior loses nothing; and p(y_a) p(y_b | y_a) = p(y_a, y_b)."""
    size, mu, A = 5, randn(5, seed=3), torch.tensor([0.5, 1.0, 2.0, 4.0, 8.0]).double()
    x = [orthogonal(20, size, 1), orthogonal(30, size, 2)]
    y = [rows @ randn(size, 1, seed=4) + 0.3 * randn(len(rows), 1, seed=5) for rows in x]
    net = nn.Linear(size, 1, bias=False).double().eval()
    options = {"likelihood": sampla.Gaussian(10.0), "log_evidence": True, "num_samples": 400, **QUIET}

    def fitted(prior: sampla.Prior, *parts: int) -> sampla.LinearisedLaplace:
        return sampla.LinearisedLaplace(net, prior=prior, **options).fit([(x[n], y[n]) for n in parts])

    first = fitted(sampla.Given(A, mu), 0)
    marginal = 1 / torch.linalg.inv(10 * x[0].mT @ x[0] + A.diag()).diagonal()
    last = fitted(sampla.Given({"weight": marginal[None]}, first.linear_mean_), 1)
    joint = fitted(sampla.Given(A, mu), 0, 1)
    together = 10 * (x[0].mT @ x[0] + x[1].mT @ x[1]) + A.diag()
    mean = torch.linalg.solve(together, (10 * (x[0].mT @ y[0] + x[1].mT @ y[1]))[:, 0] + A * mu)
    for la in (last, joint, first.update([(x[1], y[1])])):
        torch.testing.assert_close(flat(la.linear_mean_), mean)
        dense.assert_covariance(samples(la), torch.linalg.inv(together))
    alone = fitted(sampla.Given(A, mu), 0)
    assert alone.log_evidence_ + last.log_evidence_ == pytest.approx(joint.log_evidence_, abs=1e-8)


def test_a_front_door_of_ones_own_gets_the_mean_itself() -> None:
    x, mu = randn(40, 4), randn(4, seed=1)
    y = x @ randn(4, 1, seed=2)
    model = sampla.LinearModel(sampla.DesignMatrix(4), sampla.Gaussian(3.0), [(x, y)])
    found = sampla.infer(model, sampla.Given(2.0, mu), sampla.Dense(), num_samples=2, seed=0, em=sampla.EM())
    expected = torch.linalg.solve(3 * x.mT @ x + 2 * torch.eye(4).double(), (3 * x.mT @ y)[:, 0] + 2 * mu)
    torch.testing.assert_close(found.mean, expected)
    assert model.features.origin is None


def test_complex_parameters_have_two_parts_and_one_precision_or_both() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, dtype=torch.complex128))

        def forward(self, x: Tensor) -> Tensor:
            return torch.view_as_real((x * self.weight).sum(1))

    x, mean = randn(20, 3), torch.complex(randn(3, seed=1), randn(3, seed=2))
    known: dict[str, Any] = {"likelihood": sampla.Gaussian(1e-12), **QUIET}
    net = Turned().eval()
    for given, expected in ((mean, mean), (2.0, torch.full_like(mean, 2.0))):
        prior = sampla.Given({"weight": torch.tensor([1.0, 4.0, 9.0])}, {"weight": given})
        la = sampla.LinearisedLaplace(net, prior=prior, num_samples=600, **known).fit([(x, randn(20, 2))])
        torch.testing.assert_close(la.linear_mean_["weight"], expected, rtol=1e-6, atol=1e-6)
        parts = torch.view_as_real(la.samples_["weight"]).flatten(1)
        dense.assert_covariance(parts, torch.tensor([1, 1, 1 / 4, 1 / 4, 1 / 9, 1 / 9]).double().diag())


def test_files_reports_and_checkpoints(tiny: dict[str, Problem], tmp_path: Any) -> None:
    problem = tiny["categorical"]
    A, mu = known(problem)
    with pytest.warns(sampla.ConvergenceWarning, match="EM was asked to settle"):
        la = problem.fit(
            given(problem, learn=True), solver="block-cg", checkpoint=tmp_path / "state", em=sampla.EM(max_steps=2)
        )
    assert "times the given diagonal around the given mean (" in str(la.report_)
    assert "precision 1 times the given diagonal; fixed by the user" in str(problem.fit(sampla.Given(A)).report_)
    la.save(tmp_path / "posterior.safetensors")
    loaded = sampla.LinearisedLaplace.load(tmp_path / "posterior.safetensors", problem.model)
    torch.testing.assert_close(loaded.predict(problem.test_inputs).samples, la.predict(problem.test_inputs).samples)
    assert str(loaded.report_) == str(la.report_)
    options = {"solver": "block-cg", "checkpoint": tmp_path / "state"}
    on = problem.fit(given(problem, learn=True), **options)
    whole = problem.fit(given(problem, learn=True), solver="block-cg")
    torch.testing.assert_close(on.prior_precision_, whole.prior_precision_, rtol=1e-5, atol=0)
    torch.testing.assert_close(flat(on.linear_mean_), flat(whole.linear_mean_), rtol=1e-3, atol=1e-5)
    for other in (sampla.Given(A, mu + 1e-9, learn=True), sampla.Given(A * (1 + 1e-9), mu, learn=True)):
        with pytest.raises(ValueError, match="one with other prior"):
            problem.fit(other, **options)


BAD: list[tuple[Any, Any, str]] = [
    (0.0, None, "expected a positive prior precision, got 0"),
    (-1.0, None, "expected a positive prior precision, got -1. Give 1 / prior variance of each parameter"),
    (torch.tensor([1.0, 0.0, -2.0]), None, "got 2 of 3 not positive"),
    ({"weight": float("nan"), "bias": 1.0}, None, "expected finite prior precision of 'weight', got 1 NaN or inf"),
    ("strong", None, "expected numbers as prior precision, got 'strong'"),
    (True, None, "expected numbers as prior precision, got True"),
    (1.0, {"weight": "x"}, "expected numbers as prior mean of 'weight', got 'x'"),
    (1.0, [0.0, float("inf")], "expected finite prior mean, got 1 NaN or infinite entries of 2"),
    (torch.ones(3, dtype=torch.complex64), None, "expected a real prior precision, got complex numbers"),
    (torch.ones(4), None, r"expected prior precision of shape \(3,\), one for each parameter, got \(4,\)"),
    (1.0, torch.ones(1, 3), r"expected prior mean of shape \(3,\), one for each parameter, got \(1, 3\)"),
    ({"weight": 1.0}, None, "expected prior precision of every parameter of the fit, got none of 'bias'"),
    ({}, None, "expected prior precision of every parameter of the fit, got none of 'weight', 'bias'"),
    ({"weigth": 1.0, "bias": 1.0}, None, "unknown parameter in prior precision 'weigth': .* Did you mean 'weight'"),
    (1.0, {"weight": torch.ones(2), "bias": 0}, r"of 'weight' of shape \(\) or \(1, 2\), got \(2,\)"),
    (1.0, {"weight": 1j, "bias": 0}, "expected a real prior mean of 'weight', got complex numbers"),
    (1e-90, None, "expected prior precisions whose roots float32 holds, got 1e-90 to 1e-90"),
]


@pytest.mark.parametrize(("precision", "mean", "message"), BAD)
def test_what_is_no_prior_is_refused(precision: Any, mean: Any, message: str) -> None:
    net = nn.Linear(2, 1).eval()
    with pytest.raises(ValueError, match=message):
        sampla.LinearisedLaplace(net, "gaussian", sampla.Given(precision, mean), **QUIET).fit(
            [(torch.randn(9, 2), torch.randn(9, 1))]
        )


def test_numbers_may_come_as_lists_and_arrays_and_are_copied() -> None:
    values = np.array([1.0, 2.0, 3.0])
    prior = sampla.Given(values, [0.1, 0.2, 0.3])
    values[:] = -1
    layout = sampla.NetworkFeatures(nn.Linear(2, 1), ["weight", "bias"]).layout
    torch.testing.assert_close(
        prior.bind(layout, torch.ones(3).double()).scale.double() ** -2, torch.tensor([1.0, 2, 3]).double()
    )
    mean = prior.mean_of(layout)
    assert mean is not None
    assert mean.tolist() == [0.1, 0.2, 0.3]
