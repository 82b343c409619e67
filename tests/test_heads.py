"""Several heads: sums and blocks of what each of them says alone, by torch's losses; predictions and files."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import dense
import sampla
from cases import randn
from test_target_distributions import Network

NUM = 15


class Named(nn.Module):
    """(n, 2) -> a class of three, one number, one count."""

    def __init__(self) -> None:
        super().__init__()
        self.all = Network(5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        kind, size, count = self.all(x).split([3, 1, 1], 1)
        return {"size": size, "kind": kind, "count": count}


def heads() -> sampla.Heads:
    parts = {
        "kind": (sampla.Categorical(ignore_index=-1, weight=[1.0, 2.0, 3.0]), 3),
        "size": (sampla.Gaussian(4.0, ignore_nan=True), 1),
        "count": (sampla.Poisson(), 1),
    }
    return sampla.Heads(parts)


def targets() -> Tensor:
    kind, size = (torch.arange(NUM) % 3).double(), randn(NUM, seed=1)
    kind[::4], size[::3] = -1, float("nan")
    count = torch.poisson(torch.ones(NUM, dtype=torch.float64), generator=torch.Generator().manual_seed(0))
    return torch.stack([kind, size, count], 1)


def loss(f: Tensor, y: Tensor) -> Tensor:
    weight = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    kind = functional.cross_entropy(f[:3], y[0].long(), weight, ignore_index=-1, reduction="sum")
    size = torch.zeros(()) if bool(y[1].isnan()) else 2 * (f[3] - y[1]).square()
    return kind + size + functional.poisson_nll_loss(f[4], y[2], log_input=True)


def test_a_fit_has_the_dense_covariance_and_each_head_its_predictive(tmp_path: Any) -> None:
    network, x, y = Named().eval(), randn(NUM, 2, seed=3), targets()
    names = [name for name, _ in network.named_parameters()]
    jacobian, outputs = dense.jacobian(network.all, [n[4:] for n in names], x), network.all(x).detach()
    exact = dense.curvature(jacobian, dense.hessians(loss, outputs, y)) + 2.0 * torch.eye(jacobian.shape[-1])
    options = {"prior": sampla.Isotropic(2.0, learn=False), "progress": False, "width": "em", "num_samples": 2000}
    la = sampla.LinearisedLaplace(network, heads(), output=("kind", "size", "count"), **options).fit([(x, y)])
    samples = torch.cat([la.samples_[each].flatten(1) for each in names], 1)
    dense.assert_covariance(samples, torch.linalg.inv(exact))
    pred = la.predict(x, num_draws=40)
    kind, size, count = pred.head("kind"), pred.head("size"), pred.head("count")
    torch.testing.assert_close(kind.probs, pred.sample(40)[..., :3].softmax(-1).mean(0))
    torch.testing.assert_close(size.variance_total, pred.variance[:, 3:4] + 0.25)
    assert bool((count.mean_total > count.mean.exp()).all())
    la.save(tmp_path / "posterior.safetensors")
    again = sampla.LinearisedLaplace.load(tmp_path / "posterior.safetensors", network)
    assert again.likelihood.config() == la.likelihood.config()
    torch.testing.assert_close(again.predict(x, num_draws=40).log_prob(y), pred.log_prob(y))
    with pytest.raises(ValueError, match="a head among kind, size, count, got 'other'"):
        pred.head("other")


def test_losses_and_mode() -> None:
    outputs, y = randn(NUM, 5, seed=2), targets()
    expected = torch.stack([loss(f, each) for f, each in zip(outputs, y, strict=True)])
    found = heads().loss(outputs, y)
    constant = torch.lgamma(y[:, 2] + 1) + 0.5 * torch.log(torch.tensor(2 * torch.pi / 4)) * ~y[:, 1].isnan()
    torch.testing.assert_close(found, expected + constant)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="a head 'size' whose noise is known, got Gaussian that learns it"):
        sampla.Heads({"size": (sampla.Gaussian(), 1)})
    with pytest.raises(ValueError, match=r"targets \(4, 3\) of the heads, got \(4, 5\)"):
        heads().check_targets(randn(4, 5), randn(4, 5))
    with pytest.raises(ValueError, match="class numbers for the head 'kind', got others"):
        heads().check_targets(randn(NUM, 5), targets() + 0.5)
