"""Networks that are not plain modules: scripted, traced, exported, compiled, sharded, with sparse gradients, flex."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

import dense
import sampla
from helpers import assert_unchanged, class_batches, classifier, inputs, laplace, snapshot

Refusal = tuple[Callable[[], nn.Module], str]


def _scripted(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(model)


def _traced(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.trace(model, inputs())


def _exported(model: nn.Module, dynamic: bool) -> nn.Module:
    shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
    return torch.export.export(model, (inputs(8),), dynamic_shapes=shapes).module()


SCRIPTED: dict[str, Callable[[], nn.Module]] = {
    "scripted": lambda: _scripted(classifier()),
    "traced": lambda: _traced(classifier()),
    "scripted inside": lambda: nn.Sequential(_scripted(classifier()), nn.Linear(3, 3)).eval(),
}


@pytest.mark.parametrize("kind", SCRIPTED)
def test_a_script_module_is_refused_before_anything_else(kind: str) -> None:
    match = r"expected modules of Python code.*got a module compiled by torch.jit, '.*Pass the nn.Module that was scr"
    with pytest.raises(ValueError, match=match):
        laplace(SCRIPTED[kind]())


def test_frozen_script_modules_are_part_of_the_function() -> None:
    body, head = nn.Sequential(nn.Linear(2, 6), nn.Tanh()).eval(), nn.Linear(6, 3)
    plain, scripted = nn.Sequential(body, head).eval(), nn.Sequential(_scripted(body), head).eval()
    before = scripted[0].training, list(scripted[0].parameters())
    expected, found = (
        laplace(model, parameters=["1.*"]).fit(class_batches()).predict(inputs()) for model in (plain, scripted)
    )
    assert torch.allclose(found.variance, expected.variance, rtol=1e-5)
    assert (scripted[0].training, list(scripted[0].parameters())) == before


def test_an_exported_module_serves_like_the_one_it_was_made_from() -> None:
    exported = _exported(classifier(), dynamic=True)
    before = snapshot(exported)
    found = laplace(exported).fit(class_batches()).predict(inputs())
    assert_unchanged(exported, before)
    assert torch.allclose(found.variance, laplace(classifier()).fit(class_batches()).predict(inputs()).variance)


EXPORTED: dict[str, Refusal] = {
    "one batch size": (
        lambda: _exported(classifier(), dynamic=False),
        r"(Guard failed|Expected input at)(.|\n)*takes the sizes it was exported for: export it with dynamic_shapes",
    ),
    "random": (
        lambda: _exported(nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5)).train(), dynamic=True),
        "expected the same outputs twice",
    ),
}


@pytest.mark.parametrize("kind", EXPORTED)
def test_exported_modules_that_do_not_serve(kind: str) -> None:
    make, match = EXPORTED[kind]
    with pytest.raises((ValueError, RuntimeError), match=match) as refusal:
        laplace(make()).fit(class_batches())
    assert "model.eval()" not in str(refusal.value)


def test_an_exported_program_is_told_its_module() -> None:
    program: Any = torch.export.export(classifier(), (inputs(8),))
    with pytest.raises(ValueError, match=r"got ExportedProgram. Pass the trained network \(of an ExportedProgram its"):
        laplace(program)


@pytest.fixture
def one_process() -> Iterator[None]:
    """A group of one process, as FSDP needs it."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore:DTensor random operators")
def test_sharded_weights_are_refused_by_type() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    model = classifier()
    model[0].weight = nn.Parameter(distribute_tensor(model[0].weight.detach(), init_device_mesh("cpu", (1,))))
    match = r"weights are whole on one device, got weights that FSDP.*'0.weight' first. Gather them.*full_state_dict"
    with pytest.raises(ValueError, match=match):
        laplace(model)


