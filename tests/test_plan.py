"""The plan of memory: counted against what a fit really holds, and its words."""

import dataclasses
import re
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import sampla
from helpers import assert_unchanged, class_batches, classifier, laplace, normalised, snapshot
from sampla.core import blocks
from sampla.core.data import Batch
from sampla.core.memory import LivePeak, free_bytes
from sampla.inference import memory_plan
from sampla.inference.memory_plan import MemoryPlan, Nearby, Part
from sampla.inference.tuning import ChunkMemory, chunk_memory

GIB = 2**30


def wide(kind: str, outputs: int = 5, width: int = 100) -> tuple[nn.Module, list[Any]]:
    """A network whose vectors of parameters outweigh everything else, and 16 data with a decaying spectrum."""
    torch.manual_seed(0)
    x = torch.randn(16, width) * torch.logspace(0, -2, 16)[:, None]
    y = torch.randn(16, outputs) if kind == "gaussian" else torch.randint(0, outputs, (16,))
    network = nn.Sequential(nn.Linear(width, width // 2), nn.Tanh(), nn.Linear(width // 2, outputs)).eval()
    return network, [(x[:8], y[:8]), (x[8:], y[8:])]


@pytest.mark.parametrize(
    ("kind", "samples", "options"),
    [
        ("gaussian", 4, {"log_evidence": False}),
        ("gaussian", 16, {"log_evidence": False}),
        ("categorical", 12, {"log_evidence": False}),
        ("categorical", 12, {"log_evidence": False, "prior": "layerwise"}),
        ("categorical", 12, {"log_evidence": False, "curvature_at": "linear-mode"}),
        ("categorical", 12, {"prior": "layerwise"}),
        ("gaussian", 12, {"prior": "layerwise"}),
    ],
)
def test_the_plan_is_what_a_fit_holds(
    kind: str, samples: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With scratch as small beside vectors as it is for millions of parameters."""
    for module in (blocks, memory_plan):
        monkeypatch.setattr(module, "CHUNK", 2**13)
    network, loader = wide(kind)
    la = sampla.LinearisedLaplace(
        network, kind, num_samples=samples, chunks=(8, 16), max_passes=6, progress=False,
        em=sampla.EM(max_rows=32, max_steps=4), **options,
    )  # fmt: skip
    plan = la.plan(loader)
    with warnings.catch_warnings(), LivePeak() as alive:
        warnings.simplefilter("ignore", sampla.ConvergenceWarning)
        la.fit(loader)
    print(kind, samples, options, plan.total / alive.peak)
    assert 0.85 < plan.total / alive.peak < 1.3, (plan.total, alive.peak)


def test_a_product_is_measured() -> None:
    network, loader = wide("categorical")
    names = [name for name, _ in network.named_parameters()]
    features = sampla.NetworkFeatures(network, names)
    inputs, targets = loader[0]
    found = chunk_memory(features, Batch(inputs, targets, 0, len(inputs)))
    for rows, columns in ((1, 1), (8, 2), (4, 8), (8, 16)):
        vectors = torch.randn(columns, features.layout.total)
        with LivePeak() as alive:
            here = features.linearise(inputs[:rows])
            here.product(vectors, lambda _, pushed: pushed)
        assert found(rows, columns) == pytest.approx(alive.peak, rel=0.25)


def test_memory_does_not_grow_with_the_data_and_little_with_the_outputs() -> None:
    network, loader = wide("categorical")
    one = laplace(network).plan(loader)
    many = laplace(network).plan(loader * 5)
    assert (one.num_data, many.num_data) == (16, 80)
    assert many.total == one.total
    assert many.free is None or many.free > 0


def test_planning_leaves_the_network_alone_and_counts_what_is_chosen() -> None:
    model = normalised()
    before = snapshot(model)
    plan = laplace(model, num_samples=4, solver="block-cg").plan(class_batches())
    assert_unchanged(model, before)
    chosen = laplace(model, parameters=["4.*"], num_samples=4, solver="block-cg").plan(class_batches())
    assert chosen.num_parameters < plan.num_parameters
    assert chosen.total < plan.total
    assert (plan.num_data, plan.num_outputs, plan.num_samples, plan.dtype) == (24, 3, 4, torch.float32)


def test_more_samples_need_more() -> None:
    network, loader = wide("gaussian")
    few, many = (
        sampla.LinearisedLaplace(network, "gaussian", num_samples=k, progress=False).plan(loader) for k in (4, 64)
    )
    assert many.vectors > 5 * few.vectors


def a_plan(**changes: Any) -> MemoryPlan:
    """P = 2**28, so that a vector is one GiB."""
    plan = MemoryPlan(
        1000, 10, 2**28, 8, torch.float32, torch.device("cpu"), (Part("noise", 8), Part("space", 40)), 40, 256,
        32, 8, ChunkMemory(0, GIB / 16, 0, 0), 0, 60 * GIB,
    )  # fmt: skip
    return dataclasses.replace(plan, **changes)


def test_the_arithmetic() -> None:
    plan = a_plan()
    assert (plan.vector, plan.vectors, plan.chunk_bytes) == (GIB, 48, 2 * GIB)
    assert (plan.total, plan.at_most) == (50 * GIB, (50 + 216) * GIB)
    assert a_plan(dtype=torch.float64).vector == 2 * GIB
    assert a_plan(processes=4).at_most == (50 + 54) * GIB  # a row more of the space is a quarter of one on each


GPU = torch.device("cuda:0")


def test_whether_it_fits_on_two_devices() -> None:
    assert a_plan().fits
    assert a_plan(free=None).fits is None
    for nearby, fits in ((Nearby(GPU, 17, 19 * GIB), True), (Nearby(GPU, 17, 18 * GIB), False)):
        assert a_plan(nearby=nearby).fits is fits
        assert a_plan(nearby=nearby, free=40 * GIB).fits is False
    assert a_plan(nearby=Nearby(GPU, 17, None)).fits is None


HELD = {"device": GPU, "data_bytes": 3 * GIB, "data_stay": True}
SAID = [
    ({}, r"a fit of 268,435,456 parameters \(P\) to 1,000 data \(N\) of 10 outputs \(C\), with 8 samples \(K\)"),
    ({}, r"one vector   of P in float32 on cpu: 1 GiB"),
    ({}, r"      8 of    noise: 8 GiB"),
    ({}, r"a product    of 32 data x 8 vectors: 2 GiB, measured; Gram"),
    ({}, r"at the peak  50 GiB; 266 GiB if EM's Krylov space needs all of its 256 vectors"),
    ({}, r"so           it fits as a rule; em=EM\(max_rows=50\) makes sure"),
    ({"free": 500 * GIB}, r"so           it fits$"),
    ({"free": None}, r"free         not known here"),
    ({"free": 40 * GIB}, r"it does NOT fit: lower EM\(max_rows=...\), or fewer parameters"),
    ({"free": 40 * GIB, "krylov_rows": 0}, r"it does NOT fit: lower num_samples"),
    ({"free": GIB, "chunk": ChunkMemory(0, 9 * GIB, 0, 0)}, r"it does NOT fit: pass chunks=\(8, 4\)"),
    ({"device": GPU}, r"it fits as a rule"),
    ({"device": GPU, "free": 40 * GIB}, r"NOT fit: lower EM"),
    ({"device": GPU, "free": 40 * GIB, "movable": True}, r"NOT fit: vectors_on='cpu', lower EM"),
    ({"nearby": Nearby(GPU, 17, None), "free": 500 * GIB}, r"compare the peak"),
    ({"nearby": Nearby(GPU, 17, 99 * GIB), "free": GIB, "chunk": ChunkMemory(0, GIB, 0, 0)}, r"NOT fit: lower EM"),
    ({"nearby": Nearby(GPU, 17, 30 * GIB)}, r"on cuda:0    17 vectors of P .* product: 19 GiB; free: 30 GiB"),
    ({"nearby": Nearby(GPU, 17, 30 * GIB)}, r"at the peak  48 GiB"),
    ({"nearby": Nearby(GPU, 17, 10 * GIB)}, r"it does NOT fit on cuda:0: lower num_samples"),
    ({"nearby": Nearby(GPU, 1, 2 * GIB)}, r"it does NOT fit on cuda:0: pass chunks=\(8, 4\)"),
    ({"most_rows": 40}, r"at the peak  50 GiB$"),
    (HELD, r"data         3 GiB, kept on cuda:0 after the second reading"),
    (HELD, r"at the peak  53 GiB"),
    (HELD | {"nearby": Nearby(GPU, 17, 30 * GIB)}, r"on cuda:0    17 vectors of P .* product: 22 GiB; free: 30 GiB"),
    (HELD | {"nearby": Nearby(GPU, 17, 30 * GIB)}, r"at the peak  48 GiB"),
    (
        HELD | {"data_stay": False},
        r"data         3 GiB, more than an eighth of what is free on cuda:0: every pass reads",
    ),
    (HELD | {"data_stay": False}, r"at the peak  50 GiB"),
]


@pytest.mark.parametrize(("changes", "said"), SAID)
def test_the_words(changes: dict[str, Any], said: str) -> None:
    words = str(a_plan(**changes))
    assert re.search(said, words, re.MULTILINE), words
    assert all(len(line) < 120 for line in words.splitlines())


def test_every_solver_and_prior_can_be_planned() -> None:
    for solver in ("dense", "block-cg", "minibatch", "dual", "sgd"):
        for prior in ("g-prior", "layerwise"):
            plan = laplace(classifier(), solver=solver, prior=prior).plan(class_batches())
            assert plan.total > plan.num_samples * plan.vector


def test_the_data_are_counted() -> None:
    loader = class_batches()
    plan = laplace(classifier()).plan(loader)
    assert plan.data_bytes == sum(x.nbytes + y.nbytes for x, y in loader)
    assert not plan.data_stay
    assert not re.search("^data ", str(plan), re.MULTILINE)  # on the CPU there is nothing to say


def test_what_torch_has_freed_on_a_gpu_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (5 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 60 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 20 * GIB)
    assert free_bytes(GPU) == 45 * GIB


def test_free_memory_and_sizes() -> None:
    free = free_bytes(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50
    assert memory_plan._size(1536) == "1.5 KiB"
    assert memory_plan._size(10) == "10 bytes"
