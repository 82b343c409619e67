"""Derivatives that are zero in exact arithmetic: rounding is not information, and sets no scale."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import sampla
from cases import linear_model, randn
from dense import curvature, jacobian
from sampla.core.params import ParameterLayout
from sampla.features import NetworkFeatures, Products
from sampla.features._products import DOUBLE_REVERSE
from sampla.tomography.linearised import MeasuredGPrior

DTYPES = [torch.float32, torch.float64]


class Attention(nn.Module):
    """Keys and values of its own; a shift of all keys shifts all scores, which softmax takes away."""

    def __init__(self, repeats: int = 1) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(4, n) for n in (4, 4, 4, 3))
        self.relative = nn.Parameter(torch.zeros(1, 1))
        self.repeats = repeats

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.repeats):
            x = x + scaled_dot_product_attention(self.q(x), self.k(x), self.v(x), self.relative)
        return self.o(x.mean(1))


class OneBias(nn.Module):
    """One number added to all logits."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.shift = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.mean(1)) + self.shift


def convolutional(norm: nn.Module) -> nn.Module:
    layers = [nn.Conv1d(5, 4, 3), norm, nn.Tanh(), nn.Flatten(), nn.Linear(8, 4), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(4, 3))


@dataclass(frozen=True)
class Case:
    """A network on (n, 5, 4), and the tensors of which it does not depend."""

    make: Callable[[], nn.Module]
    dead: tuple[str, ...] = ()


CASES = {
    "attention": Case(Attention, ("relative", "k.bias")),
    "attention, three times": Case(lambda: Attention(3), ("relative", "k.bias")),
    "one bias for all logits": Case(OneBias, ("shift",)),
    "bias before InstanceNorm": Case(lambda: convolutional(nn.InstanceNorm1d(4)), ("0.bias",)),
    "bias before a group for each channel": Case(lambda: convolutional(nn.GroupNorm(4, 4)), ("0.bias",)),
    "bias before groups of two": Case(lambda: convolutional(nn.GroupNorm(2, 4))),
    "encoder of torch": Case(lambda: nn.Sequential(nn.TransformerEncoderLayer(4, 2, 4, batch_first=True), Mean(4))),
}


class Mean(nn.Linear):
    """Reads the mean over a sequence."""

    def __init__(self, size: int) -> None:
        super().__init__(size, 3)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mean(1))


def network(name: str, dtype: torch.dtype) -> nn.Module:
    return CASES[name].make().to(dtype).eval()


def data(dtype: torch.dtype = torch.float64, count: int = 40) -> tuple[Tensor, Tensor]:
    return randn(count, 5, 4).to(dtype), torch.arange(count) % 3


def fit(model: nn.Module, dtype: torch.dtype, prior: sampla.Prior | str, **options: object) -> sampla.LinearisedLaplace:
    x, y = data(dtype)
    loader = list(zip(x.split(25), y.split(25), strict=True))
    settings = {"num_samples": 8, "progress": False, "solver": "dense", **options}
    return sampla.LinearisedLaplace(model, "categorical", prior, **settings).fit(loader)


def dimension(model: nn.Module, names: list[str], scale: Tensor) -> float:
    """gamma at alpha = 1 from a dense M in float64 over these parameters only."""
    p = model.double()(data()[0]).detach().softmax(1)
    features = jacobian(model, names, data()[0])
    m = curvature(features, torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1))
    scaled = scale.double()[:, None] * m * scale.double()
    values = torch.linalg.eigvalsh(scaled).clamp_min(0)
    return float((values / (values + 1)).sum())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_what_is_rounding_only_is_taken_out_and_listed_and_gamma_is_that_of_the_rest(name, dtype):
    model = network(name, dtype)
    la = fit(model, dtype, sampla.GPrior(1.0, learn=False))
    assert la.report_.dead_parameters == [n for n in la.names if n in CASES[name].dead]
    assert not any(bool(la.samples_[n].any()) for n in CASES[name].dead)
    scale = torch.cat([la._inference.prior.scale[part] for part in live_parts(la)])
    exact = dimension(model, [n for n in la.names if n not in CASES[name].dead], scale)
    assert float(la.effective_dimension_) == pytest.approx(exact, rel=1e-4)


