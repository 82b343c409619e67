"""Products in reduced precision, and of networks laid otherwise, against the network's own."""

import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import sampla
from dense import jacobian
from helpers import class_batches, classifier, inputs, laplace
from sampla.core.chunks import Chunks
from sampla.core.data import CheckedLoader
from sampla.core.progress import Progress
from sampla.features import NetworkFeatures
from sampla.features._reduced import LaidNetwork, ReducedNetwork
from sampla.inference.tuning import tune
from sampla.model import LinearModel


class Mixed(nn.Module):
    """Strides, padding, dilation, groups, a bias, all normalisations, a view, a skip, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.full((1, 3, 1, 1), 0.5))
        self.start = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.wide = nn.Conv2d(6, 8, (3, 1), stride=(2, 1), padding=(2, 0), dilation=(2, 1))
        self.wide_norm = nn.BatchNorm2d(8)
        self.skip = nn.Conv2d(6, 8, 1, stride=(2, 1))
        self.skip_norm = nn.BatchNorm2d(8, affine=False)
        self.grouped = nn.Conv2d(8, 8, 3, groups=4, padding="same")
        self.groups = nn.GroupNorm(2, 8)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.single = nn.InstanceNorm2d(4, affine=True)
        self.twice = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
        self.twice_norm = nn.BatchNorm2d(4)
        self.words = nn.LayerNorm(4 * 8 * 16)
        self.end = nn.Linear(4 * 8 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.start(x - self.centre)))
        x = F.relu(self.wide_norm(self.wide(x)) + self.skip_norm(self.skip(x)))
        x = F.gelu(self.groups(self.grouped(x)))
        x = torch.tanh(self.single(self.up(x)))
        x = self.twice_norm(self.twice(x)) + self.twice_norm(self.twice(x).square())  # called twice: not to be folded
        outputs: Tensor = self.end(self.words(x.view(x.shape[0], -1)))
        return outputs


class Words(nn.Module):
    """Attention, an embedding and a constant in float32 that meets coarse activations."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.register_buffer("places", torch.linspace(-1, 1, 5)[:, None].repeat(1, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.layer(self.embed(x) + self.places).mean(1))
        return outputs


def mixed(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net, x = Mixed(), torch.rand(3, 3, 8, 8)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                if module.affine:
                    module.weight.uniform_(0.5, 2)
                    module.bias.normal_()
    return net.to(dtype).eval(), x.to(dtype)


def words() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Words().eval(), torch.randint(11, (4, 5))


def features_of(net: nn.Module, x: Tensor, precision: str = "auto") -> NetworkFeatures:
    inside = {f"{n}.{k}" for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d) for k in ("weight", "bias")}
    features = NetworkFeatures(net, [n for n, _ in net.named_parameters() if n not in inside], precision=precision)
    features.choose_products(x)
    features.find_folds(x)
    return features


