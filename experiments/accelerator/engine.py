"""The rows of benchmarks/engine on this device: products with M for a vector, beside one forward and backward."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from benchmarks.engine.__main__ import in_two, ordinary, product, published
from benchmarks.engine.networks import NETWORKS
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiments.accelerator.stage import DONE, Cost, Place, Stage
from experiments.common.command import say
from experiments.common.devices import BF16, FP32, TF32, device_name, forward_flop, peaks
from experiments.common.facts import GIB
from experiments.common.process import Case
from experiments.common.timing import interleaved
from sampla import NetworkFeatures
from sampla.core.allocator import freed_memory_kept
from sampla.features import select_parameters

MANY = {"LeNet": 32, "ResNet-18": 16, "ViT-S/16": 16, "U-Net": 4}
"""How many times the batch of benchmarks/engine, so that a card has enough to do."""
BASE, WAYS = "forward + backward", ("one forward", "two", "published")
_SAMPLES, _SECONDS, _ROWS = 8, 1.5, 8


def engine(case: Case) -> Case:
    """A row for each network and precision."""
    place = Place.of(case)
    name = device_name(place.device)
    torch.backends.mha.set_fastpath_enabled(False)  # it has no derivatives
    found: list[Case] = []
    with freed_memory_kept(), sdpa_kernel(SDPBackend.MATH):  # flash attention has no forward derivative
        for which in ("LeNet",) if place.tiny else NETWORKS:
            for precision in (FP32,) if place.device == "cpu" else (FP32, TF32):
                found.append(measured(which, precision, place, peaks(name)))
                say(told(found[-1]))
    return {"rows": found, DONE: "; ".join(told(row) for row in found if row["network"] == found[-1]["network"])}


def measured(which: str, precision: str, place: Place, known: dict[str, float]) -> Case:
    """Seconds of a forward and backward, in this precision and under bfloat16, and of a product for a vector."""
    network, inputs = NETWORKS[which]()
    flop = forward_flop(network, (1, *inputs.shape[1:]))
    network, inputs = network.to(place.device), inputs.to(place.device)
    inputs = inputs[:4] if place.tiny else inputs.repeat(MANY[which] if place.device != "cpu" else 1, 1, 1, 1)
    features = NetworkFeatures(network, select_parameters(network)[0])
    count = 2 if place.tiny else _SAMPLES
    vectors = torch.randn(count, features.layout.total, generator=torch.Generator().manual_seed(1)).to(place.device)
    runs: dict[str, Callable[[], Any]] = {
        BASE: partial(ordinary, network, inputs), "under bfloat16": partial(_reduced, network, inputs, place.device),
        WAYS[0]: partial(product, features, inputs, vectors), WAYS[1]: partial(in_two, features, inputs, vectors),
        WAYS[2]: partial(published, features, network, inputs, vectors),
    }  # fmt: skip
    cuda = place.device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats(place.device)
    with _precision(precision):
        took = interleaved(
            {key: partial(_ended, run, cuda) for key, run in runs.items()}, 0.2 if place.tiny else _SECONDS
        )
    best = min(took[way] for way in WAYS[:2]) / count
    rate = 4 * flop * len(inputs) / best
    row: Case = {"network": which, "precision": precision, "data": len(inputs), "samples": count, BASE: took[BASE]}
    row |= {"parameters": features.layout.total, "under bfloat16": took["under bfloat16"]}
    row |= {way: took[way] / count for way in WAYS} | {
        "rate": rate,
        "share": rate / known[precision] if known else None,
    }
    row["training share"] = 3 * flop * len(inputs) / took["under bfloat16"] / known[BF16] if known else None
    return row | {"GiB": torch.cuda.max_memory_allocated(place.device) / GIB if cuda else None}


def told(row: Case) -> str:
    """A row in words."""
    best = min(row[way] for way in WAYS[:2])
    over, share = best / row[BASE], f", {row['share']:.0%} of the peak" if row["share"] is not None else ""
    return (
        f"{row['network']} in {row['precision']}: {1e3 * best:.2f} ms a vector, {over:.2f} forward + backward, "
        f"{row['rate'] / 1e12:.3g} TFLOP/s{share}"
    )


def _reduced(network: torch.nn.Module, inputs: torch.Tensor, device: str) -> None:
    network.zero_grad()
    with torch.autocast(device.split(":")[0], torch.bfloat16):
        outputs = network(inputs)
    outputs.float().square().sum().backward()


def _ended(run: Callable[[], Any], cuda: bool) -> None:
    run()
    if cuda:
        torch.cuda.synchronize()


@contextmanager
def _precision(precision: str) -> Iterator[None]:
    """Whether matrices and convolutions of float32 may be multiplied in TF32."""
    matrices, convolutions = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == TF32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matrices, convolutions


def _cost(place: Place) -> Cost:
    return {"seconds": 2.0 if place.tiny else _ROWS * (3 * _SECONDS + 3)}


STAGES = (Stage("engine", engine, _cost),)
