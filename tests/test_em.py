"""EM against a dense EM in which every quantity is exact: prior precisions and Gaussian noise of every structure.

With the dense solver gamma is exact and both must reach the same fixed point; with sampled gamma the fixed point moves
by the sampling error, whose standard error ``dense.Evidence.standard_errors`` derives. Four of them are allowed.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from math import log

import pytest
import torch
from torch import Tensor, nn

import sampla
from cases import PRIORS, Problem, batches, build_data, randn, train
from dense import Evidence, Hyper, categorical_loss, fast_jacobian, gaussian_loss, hessians

NUM_SAMPLES = 32
CHUNKS = 150, 256
"""All data: the preset is for larger networks, here most of the time would be calls."""
SETTLED = sampla.EM(tolerance=1e-8, max_steps=2000, solve_tolerance=1e-8, mode_tolerance=1e-9)
NEARLY = sampla.EM(tolerance=1e-4, max_steps=1000, solve_tolerance=1e-4, mode_tolerance=1e-5)


def make_prior(name):
    """Of one's own groups, both of which the data need: left to itself, EM prunes the first layer of these networks."""
    if name == "layerwise":
        return sampla.Layerwise(groups={"rest": ["0.", "2.bias"], "readout": ["2.weight"]})
    return PRIORS[name]()


@dataclass(frozen=True)
class Tiny:
    """A network with 6 principal components of an image as inputs; small, so that EM can run to its fixed point."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    features: Tensor
    categorical: bool

    def fit(self, prior, structure, solver, em, num_samples=NUM_SAMPLES, **options):
        em = replace(em, num_samples=num_samples)
        likelihood = sampla.Categorical() if self.categorical else sampla.Gaussian(structure=structure)
        la = sampla.LinearisedLaplace(
            self.model, likelihood, make_prior(prior), num_samples=num_samples, solver=solver, em=em, tolerance=1e-3,
            max_passes=500, progress=False, chunks=CHUNKS, **options,
        )  # fmt: skip
        return la.fit(batches(self.inputs, self.targets, 150))

    def evidence(self, la, prior, structure):
        """The dense model in the coordinates of the fit's own scale, and where to start."""
        readout = torch.tensor([0] * 28 + [1] * 12 + [0] * 3)
        group = readout if prior == "layerwise" else torch.zeros_like(readout)
        start = torch.zeros(2 if prior == "layerwise" else 1).double()
        features, outputs = self.features * la._inference.prior.scale, self.model(self.inputs).detach()
        if self.categorical:
            weights = hessians(categorical_loss, outputs, self.targets)
            return Evidence(features, self.targets, group, categorical_loss, weights), Hyper(start)
        residual = self.targets - outputs
        noise = residual.mT @ residual / len(residual)
        noise = {"scalar": noise.diagonal().mean() * torch.eye(3), "diagonal": noise.diagonal().diag(), "full": noise}
        return Evidence(features, self.targets, group, structure=structure), Hyper(start, noise[structure].double())


@pytest.fixture(scope="module")
def tiny():
    images, digits, statistics = build_data()
    flat = images.flatten(1) - images.flatten(1).mean(0)
    inputs = flat @ torch.linalg.svd(flat, full_matrices=False).Vh[:6].mT

    def build(name):
        categorical = name == "categorical"
        targets = digits // 4 if categorical else statistics
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double().eval()
        loss = categorical_loss if categorical else gaussian_loss(torch.eye(3).double())
        train(model, loss, inputs, targets)
        features = fast_jacobian(model, [n for n, _ in model.named_parameters()], inputs)
        return Tiny(model, inputs, targets, features, categorical)

    return {name: build(name) for name in ("categorical", "gaussian")}


def learnt(la, evidence):
    """What the fit has learnt, as the reference's vector."""
    noise = la.noise_precision_
    if noise is not None:
        size = 3
        noise = noise * torch.eye(size) if noise.ndim == 0 else noise.diag() if noise.ndim == 1 else noise
        noise = torch.linalg.inv(noise.double())
    return evidence.vector(Hyper(la.prior_precision_.log(), noise))


CASES = [
    ("categorical", "isotropic", "fixed"),
    ("categorical", "layerwise", "fixed"),
    ("categorical", "g-prior", "fixed"),
    ("gaussian", "isotropic", "scalar"),
    ("gaussian", "layerwise", "scalar"),
    ("gaussian", "g-prior", "scalar"),
]
SAMPLED_NOISE = [("gaussian", "isotropic", "full"), ("gaussian", "g-prior", "diagonal")]


