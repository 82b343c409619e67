"""New data for a fit: the posterior of all data, as one fit to them has it, for fewer passes."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sampla
from cases import Problem, batches, small_network
from dense import assert_covariance
from helpers import class_batches, classifier, inputs, labels, laplace, regressor

FIXED = sampla.Isotropic(30.0, learn=False)
OLD = 128
"""Of 150 data; the last 22 come later."""


def parts(problem: Problem, *borders: int) -> list[list[tuple[Tensor, Tensor]]]:
    """Loaders of the data between these borders."""
    edges = [0, *borders, len(problem.inputs)]
    return [batches(problem.inputs[a:b], problem.targets[a:b], 30) for a, b in pairwise(edges)]


def flat(la: sampla.LinearisedLaplace) -> Tensor:
    """(K, P) samples."""
    return torch.cat([value.flatten(1) for value in la.samples_.values()], 1)


def sequential(problem: Problem, prior: sampla.Prior | str, *borders: int, **options: Any) -> sampla.LinearisedLaplace:
    first, *rest = parts(problem, *borders)
    la = problem.fit(prior, loader=first, **options)
    for loader in rest:
        assert la.update(loader) is la
    return la


@pytest.mark.parametrize(("name", "solver"), [("categorical", sampla.BlockCG()), ("gaussian-full", sampla.Dense())])
def test_sequential_is_joint_to_the_tolerance(
    problems: dict[str, Problem], name: str, solver: sampla.Solver[Any]
) -> None:
    """The very same samples, because the noise is the same; also where the border cuts a block of 32 data."""
    problem = problems[name]
    options = {"solver": solver, "num_samples": 4, "tolerance": 1e-5}
    joint = problem.fit(FIXED, loader=parts(problem)[0], **options)
    la = sequential(problem, FIXED, 100, OLD, **options)
    size = flat(joint).norm()
    assert float((flat(la) - flat(joint)).norm() / size) < 1e-3
    assert la.report_.num_data == 150
    assert la.report_.solve_error <= 1e-5
    assert "the last of 2, by 22 data in" in str(la.report_)
    if name == "gaussian-full":
        for key, value in joint.linear_mean_.items():
            torch.testing.assert_close(la.linear_mean_[key], value, rtol=1e-3, atol=1e-5)
    la.leave_one_out(problem.loader)  # the data are those of the joint fit
    assert float(la.predict(problem.test_inputs, certificate=True).solve_error.max()) < 1e-3


@pytest.mark.parametrize("name", ["bernoulli", "gaussian-full"])
def test_samples_mean_and_covariance_are_those_of_all_data(problems: dict[str, Problem], name: str) -> None:
    """More samples before and after, and noise of seeds of their own."""
    problem = problems[name]
    first, last = parts(problem, OLD)
    la = problem.fit(FIXED, loader=first, num_samples=60).more(80).update(last).more(60)
    hessian = problem.curvature + 30 * torch.eye(len(problem.curvature)).double()
    assert_covariance(flat(la), torch.linalg.inv(hessian))
    assert len(torch.unique(flat(la), dim=0)) == 200
    if name == "gaussian-full":
        pushed = torch.einsum("ncp,ncd,nd->p", problem.features, problem.weights, problem.targets)
        mean = torch.cat([value.flatten() for value in la.linear_mean_.values()])
        torch.testing.assert_close(mean, torch.linalg.solve(hessian, pushed), rtol=1e-6, atol=1e-9)


def test_shuffled_loaders_do_no_harm(problems: dict[str, Problem]) -> None:
    """The old data's noise is kept, not drawn again in another order."""
    problem = problems["bernoulli"]

    class Shuffled:
        def __init__(self, first: int, last: int) -> None:
            self.data, self.turn = list(zip(problem.inputs[first:last], problem.targets[first:last], strict=True)), 0

        def __iter__(self) -> Any:
            self.turn += 1
            order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(self.turn)).tolist()
            for at in range(0, len(order), 30):
                x, y = zip(*(self.data[n] for n in order[at : at + 30]), strict=True)
                yield torch.stack(x), torch.stack(y)

    la = problem.fit(FIXED, loader=Shuffled(0, OLD), num_samples=120).update(Shuffled(OLD, 150))
    assert_covariance(flat(la), torch.linalg.inv(problem.curvature + 30 * torch.eye(len(problem.curvature)).double()))


