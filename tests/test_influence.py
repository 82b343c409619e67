"""Influence of training data on test data: against the dense formula, and against refits of the linear model.

The refits are Newton's in float64 on N - 1 data (dense.py); none of the formulas of influence enters them.
"""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import dense
import sampla
from cases import FIXED_PRIORS, LIKELIHOODS, Problem, build_tiny
from helpers import NAN, assert_unchanged, class_batches, classifier, inputs, labels, laplace, snapshot, spoiled

ALPHA = 3.0


@cache
def tiny(name: str) -> Problem:
    return build_tiny(name)


def slopes(problem: Problem, outputs: Tensor, targets: Tensor) -> Tensor:
    """(n, C) gradients of the loss in the outputs, by autograd."""
    at = outputs.detach().requires_grad_()
    return torch.autograd.grad(torch.vmap(problem.case.loss)(at, targets).sum(), at)[0]


def precision_of(la: sampla.LinearisedLaplace) -> Tensor:
    """(P,) diagonal of A, with the prior's scale as the fit estimated it."""
    prior = la._inference.prior
    return prior.precision[prior.group] / prior.scale.square()


def reference(problem: Problem, precision: Tensor, at: Tensor, test_at: Tensor, weights: Tensor) -> Tensor:
    """(n_test, N) dq' J_test H^-1 J_n' g_n of the losses, with B given and gradients taken at given outputs."""
    inverse = torch.linalg.inv(dense.curvature(problem.features, weights) + precision.diag())
    tested = torch.einsum("tc,tcp->tp", slopes(problem, test_at, problem.test_targets), problem.test_features)
    trained = torch.einsum("nc,ncp->np", slopes(problem, at, problem.targets), problem.features)
    return tested @ inverse @ trained.mT


def assert_close(found: Tensor, expected: Tensor, error: float) -> None:
    """Row by row, in the norm over the training data."""
    worst = float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max())
    assert worst <= error, worst


@pytest.mark.parametrize("prior", FIXED_PRIORS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_influence_is_that_of_the_dense_formula(likelihood: str, prior: str) -> None:
    problem = tiny(likelihood)
    la = problem.fit(FIXED_PRIORS[prior](ALPHA, learn=False), num_samples=5, tolerance=1e-7)
    found = la.influence(problem.loader, (problem.test_inputs, problem.test_targets))
    outputs, test = problem.model(problem.inputs), problem.model(problem.test_inputs)
    expected = reference(problem, precision_of(la), outputs, test, problem.weights)
    assert found.change.shape == expected.shape  # 12 test data in blocks of 5, 150 training data in batches of 100
    assert_close(found.change, expected, 1e-6)
    assert found.solve_error <= 1e-7


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian-diagonal"])
def test_influence_on_outputs_and_measures(likelihood: str) -> None:
    """The derivative of a loss is that of the outputs times the loss's own: three answers that must fit each other."""
    problem = tiny(likelihood)
    la = problem.fit(sampla.Isotropic(ALPHA, learn=False), num_samples=16, tolerance=1e-8)
    x, y = problem.test_inputs[:4], problem.test_targets[:4]
    losses = la.influence(problem.loader, (x, y))
    of_outputs = la.influence(problem.loader, (x, None))
    measured = la.influence(problem.loader, (x, y), measure=lambda f, t: -problem.case.make().log_prob(f, t))
    blind = la.influence(problem.loader, (x, None), measure=lambda f, _: f.square().sum(1))
    assert of_outputs.change.shape == (4, 3, 150)
    assert of_outputs.errors.shape == (4, 3)
    outputs = problem.model(x).detach()
    assert_close(torch.einsum("tc,tcn->tn", slopes(problem, outputs, y), of_outputs.change), losses.change, 1e-6)
    assert_close(torch.einsum("tc,tcn->tn", 2 * outputs, of_outputs.change), blind.change, 1e-6)
    assert_close(measured.change, losses.change, 1e-6)
    assert [each.quantity for each in (of_outputs, blind)] == ["outputs", "the measure given"]


@pytest.mark.parametrize("linear_model", ["surrogate", "tangent"])
@pytest.mark.parametrize("curvature_at", ["network", "linear-mode"])
@pytest.mark.parametrize("prior", [sampla.Isotropic, sampla.GPrior])
def test_influence_at_the_linear_mode(prior: Any, curvature_at: str, linear_model: str) -> None:
    problem = tiny("categorical")
    la = problem.fit(
        prior(ALPHA, learn=False), tolerance=1e-7, curvature_at=curvature_at, linear_model=linear_model,
        em=sampla.EM(mode_tolerance=1e-5),
    )  # fmt: skip
    found = la.influence(problem.loader, (problem.test_inputs, problem.test_targets), at="linear-mode")
    tangent = linear_model == "tangent"
    offset, test_offset = offsets(problem) if tangent else (torch.zeros(150, 3), torch.zeros(12, 3))
    theta = shifted_mode(problem, precision_of(la), offset)
    at, test_at = problem.features @ theta + offset, problem.test_features @ theta + test_offset
    weights = dense.fast_hessians(problem.case.loss, at, problem.targets)
    weights = weights if curvature_at == "linear-mode" else problem.weights
    expected = reference(problem, precision_of(la), at, test_at, weights)
    assert_close(found.change, expected, 0.02)  # the mode is known to 0.1 %, the residuals there less well


def offsets(problem: Problem) -> tuple[Tensor, Tensor]:
    """(N, C) f - J w of training and test data."""
    weights = torch.cat([p.detach().flatten() for p in problem.model.parameters()])
    pairs = ((problem.inputs, problem.features), (problem.test_inputs, problem.test_features))
    return tuple(problem.model(x).detach() - jacobian @ weights for x, jacobian in pairs)  # type: ignore[return-value]


def shifted_mode(problem: Problem, precision: Tensor, offset: Tensor) -> Tensor:
    """The mode of the linear model J theta + offset, by Newton's iteration from the trained weights."""
    theta = torch.cat([p.detach().flatten() for p in problem.model.parameters()])
    for _ in range(50):
        outputs = problem.features @ theta + offset
        weights = dense.fast_hessians(problem.case.loss, outputs, problem.targets)
        pulled = torch.einsum("nc,ncp->p", slopes(problem, outputs, problem.targets), problem.features)
        gradient = pulled + precision * theta
        hessian = dense.curvature(problem.features, weights) + precision.diag()
        theta = theta - torch.linalg.solve(hessian, gradient)
    assert float(gradient.norm()) < 1e-9
    return theta


def linear_network(outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, outputs)).double().eval()