@pytest.mark.parametrize(("likelihood", "prior", "structure"), CASES)
def test_em_with_an_exact_gamma_reaches_the_dense_fixed_point(tiny, likelihood, prior, structure):
    la = tiny[likelihood].fit(prior, structure, sampla.Dense(), SETTLED)
    evidence, start = tiny[likelihood].evidence(la, prior, structure)
    exact = evidence.run(start)
    assert la.report_.settled
    torch.testing.assert_close(learnt(la, evidence), evidence.vector(exact), rtol=0, atol=1e-6)
    torch.testing.assert_close(la.effective_dimension_, evidence.gamma(exact), rtol=1e-6, atol=1e-6)
    mode = torch.cat([v.flatten() for v in la.linear_mean_.values()])
    expected = evidence.mode(exact) * la._inference.prior.scale
    assert float((mode - expected).norm() / expected.norm()) < 1e-5


def test_em_jumps_where_alpha_is_far_away():
    """Up by a factor of thousands at once: many data that hold small weights, |mode|^2 hardly depends on alpha."""
    inputs = randn(1500, 20)
    model = nn.Linear(20, 3, bias=False).double().eval()
    model.weight.data.zero_()
    chance = (0.2 * inputs @ randn(20, 3, seed=1)).softmax(1)
    targets = (chance.cumsum(1) < torch.rand(1500, 1, generator=torch.Generator().manual_seed(2))).sum(1)

    def fit(prior):
        em = sampla.EM(tolerance=0.01, num_samples=NUM_SAMPLES, method="krylov")
        la = sampla.LinearisedLaplace(
            model, sampla.Categorical(), prior, num_samples=NUM_SAMPLES, em=em, progress=False
        ).fit(batches(inputs, targets, 500))  # fmt: skip
        return float(la.prior_precision_[0]), [row["precision"][0] for row in la.report_.trace]

    found, _ = fit(sampla.Isotropic(30.0))
    again, trace = fit(sampla.Isotropic(found / 3000))
    assert again == pytest.approx(found, rel=0.02)
    assert trace[1] > 1000 * trace[0]
    assert len(trace) <= 4


def test_em_starts_at_a_tenth_of_the_largest_eigenvalue_unless_told():
    """One direction dominates M, so that 30 times the mean eigenvalue is less; a given precision is kept."""
    model = nn.Linear(400, 3, bias=False).double().eval()
    model.weight.data.zero_()
    inputs = randn(40, 1) @ randn(1, 400, seed=1) + 0.1 * randn(40, 400, seed=2)
    loader = batches(inputs, torch.arange(40) % 3, 20)

    def first(prior):
        em = sampla.EM(num_samples=NUM_SAMPLES, method="krylov")
        la = sampla.LinearisedLaplace(
            model, sampla.Categorical(), prior, num_samples=NUM_SAMPLES, solver="block-cg", em=em, progress=False
        ).fit(loader)  # fmt: skip
        return la.report_.trace[0]["precision"][0]

    largest = float(torch.linalg.eigvalsh(inputs @ inputs.mT).max()) / 3  # at zero B = (I - 1/3) / 3, largest 1/3
    mean = 2 * float(inputs.square().sum()) / 3 / 1200
    assert 30 * mean < 0.06 * largest
    assert first(sampla.Isotropic()) == pytest.approx(0.1 * largest, rel=0.02)
    assert first(sampla.Isotropic(0.7)) == 0.7


def test_em_with_the_curvature_at_the_linear_mode(tiny):
    """B moves with the mode, and the mode with alpha: the dense reference finds all three anew at every step."""
    la = tiny["categorical"].fit("isotropic", "fixed", sampla.Dense(), SETTLED, curvature_at="linear-mode")
    evidence, start = tiny["categorical"].evidence(la, "isotropic", "fixed")
    evidence = replace(evidence, weights=None)
    exact = evidence.run(start)
    torch.testing.assert_close(la.prior_precision_.log(), exact.log_precision, rtol=0, atol=1e-6)
    torch.testing.assert_close(la.effective_dimension_, evidence.gamma(exact), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("likelihood", "prior", "structure"), CASES + SAMPLED_NOISE)
