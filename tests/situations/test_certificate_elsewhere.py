"""``predict(certificate=True)``: what the solve has left undone at inputs far from the training data."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sampla
from cases import randn

CASES = {
    "categorical": ({"likelihood": "categorical"}, torch.float64),
    "float32": ({"likelihood": "categorical"}, torch.float32),
    "g-prior": ({"likelihood": "categorical", "prior": sampla.GPrior(precision=0.01, learn=False)}, torch.float64),
    "linear mode": ({"likelihood": "categorical", "curvature_at": "linear-mode"}, torch.float64),
    "layerwise": ({"likelihood": "categorical", "prior": "layerwise"}, torch.float64),
    "learnt noise": ({"likelihood": sampla.Gaussian()}, torch.float64),
}


def network(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 4)).to(dtype).eval()


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_difference_from_an_exact_solve_of_the_same_samples(case: str) -> None:
    """Inputs ten times as far out as the data; a solve to 10 % and one to 1e-5 with the same noise and settings.

    Four random combinations stand for 16 samples, so it is known to a third or thereabouts.
    """
    settings, dtype = CASES[case]
    x = randn(60, 6)
    targets = (x @ randn(6, 4, seed=1)).argmax(1)
    y = targets if settings["likelihood"] == "categorical" else (x @ randn(6, 4, seed=1) + randn(60, 4, seed=2))
    data = [(x.to(dtype), y if y.dtype == torch.int64 else y.to(dtype))]
    far = 10 * randn(400, 6, seed=3).to(dtype)
    rough, fine = (
        sampla.LinearisedLaplace(
            network(dtype), num_samples=16, solver="block-cg", progress=False, tolerance=tolerance,
            em=sampla.EM(exact_up_to=0), **settings,
        ).fit(data)
        for tolerance in (0.1, 1e-5)
    )  # fmt: skip
    assert torch.equal(rough.prior_precision_, fine.prior_precision_)
    found, exact = rough.predict(far, certificate=True), fine.predict(far)
    true = (found.deviations - exact.deviations).square().mean() ** 0.5
    assert found.solve_error is not None
    size = found.deviations.square().mean((0, 2))
    stated = (found.solve_error.square() * size).mean() ** 0.5
    assert float(true) > 1e-3 * float(size.mean()) ** 0.5, "there is something to find"
    assert 0.5 < float(stated / true) < 2


def test_a_loader_that_shuffles_is_measured_by_the_system_that_was_solved() -> None:
    """Its noise cannot be drawn again: another order of the data is another draw."""
    x = randn(60, 6)
    y = (x @ randn(6, 4, seed=1)).argmax(1)

    def error(shuffle: bool) -> float:
        torch.manual_seed(3)
        loader = DataLoader(TensorDataset(x, y), 20, shuffle=shuffle)
        em = sampla.EM(exact_up_to=0)
        la = sampla.LinearisedLaplace(network(torch.float64), solver="block-cg", em=em, progress=False).fit(loader)
        found = la.predict(x, certificate=True).solve_error
        assert found is not None
        return float(found.mean())

    assert error(shuffle=True) < 3 * error(shuffle=False) < 0.1


def test_it_costs_its_passes_once_and_needs_a_fit() -> None:
    x = randn(40, 6).float()
    data = [(x, x[:, :4].argmax(1))]
    la = sampla.LinearisedLaplace(network(torch.float32), num_samples=8, solver="block-cg", progress=False)
    la.fit(data)
    assert la.predict(x).solve_error is None
    model = la._inference.model  # type: ignore[union-attr]
    first = la.predict(x, certificate=True).solve_error
    spent = model.ledger.products
    second = la.predict(x, certificate=True).solve_error
    assert model.ledger.products == spent
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)
    assert torch.equal(la.predict(x, certificate=True).deviations, la.predict(x).deviations)


def test_a_posterior_from_a_file_says_what_is_missing(tmp_path) -> None:
    x, net = randn(40, 6).float(), network(torch.float32)
    la = sampla.LinearisedLaplace(net, num_samples=8, progress=False).fit([(x, x[:, :4].argmax(1))])
    la.save(tmp_path / "posterior")
    loaded = sampla.LinearisedLaplace.load(tmp_path / "posterior", net)
    with pytest.raises(ValueError, match=r"expected a fit of this process.*call fit\(loader\)"):
        loaded.predict(x, certificate=True)