def refits(problem: Problem, loss: Any, targets: Tensor, left_out: range) -> tuple[Tensor, Tensor, Tensor]:
    """Test outputs of the linear model with all data and, (n, ...), without each of some; and the leverages."""
    precision = torch.full((problem.features.shape[-1],), ALPHA, dtype=torch.float64)
    full = dense.mode(problem.features, targets, loss, precision)
    others = []
    for datum in left_out:
        kept = torch.arange(len(targets)) != datum
        others.append(dense.mode(problem.features[kept], targets[kept], loss, precision, full))
    weights = dense.hessians(loss, problem.features @ full, targets)
    covariance = torch.linalg.inv(dense.curvature(problem.features, weights) + precision.diag())
    v = problem.features @ covariance @ problem.features.mT  # (N, C, C)
    leverage = torch.linalg.eigvals(weights @ v).real.max(-1).values
    return problem.test_features @ full, torch.stack([problem.test_features @ each for each in others]), leverage


def test_refits_with_gaussian_noise_differ_by_the_leverage_alone() -> None:
    """One output, so H_-n^-1 J_n' g_n = H^-1 J_n' g_n / (1 - h_n) exactly (Sherman and Morrison)."""
    tiny_one = tiny("gaussian-scalar")
    model, x, target = linear_network(1), tiny_one.inputs[:40], tiny_one.targets[:40, :1]
    names = [name for name, _ in model.named_parameters()]
    problem = Problem(tiny_one.case, model, x, target, tiny_one.inputs[40:52], target[:12], names)
    noise = dense.gaussian_loss(torch.full((1, 1), 15.0, dtype=torch.float64))
    full, without, leverage = refits(problem, noise, target, range(40))
    prior = sampla.Isotropic(ALPHA, learn=False)
    la = sampla.LinearisedLaplace(model, sampla.Gaussian(15.0), prior, tolerance=1e-9, progress=False)
    found = la.fit(problem.loader).influence(problem.loader, (problem.test_inputs, None), at="linear-mode")
    expected = (without - full).movedim(0, -1)  # (12, 1, 40)
    assert float(leverage.max()) > 0.2  # enough to matter
    assert_close(found.change / (1 - leverage), expected, 1e-7)
    assert_close(found.change, expected, 1.1 * float(leverage.max() / (1 - leverage.max())))


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
def test_refits_of_classifiers_agree_to_first_order(likelihood: str) -> None:
    """To first order the change is too small by about 1 - h_n: each datum within twice that, and most much nearer."""
    problem = tiny(likelihood)
    la = problem.fit(sampla.Isotropic(ALPHA, learn=False), tolerance=1e-6, curvature_at="linear-mode")
    test = problem.test_inputs, None
    found = la.influence(problem.loader, test, at="linear-mode").change[..., :60].flatten(0, 1)
    full, without, leverage = refits(problem, problem.case.loss, problem.targets, range(60))
    expected = (without - full).movedim(0, -1).flatten(0, 1)
    away = (found - expected).norm(dim=0) / expected.norm(dim=0)
    assert float((away / leverage[:60]).max()) <= 2.0
    assert float(away.median()) <= 0.1
    assert float(torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1]) >= 0.98