@pytest.mark.parametrize(("name", "prior"), [("categorical", "isotropic"), ("gaussian-scalar", "layerwise")])
def test_learnt_precisions_come_to_those_of_all_data(problems: dict[str, Problem], name: str, prior: str) -> None:
    problem = problems[name]
    options = {"solver": sampla.BlockCG(), "num_samples": 12, "log_evidence": False}
    joint = problem.fit(prior, loader=parts(problem)[0], **options)
    first, last = parts(problem, OLD)
    la = problem.fit(prior, loader=first, **options)
    la.update(last)
    assert la.report_.settled
    assert la.report_.mean_error < 0.01
    spread = max(joint.report_.precision_error[0], 0.05)
    off = (la.prior_precision_ / joint.prior_precision_).log().abs()[joint.effective_dimension_ > 1]
    print(la.report_.updates, joint.report_.passes)
    assert float(off.max()) < 2 * spread, (la.prior_precision_, joint.prior_precision_)
    assert la.report_.updates[0]["passes"] < 0.5 * joint.report_.passes
    error = la.report_.effective_dimension_sum_error + joint.report_.effective_dimension_sum_error
    assert float((la.effective_dimension_ - joint.effective_dimension_).sum().abs()) < 2 * error + 0.5


@pytest.mark.parametrize("solver", [sampla.BlockCG(), sampla.Dense()])
def test_what_is_exact_in_a_fit_to_few_data_is_after_an_update(
    problems: dict[str, Problem], solver: sampla.Solver[Any]
) -> None:
    """alpha depends on no samples: with two of them it is that of one fit to all data, to EM's tolerance."""
    problem, options = problems["bernoulli"], {"num_samples": 2, "log_evidence": False, "solver": solver}
    first, last = parts(problem, OLD)
    joint = problem.fit("isotropic", loader=parts(problem)[0], **options)
    la = problem.fit("isotropic", loader=first, **options).update(last)
    assert la.report_.precision_error[0] == joint.report_.precision_error[0] == 0
    assert float((la.prior_precision_ / joint.prior_precision_).log().abs()) < 0.02


def test_the_range_of_what_was_known_is_gone_on_from(problems: dict[str, Problem]) -> None:
    """M of all data, by products with the new ones and those of what is new in them, against the written-out M."""
    problem = problems["bernoulli"]
    first, last, more = parts(problem, 120, 140)
    la = problem.fit("isotropic", loader=first, num_samples=4, log_evidence=False, solver=sampla.BlockCG())
    for loader in (last, more):
        la.update(loader)
    known = la._inference.kept.sketch  # type: ignore[union-attr]
    assert known is not None
    assert known.whole
    whole = known.basis.combined(known.gram).mT @ torch.cat(known.basis.parts)
    torch.testing.assert_close(whole, problem.curvature, rtol=0, atol=1e-9 * float(problem.curvature.abs().max()))
    assert (
        sum(row["passes"] for row in la.report_.updates)
        < 0.9
        * problem.fit(
            "isotropic", num_samples=4, log_evidence=False, solver=sampla.BlockCG(), loader=parts(problem)[0]
        ).report_.passes
    )


def test_a_noise_that_is_learnt_goes_on(problems: dict[str, Problem]) -> None:
    problem = problems["gaussian-scalar"]
    options = {"likelihood": "gaussian", "num_samples": 12, "log_evidence": False}
    joint = problem.fit("isotropic", loader=parts(problem)[0], **options)
    la = sequential(problem, "isotropic", OLD, **options)
    assert la.noise_precision_ is not None
    assert joint.noise_precision_ is not None
    assert abs(float((la.noise_precision_ / joint.noise_precision_).log())) < 0.06


