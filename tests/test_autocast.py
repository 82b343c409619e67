"""Products in reduced precision: they find the hyperparameters, and the samples are finished without them."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sampla
from dense import jacobian
from helpers import class_batches, classifier, inputs, laplace
from sampla.features import NetworkFeatures
from sampla.model import LinearModel

BFLOAT16 = torch.bfloat16


def function_draws(la: sampla.LinearisedLaplace, net: nn.Module) -> Tensor:
    """(K, n C) phi z in float64, from a Jacobian that is written out."""
    rows = jacobian(deepcopy(net).double(), list(la.samples_), inputs().double()).flatten(0, -2)
    z = torch.cat([s.flatten(1) for s in la.samples_.values()], dim=1).double()
    return z @ rows.mT


def test_samples_are_those_of_the_exact_system() -> None:
    """The same right-hand sides solved by Cholesky: the error is as stated, though products were off by 1 %."""
    net = classifier()
    prior = sampla.Isotropic(0.01, learn=False)
    cast, exact = (
        laplace(net, prior=prior, num_samples=8, tolerance=0.01, **options).fit(class_batches())
        for options in ({"solver": "block-cg", "autocast": BFLOAT16}, {"solver": "dense"})
    )
    features = NetworkFeatures(net, [name for name, _ in net.named_parameters()], autocast=BFLOAT16)
    v = torch.randn(8, features.layout.total, generator=torch.Generator().manual_seed(0))
    rough, fine = (way.linearise(inputs()).product(v, lambda _, u: u) for way in (features.cheaper(), features))
    assert 1e-3 < float((rough - fine).norm() / fine.norm()) < 0.05
    ours, truth = function_draws(cast, net), function_draws(exact, net)
    assert float((ours - truth).norm() / truth.norm()) < 1.5 * 0.01
    assert cast.report_.solve_error <= 0.01
    assert "under autocast to torch.bfloat16 but for the last passes" in str(cast.report_)


def test_only_products_with_m_are_reduced_and_only_until_the_last_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    net, said = classifier(), []
    whole = LinearModel.curvature_product

    def watched(model: LinearModel, *args: Any, **kwargs: Any) -> Tensor:
        said.append(model.reduced)
        return whole(model, *args, **kwargs)

    monkeypatch.setattr(LinearModel, "curvature_product", watched)
    em = sampla.EM(exact_up_to=0)  # exact traces ask for exact products
    la = laplace(net, prior="g-prior", autocast=BFLOAT16, solver="block-cg", em=em).fit(class_batches())
    assert la.report_.settled
    first_exact = said.index(False)
    assert first_exact > 0
    assert all(said[:first_exact])
    assert not any(said[first_exact:])
    plain = laplace(net, prior="g-prior", solver="block-cg", em=em).fit(class_batches())
    torch.testing.assert_close(la.prior_precision_, plain.prior_precision_, rtol=0.1, atol=0)
    assert la.predict(inputs()).mean.dtype == torch.float32
    torch.testing.assert_close(la.predict(inputs()).mean, net(inputs()), rtol=0, atol=0)


def test_a_solver_that_a_start_saves_nothing_solves_once_and_exactly() -> None:
    net = classifier()
    cast, exact = (
        laplace(net, prior=sampla.Isotropic(0.01, learn=False), solver="dense", autocast=dtype).fit(class_batches())
        for dtype in (BFLOAT16, None)
    )
    assert cast.report_.passes == exact.report_.passes
    for name, samples in exact.samples_.items():
        assert torch.equal(cast.samples_[name], samples)


class Rounding(nn.Module):
    """Works in float32 only."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = classifier()

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.inner(x)
        if outputs.dtype != torch.float32:
            raise RuntimeError("float32 only")
        return outputs


def test_a_network_that_autocast_breaks_is_refused() -> None:
    net = Rounding().eval()
    with pytest.raises(RuntimeError, match=r"under torch.autocast to torch.bfloat16 on cpu, got: .*float32 only"):
        laplace(net, autocast=BFLOAT16).fit(class_batches())
    laplace(net).fit(class_batches())


@pytest.mark.parametrize("wrong", [torch.float64, "bfloat16", True])
def test_only_types_that_autocast_knows(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"expected autocast as torch\.bfloat16, torch\.float16 or None"):
        laplace(classifier(), autocast=wrong)
