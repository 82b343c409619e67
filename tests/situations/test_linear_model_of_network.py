"""Which linear model of a network the hyperparameters and the evidence are of: y around J theta, or around its tangent.

Right values are dense, in float64: with Gaussian noise the density of y - o under N(0, J A^-1 J' + B^-1), where the
offset o is zero or f - J w; for other likelihoods Laplace's formula at the optimum of the loss at o + J theta.
"""

from math import log, pi

import pytest
import torch
from torch import nn

import dense
import sampla
from cases import FULL_NOISE, Problem, build_tiny, linear_model, randn
from sampla.features import OutputsAt, ScaledFeatures

KINDS = ("surrogate", "tangent")
EXACT = sampla.EM(tolerance=1e-5, mode_tolerance=1e-6, max_steps=400)
GAUSSIAN = {
    "scalar": lambda: sampla.Gaussian(1.0, learn=True),
    "diagonal": lambda: sampla.Gaussian(structure="diagonal"),
    "full": lambda: sampla.Gaussian(FULL_NOISE),
}
PRIORS = {"isotropic": sampla.Isotropic, "g-prior": sampla.GPrior, "layerwise": sampla.Layerwise}


@pytest.fixture(scope="module")
def tiny() -> dict[str, Problem]:
    return {name: build_tiny(name) for name in ("gaussian-scalar", "categorical", "bernoulli")}


def weights(model, names):
    """(P,) w."""
    return torch.cat([dict(model.named_parameters())[name].detach().flatten() for name in names])


def offset(problem, kind):
    """(N, C) what the linear model says at theta = 0."""
    if kind == "surrogate":
        return torch.zeros_like(problem.model(problem.inputs)).detach()
    outputs = problem.model(problem.inputs).detach()
    return outputs - problem.features @ weights(problem.model, problem.names)


def precision(la):
    """(P,) the diagonal of A in the coordinates of the parameters."""
    prior = la._inference.prior
    return prior.precision[prior.group] / prior.scale.double().square()


def density(problem, A, noise, kind):
    """log N(y - o; 0, J A^-1 J' + B^-1), written out over all outputs; noise is B as it was learnt or given."""
    each = torch.linalg.inv(noise.double() * torch.eye(3).double() if noise.ndim < 2 else noise.double())
    rows = problem.features.flatten(0, 1)
    covariance = rows / A @ rows.mT + torch.block_diag(*[each] * len(problem.inputs))
    missed = (problem.targets - offset(problem, kind)).flatten()
    root = torch.linalg.cholesky(covariance)
    squared = torch.linalg.solve_triangular(root, missed[:, None], upper=False).square().sum()
    return float(-0.5 * squared - root.diagonal().log().sum() - 0.5 * len(missed) * log(2 * pi))


def laplace(problem, la, kind, at_mode=False):
    """log p(y | o + J theta*) - |theta*|_A^2 / 2 - log det(I + A^-1 M) / 2, and theta*, by Newton's method."""
    A, o, J, loss = precision(la), offset(problem, kind), problem.features, problem.case.loss

    def objective(theta):
        return torch.vmap(loss)(o + J @ theta, problem.targets).sum() + 0.5 * (A * theta.square()).sum()

    theta = torch.zeros(J.shape[-1], dtype=torch.float64)
    for _ in range(60):
        gradient, hessian = torch.func.grad(objective)(theta), torch.func.hessian(objective)(theta)
        step, length = torch.linalg.solve(hessian, -gradient), 1.0
        while objective(theta + length * step) > objective(theta) and length > 1e-8:
            length /= 2
        theta = theta + length * step
        if step.norm() < 1e-9 * theta.norm():
            break
    curvature = dense.hessians(loss, o + J @ theta, problem.targets) if at_mode else problem.weights
    M = dense.curvature(J, curvature)
    return float(-objective(theta)) - dense.log_determinant(M, A) / 2, theta, M