def test_an_update_takes_part_of_a_refits_passes(tmp_path: Path) -> None:
    """And is saved as any fit is."""
    network = small_network(10).float()
    x, y = torch.randn(352, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(352) % 10
    options: dict[str, Any] = {"progress": False, "solver": "block-cg", "width": "em", "log_evidence": False}
    made = [sampla.LinearisedLaplace(network, prior=sampla.GPrior(0.3, learn=False), **options) for _ in range(2)]
    joint = made[0].fit(batches(x, y, 64))
    la = made[1].fit(batches(x[:320], y[:320], 64))
    products = la._inference.model.ledger.products  # type: ignore[union-attr]
    la.update(batches(x[320:], y[320:], 64))
    spent = (la._inference.model.ledger.products - products) / 16  # type: ignore[union-attr]
    assert la.report_.updates[0]["passes"] == pytest.approx(spent)
    assert spent < 0.6 * joint.report_.passes
    assert la.report_.solve_error <= 0.02
    assert la.report_.status == joint.report_.status
    la.save(tmp_path / "posterior.safetensors")
    loaded = sampla.LinearisedLaplace.load(tmp_path / "posterior.safetensors", network)
    assert torch.equal(loaded.predict(x[:5]).deviations, la.predict(x[:5]).deviations)
    assert str(loaded.report_) == str(la.report_)
    with pytest.raises(ValueError, match="expected a posterior that was fitted in this process, to add data to"):
        loaded.update(batches(x[:5], y[:5], 5))


def _fitted(model: nn.Module | None = None, **options: Any) -> sampla.LinearisedLaplace:
    return laplace(model or classifier(), **options).fit(class_batches())


@pytest.mark.parametrize(
    ("x", "y", "match"),
    [
        (inputs(8, 5).double(), labels(8, 5), "got inputs float64 with 2 axes; targets int64 with 1 axis"),
        (inputs(8, 5)[:, :, None], labels(8, 5), "expected new data like those of the fit, inputs float32 with 2 axes"),
        (inputs(8, 5)[:, :1], labels(8, 5), r"expected new data that the network takes, got \(8, 1\) float32"),
        (inputs(8, 5), labels(8, 5).float(), "targets float32 with 1 axis"),
        (inputs(8, 5), labels(8, 5) + 7, r"expected labels in 0\.\.2"),
        (inputs(8, 5).fill_(torch.nan), labels(8, 5), "inputs"),
        ({"x": inputs(8, 5)}, labels(8, 5), "inputs x float32"),
        (inputs(), labels(), "24 of 24 are data that the fit has had"),
    ],
)
def test_data_of_another_kind_are_refused_and_nothing_changes(x: Any, y: Tensor, match: str) -> None:
    la = _fitted()
    before, report = la.predict(inputs(5, 3)).deviations, la.report_
    with pytest.raises(ValueError, match=match):
        la.update([(x, y)])
    assert torch.equal(la.predict(inputs(5, 3)).deviations, before)
    assert la.report_ is report
    la.update([(inputs(8, 5), labels(8, 5))])
    assert la.report_.num_data == 32


def test_fits_that_cannot_be_gone_on_with() -> None:
    new = [(inputs(8, 5), labels(8, 5))]
    with pytest.raises(RuntimeError, match="not fitted yet"):
        laplace(classifier()).update(new)
    for options in ({"curvature_at": "linear-mode"}, {"solver": "minibatch"}):
        la = laplace(classifier(), **options)
        la.fit(class_batches())
        with pytest.raises(ValueError, match="expected a fit whose old data can be gone on with"):
            la.update(new)
    la = _fitted()
    with torch.no_grad():
        la.model[0].bias[0] += 1  # type: ignore[index, union-attr, operator]
    with pytest.raises(ValueError, match="1 tensor has changed"):
        la.update(new)


def test_parameters_that_only_new_data_inform_are_refused() -> None:
    """The g-prior has taken them out, on data of which they know nothing."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.always, self.rarely = nn.Linear(2, 3), nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.always(x) + (x[:, :1] > 4).to(x) * self.rarely(x)

    torch.manual_seed(0)
    la = _fitted(Gated().eval(), prior="g-prior")
    assert la.report_.dead_parameters
    with pytest.raises(ValueError, match=r"inform 'rarely\.weight' too, which the g-prior has taken out"):
        la.update([(inputs(8, 5) + 5, labels(8, 5))])


def test_new_data_without_a_target_change_nothing() -> None:
    """One batch of a stream may be such; all data of a fit may not."""
    net, x, y = regressor(), inputs(24), torch.randn(24, 1, generator=torch.Generator().manual_seed(0))
    options = {"prior": FIXED, "progress": False, "solver": "block-cg"}
    la = sampla.LinearisedLaplace(net, sampla.Gaussian(2.0, ignore_nan=True), **options).fit([(x, y)])
    before = flat(la)
    la.update([(inputs(8, 5), torch.full((8, 1), float("nan")))])
    torch.testing.assert_close(flat(la), before, rtol=1e-3, atol=1e-5)
