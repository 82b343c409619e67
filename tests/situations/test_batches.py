"""Batches of every form that users have: the posterior of dense algebra, or a message that names the line to write."""

from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sampla
from dense import categorical_loss, curvature, hessians, jacobian
from helpers import classifier, laplace

PRIOR = sampla.Isotropic(2.0, learn=False)
CLASSES = 3


@dataclass
class Graph:
    """A batch of graphs as graph libraries have it: nodes, edges between them, and each node's graph."""

    x: Tensor
    edge_index: Tensor
    batch: Tensor
    y: Tensor


@dataclass
class Separable(Graph):
    """One that can be taken apart again."""

    def to_data_list(self) -> list[Graph]:
        return [_cut_out(self, k) for k in range(len(self.y))]


@dataclass
class InPlace(Graph):
    """One whose methods change it, as those of graph libraries do."""

    def detach(self) -> "InPlace":
        self.x = self.x.detach()
        return self

    def to(self, device: torch.device) -> "InPlace":
        self.x = self.x.to(device).clone()
        return self


class Encoding(UserDict):
    """As tokenizers return it."""


class Named(dict):
    """A dict whose entries are attributes, too."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


def _cut_out(graph: Graph, k: int) -> Graph:
    nodes = (graph.batch == k).nonzero()[:, 0]
    edges = graph.edge_index[:, graph.batch[graph.edge_index[0]] == k] - nodes[0]
    return Graph(graph.x[nodes], edges, torch.zeros(len(nodes), dtype=torch.long), graph.y[k : k + 1])


def _together(graphs: list[Graph], kind: type = Graph) -> Graph:
    sizes = [len(g.x) for g in graphs]
    starts = [sum(sizes[:k]) for k in range(len(graphs))]
    edges = torch.cat([g.edge_index + start for g, start in zip(graphs, starts, strict=True)], 1)
    batch = torch.repeat_interleave(torch.arange(len(graphs)), torch.tensor(sizes))
    return kind(torch.cat([g.x for g in graphs]), edges, batch, torch.cat([g.y for g in graphs]))


def _graphs(count: int = 12) -> list[Graph]:
    generator = torch.Generator().manual_seed(3)
    graphs = []
    for k in range(count):
        nodes = 2 + k % 3
        edges = torch.stack([torch.arange(nodes - 1), torch.arange(1, nodes)])
        x = torch.randn(nodes, 2, dtype=torch.float64, generator=generator)
        graphs.append(Graph(x, edges, torch.zeros(nodes, dtype=torch.long), torch.tensor([k % CLASSES])))
    return graphs


class Graphs(nn.Module):
    """One round of messages, then a sum over the nodes of each graph; or an output for each node."""

    def __init__(self, pooled: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.head, self.pooled = nn.Linear(2, 4), nn.Linear(4, CLASSES), pooled
        self.double().eval()

    def forward(self, data: Any) -> Tensor:
        graph = _together(data) if isinstance(data, list) else data
        hidden = self.inner(graph.x).tanh()
        left, right = graph.edge_index
        hidden = hidden + torch.zeros_like(hidden).index_add(0, right, hidden[left])
        if not self.pooled:
            return self.head(hidden)
        graph.batch = graph.batch + 0  # networks do change what they are given
        pooled = hidden.new_zeros(int(graph.batch.max()) + 1, hidden.shape[1]).index_add(0, graph.batch, hidden)
        return self.head(pooled)


class Keywords(nn.Module):
    """Takes tensors by name or place, and things that are no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.net = classifier().double()
        self.eval()

    def forward(self, x: Tensor, mask: Tensor | None = None, power: int = 1, kind: str = "plain") -> Tensor:
        assert kind == "plain"
        return self.net(x if mask is None else x * mask) ** power