@pytest.mark.parametrize("made", ["plain", "scaled", "curvature at the linear mode"])
@pytest.mark.parametrize("name", ["gaussian-scalar", "categorical", "bernoulli"])
def test_loss_gradient_and_hessian_are_those_of_the_tangent(tiny, name, made):
    """The loss at f + J (s theta - w), and its derivatives in theta; one entry of s is zero, as for a dead tensor."""
    problem = tiny[name]
    size = problem.features.shape[-1]
    features, scale = sampla.NetworkFeatures(problem.model, problem.names, tangent=True), torch.ones(size).double()
    if made != "plain":
        scale = randn(size, seed=1).exp()
        scale[-1] = 0
        features = ScaledFeatures(features, scale)
    if made == "curvature at the linear mode":
        features = OutputsAt(features, randn(1, size, seed=2))
    theta, vector = randn(1, size, seed=3), randn(1, size, seed=4)
    w = weights(problem.model, problem.names) * (scale != 0)  # what is dead moves no output
    outputs = problem.model(problem.inputs).detach()
    own = linear_model(features, problem.case.make(), problem.loader)

    def loss(at):
        pushed = outputs + problem.features @ (scale * at - w)
        return -problem.case.make().log_prob(pushed, problem.targets).sum()

    value, gradient = own.loss_gradient(theta)
    expected = torch.func.grad(loss)(theta[0])
    assert value == pytest.approx(float(loss(theta[0])), rel=1e-10)
    torch.testing.assert_close(gradient[0], expected, rtol=1e-8, atol=1e-8)
    hessian = torch.func.hessian(loss)(theta[0])
    torch.testing.assert_close(own.newton_product(theta, vector)[0], hessian @ vector[0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("noise", GAUSSIAN)
@pytest.mark.parametrize("kind", KINDS)
def test_gaussian_evidence_is_the_density_of_the_targets(tiny, kind, noise, prior):
    problem = tiny["gaussian-scalar"]
    la = problem.fit(PRIORS[prior](), likelihood=GAUSSIAN[noise](), linear_model=kind, em=sampla.EM(tolerance=0.2))
    assert la.log_evidence_ == pytest.approx(density(problem, precision(la), la.noise_precision_, kind), abs=1e-6)
    other = density(problem, precision(la), la.noise_precision_, KINDS[kind == "surrogate"])
    assert abs(other - la.log_evidence_) > 1, "the two must differ, or this test says nothing"
    assert la.report_.linear_model == kind


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prior", ["isotropic", "g-prior"])
def test_hyperparameters_are_of_the_model_whose_evidence_it_is(tiny, kind, prior):
    """alpha and noise that EM finds have more of this evidence than any others near by; the dense solver is exact."""
    problem = tiny["gaussian-scalar"]
    la = problem.fit(PRIORS[prior](), likelihood=GAUSSIAN["scalar"](), linear_model=kind, em=EXACT)
    A, noise = precision(la), la.noise_precision_

    def at(a, b):
        return density(problem, a * A, b * noise, kind)

    for factor in (0.8, 1.25):
        assert max(at(factor, 1), at(1, factor)) < at(1, 1) - 0.01
    for way in ((1.001, 1), (1, 1.001)):
        assert abs(at(*way) - at(1 / way[0], 1 / way[1])) < 1e-5
    assert at(1, 1) == pytest.approx(la.log_evidence_, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_krylov_space_agrees_with_the_dense_solver(tiny, kind):
    problem, em = tiny["gaussian-scalar"], sampla.EM(tolerance=1e-3, num_samples=16)
    options = {"likelihood": sampla.Gaussian(1.0, learn=True), "linear_model": kind, "em": em}
    la = problem.fit("isotropic", solver="block-cg", tolerance=1e-3, num_samples=32, **options)
    exact = problem.fit("isotropic", **options)
    assert la.report_.method == "krylov"
    for name, error in (("prior_precision_", "precision_error"), ("noise_precision_", "noise_error")):
        away = (getattr(la, name) / getattr(exact, name)).log().abs().max()
        assert float(away) < 4 * sum(getattr(la.report_, error)) + 1e-3
    assert (
        abs(la.log_evidence_ - density(problem, precision(la), la.noise_precision_, kind))
        < 4 * sum(la.report_.log_evidence_error) + 0.01
    )
    mean = torch.cat([value.flatten() for value in la.linear_mean_.values()])
    A, B = precision(la), float(la.noise_precision_)
    rows, missed = problem.features.flatten(0, 1), (problem.targets - offset(problem, kind)).flatten()
    expected = torch.linalg.solve(B * rows.mT @ rows + A.diag(), B * rows.mT @ missed)
    assert float((rows @ (mean - expected)).norm() / (rows @ expected).norm()) < 0.01


@pytest.mark.parametrize("likelihood", ["gaussian-scalar", "categorical"])
def test_a_prior_for_each_layer(tiny, likelihood):
    """Block conjugate gradients take the determinant from a space in other coordinates."""
    problem, prior = tiny[likelihood], sampla.Layerwise(0.7, learn=False)
    la = problem.fit(prior, solver="block-cg", linear_model="tangent", log_evidence=True)
    if likelihood == "categorical":
        expected = laplace(problem, la, "tangent")[0]
    else:
        expected = density(problem, precision(la), la.noise_precision_, "tangent")
    assert abs(la.log_evidence_ - expected) < 4 * sum(la.report_.log_evidence_error) + 0.01


@pytest.mark.parametrize("curvature_at", ["network", "linear-mode"])
@pytest.mark.parametrize("solver", ["dense", "block-cg"])
@pytest.mark.parametrize("name", ["categorical", "bernoulli"])
def test_other_likelihoods_have_the_optimum_of_the_tangent(tiny, name, solver, curvature_at):
    """The mode, the evidence, and with the dense solver MacKay's fixed point."""
    fine = 1e-3 if solver == "dense" else 1e-2
    problem, em = tiny[name], sampla.EM(tolerance=fine, mode_tolerance=1e-4, max_steps=200)
    options = {"solver": solver, "linear_model": "tangent", "curvature_at": curvature_at, "em": em}
    la = problem.fit("isotropic", **options)
    value, mode, M = laplace(problem, la, "tangent", curvature_at == "linear-mode")
    found = torch.cat([each.flatten() for each in la.linear_mean_.values()])
    assert float((found - mode).norm() / mode.norm()) < 5e-3
    assert abs(la.log_evidence_ - value) < 4 * sum(la.report_.log_evidence_error) + 2e-3
    assert abs(laplace(problem, la, "surrogate", curvature_at == "linear-mode")[0] - value) > 1
    gamma = torch.linalg.solve(M + precision(la).diag(), M).trace()
    if solver == "dense":
        assert abs(log(float(gamma / mode.square().sum()) / float(la.prior_precision_[0]))) < 0.01


class Square(nn.Module):
    """w x squared: a network that is homogeneous of degree two in its weights, so that J w = 2 f."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 5, bias=False), nn.Linear(5, 2, bias=False)

    def forward(self, x):
        return self.second(self.first(x).relu())


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.lstm(x[..., None])[0][:, -1])


def build(last):
    return nn.Sequential(nn.Linear(3, 8), *last, nn.Linear(8, 2)).double().eval()


SITUATIONS = {
    "plain": (lambda: build([nn.Tanh()]), {}, None),
    "double reverse mode": (lambda: Recurrent().double().eval(), {}, None),
    "float32": (lambda: build([nn.Tanh()]).float(), {}, None),
    "homogeneous": (lambda: Square().double().eval(), {}, None),
    "last layer only": (lambda: build([nn.Tanh()]), {"parameters": "last-layer"}, 1e-5),
    "everything before the last layer normalised": (lambda: build([nn.LayerNorm(8), nn.Tanh()]), {}, 0.1),
}
"""Network, options, and how far the two evidences may be apart where J w = f (None: more than a nat)."""


@pytest.mark.parametrize("solver", ["dense", "block-cg"])
@pytest.mark.parametrize("name", SITUATIONS)
def test_networks_of_all_kinds(name, solver):
    make, options, apart = SITUATIONS[name]
    network = make()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(6)  # as if it had been trained: f must not be small
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.stack([x[:, 0].sin(), x[:, 1] * x[:, 2]], 1)
    dtype = next(network.parameters()).dtype
    loader = [(x[:25].to(dtype), y[:25].to(dtype)), (x[25:].to(dtype), y[25:].to(dtype))]
    made = {"likelihood": sampla.Gaussian(4.0), "prior": sampla.Isotropic(2.0, learn=False), "solver": solver}
    made |= {"log_evidence": True, "num_samples": 8, "progress": False, "tolerance": 1e-4, **options}
    fits = {k: sampla.LinearisedLaplace(network, linear_model=k, **made).fit(loader) for k in KINDS}
    names, reference = fits["tangent"].names, network.double()
    J = dense.jacobian(reference, names, x)
    rows = J.flatten(0, 1)
    covariance = rows @ rows.mT / 2 + torch.eye(len(rows)).double() / 4
    normal = torch.distributions.MultivariateNormal(torch.zeros(len(rows)).double(), covariance)
    outputs = reference(x).detach()
    for kind, la in fits.items():
        targets = y if kind == "surrogate" else y - outputs + J @ weights(reference, names)
        slack = 1e-6 if dtype == torch.float64 else 1e-2
        assert abs(la.log_evidence_ - float(normal.log_prob(targets.flatten()))) < slack + 4 * sum(
            la.report_.log_evidence_error
        )
    distance = abs(fits["tangent"].log_evidence_ - fits["surrogate"].log_evidence_)
    assert distance > 1 if apart is None else distance < apart


def test_a_checkpoint_of_the_other_model_is_refused(tiny, tmp_path):
    problem = tiny["categorical"]
    problem.fit("isotropic", checkpoint=tmp_path, linear_model="tangent")
    with pytest.raises(ValueError, match="one with other linear_model"):
        problem.fit("isotropic", checkpoint=tmp_path)
    with pytest.raises(ValueError, match="unknown linear_model 'tangential': expected one of 'surrogate', 'tangent'"):
        problem.fit("isotropic", linear_model="tangential")


def test_a_file_says_which_model_it_is(tiny, tmp_path):
    problem = tiny["gaussian-scalar"]
    problem.fit("isotropic", linear_model="tangent").save(tmp_path / "it.safetensors")
    loaded = sampla.LinearisedLaplace.load(tmp_path / "it.safetensors", problem.model)
    assert loaded.report_.linear_model == "tangent"
    assert "of y around f + J (theta - w)" in str(loaded.report_)
