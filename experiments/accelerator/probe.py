"""What the device does: a large matrix product, training steps and products of the network of CIFAR-100."""

from collections.abc import Callable
from typing import Any

import torch

from experiments.accelerator import classifiers
from experiments.accelerator.stage import DONE, FIT, TRAINING, Cost, Place, Stage
from experiments.common.devices import BF16, device_name, forward_flop, meter, peaks
from experiments.common.facts import GIB
from experiments.common.images import Images
from experiments.common.process import Case
from experiments.common.training import OneCycle, one_cycle
from sampla import NetworkFeatures
from sampla.features import select_parameters

_SIDE, _BATCH, _STEPS = 8192, 256, 20
_DATA, _VECTORS, _PRODUCTS = 128, 8, 3


def probe(case: Case) -> Case:
    """Rates for the estimates of what follows."""
    place = Place.of(case)
    side, batch, steps = (256, 8, 2) if place.tiny else (_SIDE, _BATCH, _STEPS)
    data, vectors = (4, 2) if place.tiny else (_DATA, _VECTORS)
    network = classifiers.experiment("cifar100", place.tiny).architecture().to(place.device)
    pixels = 8 if place.tiny else 32
    images = torch.rand(batch * steps, 3, pixels, pixels, device=place.device)
    flop = forward_flop(network, (1, 3, pixels, pixels))
    matrix = torch.randn(side, side, device=place.device, dtype=torch.bfloat16)
    multiply = 2 * side**3 / _timed(lambda: matrix @ matrix, place, 10)
    labels = torch.zeros(len(images), dtype=torch.int64, device=place.device)
    recipe = OneCycle(1, 0.01, batch, bfloat16=True, channels_last=True)
    train = _timed(lambda: one_cycle(network, Images(images, labels), recipe, 0), place, 1) / len(images)
    features = NetworkFeatures(network.eval(), select_parameters(network)[0])
    block = torch.randn(vectors, features.layout.total, device=place.device)
    inputs = images[:data]
    each = _timed(lambda: features.linearise(inputs).product(block, lambda _, v: v), place, _PRODUCTS)
    rates = {TRAINING: 3 * flop / train, FIT: 4 * flop * vectors * data / each}
    name = device_name(place.device)
    found: dict[str, Any] = {
        "device": name, "torch": torch.__version__, "cuda": torch.version.cuda, "peaks": peaks(name), "rates": rates,
        "matrix product": multiply, "forward": flop,
    }  # fmt: skip
    if place.device.startswith("cuda"):
        found["GiB"] = torch.cuda.get_device_properties(place.device).total_memory / GIB
    share = f" ({multiply / found['peaks'][BF16]:.0%} of the peak)" if found["peaks"] else ""
    told = ", ".join(f"{kind} {rate / 1e12:.3g}" for kind, rate in rates.items())
    return found | {DONE: f"{name}: bf16 matrices {multiply / 1e12:.3g} TFLOP/s{share}; {told} TFLOP/s"}


def _timed(function: Callable[[], object], place: Place, times: int) -> float:
    """Seconds of a call, after one to warm up."""
    clock = meter(place.device).seconds
    function()
    start = clock()
    for _ in range(times):
        function()
    return (clock() - start) / times


def _cost(place: Place) -> Cost:
    return {"seconds": 1.0 if place.tiny else 15.0}


STAGES = (Stage("probe", probe, _cost),)