class Words(nn.Module):
    """(n, 4) word numbers -> (n, 3) logits."""

    def __init__(self, functional: bool = False, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.out = nn.Embedding(7, 4, **options), nn.Linear(4, 3)
        self._options, self._functional = options, functional

    def forward(self, x: Tensor) -> Tensor:
        words = embedding(x, self.table.weight, **self._options) if self._functional else self.table(x)
        return self.out(torch.tanh(words).mean(1))


WORDS: dict[str, dict[str, Any]] = {
    "sparse": {"sparse": True},
    "gradients by frequency": {"scale_grad_by_freq": True},
    "a function under another name": {"sparse": True, "functional": True},
}


class Kernel(Words):
    """The same by torch's own kernel, which nothing can be asked to call otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(torch.embedding(self.table.weight, x, -1, False, True)).mean(1))


@pytest.mark.parametrize("kind", WORDS)
def test_gradients_of_embeddings_are_the_derivative(kind: str) -> None:
    model = Words(**WORDS[kind]).double().eval()
    x, y = torch.randint(0, 7, (20, 4)), torch.randint(0, 3, (20,))
    la = laplace(model, prior=sampla.Isotropic(1.0, learn=False), solver="dense", num_samples=4000).fit([(x, y)])
    J = dense.jacobian(Words().double().eval(), la.names, x)
    M = dense.curvature(J, dense.hessians(dense.categorical_loss, model(x).detach(), y))
    covariance = torch.linalg.inv(M + torch.eye(len(M)).double())
    expected = torch.einsum("ncp,pq,ncq->nc", J, covariance, J)
    assert torch.allclose(la.predict(x).variance, expected, rtol=0.15)  # 4,000 samples know a variance to 2.2 %


class Bag(nn.Module):
    """(n, 4) word numbers -> (n, 3) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(7, 3, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.bag(x)


TABLES: dict[str, Refusal] = {
    "a bag": (Bag, r"in module 'bag' \(EmbeddingBag\). Put nn.Embedding with the same weight"),
    "the kernel itself": (Kernel, "Leave sparse=True out"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_without_derivatives_are_told_what_to_do(kind: str) -> None:
    make, match = TABLES[kind]
    with pytest.raises(RuntimeError, match=match):
        laplace(make().eval()).fit([(torch.randint(0, 7, (20, 4)), torch.randint(0, 3, (20,)))])


class Flex(nn.Module):
    """(n, 16, 8) -> (n, 3) with flex attention."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, size) for size in (8, 8, 8, 3))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        from torch.nn.attention.flex_attention import flex_attention

        self.calls += 1
        q, k, v = (part(x).unsqueeze(1) for part in (self.q, self.k, self.v))
        return self.out(flex_attention(q, k, v).squeeze(1).mean(1))


FLEX = r"(?s)FlexAttention.*Use torch.nn.functional.scaled_dot_product_attention with attn_mask=... in its place"


@pytest.mark.parametrize("device_allows_a_backward", [False, True])
def test_flex_attention_is_refused_in_the_first_call(
    monkeypatch: pytest.MonkeyPatch, device_allows_a_backward: bool
) -> None:
    import torch.nn.attention.flex_attention as flex

    if device_allows_a_backward:  # as a GPU does
        monkeypatch.setattr(flex, "_validate_device", lambda *_: None)
    model = Flex().eval()
    with pytest.raises(RuntimeError, match=FLEX):
        laplace(model).fit([(torch.randn(6, 16, 8), torch.tensor([0, 1, 2] * 2))])
    assert model.calls == 1


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_before_the_chosen_parameters_is_part_of_the_function() -> None:
    model = Flex().eval().requires_grad_(False)
    model.out.requires_grad_()
    x, y = torch.randn(6, 16, 8), torch.tensor([0, 1, 2] * 2)
    la = laplace(model, parameters="last-layer").fit([(x, y)])
    J = dense.jacobian(model, la.names, x)
    found = torch.cat([s.flatten(1) for s in la.samples_.values()], 1)
    expected = torch.einsum("ncp,kp->knc", J, found).square().mean(0)
    assert torch.allclose(la.predict(x).variance, expected, rtol=1e-4)
    in_parts = la.predict(x.repeat(40, 1, 1)).variance  # no counting of operations: it compiles itself
    assert torch.allclose(in_parts, expected.repeat(40, 1), rtol=1e-4)
    assert torch.allclose(la.predict(x).variance, expected, rtol=1e-4)


def test_a_compiled_network_needs_no_compiler() -> None:
    calls: list[str] = []

    def backend(graph: Any, _: Any) -> Any:
        calls.append("compiled")
        return graph.forward

    compiled = torch.compile(classifier(), backend=backend)
    found, expected = (laplace(model).fit(class_batches()) for model in (compiled, classifier()))
    assert found.names == expected.names
    assert torch.equal(found.predict(inputs()).variance, expected.predict(inputs()).variance)
    assert calls == []
