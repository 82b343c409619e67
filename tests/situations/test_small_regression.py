"""Few data: exact traces find the noise and prior of most evidence, and targets that tell none are refused."""

import re
from math import log, pi
from types import SimpleNamespace

import pytest
import scipy.optimize
import torch
from torch import nn

import dense
import sampla
from sampla.inference.exact import grown_to_range
from sampla.inference.krylov import krylov_space

PROBED = sampla.EM(exact_up_to=0)
"""As in a problem that is not small."""


def regression(outputs: int, width: int = 16, count: int = 20, steps: int = 300, dtype=torch.float64):
    """A network trained on few data, and the data."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, outputs))
    x = torch.randn(count, 2)
    y = torch.cat([torch.sin((3 - k) * x[:, :1]) for k in range(outputs)], 1) + 0.1 * torch.randn(count, outputs)
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimiser.step()
    return net.eval().to(dtype), x.to(dtype), y.to(dtype)


class Evidence:
    """The density of y under N(0, J A^-1 J' + noise) with every matrix formed, and where it is largest."""

    def __init__(self, la, net, x, y, structure):
        net, self.y = net.double(), y.double().flatten()
        names = [name for name, _ in net.named_parameters()]
        scale = la._inference.prior.scale.double()
        features = dense.jacobian(net, names, x.double()).detach().flatten(0, 1) * scale
        group = la._inference.prior.group
        self.kernels = [features[:, group == g] @ features[:, group == g].mT for g in range(int(group.max()) + 1)]
        self.structure, self.outputs = structure, y.shape[1]
        alpha, noise = la.prior_precision_, la.noise_precision_
        cover = {"scalar": lambda: noise.reciprocal()[None], "diagonal": noise.reciprocal, "full": noise.inverse}
        covariance = cover[structure]()
        entries = covariance.log() if structure != "full" else self._entries(torch.linalg.cholesky(covariance))
        self.found = torch.cat([alpha.log(), entries])

    def _entries(self, root):
        lower = torch.tril_indices(self.outputs, self.outputs, -1)
        return torch.cat([root.diagonal().log(), root[lower[0], lower[1]]])

    def covariance(self, at):
        """(C, C) of the noise."""
        values = at[len(self.kernels) :]
        if self.structure != "full":
            return values.exp().expand(self.outputs).diag()
        lower = torch.tril_indices(self.outputs, self.outputs, -1)
        root = values[: self.outputs].exp().diag().index_put((lower[0], lower[1]), values[self.outputs :])
        return root @ root.mT

    def __call__(self, at):
        noise = torch.block_diag(*[self.covariance(at)] * (len(self.y) // self.outputs))
        whole = noise + sum(k / a.exp() for k, a in zip(self.kernels, at, strict=False))
        root = torch.linalg.cholesky(whole)
        white = torch.linalg.solve_triangular(root, self.y[:, None], upper=False)
        return -0.5 * (white.square().sum() + 2 * root.diagonal().log().sum() + len(self.y) * log(2 * pi))

    def determined(self, at):
        """gamma = tr K (K + noise)^-1."""
        kernel = sum(k / a.exp() for k, a in zip(self.kernels, at, strict=False))
        noise = torch.block_diag(*[self.covariance(at)] * (len(self.y) // self.outputs))
        return float(torch.linalg.solve(kernel + noise, kernel).trace())

    def optimum(self):
        """The local maximum next to what was found, from a start half as large in everything."""

        def target(values):
            at = torch.tensor(values, requires_grad=True)
            value = -self(at)
            return float(value.detach()), torch.autograd.grad(value, at)[0].numpy()

        start = (self.found + 0.3 * torch.tensor([(-1.0) ** k for k in range(len(self.found))])).numpy()
        return torch.tensor(scipy.optimize.minimize(target, start, jac=True, tol=1e-9).x)


SITUATIONS = [
    # dtype, prior, noise, what is asked of the fit
    ("float32", "g-prior", "scalar", {}),
    ("float64", "g-prior", "scalar", {}),
    ("float64", "isotropic", "scalar", {}),
    ("float64", "isotropic", "scalar", {"em": sampla.EM(method="samples", tolerance=0.005)}),
    ("float32", "isotropic", "diagonal", {}),
    ("float64", "isotropic", "full", {}),
    ("float32", "layerwise", "scalar", {}),
    ("float64", "layerwise", "full", {}),
    ("float64", "isotropic", "scalar", {"solver": "dense", "em": sampla.EM(tolerance=0.005)}),
    ("float64", "isotropic", "full", {"solver": "dense"}),
]


@pytest.mark.parametrize(("dtype", "prior", "noise", "options"), SITUATIONS)
def test_noise_and_prior_are_those_of_most_evidence(dtype, prior, noise, options):
    """20 data of a network with 30 times as many parameters: no warning, no sampling error, the optimum."""
    net, x, y = regression(outputs=1 if noise == "scalar" else 2, dtype=getattr(torch, dtype))
    options = {"solver": "block-cg", **options}
    la = sampla.LinearisedLaplace(net, sampla.Gaussian(structure=noise), prior, progress=False, **options).fit([(x, y)])
    report = la.report_
    assert report.settled
    assert set(report.effective_dimension_error) == {0.0}
    assert report.log_evidence_error[0] == 0
    assert report.precision_error[0] == 0
    evidence = Evidence(la, net, x, y, noise)
    best = evidence.optimum()
    assert float(evidence(evidence.found)) == pytest.approx(la.log_evidence_, abs=0.02), "it is the evidence there"
    assert float(evidence(best) - evidence(evidence.found)) < 0.01
    tolerance = {"rtol": 0.03, "atol": 1e-4}
    torch.testing.assert_close(evidence.covariance(evidence.found), evidence.covariance(best), **tolerance)
    if prior != "layerwise":  # of several alphas some may grow for ever, and change nothing any more
        torch.testing.assert_close(la.prior_precision_, best[:1].exp(), rtol=0.03, atol=0)
    assert sum(report.effective_dimension) == pytest.approx(evidence.determined(evidence.found), rel=1e-3)
    layers = report.effective_dimension_by_layer
    assert min(layers.values()) >= 0
    assert sum(layers.values()) == pytest.approx(sum(report.effective_dimension), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_deep_network_with_twenty_data(dtype):
    """8,577 parameters: noise of 7e-4 or 3e-8 was once called settled; the optimum near the start has .155, -23.6."""
    net, x, y = deep_regression(dtype)
    la = sampla.LinearisedLaplace(net, "gaussian", progress=False).fit([(x, y)])
    evidence = Evidence(la, net, x, y, "scalar")
    best = evidence.optimum()
    assert float(la.noise_precision_) ** -0.5 == pytest.approx(float((best[1] / 2).exp()), rel=0.01)
    assert la.log_evidence_ == pytest.approx(float(evidence(best)), abs=0.01)
    assert la.report_.settled


def deep_regression(dtype):
    """Three hidden layers of 64 on 20 data, trained for a while."""
    torch.manual_seed(0)
    layers = [part for k in (2, 64, 64) for part in (nn.Linear(k, 64), nn.SiLU())]
    net, x = nn.Sequential(*layers, nn.Linear(64, 1)), torch.randn(20, 2)
    y = torch.sin(3 * x[:, :1]) + 0.05 * torch.randn(20, 1)
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(300):
        optimiser.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimiser.step()
    return net.eval().to(dtype), x.to(dtype), y.to(dtype)


def test_eigenvalues_that_come_more_often_than_the_block_has_vectors():
    """A last layer with 20 outputs: every eigenvalue 20 times, and a Krylov space of 8 probes sees it 8 times."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 20)).eval().double(), torch.randn(10, 2).double()
    prior, noise = sampla.Isotropic(0.5, learn=False), sampla.Gaussian(4.0)
    y = torch.randn(10, 20).double()
    for samples in (4, 8, 16):  # without draws to spare, and with some
        la = sampla.LinearisedLaplace(
            net, noise, prior, parameters="last-layer", solver="block-cg", log_evidence=True, progress=False,
            num_samples=samples,
        ).fit([(x, y)])  # fmt: skip
        rows = torch.cat([torch.tanh(net[0](x)), torch.ones(10, 1).double()], 1)
        eigenvalues = torch.linalg.eigvalsh(4 * rows.mT @ rows).detach().repeat(20)
        assert sum(la.report_.effective_dimension) == pytest.approx(float((eigenvalues / (eigenvalues + 0.5)).sum()))
        assert la.report_.effective_dimension_error == [0.0]


@pytest.mark.parametrize("spare", [0, 8])
def test_what_sticks_out_of_other_draws_is_where_the_space_goes_on(spare):
    """M = 4 on 30 of 40 coordinates: four probes see one eigenvalue four times, and rounding cannot help them."""
    mask, seeds = (torch.arange(40) < 30).double(), []

    def draws(seed, count):
        seeds.append(seed)
        return SimpleNamespace(data_part=2 * mask * torch.randn(count, 40, dtype=torch.float64))

    model = SimpleNamespace(num_parameters=40, draw_noise=draws, curvature_product=lambda vectors: 4 * mask * vectors)
    model.replaced = lambda **_: model
    route = SimpleNamespace(largest_rank=35)
    task = SimpleNamespace(route=route, em_samples=4, seed=0, say=lambda _: None)
    first = draws(0, 4 + spare).data_part
    space = grown_to_range(task, model, krylov_space(first[:4]), first[4:], "")
    assert space.exact == 4
    torch.testing.assert_close(space.spectrum[0], torch.full((30,), 4.0, dtype=torch.float64))
    assert len(set(seeds)) == len(seeds), "every draw is a new one"


def test_a_small_classifier_has_exact_traces_too():
    """gamma at the alpha that was found, against the matrix itself."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(2, 20), nn.Tanh(), nn.Linear(20, 3)).eval(), torch.randn(30, 2)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    la = sampla.LinearisedLaplace(net, prior="isotropic", solver="block-cg", progress=False).fit([(x, y)])
    net, names = net.double(), [name for name, _ in net.named_parameters()]
    features, p = dense.jacobian(net, names, x.double()), net(x.double()).softmax(1)
    matrix = dense.curvature(features, torch.diag_embed(p) - p[:, :, None] * p[:, None])
    eigenvalues = torch.linalg.eigvalsh(matrix).detach().clamp_min(0)
    alpha = float(la.prior_precision_[0])
    assert sum(la.report_.effective_dimension) == pytest.approx(
        float((eigenvalues / (eigenvalues + alpha)).sum()), rel=1e-3
    )
    assert la.report_.log_evidence_error[0] == 0
    assert la.report_.settled


def test_noise_that_the_probes_cannot_tell_is_kept_and_the_advice_helps():
    net, x, y = deep_regression(torch.float64)
    fit = {"prior": "g-prior", "solver": "block-cg", "progress": False}
    with pytest.warns(
        sampla.ConvergenceWarning, match="the noise is not known, because the 20 numbers observed"
    ) as said:
        la = sampla.LinearisedLaplace(net, "gaussian", em=PROBED, **fit).fit([(x, y)])
    assert len(said) == 1
    assert not la.report_.settled
    assert float(la.noise_precision_) ** -0.5 > 1e-3, "it has not run away"
    rows = int(re.search(r"EM\(exact_up_to=(\d+), max_rows=\1\)", str(said[0].message)).group(1))
    assert rows == 20
    assert "the noise is not known" in la.report_.advice
    again = sampla.LinearisedLaplace(net, "gaussian", em=sampla.EM(exact_up_to=rows, max_rows=rows), **fit)
    assert again.fit([(x, y)]).report_.settled


LIKELIHOODS = [sampla.Gaussian(structure=structure) for structure in ("scalar", "diagonal", "full")]
UNTOLD = [
    (lambda x, _: torch.zeros(len(x), 2).to(x), "targets that are not all zero, .* got zeros only. Give the noise"),
    (
        lambda x, net: net(x).detach(),
        "targets that differ from the network's outputs.* zero up to the rounding of float",
    ),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda one: one.structure)
@pytest.mark.parametrize(("made", "said"), UNTOLD, ids=["zeros", "outputs"])
def test_targets_that_tell_no_noise_are_refused(made, said, likelihood, dtype):
    """The remedy is tried too: with noise and prior given the fit works."""
    net, x, _ = regression(outputs=2, steps=0, dtype=dtype)
    y = made(x, net)
    with pytest.raises(ValueError, match=said):
        sampla.LinearisedLaplace(net, likelihood, solver="block-cg", progress=False).fit([(x, y)])
    given = sampla.LinearisedLaplace(net, sampla.Gaussian(4.0), sampla.GPrior(1.0, learn=False), progress=False)
    assert bool(given.fit([(x, y)]).predict(x).std.isfinite().all())


def test_one_output_that_is_met_is_named():
    net, x, y = regression(outputs=2, steps=0)
    y[:, 1] = net(x)[:, 1].detach()
    with pytest.raises(ValueError, match="zero up to the rounding of float64 for output 1"):
        sampla.LinearisedLaplace(net, sampla.Gaussian(structure="diagonal"), progress=False).fit([(x, y)])


def test_targets_far_from_zero_with_full_noise():
    """1e8 + N(0, 1): what they share hides what they do not."""
    net, x, y = regression(outputs=2, steps=0)
    likelihood = sampla.Gaussian(structure="full")
    with pytest.raises(ValueError, match=r"residuals are not multiples of each other.* Subtract the targets' mean"):
        sampla.LinearisedLaplace(net, likelihood, solver="block-cg", progress=False).fit([(x, 1e8 + y)])


@pytest.mark.parametrize("steps", [0, 300])
@pytest.mark.parametrize("solver", ["block-cg", "dense"])
def test_a_constant_target_is_never_called_settled(steps, solver):
    """The model explains it to the last digit: no noise is the right one, and the message says so."""
    net, x, y = regression(outputs=2, steps=steps, count=40, dtype=torch.float32)
    with pytest.warns(sampla.ConvergenceWarning, match=r"Gaussian\(noise_precision=1 / std\*\*2\)|use float64"):
        la = sampla.LinearisedLaplace(net, "gaussian", solver=solver, progress=False).fit(
            [(x, torch.full_like(y, 3.0))]
        )
    assert not la.report_.settled
    assert bool(la.predict(x).std.isfinite().all())
