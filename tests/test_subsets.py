"""Parts of a network: selections by name, last layer, LoRA adapters; and gamma by layer against H^-1 M."""

import math

import pytest
import torch
from torch import Tensor, nn

import sampla
from cases import Problem, batches, build_tiny, randn, small_network
from dense import curvature, jacobian
from networks import Shared, Tied
from sampla.features import select_parameters
from sampla.inference.report import FitReport


class LowRank(nn.Module):
    """A LoRA adapter (Hu et al. 2021): W x + B A x with W frozen."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features) / rank)
        self.lora_b = nn.Parameter(torch.randn(base.out_features, rank) / 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.lora_a.mT @ self.lora_b.mT


def adapted() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, last = LowRank(nn.Linear(6, 8), 2), LowRank(nn.Linear(8, 3), 1)
        return nn.Sequential(first, nn.Tanh(), last).double().eval()


def names_of(model: nn.Module, selection: object) -> list[str]:
    return select_parameters(model, selection)[0]  # type: ignore[arg-type]


def test_the_last_layer_is_the_last_module_with_trainable_parameters_of_its_own() -> None:
    assert names_of(small_network(3), "last-layer") == ["5.weight", "5.bias"]
    normalised = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.LayerNorm(3))
    assert names_of(normalised, "last-layer") == ["1.weight", "1.bias"]
    normalised[1].bias.requires_grad_(False)
    assert names_of(normalised, "last-layer") == ["1.weight"]
    assert names_of(nn.Linear(2, 3), "last-layer") == ["weight", "bias"]
    assert names_of(Tied(), "last-layer") == ["embedding.weight"]  # the head's, under its first name
    with pytest.raises(ValueError, match="at least one parameter to be uncertain about, got none of 2"):
        select_parameters(nn.Linear(2, 3).requires_grad_(False), "last-layer")


def test_a_tensor_with_two_names_is_found_under_either_and_counted_once() -> None:
    assert names_of(Tied(), ["head.weight", "embedding.*"]) == ["embedding.weight"]
    assert names_of(Shared(), ["two.*"]) == ["one.weight", "one.bias"]
    with pytest.raises(ValueError, match=r"unknown parameter 'haed.weight'.*Did you mean 'head.weight'"):
        select_parameters(Tied(), ["haed.weight"])


def test_lora_adapters_have_the_posterior_of_the_dense_reference() -> None:
    model, x, y = adapted(), randn(20, 6), torch.arange(20) % 3
    names = ["0.lora_a", "0.lora_b", "2.lora_a", "2.lora_b"]
    assert names_of(model, "*lora_*") == names_of(model, None) == names
    prior = sampla.Isotropic(0.5, learn=False)
    options = {"num_samples": 4, "solver": sampla.Dense(), "progress": False}
    la = sampla.LinearisedLaplace(model, "categorical", prior, "*lora_*", **options).fit(batches(x, y, 7))
    p = model(x).detach().softmax(1)
    m = curvature(jacobian(model, names, x), torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1))
    determined = torch.linalg.solve(m + 0.5 * torch.eye(len(m)), m).diagonal()
    first = 2 * 6 + 8 * 2
    expected = {"0": float(determined[:first].sum()), "2": float(determined[first:].sum())}
    assert la.report_.effective_dimension_by_layer == pytest.approx(expected)
    assert {name: la.excluded[name] for name in ("0.base.weight", "2.base.bias")} == {
        "0.base.weight": "not selected",
        "2.base.bias": "not selected",
    }


def determined_by_layer(problem: Problem, precision: float) -> dict[str, float]:
    """Sums of diag(H^-1 M) over the parameters of each layer."""
    m = problem.curvature
    each = torch.linalg.solve(m + precision * torch.eye(len(m)), m).diagonal()
    sizes = [p.numel() for p in problem.model.parameters()]
    shares: dict[str, float] = {}
    for name, part in zip(problem.names, each.split(sizes), strict=True):
        layer = name.rpartition(".")[0]
        shares[layer] = shares.get(layer, 0.0) + float(part.sum())
    return shares


def test_gamma_by_layer_is_exact_with_the_dense_solver() -> None:
    problem = build_tiny("categorical")
    report = problem.fit(sampla.Isotropic(3.0, learn=False), num_samples=2).report_
    assert report.effective_dimension_by_layer == pytest.approx(determined_by_layer(problem, 3.0))
    assert set(report.effective_dimension_by_layer_error.values()) == {0.0}
    assert sum(report.effective_dimension_by_layer.values()) == pytest.approx(sum(report.effective_dimension))


@pytest.mark.parametrize("seed", range(3))
def test_gamma_by_layer_is_within_its_sampling_error(seed: int) -> None:
    """z of every layer with 96 samples; the scales of the g-prior drop out of z * M z."""
    problem = build_tiny("categorical")
    options = {"num_samples": 96, "solver": sampla.BlockCG(), "tolerance": 1e-4, "seed": seed}
    report = problem.fit(sampla.Isotropic(3.0, learn=False), **options).report_
    exact = determined_by_layer(problem, 3.0)
    for name, gamma in report.effective_dimension_by_layer.items():
        error = report.effective_dimension_by_layer_error[name]
        assert 0 < error < 0.3 * exact[name]
        assert abs(gamma - exact[name]) / error < 3.5
    total = math.fsum(report.effective_dimension_by_layer.values())
    assert total == pytest.approx(sum(report.effective_dimension), rel=1e-10)


def test_the_report_names_the_layers_and_an_older_file_does_without() -> None:
    report = build_tiny("categorical").fit(sampla.GPrior(3.0, learn=False), num_samples=2).report_
    top = max(report.effective_dimension_by_layer.items(), key=lambda item: item[1])
    assert f"\nlayers       of these: {top[0]} {top[1]:.1f}, " in str(report)
    assert "\nproducts     forward mode\n" in str(report)
    assert FitReport.from_dict(report.to_dict()) == report
    older = {k: v for k, v in report.to_dict().items() if k != "products" and "by_layer" not in k}
    again = FitReport.from_dict(older)
    assert (again.effective_dimension_by_layer, again.products) == ({}, "forward mode")
    assert "layers" not in str(again)


def test_many_layers_are_summed_up() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [m for _ in range(6) for m in (nn.Linear(3, 3), nn.Tanh())]
        model = nn.Sequential(*layers, nn.Linear(3, 2)).eval()
    la = sampla.LinearisedLaplace(model, num_samples=2, progress=False).fit(
        [(randn(9, 3).float(), torch.arange(9) % 2)]
    )
    assert ", 3 others " in str(la.report_)