def live_parts(la: sampla.LinearisedLaplace) -> list[slice]:
    parts, start = [], 0
    for name in la.names:
        size = la.samples_[name][0].numel()
        if name not in la.report_.dead_parameters:
            parts.append(slice(start, start + size))
        start += size
    return parts


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("solver", ["dense", "block-cg"])
def test_em_finds_what_it_finds_without_the_dead_tensors(dtype, solver):
    """A regression through InstanceNorm: EM ran on noise, or met a curvature that is not positive."""
    model, (x, _) = network("bias before InstanceNorm", dtype), data(dtype, 60)
    y = torch.stack([x.std((1, 2)), x[:, 0].prod(1), x[:, 1, 0]], 1)

    def learnt(parameters: list[str] | None) -> sampla.LinearisedLaplace:
        settings = {"num_samples": 8, "solver": solver, "progress": False}
        likelihood = sampla.Gaussian(25.0)
        return sampla.LinearisedLaplace(model, likelihood, "g-prior", parameters, **settings).fit([(x, y)])

    whole, rest = learnt(None), learnt([n for n, _ in model.named_parameters() if n != "0.bias"])
    assert 5 < float(rest.effective_dimension_) < 100
    torch.testing.assert_close(whole.prior_precision_, rest.prior_precision_, rtol=1e-2, atol=0)
    torch.testing.assert_close(whole.effective_dimension_, rest.effective_dimension_, rtol=1e-2, atol=0)