def pair(features: NetworkFeatures, count: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """v (K, P) and u (K, n, C)."""
    draw = torch.Generator().manual_seed(1)
    out = features.evaluate(x)
    v = torch.randn(count, features.layout.total, generator=draw, dtype=out.dtype)
    return v, torch.randn(count, *out.shape, generator=draw, dtype=out.dtype)


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("shared", [True, False])
def test_a_network_laid_otherwise_is_the_same_network(count: int, shared: bool) -> None:
    """In float64 to rounding: outputs, both products and the product in one, against the Jacobian written out."""
    net, x = mixed(torch.float64)
    features = features_of(net, x)
    assert [fold.scaled[0] for fold in features.folds] == ["start.weight", "wide.weight", "skip.weight"]
    ways = {each.products for each in features.alternatives(x)}
    (way,) = [each for each in ways if each.laid and each.shared is shared]
    features.products = way
    at, (v, u) = features.linearise(x), pair(features, count, x)
    rows = jacobian(net, list(features.layout.names), x)  # (n, C, P)
    torch.testing.assert_close(at.outputs, net(x))
    torch.testing.assert_close(at.jvp(v), torch.einsum("ncp,kp->knc", rows, v))
    torch.testing.assert_close(at.vjp(u), torch.einsum("ncp,knc->kp", rows, u))
    found = at.product(v, lambda outputs, pushed: pushed * outputs.square())
    torch.testing.assert_close(found, torch.einsum("ncp,nc,ncq,kq->kp", rows, net(x).square(), rows, v))


@pytest.mark.parametrize("case", [mixed, words])
def test_products_in_bfloat16_are_off_by_its_rounding(case: Callable[[], tuple[nn.Module, Tensor]]) -> None:
    net, x = case()
    features = features_of(net, x, "bfloat16")
    features.require_reduced(x)
    reduced, (v, u) = features.cheaper(), pair(features, 5, x)
    at, own = reduced.linearise(x), features.linearise(x)
    assert torch.equal(at.outputs, own.outputs)  # B is that of the network itself
    entered = reduced.entering(v)
    assert entered.dtype == torch.bfloat16
    pulled = reduced.leaving(at.vjp(u).float())
    product = reduced.leaving(at.product(entered, lambda _, pushed: pushed).float())
    wanted = own.jvp(v), own.vjp(u), own.product(v, lambda _, pushed: pushed)
    for found, true in zip((at.jvp(entered), pulled, product), wanted, strict=True):
        assert found.dtype == true.dtype
        assert 1e-4 < float((found - true).norm() / true.norm()) < 0.05
    assert 1e-4 < features.coarseness(x) < 0.05


def test_vectors_enter_and_leave_as_they_were() -> None:
    net, x = mixed()
    features = features_of(net, x)
    features.folds = ()
    v = torch.randn(2, features.layout.total).bfloat16().float()
    reduced = ReducedNetwork(features, torch.bfloat16)
    assert torch.equal(reduced.leaving(reduced.entering(v).float()), v)


def test_normalisation_whose_input_goes_elsewhere_too_is_not_folded() -> None:
    class Elsewhere(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            outputs: Tensor = (self.norm(y) + y).mean((2, 3))
            return outputs

    torch.manual_seed(0)
    net, x = Elsewhere().eval(), torch.rand(2, 3, 6, 6)
    net.norm.running_var.fill_(3.0)
    features = features_of(net, x)
    assert features.folds == ()
    assert [each.products.laid for each in features.alternatives(x)] == [False, True, True]
    torch.testing.assert_close(LaidNetwork(features, torch.float32).call(features.point, x), net(x))


@pytest.mark.parametrize("way", ["own", "laid", "reduced", "laid, of channels last"])
def test_forward_mode_copies_no_tangent_of_a_parameter(way: str) -> None:
    """Where one lies otherwise than its parameter, torch fills a storage of the parameter's for each: K P, a tensor."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten())
    net, x = net.append(nn.Linear(64, 5)).eval(), torch.rand(2, 3, 8, 8)
    if "of" in way:
        net, way = net.to(memory_format=torch.channels_last), "laid"  # type: ignore[call-overload]
    features = features_of(net, x)
    laid = next(each for each in features.alternatives(x) if each.products.laid)
    features = {"own": features, "laid": laid, "reduced": ReducedNetwork(features, torch.bfloat16)}[way]
    here = features.linearise(x)
    some = features.entering(torch.rand(10, features.layout.total))[5:]  # not at the start of their storage
    with torch.profiler.profile(record_shapes=True) as seen:
        here.jvp(some)
        here.product(some, lambda _, pushed: pushed)
    copied = {str(e.input_shapes[0]) for e in seen.events() if e.name == "aten::_new_zeros_with_same_feature_meta"}
    assert not copied & {str(list(shape)) for shape in features.layout.shapes}
    assert any(e.name == "aten::mm" for e in seen.events())


def function_draws(la: sampla.LinearisedLaplace, net: nn.Module) -> Tensor:
    """(K, n C) phi z in float64, from a Jacobian that is written out."""
    rows = jacobian(deepcopy(net).double(), list(la.samples_), inputs().double()).flatten(0, -2)
    z = torch.cat([s.flatten(1) for s in la.samples_.values()], dim=1).double()
    return z @ rows.mT


def test_samples_are_those_of_the_exact_system() -> None:
    """The same right-hand sides solved by Cholesky: the error is as stated, though EM's products were off by 1 %."""
    net = classifier()
    prior = sampla.Isotropic(0.01, learn=False)
    reduced, exact = (
        laplace(net, prior=prior, num_samples=8, tolerance=0.01, **options).fit(class_batches())
        for options in ({"solver": "block-cg", "precision": "bfloat16"}, {"solver": "dense"})
    )
    ours, truth = function_draws(reduced, net), function_draws(exact, net)
    assert float((ours - truth).norm() / truth.norm()) < 1.5 * 0.01
    assert reduced.report_.solve_error <= 0.01
    assert "bfloat16 put aside" in str(reduced.report_)  # nothing is learnt


def test_only_products_of_em_are_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    net, said = classifier(), []
    whole = LinearModel.curvature_product

    def watched(model: LinearModel, *args: Any, **kwargs: Any) -> Tensor:
        said.append(model.reduced)
        return whole(model, *args, **kwargs)

    monkeypatch.setattr(LinearModel, "curvature_product", watched)
    em = sampla.EM(exact_up_to=0)  # exact traces ask for exact products
    la = laplace(net, prior="g-prior", precision="bfloat16", solver="block-cg", em=em).fit(class_batches())
    assert la.report_.settled
    assert "EM's with M in bfloat16" in str(la.report_)
    first_exact = said.index(False)
    assert first_exact > 0
    assert all(said[:first_exact])
    assert not any(said[first_exact:])
    plain = laplace(net, prior="g-prior", solver="block-cg", em=em).fit(class_batches())
    torch.testing.assert_close(la.prior_precision_, plain.prior_precision_, rtol=0.1, atol=0)
    assert la.predict(inputs()).mean.dtype == torch.float32
    torch.testing.assert_close(la.predict(inputs()).mean, net(inputs()), rtol=0, atol=0)


def test_reduced_products_tell_no_evidence() -> None:
    net = classifier()
    assert (
        laplace(net, prior="g-prior", precision="bfloat16", solver="block-cg").fit(class_batches()).report_.log_evidence
        is None
    )
    with pytest.raises(ValueError, match='expected precision="full" or "auto" for log_evidence=True'):
        laplace(net, precision="bfloat16", log_evidence=True)
    told = laplace(net, prior="g-prior", precision="auto", log_evidence=True, solver="block-cg").fit(class_batches())
    assert told.report_.log_evidence is not None


def misled(monkeypatch: pytest.MonkeyPatch, factor: float) -> sampla.LinearisedLaplace:
    """Fitted with products in bfloat16 that are wrong by a factor."""
    whole = ReducedNetwork.leaving
    monkeypatch.setattr(ReducedNetwork, "leaving", lambda self, vectors: factor * whole(self, vectors))
    em = sampla.EM(exact_up_to=0)
    return laplace(classifier(), prior="g-prior", precision="bfloat16", solver="block-cg", em=em).fit(class_batches())


def test_products_that_mislead_em_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(sampla.ConvergenceWarning, match="Precision too low: EM, with products in bfloat16"):
        la = misled(monkeypatch, 3)
    assert not la.report_.settled
    assert 'use precision="full"' in str(la.report_)


def test_em_that_does_not_settle_with_reduced_products_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    la = misled(monkeypatch, 30)
    em = sampla.EM(exact_up_to=0)
    plain = laplace(classifier(), prior="g-prior", solver="block-cg", em=em).fit(class_batches())
    assert la.report_.settled
    assert torch.equal(la.prior_precision_, plain.prior_precision_)
    assert "bfloat16 put aside" in str(la.report_)


@pytest.mark.parametrize(
    "options", [{"prior": sampla.Isotropic(0.01, learn=False)}, {"prior": "layerwise"}, {"solver": "dense"}]
)
def test_without_a_krylov_space_nothing_is_reduced(options: dict[str, Any]) -> None:
    net = classifier()
    options = {"solver": "block-cg", "em": sampla.EM(max_steps=2), "prior": "isotropic"} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sampla.ConvergenceWarning)  # two steps do not settle
        reduced, exact = (laplace(net, precision=word, **options).fit(class_batches()) for word in ("bfloat16", "full"))
    assert reduced.report_.passes == exact.report_.passes
    for name, samples in exact.samples_.items():
        assert torch.equal(reduced.samples_[name], samples)


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


def test_a_network_that_has_no_coarse_products_is_refused_or_left() -> None:
    net = Rounding().eval()
    with pytest.raises(ValueError, match=r'taken in bfloat16 \(precision="bfloat16"\), got .*float32 only'):
        laplace(net, precision="bfloat16").fit(class_batches())
    with pytest.raises(ValueError, match="got one that is not float32 throughout"):
        laplace(classifier().double(), precision="bfloat16").fit([(x.double(), y) for x, y in class_batches()])
    laplace(net, precision="auto").fit(class_batches())


@pytest.mark.parametrize("wrong", [torch.bfloat16, "half", True])
def test_only_precisions_that_are_known(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown precision .*: expected one of 'full', 'auto', 'bfloat16'"):
        laplace(classifier(), precision=wrong)


def test_a_fit_that_goes_on_takes_products_as_before() -> None:
    net, x = mixed()
    ways = []
    for each in (features_of(net, x), *features_of(net, x).alternatives(x)):
        reduced = each.reduction(x)
        ways += [each.way] + ([] if reduced is None else [reduced.way])
    assert len(set(ways)) == len(ways) >= 8
    for way in ways:
        features = features_of(net, x)
        data = CheckedLoader([(x, torch.zeros(3, dtype=torch.long))], torch.device("cpu"), Progress(False))
        model = LinearModel(features, sampla.Categorical(), data, chunks=Chunks(source="restored", way=way))
        model.survey()
        tune(model, 8)
        assert features.way == way


def test_convolutions_in_float64_with_channels_last() -> None:
    """Their weights' derivative is torch's own on the CPU, and knows weights row by row only."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(2, 1, 5)).double().eval(), torch.randn(4, 2, 5, 5, dtype=torch.float64)
    y, prior = torch.randn(4, 1, 1, 1, dtype=torch.float64), sampla.Isotropic(2.0, learn=False)
    expected = sampla.LinearisedLaplace(net, sampla.Gaussian(4.0), prior, progress=False).fit([(x, y)]).predict(x)
    last, images = (each.to(memory_format=torch.channels_last) for each in (net, x))  # type: ignore[call-overload]
    found = sampla.LinearisedLaplace(last, sampla.Gaussian(4.0), prior, progress=False).fit([(images, y)])
    torch.testing.assert_close(found.predict(images).deviations, expected.deviations)