def test_sampled_em_reaches_it_within_the_sampling_error(tiny, likelihood, prior, structure):
    num_samples = 16 * NUM_SAMPLES if prior == "layerwise" else NUM_SAMPLES  # a group has little data of its own
    la = tiny[likelihood].fit(prior, structure, sampla.BlockCG(), NEARLY, num_samples)
    evidence, start = tiny[likelihood].evidence(la, prior, structure)
    exact = evidence.run(start)
    errors = evidence.standard_errors(exact, num_samples)
    z = (learnt(la, evidence) - evidence.vector(exact)) / errors
    assert la.report_.settled
    assert float(z.abs().max()) < 4, f"z = {z.tolist()}"
    assert float(errors.max()) < 0.5, "the sampling error must leave something to be tested"


@pytest.mark.parametrize(("likelihood", "prior", "structure"), SAMPLED_NOISE)
def test_noise_of_several_outputs_from_exact_gamma_and_sampled_moments(tiny, likelihood, prior, structure):
    la = tiny[likelihood].fit(prior, structure, sampla.Dense(), NEARLY)
    evidence, start = tiny[likelihood].evidence(la, prior, structure)
    exact = evidence.run(start)
    errors = evidence.standard_errors(exact, NUM_SAMPLES, exact_gamma=True)
    z = (learnt(la, evidence) - evidence.vector(exact)) / errors
    assert float(z.abs().max()) < 4, f"z = {z.tolist()}"


def test_sampled_gamma_has_the_error_it_reports(problems):
    """gamma of a fixed prior, from K samples: within four of its own standard errors of the exact value."""
    problem = problems["categorical"]
    la = problem.fit(sampla.Isotropic(2.0, learn=False), num_samples=64, solver=sampla.BlockCG(), tolerance=1e-5)
    hessian = problem.curvature + 2 * torch.eye(len(problem.curvature))
    product = torch.linalg.solve(hessian, problem.curvature)
    spread = float((2 * (product @ product).trace() / 64) ** 0.5)
    stated = la.report_.effective_dimension_error[0]
    assert abs(float(la.effective_dimension_[0] - product.trace())) < 4 * spread
    assert 0.7 < stated / spread < 1.4


def test_a_layer_the_data_do_not_need_is_pruned_and_em_still_settles(tiny):
    """Its alpha grows without end, which counts as settled once nothing depends on it; the layer's samples vanish."""
    model, x, y = tiny["gaussian"].model, tiny["gaussian"].inputs, tiny["gaussian"].targets
    la = sampla.LinearisedLaplace(model, "gaussian", "layerwise", num_samples=8, progress=False).fit([(x, y)])
    assert la.report_.settled
    assert float(la.prior_precision_[0]) > 1e5
    assert float(la.effective_dimension_[0]) < 1e-2
    assert float(la.samples_["0.weight"].abs().max()) < 0.02 < float(la.samples_["2.weight"].abs().max())


def test_a_fixed_prior_and_noise_are_left_alone(problems):
    problem: Problem = problems["gaussian-full"]
    la = problem.fit(sampla.Isotropic(3.0, learn=False), num_samples=2)
    assert la.prior_precision_.tolist() == [3.0]
    torch.testing.assert_close(la.noise_precision_, problem.case.make().noise_precision)
    assert la.report_.trace == []
    assert la.report_.settled


def test_em_that_has_not_settled_says_so(problems):
    with pytest.warns(sampla.ConvergenceWarning, match=r"EM was asked to settle within .* after 2 steps .*max_steps"):
        la = problems["gaussian-scalar"].fit("isotropic", num_samples=2, em=sampla.EM(tolerance=1e-6, max_steps=2))
    assert not la.report_.settled
    assert len(la.report_.trace) == 2


def test_the_trace_tells_every_step(problems):
    la = problems["gaussian-scalar"].fit(
        sampla.GPrior(1.0), likelihood="gaussian", num_samples=4, em=sampla.EM(max_steps=100)
    )
    trace = la.report_.trace
    assert trace[0]["precision"] == [1.0]
    assert trace[-1]["change"] <= 0.02 < trace[0]["change"]
    assert all(row["solve_error"] < 1e-9 for row in trace)
    for before, after in pairwise(trace):
        made, plain = (
            log(each / before["precision"][0]) for each in (*after["precision"], *before["updated_precision"])
        )
        assert abs(plain) <= before["change"] + 1e-12
        assert made == pytest.approx(plain) or 1 < made / plain <= 10  # a long step goes on the same way