@pytest.mark.parametrize("prior", [sampla.Isotropic(4.0, learn=False), sampla.Layerwise(4.0, learn=False)])
def test_other_priors_leave_them_at_prior_width(prior):
    la = fit(network("attention", torch.float32), torch.float32, prior, num_samples=64)
    z = 2 * la.samples_["k.bias"]
    assert abs(float(z.square().mean()) - 1) < 4 * (2 / z.numel()) ** 0.5
    assert la.report_.dead_parameters == ["relative", "k.bias"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_group_of_nothing_else_keeps_its_alpha(dtype):
    """EM would divide rounding by rounding."""
    groups = {"keys": ["k.bias", "relative"], "rest": ["q", "k.weight", "v", "o"]}
    options = {"em": sampla.EM(max_steps=3, tolerance=0.9), "curvature_at": "linear-mode", "solver": "block-cg"}
    la = fit(network("attention", dtype), dtype, sampla.Layerwise(groups=groups), **options)
    names = la._inference.prior.names
    assert float(la.prior_precision_[names.index("keys")]) == 1.0
    assert float(la.prior_precision_[names.index("rest")]) != 1.0


@pytest.mark.parametrize(
    ("dtype", "factor"),
    [(dtype, factor) for dtype in DTYPES for factor in (1e-6, 1.0, 1e6)],
    ids=str,
)
def test_rescaling_a_live_tensor_before_a_normalisation_does_not_kill_it(dtype, factor):
    """Nor does it wake a dead one: sizes of different tensors are never compared."""
    model = network("bias before InstanceNorm", torch.float64)
    with torch.no_grad():
        model[0].weight.mul_(factor)
        model[0].bias.mul_(factor)
    model[1].eps = 1e-4 * factor**2
    model = model.to(dtype)
    names = [n for n, _ in model.named_parameters()]
    x, y = data(dtype)
    draw = linear_model(NetworkFeatures(model, names), sampla.Categorical(), [(x, y)]).draw_noise(0, 8)
    dead = [n for n, part in zip(names, split(model, draw.diagonal), strict=True) if not bool(part.any())]
    assert dead == ["0.bias"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounding_in_the_forward_pass_is_seen_too(dtype):
    """Two values about ten less their mean: errors of the mean are the same for all cotangents."""
    model = network("bias before InstanceNorm", dtype)
    with torch.no_grad():
        model[0].bias.add_(10)
    assert fit(model, dtype, sampla.GPrior(1.0, learn=False)).report_.dead_parameters == ["0.bias"]


def split(model: nn.Module, vector: Tensor) -> list[Tensor]:
    return list(vector.split([p.numel() for p in model.parameters()]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", ["forward", "double reverse"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 3), (40, 8)])
def test_neither_batches_nor_the_kind_of_product_matter(rows, columns, mode, dtype):
    """And the rest of the draw is what it is without the measurement."""
    model, (x, y) = network("attention", dtype), data(dtype)
    names = [n for n, _ in model.named_parameters()]
    products = Products(DOUBLE_REVERSE, "a test") if mode != "forward" else Products()
    features = NetworkFeatures(model, names, products=products)
    problem = linear_model(features, sampla.Categorical(), list(zip(x.split(rows), y.split(rows), strict=True)))
    problem.chunks.prefer(rows * columns, columns, "given")
    draw = problem.draw_noise(0, 8)
    dead = [n for n, part in zip(names, split(model, draw.diagonal), strict=True) if not bool(part.any())]
    assert dead == ["relative", "k.bias"]
    gradient = sum(b.noise_gradient(0, range(8)) for b in problem.batches(8))
    expected = gradient.clone()
    for name, part in zip(names, expected.split([p.numel() for p in model.parameters()], 1), strict=True):
        if name in dead:
            assert 0 < float(part.abs().max()) < 1e-4
            part.zero_()
    for name, part in zip(names, draw.data_part.split([p.numel() for p in model.parameters()], 1), strict=True):
        assert bool(part.any()) == (name not in dead)
    torch.testing.assert_close(draw.data_part, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tensor_that_is_dead_in_part_has_samples_of_a_sensible_size(dtype):
    """torch's encoder keeps the biases of queries, keys and values in one tensor: a third of it is rounding."""
    la = fit(network("encoder of torch", dtype), dtype, sampla.GPrior(1.0, learn=False), num_samples=64)
    bias = la.samples_["0.self_attn.in_proj_bias"]
    query, key, value = bias.std(0).split(4)
    assert la.report_.dead_parameters == []
    widest = 10 * float(la._inference.prior.scale[slice_of(la, "0.self_attn.in_proj_bias")].median())
    assert bool((key < widest).all())
    assert 0 < float(query.min()) < float(key.mean())
    assert 0 < float(value.min()) < float(key.mean())


def slice_of(la: sampla.LinearisedLaplace, name: str) -> slice:
    sizes = [la.samples_[n][0].numel() for n in la.names]
    start = sum(sizes[: la.names.index(name)])
    return slice(start, start + sizes[la.names.index(name)])


def test_scales_of_a_reconstruction_that_are_measured_beforehand_know_it_too():
    """The image prior measures the diagonal itself; the noise pass says which tensors are rounding."""
    layout = ParameterLayout(("weight", "bias"), ((2,), (2,)))
    measured = torch.tensor([4.0, 4.0, 1e-14, 1e-14])
    bound = MeasuredGPrior(measured).bind(layout, torch.tensor([3.0, 5.0, 0.0, 0.0]))
    assert bound.dead == ("bias",)
    torch.testing.assert_close(bound.scale, torch.tensor([0.5, 0.5, 0.0, 0.0]))


def test_nan_is_not_mistaken_for_nothing():
    """A derivative that is not finite is refused, as before."""

    class Root(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.mean(1)) + (self.bias * 0).abs().sqrt().sum()

    model = Root(4, 3).eval()
    draw = linear_model(NetworkFeatures(model, ["weight", "bias"]), sampla.Categorical(), [data(torch.float32)])
    assert bool(draw.draw_noise(0, 4).diagonal.isnan().any())