class Positional(nn.Module):
    """Takes one mapping or object."""

    def __init__(self, get: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.net, self._get = classifier().double(), get
        self.eval()

    def forward(self, data: Any) -> Tensor:
        return self.net(self._get(data))


X = torch.randn(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
MASK = (torch.arange(24).view(12, 2) % 5 > 0).double()
Y = torch.arange(12) % CLASSES
CUTS = ((0, 5), (5, 10), (10, 12))


def _each(make: Callable[[slice], Any]) -> list[Any]:
    return [make(slice(a, b)) for a, b in CUTS]


def _graph_batches(kind: type = Graph) -> list[Any]:
    return [_together(_graphs()[a:b], kind) for a, b in CUTS]


def _pairs(batches: list[Any]) -> list[Any]:
    return [(batch, batch.y) for batch in batches]


def _nodes() -> list[Any]:
    whole = _together(_graphs())
    targets = torch.arange(len(whole.x)) % CLASSES
    return [(SimpleNamespace(x=whole.x, edge_index=whole.edge_index), targets)]


Situation = tuple[Callable[[], nn.Module], Callable[[], Any], dict[str, Any], Callable[[], Any], Tensor]
ALL_GRAPHS = _together(_graphs())
BY_LABELS = {"labels": "labels"}
SITUATIONS: dict[str, Situation] = {
    "a dict with labels": (
        Keywords, lambda: _each(lambda s: {"x": X[s], "mask": MASK[s], "labels": Y[s]}), BY_LABELS,
        lambda: {"x": X, "mask": MASK}, Y,
    ),
    "an encoding with labels": (
        Keywords, lambda: _each(lambda s: Encoding(x=X[s], mask=MASK[s], labels=Y[s])), BY_LABELS,
        lambda: Encoding(x=X, mask=MASK), Y,
    ),
    "None, a number and a string in a dict": (
        Keywords, lambda: _each(lambda s: ({"x": X[s], "mask": None, "power": 2, "kind": "plain"}, Y[s])), {},
        lambda: {"x": X, "mask": None, "power": 2, "kind": "plain"}, Y,
    ),
    "None in a tuple": (
        Keywords, lambda: _each(lambda s: ((X[s], None, 2), Y[s])), {}, lambda: (X, None, 2), Y
    ),
    "three in a tuple": (
        Keywords, lambda: _each(lambda s: (X[s], MASK[s], Y[s])), {"unpack": lambda b: (b[:2], b[2])},
        lambda: (X, MASK), Y,
    ),
    "NumPy arrays": (
        Keywords, lambda: _each(lambda s: (X[s].numpy()[:, ::-1], Y[s].int().numpy())), {},
        lambda: X.numpy()[:, ::-1], Y,
    ),
    "a dict for one argument": (
        lambda: Positional(lambda data: data["a"] * data["b"]),
        lambda: _each(lambda s: ({"a": X[s], "b": MASK[s]}, Y[s])), {}, lambda: {"a": X, "b": MASK}, Y,
    ),
    "a dict with attributes and labels": (
        lambda: Positional(lambda data: data.a), lambda: _each(lambda s: Named(a=X[s], y=Y[s])), {"labels": "y"},
        lambda: Named(a=X), Y,
    ),
    "nested tensors in a dict": (
        lambda: Positional(lambda data: data["views"][0] * data["views"][1]),
        lambda: _each(lambda s: ({"views": [X[s], MASK[s]]}, Y[s])), {}, lambda: {"views": [X, MASK]}, Y,
    ),
    "a list of strings": (
        lambda: Positional(lambda words: X[[int(word) for word in words]]),
        lambda: _each(lambda s: ([str(k) for k in range(12)[s]], Y[s])), {}, lambda: [str(k) for k in range(12)], Y,
    ),
    "a list of graphs": (
        Graphs, lambda: [(_graphs()[a:b], torch.cat([g.y for g in _graphs()[a:b]])) for a, b in CUTS], {},
        _graphs, ALL_GRAPHS.y,
    ),
    "graphs with targets inside": (
        Graphs, _graph_batches, {"unpack": lambda g: (g, g.y)}, lambda: ALL_GRAPHS, ALL_GRAPHS.y
    ),
    "graphs beside their targets": (Graphs, lambda: _pairs(_graph_batches()), {}, lambda: ALL_GRAPHS, ALL_GRAPHS.y),
    "the nodes of one graph": (
        lambda: Graphs(pooled=False), _nodes, {}, lambda: _nodes()[0][0], _nodes()[0][1]
    ),
}  # fmt: skip


def _reference(model: nn.Module, inputs: Any, targets: Tensor) -> tuple[float, Tensor, Tensor]:
    """gamma, the variance of the outputs and M, by dense algebra."""
    called = dict(inputs.items()) if isinstance(inputs, (dict, UserDict)) else inputs
    if isinstance(called, dict) and isinstance(model, Positional):
        called = (inputs,)
    if not isinstance(called, (dict, tuple)):
        called = (torch.as_tensor(called.copy()) if hasattr(called, "strides") else called,)
    names = [name for name, _ in model.named_parameters()]
    features = jacobian(model, names, called)
    outputs = model(**called) if isinstance(called, dict) else model(*called)
    M = curvature(features, hessians(categorical_loss, outputs.detach(), targets))
    inverse = torch.linalg.inv(M + 2 * torch.eye(len(M), dtype=M.dtype))
    variance = torch.einsum("ncp,pq,ncq->nc", features, inverse, features)
    return float((inverse @ M).trace()), variance, M


@pytest.mark.parametrize("solver", ["dense", "block-cg"])
@pytest.mark.parametrize("name", SITUATIONS)
def test_a_batch_of_this_form_has_the_right_posterior(name: str, solver: str) -> None:
    make, loader, options, inputs, targets = SITUATIONS[name]
    model = make()
    gamma, variance, _ = _reference(model, inputs(), targets)
    la = laplace(model, prior=PRIOR, solver=solver, num_samples=256, tolerance=1e-4).fit(loader(), **options)
    pred = la.predict(inputs())
    assert la.report_.num_data == len(targets)
    assert torch.allclose(pred.mean, model(*_called(model, inputs()))) if solver == "dense" else True
    if solver == "dense":
        assert float(la.effective_dimension_) == pytest.approx(gamma, rel=1e-6)
    ratio = (pred.variance / variance).mean()
    assert float(ratio) == pytest.approx(1, abs=0.12)  # 256 samples, outputs that go together
    assert "of" in str(la.plan(loader(), **options))


def _called(model: nn.Module, inputs: Any) -> tuple[Any, ...]:
    if isinstance(model, Keywords):
        given = dict(inputs) if isinstance(inputs, (dict, UserDict)) else inputs
        if isinstance(given, dict):
            return given["x"], given["mask"], given.get("power", 1)
        return given if isinstance(given, tuple) else (torch.as_tensor(given.copy()),)
    return (inputs,)


@pytest.mark.parametrize("batches", [1, 3, 12])
def test_the_diagonal_of_batches_that_are_not_cut_is_unbiased(batches: int) -> None:
    """Blocks of 32 data are cut at positions, which a whole batch may run over."""
    graphs = [g for k in range(8) for g in _graphs()]  # 96 data
    model, size = Graphs(), 96 // batches
    _, _, M = _reference(model, _together(graphs), torch.cat([g.y for g in graphs]))
    loader = _pairs([_together(graphs[k : k + size]) for k in range(0, 96, size)])
    features = sampla.features.NetworkFeatures(model, [name for name, _ in model.named_parameters()])
    linear = sampla.LinearModel(features, sampla.Categorical(), loader)
    linear.survey()
    draws = 2000
    found = linear.draw_noise(0, draws).diagonal
    blocks = min(batches, 3)
    assert float(((found - M.diagonal()) / M.diagonal()).abs().max()) < 4 * (2 / (blocks * draws)) ** 0.5
    identity = torch.eye(len(M), dtype=M.dtype)
    assert torch.allclose(linear.curvature_product(identity), M, atol=1e-9)


def test_parts_of_a_pass_over_whole_batches_make_up_all_of_it() -> None:
    """Strided products take every so many batches, none of them for more or less than it is."""
    model = Graphs()
    features = sampla.features.NetworkFeatures(model, [name for name, _ in model.named_parameters()])
    loader = _pairs([_together(_graphs()[k : k + 2]) for k in range(0, 12, 2)])
    linear = sampla.LinearModel(features, sampla.Categorical(), loader)
    linear.survey()
    seen = [[(b.start, b.stop) for b in linear.batches(512, 2, offset)] for offset in (0, 1)]
    assert seen == [[(0, 2), (4, 6), (8, 10)], [(2, 4), (6, 8), (10, 12)]]


@pytest.mark.parametrize("kind", [Graph, InPlace])
def test_the_users_batches_stay_as_they_are(kind: type) -> None:
    loader = _graph_batches(kind)
    before = [(dict(vars(g)), {k: t.clone() for k, t in vars(g).items()}) for g in loader]
    laplace(Graphs()).fit(loader, unpack=lambda g: (g, g.y)).predict(loader[0])
    for graph, (objects, values) in zip(loader, before, strict=True):
        assert all(vars(graph)[k] is objects[k] and torch.equal(objects[k], values[k]) for k in values)


class Shuffled:
    """Other batches of the same graphs on every pass."""

    def __init__(self, make: Callable[[list[Graph]], Any]) -> None:
        self._make, self._passes = make, 0

    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(self._passes)
        self._passes += 1
        graphs = [_graphs()[k] for k in torch.randperm(12, generator=generator)]
        return iter([self._make(graphs[a:b]) for a, b in CUTS])


def _listed(graphs: list[Graph]) -> Any:
    return graphs, torch.cat([g.y for g in graphs])


def _separable(graphs: list[Graph]) -> Any:
    batch = _together(graphs, Separable)
    return batch, batch.y


def _inseparable(graphs: list[Graph]) -> Any:
    batch = _together(graphs)
    return batch, batch.y


@pytest.mark.parametrize("make", [_listed, _separable])
def test_graphs_may_come_in_another_order(make: Any) -> None:
    gamma, _, _ = _reference(Graphs(), ALL_GRAPHS, ALL_GRAPHS.y)
    la = laplace(Graphs(), prior=PRIOR, solver="dense").fit(Shuffled(make))
    assert float(la.effective_dimension_) == pytest.approx(gamma, rel=1e-6)


def _with_other_edges(graphs: list[Graph]) -> Any:
    batch = _together(graphs, Separable)
    batch.edge_index = batch.edge_index.flip(0)
    return batch, batch.y


class Changing:
    """The first passes as they should be, then others."""

    def __init__(self, good: Any, bad: Any) -> None:
        self._good, self._bad, self._passes = good, bad, 0

    def __iter__(self) -> Any:
        self._passes += 1
        return iter(self._good if self._passes < 4 else self._bad)


@pytest.mark.parametrize(
    ("good", "bad", "hint"),
    [
        (_separable, _with_other_edges, "datum 0, inputs and target together, is none of the 12"),
        (_inseparable, lambda g: _inseparable(g[::-1]), r"compared as a whole: give it a to_data_list\(\) method"),
        (_listed, lambda g: (g, g[0].y.expand(len(g))), "datum 1, inputs and target together"),
    ],
)
def test_graphs_that_change_are_noticed(good: Any, bad: Any, hint: str) -> None:
    passes = [[make(_graphs()[a:b]) for a, b in CUTS] for make in (good, bad)]
    with pytest.raises(ValueError, match=hint):
        laplace(Graphs()).fit(Changing(*passes))


PLAIN = classifier
REFUSED: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, Any], type[Exception], str]] = {
    "a dict with labels, unsaid": (
        Keywords, [{"x": X, "labels": Y}], {}, TypeError,
        r"got dict with 'x', 'labels'\. .*fit\(loader, labels='labels'\)"
    ),
    "a dict with y, unsaid": (Keywords, [{"x": X, "y": Y}], {}, TypeError, r"fit\(loader, labels='y'\)"),
    "a dict without a known name": (
        Keywords, [{"x": X, "class": Y}], {}, TypeError, r"fit\(loader, labels=\.\.\.\), or unpack=lambda batch"
    ),
    "three in a tuple": (
        Keywords, [(X, MASK, Y)], {}, TypeError,
        r"got tuple of length 3.*unpack=lambda batch: \(batch\[:-1\], batch\[-1\]\)"
    ),
    "a graph with its targets inside": (
        Graphs, [ALL_GRAPHS], {}, TypeError, r"got Graph\..*fit\(loader, unpack=lambda batch: \(batch, batch\.y\)\)"
    ),
    "labels of another name": (
        Keywords, [{"x": X, "label": Y}], BY_LABELS, ValueError,
        "an entry 'labels' in each batch, got entries 'x', 'label'"
    ),
    "labels and nothing else": (Keywords, [{"labels": Y}], BY_LABELS, ValueError, "entries beside 'labels'.*got none"),
    "labels of a pair": (Keywords, [(X, Y)], BY_LABELS, TypeError, "mappings with an entry 'labels', got tuple"),
    "labels= and unpack=": (
        Keywords, [(X, Y)], {**BY_LABELS, "unpack": lambda b: b}, ValueError, "expected labels= or unpack=, got both"
    ),
    "labels= by number": (Keywords, [(X, Y)], {"labels": 1}, TypeError, "labels as the name of an entry.*got int"),
    "unpack= by name": (Keywords, [(X, Y)], {"unpack": "y"}, TypeError, "unpack as a function of a batch.*got str"),
    "unpack= to one thing": (
        Keywords, [(X, Y)], {"unpack": lambda b: b[0]}, TypeError, r"unpack to return \(inputs, targets\), got Tensor"
    ),
    "a name that forward does not take": (
        Keywords, [({"x": X, "masque": MASK}, Y)], {}, RuntimeError,
        r"unexpected keyword argument 'masque'(.|\n)*called as model\(x=\.\.\., masque=\.\.\.\)",
    ),
    "a dict for a network that takes a tensor": (
        lambda: nn.Sequential(nn.Linear(2, 3)).double().eval(), [({"a": X}, Y)], {}, RuntimeError,
        r"called as model\(data\) with data a dict of 'a', none of which its forward takes by name",
    ),
    "an object for a network that takes a tensor": (
        lambda: nn.Linear(2, 3).double().eval(), _pairs([ALL_GRAPHS]), {}, RuntimeError,
        r"Graph with \(\d+, 2\) float64(.|\n)*called as model\(data\) with data a Graph",
    ),
    "nodes and edges in a tuple": (
        Graphs, [((ALL_GRAPHS.x, ALL_GRAPHS.edge_index), ALL_GRAPHS.y)], {}, ValueError,
        "share a first axis.*edges of its graphs, goes with the rest into one object",
    ),
    "fewer targets than graphs": (
        Graphs, [(ALL_GRAPHS, ALL_GRAPHS.y[:5])], {}, ValueError,
        "outputs with first axis 5, one row per datum, got shape"
    ),
    "targets in a dict": (
        Graphs, [(ALL_GRAPHS, {"y": ALL_GRAPHS.y})], {}, ValueError,
        "targets as a tensor with first axis n > 0.*got dict"
    ),
    "an array of strings": (
        Keywords, [(X.numpy().astype(str), Y)], {}, TypeError, "a tensor or an array of numbers, got an array of <U"
    ),
    "sparse inputs": (Keywords, [(X.to_sparse(), Y)], {}, ValueError, r"a dense tensor .*layout sparse_coo.*to_dense"),
    "nothing": (Keywords, [(None, Y)], {}, TypeError, "expected inputs as a tensor.*got NoneType"),
    "a tuple of objects": (
        Graphs, [(tuple(_graphs()), ALL_GRAPHS.y)], {}, TypeError, "got tuple.*A list with one object for each datum"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_batches_that_need_a_word_are_told_which(name: str) -> None:
    make, loader, options, error, match = REFUSED[name]
    with pytest.raises(error, match=match):
        laplace(make()).fit(loader, **options)
