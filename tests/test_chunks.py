"""Chunks: how much goes through the features at once changes results by rounding only, also where memory runs out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sampla
from helpers import assert_unchanged, class_batches, classifier, inputs, labels, laplace, snapshot
from sampla.core.chunks import Chunks
from sampla.core.data import CheckedLoader
from sampla.core.memory import LivePeak, OutOfChunksError, is_out_of_memory
from sampla.core.progress import Progress
from sampla.features import Chunked, Features, Linearisation, NetworkFeatures, OutputsAt, ScaledFeatures
from sampla.inference import tuning
from sampla.inference.checkpointing import restore_chunks
from sampla.inference.report import FitReport
from sampla.model import LinearModel

CPU_MESSAGE = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried ..."
ERRORS: dict[str, Callable[[], Exception]] = {
    "GPU": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "CPU": lambda: RuntimeError(CPU_MESSAGE),
    "Python": MemoryError,
}


class Small(Features):
    """A network's features that run out of memory beyond so many data times vectors, or so many data."""

    def __init__(self, base: Features, most: int, error: Callable[[], Exception], most_rows: int = 10**9) -> None:
        self.layout, self.like = base.layout, base.like
        self.base, self.most, self.error, self.most_rows = base, most, error, most_rows
        self.largest = 0

    def linearise(self, inputs: Any) -> Linearisation:
        return _SmallAt(self, self.base.linearise(inputs), len(inputs))


class _SmallAt(Linearisation):
    def __init__(self, owner: Small, base: Linearisation, rows: int) -> None:
        self._owner, self._base, self._rows = owner, base, rows

    def _check(self, columns: int) -> None:
        if self._rows * columns > self._owner.most or self._rows > self._owner.most_rows:
            raise self._owner.error()
        self._owner.largest = max(self._owner.largest, self._rows * columns)

    @property
    def outputs(self) -> Tensor:
        self._check(1)
        return self._base.outputs

    def jvp(self, vectors: Tensor) -> Tensor:
        self._check(len(vectors))
        return self._base.jvp(vectors)

    def vjp(self, cotangents: Tensor) -> Tensor:
        self._check(len(cotangents))
        return self._base.vjp(cotangents)


def network_features() -> NetworkFeatures:
    network = classifier().double()
    return NetworkFeatures(network, [name for name, _ in network.named_parameters()])


def model_of(features: Features, chunks: Chunks | None = None, size: int = 8) -> LinearModel:
    x, y = inputs().double(), labels()
    loader = CheckedLoader(list(zip(x.split(size), y.split(size), strict=True)), torch.device("cpu"), Progress(False))
    model = LinearModel(features, sampla.Categorical(), loader, chunks=chunks)
    model.survey()
    return model


def vectors(count: int, size: int = 39) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def quantities(model: LinearModel) -> dict[str, Tensor]:
    """Everything that takes a whole pass, and what strides take."""
    several = vectors(5)
    draw = model.draw_noise(0, 5)
    return {
        "product": model.curvature_product(several),
        "strided product": model.curvature_product(several, 2),
        "noise": draw.data_part,
        "diagonal": draw.diagonal,
        "gradient": model.loss_gradient(several[:1])[1],
        "Newton": model.newton_product(several[:1], several[1:2]),
    }


@pytest.mark.parametrize("chunks", [(1, 1), (3, 2), (7, 3), (24, 5), (10**6, 64)])
@pytest.mark.parametrize("size", [8, 24])
def test_no_quantity_depends_on_the_chunks(chunks: tuple[int, int], size: int) -> None:
    rows, columns = chunks
    expected = quantities(model_of(network_features(), size=size))
    found = quantities(model_of(network_features(), Chunks(rows * columns, columns), size))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize(("most", "most_rows"), [(1, 9), (3, 9), (17, 9), (40, 1)])
def test_running_out_of_memory_changes_nothing(kind: str, most: int, most_rows: int) -> None:
    said: list[str] = []
    small = Small(network_features(), most, ERRORS[kind], most_rows)
    chunks = Chunks(say=said.append)
    found = quantities(model_of(small, chunks))
    for name, value in quantities(model_of(network_features())).items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12, msg=name)
    assert 0 < small.largest <= most
    assert len(said) == 1
    assert said[0].startswith("memory ran out: going on with ")
    assert chunks.halvings > 1 or most > 3


def test_memory_that_ran_out_once_is_remembered() -> None:
    small = Small(network_features(), 16, ERRORS["CPU"])
    chunks = Chunks()
    model = model_of(small, chunks)
    model.curvature_product(vectors(5))
    before = chunks.halvings
    model.curvature_product(vectors(5))
    assert chunks.halvings == before > 0
    chunks.prefer(512, 64, "measured")
    assert chunks.entries <= 16