def test_the_stated_error_is_the_true_one() -> None:
    """One Gaussian output: the influence on an output over the residual of datum n is J_n u, so its error is known."""
    x = dense.prescribed(torch.logspace(2, -2, 60).numpy(), 90)
    y, model = torch.randn(90, 1, generator=torch.Generator().manual_seed(1)).double(), wide_network()
    la = sampla.LinearisedLaplace(
        model, sampla.Gaussian(1.0), sampla.Isotropic(0.05, learn=False), tolerance=0.05, num_samples=4, progress=False,
        solver="block-cg",
    ).fit([(x, y)])  # fmt: skip
    test = torch.randn(8, 60, generator=torch.Generator().manual_seed(2)).double()
    found = la.influence([(x, y)], (test, None))
    residual = (model(x) - y).detach()[:, 0]
    true = test @ torch.linalg.inv(x.mT @ x + 0.05 * torch.eye(60)) @ x.mT
    error = (found.change[:, 0] / residual - true).norm(dim=1) / true.norm(dim=1)
    assert 0.01 < float(error.max()) <= 0.075  # a solve that stopped early, where it was allowed to
    assert float(error.square().mean().sqrt() / found.solve_error) == pytest.approx(1, abs=0.5)
    assert "0.05" not in str(found)
    assert "5.0% was" in str(found)


def wide_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(60, 1, bias=False).double().eval()


def test_a_solve_that_stops_short_says_so() -> None:
    network, loader = classifier(), class_batches()
    prior = sampla.Isotropic(1e-3, learn=False)
    la = laplace(network, prior=prior, solver="dense", max_passes=1, tolerance=1e-6)
    with pytest.warns(sampla.ConvergenceWarning, match="Dense was asked for a relative error of 1.0e-06"):
        la.fit(loader)
    with pytest.warns(sampla.ConvergenceWarning, match="BlockCG was asked for a relative error of 1.0e-06"):
        found = la.influence(loader, (inputs(3), labels(3)))
    assert found.status.startswith("stopped at max_passes")
    assert found.solve_error > 1e-6
    assert found.status in str(found)


def test_the_order_of_train_is_that_of_the_answer() -> None:
    """Any part of the data of the fit, in any order that stays; in batches of any size."""
    network, loader = classifier(), class_batches()
    la, test = laplace(network, tolerance=1e-4).fit(loader), (inputs(6, 5), labels(6, 5))
    whole = la.influence(loader, test).change
    few = [20, 3, 11]
    assert torch.allclose(la.influence([(inputs()[few], labels()[few])], test).change, whole[:, few], rtol=1e-3)
    one_by_one = [(inputs()[[n]], labels()[[n]]) for n in range(24)]
    assert torch.allclose(la.influence(one_by_one, test).change, whole, rtol=1e-3)
    given = {"x": inputs(), "label": labels()}
    asked = la.influence([given], {"x": test[0], "label": test[1]}, unpack=lambda b: (b["x"], b["label"]))
    assert torch.allclose(asked.change, whole, rtol=1e-3)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_outputs_without_an_inner_axis(likelihood: str) -> None:
    """(n,) outputs and targets are one output for each datum, as (n, 1) are."""
    torch.manual_seed(0)
    x, y = inputs(), (labels() > 0).float()
    wide = laplace(nn.Linear(x.shape[1], 1).eval(), likelihood, tolerance=1e-4).fit([(x, y[:, None])])
    flat = laplace(nn.Sequential(wide.model, nn.Flatten(-2)).eval(), likelihood, tolerance=1e-4).fit([(x, y)])
    found = flat.influence([(x, y)], (x[:3], y[:3]))
    assert found.change.shape == (3, 24)
    expected = wide.influence([(x, y[:, None])], (x[:3], y[:3, None])).change
    assert torch.allclose(found.change, expected, rtol=1e-3, atol=1e-6)


