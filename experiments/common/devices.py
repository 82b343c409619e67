"""What a device is and does: its name and peaks, time and memory on it, the operations of a network."""

import platform
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from time import perf_counter, process_time

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from experiments.common.facts import peak_memory

BF16, TF32, FP32 = "bf16", "TF32", "float32"
PEAKS = {
    "H100": {BF16: 989e12, TF32: 495e12, FP32: 67e12}, "H200": {BF16: 989e12, TF32: 495e12, FP32: 67e12},
    "A100": {BF16: 312e12, TF32: 156e12, FP32: 19.5e12},
}  # fmt: skip
"""Part of a card's name -> dense FLOP/s by the vendor's data sheet (of the SXM part)."""


@dataclass(frozen=True)
class Meter:
    """How time and memory of a fit are measured; by default those of this process on a CPU."""

    seconds: Callable[[], float] = process_time
    peak: Callable[[], int] = peak_memory


def meter(device: str) -> Meter:
    """Wall seconds once the device has done all that it was given, and the most bytes that torch held on it."""
    if not device.startswith("cuda"):
        return Meter(perf_counter)

    def seconds() -> float:
        torch.cuda.synchronize(device)
        return perf_counter()

    return Meter(seconds, lambda: torch.cuda.max_memory_allocated(device))


def device_of(network: nn.Module) -> torch.device:
    """Where its parameters are; of one without any, the CPU."""
    return next((p.device for p in network.parameters()), torch.device("cpu"))


def device_name(device: str) -> str:
    """Of a card, or of the processor."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()


def peaks(name: str) -> dict[str, float]:
    """FLOP/s by precision; empty for a device that the table does not know."""
    return next((found for part, found in PEAKS.items() if part in name), {})


def forward_flop(network: nn.Module, shape: tuple[int, ...]) -> float:
    """Floating-point operations of a forward on inputs of this shape (two for each multiplication with addition)."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        deepcopy(network).to("meta").eval()(torch.empty(shape, device="meta"))
    return float(counter.get_total_flops())