def test_products_of_scaled_features_recover_too() -> None:
    scale = vectors(1)[0].abs() + 0.1
    small = ScaledFeatures(Small(network_features(), 4, ERRORS["GPU"]), scale)
    found = model_of(small).curvature_product(vectors(5))
    expected = model_of(network_features()).curvature_product(vectors(5) * scale) * scale
    torch.testing.assert_close(found, expected)


def test_what_does_not_fit_at_all_says_what_to_change() -> None:
    model = model_of(small := Small(network_features(), 99, ERRORS["CPU"]))
    small.most = 0
    with pytest.raises(OutOfChunksError, match=r"one datum and one vector .*can't allocate memory.*parameters=\["):
        model.curvature_product(vectors(5))


def test_the_product_in_one_go_is_a_jvp_and_a_vjp() -> None:
    """Also scaled, taken elsewhere, and in parts; against the two products apart."""
    theta, scale, v = vectors(1), vectors(1)[0].abs() + 0.1, vectors(5)
    base = network_features()
    maps: list[Features] = [base, ScaledFeatures(base, scale), OutputsAt(ScaledFeatures(base, scale), theta)]
    for features in maps:
        here = features.linearise(inputs().double())
        expected = here.vjp(here.jvp(v) * here.outputs.exp())
        for part in (here, Chunked(features, inputs().double(), Chunks())):
            found = part.product(v, lambda outputs, pushed: pushed * outputs.exp())
            assert not found.requires_grad
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        loose, factor = features.unscaled()
        again = loose.linearise(inputs().double())
        inner = again.product(v if factor is None else v * factor, lambda outputs, pushed: pushed * outputs.exp())
        torch.testing.assert_close(inner if factor is None else inner * factor, expected, rtol=1e-10, atol=1e-12)


def test_the_product_in_one_go_computes_the_network_once() -> None:
    calls = []
    network = classifier().double()
    network.register_forward_hook(lambda *_: calls.append(1))
    model = model_of(NetworkFeatures(network, [name for name, _ in network.named_parameters()]), size=24)
    calls.clear()
    model.curvature_product(vectors(5))
    model.loss_gradient(vectors(1))
    assert len(calls) == 2


def test_other_errors_pass() -> None:
    small = Small(network_features(), 0, lambda: RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        Chunked(small, inputs().double(), Chunks()).jvp(vectors(2))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_the_real_allocator_is_recognised() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(10**15)
    assert is_out_of_memory(raised.value)


def test_ranges_cover_all_vectors_evenly() -> None:
    for count in (1, 2, 9, 17, 64, 65):
        ranges = Chunks(columns=8).ranges(count)
        assert [i for r in ranges for i in r] == list(range(count))
        assert max(map(len, ranges)) <= 8
        assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


def test_memory_does_not_grow_with_the_number_of_outputs() -> None:
    peaks = []
    for outputs in (100, 10_000, 100_000):
        network = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, outputs)).eval()
        loader = [(torch.randn(64, 2), torch.zeros(64, dtype=torch.long))]
        model = LinearModel(NetworkFeatures(network, ["0.weight"]), sampla.Categorical(), loader)
        model.survey()
        with LivePeak() as alive:
            model.curvature_product(torch.randn(16, 6))
        peaks.append(alive.peak)
    assert peaks[1] < 2**22 * 4 * 8
    assert peaks[2] < 1.5 * peaks[1]


# Measuring


def measured(monkeypatch: pytest.MonkeyPatch, cost: Callable[[int, int], float], **limits: Any) -> Chunks:
    """What is chosen if a product with so many data and vectors takes so many seconds."""
    monkeypatch.setattr(tuning, "_FEWEST_PRODUCTS", 1)
    monkeypatch.setattr(tuning, "_LEAST_WORK", 1)
    for name, value in limits.items():
        monkeypatch.setattr(tuning, name, value)

    def once(search: Any, rows: int, columns: int) -> float:
        search._spent += cost(rows, columns)
        return cost(rows, columns)

    monkeypatch.setattr(tuning._Search, "_once", once)
    model = model_of(network_features(), size=24)
    tuning.tune(model, 16)
    return model.chunks


def test_the_fastest_chunks_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    best = measured(monkeypatch, lambda n, k: (n * k + 64) * (1.0 if n * k <= 128 else 3.0), _SECONDS=1e9)
    assert (best.entries, best.columns, best.source) == (128, 16, "measured")


def test_fewer_vectors_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    best = measured(monkeypatch, lambda n, k: n * k * (1 + k) + 1.0, _SECONDS=1e9)
    assert best.columns < 16


def test_of_equals_the_smallest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(monkeypatch, lambda n, k: 1.0 * n * k, _SECONDS=1e9).entries == 16


def test_measuring_ends_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    best = measured(monkeypatch, lambda n, k: 1.0 + 1e-6 * n * k, _SECONDS=0.1, _SHARE=0.0)
    assert best.entries == 16