def test_what_is_not_counted_has_no_influence() -> None:
    torch.manual_seed(0)
    network = nn.Conv2d(1, 3, 3, padding=1).eval()
    images, marks = torch.randn(6, 1, 4, 4), torch.randint(0, 3, (6, 4, 4))
    marks[2], marks[4, :2] = 255, 255
    likelihood = sampla.Categorical(class_axis=-3, ignore_index=255)
    la = laplace(network, likelihood).fit([(images, marks)])
    found = la.influence([(images, marks)], (images[:3], marks[:3]))
    assert found.change.shape == (3, 6)
    assert bool((found.change[2] == 0).all())  # a test datum of which nothing is asked
    assert bool((found.change[:, 2] == 0).all())
    assert bool((found.change[:2, [0, 1, 3, 4, 5]] != 0).all())
    assert la.influence([(images, marks)], (images[:1], None)).change.shape == (1, 3, 4, 4, 6)


def test_nothing_of_the_network_or_of_the_fit_changes() -> None:
    network, loader = classifier(), class_batches()
    la = laplace(network).fit(loader)
    before, report = snapshot(network), la.report_.to_dict()
    with torch.inference_mode():
        found = la.influence(loader, (inputs(3), labels(3)))
    assert_unchanged(network, before)
    assert la.report_.to_dict() == report
    assert torch.equal(la.influence(loader, (inputs(3), labels(3))).change, found.change)
    assert not found.change.requires_grad


def test_bad_input_is_refused(tmp_path: Any) -> None:
    network, loader = classifier(), class_batches()
    la, test = laplace(network).fit(loader), (inputs(3, 7), labels(3, 7))
    for bad, where, match in (
        (class_batches(lambda x: x + 1), test, r"training data of the fit.*number 0\)"),
        (class_batches(change_y=lambda y: (y + (torch.arange(24) == 9)) % 3), test, r"number 9\)"),
        (loader, (test[0], test[1] + 3), "labels in 0..2"),
        (loader, (test[0][:2], test[1]), "the test data"),
        (loader, (spoiled((0, 0), NAN)(test[0]), test[1]), "finite test inputs"),
        ([], test, "at least one batch"),
    ):
        with pytest.raises(ValueError, match=match):
            la.influence(bad, where)
    for wrong in (lambda f, _: f.mean(), lambda f, _: f, lambda *_: 1.0):
        with pytest.raises(ValueError, match="a measure of 3 test data"):
            la.influence(loader, test, measure=wrong)
    with pytest.raises(ValueError, match="a measure that torch can differentiate"):
        la.influence(loader, test, measure=lambda f, _: f.detach().sum(1))
    with pytest.raises(ValueError, match=r"unknown at 'mode'"):
        la.influence(loader, test, at="mode")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the test data: expected a pair"):
        la.influence(loader, test[0])
    with pytest.raises(RuntimeError, match="not fitted yet"):
        laplace(network).influence(loader, test)
    la.save(tmp_path / "posterior")
    with pytest.raises(ValueError, match="a fit of this process"):
        sampla.LinearisedLaplace.load(tmp_path / "posterior", network).influence(loader, test)


class Shuffled(list[tuple[Tensor, Tensor]]):
    """A loader in another order on each pass, that counts its passes."""

    passes = 0

    def __iter__(self) -> Any:
        self.passes += 1
        return iter(list(super().__iter__())[:: 1 if self.passes % 2 else -1])


def test_a_loader_that_shuffles_is_refused() -> None:
    data = TensorDataset(inputs(), labels())
    shuffled, counted = DataLoader(data, 8, True, generator=torch.Generator().manual_seed(0)), Shuffled(class_batches())
    la, test = laplace(classifier()).fit(shuffled), (inputs(6), labels(6))  # two blocks of K = 4
    for loader in (shuffled, counted):
        with pytest.raises(ValueError, match="same order on every pass"):
            la.influence(loader, test)
    assert counted.passes == 2  # before anything was solved
    assert la.influence(DataLoader(data, 8), test).change.shape == (6, 24)


def test_the_solve_is_in_full_precision() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 16), nn.GELU(), nn.Linear(16, 3)).eval()
    loader, test, settings = class_batches(), (inputs(3, 5), labels(3, 5)), {"solver": "block-cg", "tolerance": 1e-4}
    plain = laplace(network, **settings).fit(loader).influence(loader, test).change
    cast = laplace(network, precision="bfloat16", **settings).fit(loader)
    # the same prior: diag M, its scale, comes of a pass that autocast does not touch
    assert_close(cast.influence(loader, test).change, plain, 1e-3)
