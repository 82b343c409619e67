"""Every kind of network (networks.py): products and posterior as the dense reference has them, saved and back."""

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear as imported_by_name
from torch.utils.checkpoint import checkpoint

import sampla
from cases import batches, linear_model, randn
from dense import categorical_loss, curvature, hessians, jacobian
from helpers import assert_unchanged, snapshot
from networks import CASES, CLASSES, COUNT, FLAT, Case, Output, Pair, Returning
from sampla.core import checkpoint as store
from sampla.core.memory import LivePeak
from sampla.features import NetworkFeatures, check_adjoint

every_case = pytest.mark.parametrize("name", CASES)


class Picked(nn.Module):
    """The network with its one tensor, for the dense reference, under the same names of parameters."""

    def __init__(self, inner: nn.Module, pick: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self._inner, self._pick = [inner], pick

    def named_parameters(self, *_: Any, **__: Any) -> Any:
        return self._inner[0].named_parameters()

    def forward(self, x: Any) -> Tensor:
        return self._pick(self._inner[0](x))


@dataclass(frozen=True)
class Built:
    """A case with everything dense about it."""

    case: Case
    model: nn.Module
    names: list[str]
    features: NetworkFeatures
    targets: Tensor
    jacobian: Tensor
    weights: Tensor

    @property
    def curvature(self) -> Tensor:
        """M."""
        return curvature(self.jacobian, self.weights)


def build(name: str) -> Built:
    case = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = case.make().double().eval()
        for module in model.modules():  # statistics and weights as after training
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    names = [name for name, _ in model.named_parameters()]
    features = NetworkFeatures(model, names, dict(case.options).get("output"))
    picked = Picked(model, case.pick)
    outputs = picked(case.inputs).detach()
    targets = torch.arange(outputs[..., 0].numel()).view(outputs.shape[:-1]) % outputs.shape[-1]
    flat = outputs.flatten(0, -2), targets.flatten()
    inner = hessians(categorical_loss, *flat).view(len(outputs), -1, *[outputs.shape[-1]] * 2)
    weights = torch.stack([torch.block_diag(*blocks) for blocks in inner])
    return Built(case, model, names, features, targets, jacobian(picked, names, case.inputs), weights)


@every_case
def test_products_are_those_of_the_dense_jacobian_and_adjoint(name: str) -> None:
    built = build(name)
    before = snapshot(built.model)
    products = built.features.choose_products(built.case.inputs)
    assert_unchanged(built.model, before)
    assert built.case.mode in (products.mode, "any")
    assert products.math_attention == built.case.attention
    assert products.stacked == built.case.stacked
    assert built.case.where in products.description
    at = built.features.linearise(built.case.inputs)
    assert check_adjoint(at, built.features.layout.total) < 1e-13
    u, v = randn(3, *at.outputs.shape, seed=1), randn(3, built.features.layout.total)
    dense = built.jacobian
    torch.testing.assert_close(at.jvp(v).reshape(3, COUNT, -1), torch.einsum("ncp,kp->knc", dense, v))
    torch.testing.assert_close(at.vjp(u), torch.einsum("ncp,knc->kp", dense, u.reshape(3, COUNT, -1)))
    torch.testing.assert_close(at.outputs, Picked(built.model, built.case.pick)(built.case.inputs).detach())
    assert_unchanged(built.model, before)


@every_case
def test_a_product_with_m_in_pieces(name: str) -> None:
    built = build(name)
    built.features.choose_products(built.case.inputs)
    model = linear_model(built.features, sampla.Categorical(), batches(built.case.inputs, built.targets, 3))
    v = randn(2, model.num_parameters, seed=2)
    torch.testing.assert_close(model.curvature_product(v), v @ built.curvature)


@every_case
def test_a_fit_is_the_dense_posterior_and_comes_back_from_its_file(name: str, tmp_path: Any) -> None:
    """Gamma of the dense solver, predictions J z of its samples, and all of it again after loading."""
    built = build(name)
    prior, path = sampla.Isotropic(2.0, learn=False), tmp_path / "posterior.safetensors"
    options = {**dict(built.case.options), "num_samples": 3, "progress": False, "solver": sampla.Dense()}
    la = sampla.LinearisedLaplace(built.model, "categorical", prior, built.names, **options)
    la.fit(batches(built.case.inputs, built.targets, 4))
    m = built.curvature
    gamma = torch.linalg.solve(m + 2 * torch.eye(len(m)), m).trace()
    torch.testing.assert_close(la.effective_dimension_.sum(), gamma)
    z = torch.cat([s.reshape(3, -1) for s in la.samples_.values()], dim=1)
    found = la.predict(built.case.inputs).deviations
    torch.testing.assert_close(found.reshape(3, COUNT, -1), torch.einsum("ncp,kp->knc", built.jacobian, z))
    assert la.report_.products == built.features.choose_products(built.case.inputs).description
    la.save(path)
    again = sampla.LinearisedLaplace.load(path, built.model)
    torch.testing.assert_close(again.predict(built.case.inputs).deviations, found)
    assert again.report_.products == la.report_.products


@pytest.mark.parametrize("name", ["checkpointed", "lstm", "tied embedding with padding"])
def test_a_posterior_stays_about_its_weights_also_where_backward_computes_again(name: str) -> None:
    built = build(name)
    prior = sampla.Isotropic(2.0, learn=False)
    la = sampla.LinearisedLaplace(built.model, "categorical", prior, built.names, num_samples=3, progress=False)
    la.fit([(built.case.inputs, built.targets)])
    before, weights = la.predict(built.case.inputs), copy.deepcopy(built.model.state_dict())
    with torch.no_grad():
        for parameter in built.model.parameters():
            parameter.mul_(1.7)
    with pytest.raises(ValueError, match="tensors have changed"):
        la.predict(built.case.inputs)
    built.model.load_state_dict(weights)
    after = la.predict(built.case.inputs)
    torch.testing.assert_close(after.mean, before.mean)
    torch.testing.assert_close(after.deviations, before.deviations)


def test_a_file_from_before_there_was_a_choice_is_forward_mode(tmp_path: Any) -> None:
    built, path = build("linear"), tmp_path / "posterior.safetensors"
    prior = sampla.Isotropic(2.0, learn=False)
    la = sampla.LinearisedLaplace(built.model, "categorical", prior, built.names, num_samples=3, progress=False)
    la.fit([(built.case.inputs, built.targets)]).save(path)
    tensors, facts = store.load(path)
    new = {"output", "products"}
    fit = {key: value for key, value in facts["fit"].items() if key not in new and "by_layer" not in key}
    store.save(path, tensors, {**{k: v for k, v in facts.items() if k not in new}, "fit": fit})
    again = sampla.LinearisedLaplace.load(path, built.model)
    torch.testing.assert_close(again.predict(built.case.inputs).deviations, la.predict(built.case.inputs).deviations)
    assert again.report_.products == "forward mode"


BAD_OUTPUTS = [
    ("scores", lambda y, x: {"logits": y, "hidden": x}, "an entry 'scores' in the network's output, got {'logits': "),
    (2, lambda y, x: (y, x), "an entry 2 in the network's output, got {0: "),
    ("kinds", lambda y, _: {"logits": y, "kinds": y.argmax(-1)}, "as entry 'kinds' of the network's output, got"),
    ("cache", Output, "as entry 'cache' of the network's output, got NoneType. Choose another one"),
    (None, lambda *_: {}, "got dict with nothing. Choose one with output="),
    (None, lambda y, x: Pair(y, x), "got Pair with {'scores': "),
]


@pytest.mark.parametrize(("output", "wrap", "match"), BAD_OUTPUTS)
def test_a_choice_that_the_network_does_not_return(output: Any, wrap: Callable[..., Any], match: str) -> None:
    la = sampla.LinearisedLaplace(Returning(wrap).double().eval(), output=output, progress=False)
    with pytest.raises(TypeError, match=match):
        la.fit([(FLAT, torch.arange(COUNT) % CLASSES)])


class Encoder(nn.Module):
    """A transformer's layer, whose attention gets its tokens transposed; checkpointed or not."""

    def __init__(self, width: int, checkpointed: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.inner = nn.TransformerEncoderLayer(width, 4, width, batch_first=True, dropout=0.0)
        self._checkpointed = checkpointed

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return checkpoint(self.inner, x, use_reentrant=False) if self._checkpointed else self.inner(x)


class Transposed(nn.Module):
    """A linear layer on transposed tokens, under a name of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        return imported_by_name(x.transpose(0, 1), self.inner.weight, self.inner.bias).transpose(0, 1)


@pytest.mark.parametrize("transposed", [Encoder(64), Transposed(64)], ids=lambda m: type(m).__name__)
def test_transposed_tokens_copy_no_weights(transposed: nn.Module) -> None:
    """K weights times transposed inputs: torch alone holds K x tokens x weights at a time."""
    width, tokens, count = 64, 32, 4
    transposed.eval()
    features = NetworkFeatures(transposed, [name for name, _ in transposed.named_parameters()])
    at = features.linearise(torch.randn(2, tokens, width))
    vectors = torch.randn(count, features.layout.total)
    at.vjp(torch.randn(count, *at.outputs.shape))
    with LivePeak() as alive:
        at.jvp(vectors)
    assert alive.peak < 4 * count * tokens * 3 * width**2 / 2


@pytest.mark.parametrize("frozen", [False, True])
def test_a_checkpointed_layer_with_attention(frozen: bool) -> None:
    """What backward computes again is what forward has computed: the same tensors are saved."""
    torch.manual_seed(2)
    model, plain = Encoder(8, checkpointed=True).double().eval(), Encoder(8).double().eval()
    plain.load_state_dict(model.state_dict())
    names = [name for name, _ in model.named_parameters() if not frozen or "first" in name]
    x = randn(2, 5, 8)
    features, expected = NetworkFeatures(model, names), NetworkFeatures(plain, names).linearise(x)
    assert features.choose_products(x).mode == "double-reverse"
    at, u, v = features.linearise(x), randn(3, 2, 5, 8, seed=1), randn(3, features.layout.total)
    torch.testing.assert_close(at.jvp(v), expected.jvp(v))
    torch.testing.assert_close(at.vjp(u), expected.vjp(u))


def test_only_the_thread_of_a_product_sees_other_operations() -> None:
    """torch.nn.functional is as it was for everybody else, also while a network is in the middle of a product."""
    inside, checked = threading.Event(), threading.Event()
    seen: list[Any] = []

    class Waiting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            inside.set()
            assert checked.wait(10)
            return self.inner(x)

    def other() -> None:
        assert inside.wait(10)
        table = nn.Embedding(5, 2, sparse=True)
        table(torch.tensor([1, 3])).sum().backward()
        seen.extend([nn.functional.linear is linear, nn.functional.embedding is embedding, table.weight.grad.is_sparse])
        checked.set()

    linear, embedding = nn.functional.linear, nn.functional.embedding
    model = Waiting()
    features = NetworkFeatures(model, [name for name, _ in model.named_parameters()])
    thread = threading.Thread(target=other)
    thread.start()
    features.evaluate(torch.randn(2, 4))
    thread.join()
    assert seen == [True, True, True]