def test_chunks_that_memory_does_not_hold_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    best = measured(monkeypatch, lambda n, k: 1.0 + 1e-6 * n * k, _SECONDS=1e9, free_bytes=lambda _: 1)
    assert best.entries == 16


def test_real_measurements_end_and_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_FEWEST_PRODUCTS", 1)
    monkeypatch.setattr(tuning, "_LEAST_WORK", 1)
    plain = laplace(classifier(), chunks=(32, 64)).fit(class_batches())
    tuned = laplace(classifier()).fit(class_batches())
    assert tuned.report_.chunks["source"] == "measured"
    assert "fastest of those measured" in str(tuned.report_)
    torch.testing.assert_close(tuned.predict(inputs()).variance, plain.predict(inputs()).variance, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("faster", [True, False])
def test_the_faster_way_to_take_both_products_is_chosen(monkeypatch: pytest.MonkeyPatch, faster: bool) -> None:
    """One forward for both products, or one for each: whichever is said to be faster, from either start."""
    for name, value in {"_FEWEST_PRODUCTS": 1, "_LEAST_WORK": 1, "_SECONDS": 1e9}.items():
        monkeypatch.setattr(tuning, name, value)

    def once(search: Any, rows: int, columns: int) -> float:
        return rows * columns * (1.0 if search._features.products.shared == faster else 2.0)

    monkeypatch.setattr(tuning._Search, "_once", once)
    features = network_features()
    assert features.choose_products(inputs().double()[:2]).both
    expected = model_of(features).curvature_product(vectors(5))
    for _ in range(2):  # the second time the other way is the slower one
        model = model_of(ScaledFeatures(features, torch.ones(39, dtype=torch.float64)), size=24)
        tuning.tune(model, 16)
        assert features.products.shared == faster
        torch.testing.assert_close(model.curvature_product(vectors(5)), expected)
    assert ("a forward for each product" in features.products.description) == (not faster)


def test_small_problems_are_not_measured() -> None:
    la = laplace(classifier()).fit(class_batches())
    assert la.report_.chunks["source"] == "preset"
    assert la.report_.chunks["seconds"] == 0


def test_given_chunks_are_kept_and_said() -> None:
    report = laplace(classifier(), chunks=(4, 2)).fit(class_batches()).report_
    assert (report.chunks["entries"], report.chunks["columns"], report.chunks["source"]) == (8, 2, "given")
    assert "8 data x vectors, 2 vectors at most (as asked)" in str(report)


def test_wrong_chunks_are_refused() -> None:
    for wrong in ((0, 1), (1, 2, 3), (1.5, 2)):
        with pytest.raises(ValueError, match=r"expected chunks as \(data, vectors\)"):
            laplace(classifier(), chunks=wrong)


def test_a_fit_goes_on_with_the_chunks_of_its_checkpoint(tmp_path: Path) -> None:
    options: dict[str, Any] = {"prior": "isotropic", "solver": "block-cg"}
    whole = laplace(classifier(), chunks=(3, 2), **options).fit(class_batches(), checkpoint=tmp_path)
    again = laplace(classifier(), **options).fit(class_batches(), checkpoint=tmp_path)
    assert (again.report_.chunks["entries"], again.report_.chunks["columns"]) == (6, 2)
    assert again.report_.chunks["source"] == "restored"
    assert torch.equal(again.predict(inputs()).variance, whole.predict(inputs()).variance)
    chunks = Chunks()
    restore_chunks(tmp_path / "nothing here", chunks)
    assert chunks.source == "preset"


def test_a_report_of_an_older_version_loads() -> None:
    facts = laplace(classifier()).fit(class_batches()).report_.to_dict()
    del facts["chunks"]
    assert "in flight" not in str(FitReport.from_dict(facts))


# Whole fits on a network whose memory ends


class Heavy(nn.Module):
    """``classifier()`` that raises beyond so many rows of activations, as a device does."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.inner, self.most = classifier(), most
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        outputs: Tensor = self.inner(x)
        return outputs


def test_a_fit_goes_on_and_says_so() -> None:
    x, y = inputs(), labels()
    loader = [(x[:4], y[:4]), (x[4:16], y[4:16]), (x[16:], y[16:])]
    heavy, plain = Heavy(5), Heavy(1000)
    before = snapshot(heavy)
    la, expected = laplace(heavy).fit(loader), laplace(plain).fit(loader)
    assert_unchanged(heavy, before)
    assert la.report_.chunks["halvings"] >= 1
    assert "memory ran out" in str(la.report_)
    torch.testing.assert_close(la.samples_["inner.0.weight"], expected.samples_["inner.0.weight"], rtol=1e-3, atol=1e-5)


def test_live_peak_counts_what_is_alive() -> None:
    with LivePeak() as alive:
        a = torch.zeros(1000)
        b = a + 1
        del a
        c = b.view(10, 100)[:5] * 2  # a view costs nothing
        del b
        torch.zeros(250)
    assert alive.peak == 8000
    assert c.shape == (5, 100)
