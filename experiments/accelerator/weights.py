"""Trained weights in files that are small enough to be brought back, and in one checkpoint again.

    python -m experiments.accelerator.weights DIR CHECKPOINTS

DIR holds the parts; writes CHECKPOINTS/resnet18_cifar100.safetensors, which experiments.classification.cifar100 reads.
Large tensors are kept in float16, and the network is rounded to that as soon as it is trained: what is brought back is
the very network that was scored.
"""

import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from experiments.classification.cifar100 import CHECKPOINT

_PARTS = "weights_{}.safetensors"
_LARGE = 10_000
"""Numbers from which on a tensor is rounded."""
_MOST = 12 * 2**20
"""Bytes of a part; a tensor is never cut."""


def rounded(network: nn.Module) -> None:
    """Every large tensor to the nearest float16, in place."""
    with torch.no_grad():
        for tensor in network.parameters():
            if tensor.numel() >= _LARGE:
                tensor.copy_(tensor.half())


def split(network: nn.Module, folder: Path, facts: dict[str, str]) -> list[Path]:
    """Write the parts."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in network.state_dict().items():
        kept = tensor.detach().cpu().contiguous()
        kept = kept.half() if kept.is_floating_point() and kept.numel() >= _LARGE else kept
        if size + kept.nbytes > _MOST and parts[-1]:
            parts.append({})
            size = 0
        parts[-1][name] = kept
        size += kept.nbytes
    paths = [folder / _PARTS.format(number) for number in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        save_file(part, path, facts)
    return paths


def joined(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All parts: the state of the network in float32, and the facts."""
    paths = sorted(folder.glob(_PARTS.format("*")))
    if not paths:
        raise FileNotFoundError(f"expected {_PARTS.format(0)} in {folder}, got no such file.")
    state = {name: t.float() if t.dtype == torch.float16 else t for p in paths for name, t in load_file(p).items()}
    with safe_open(paths[0], "pt") as file:
        return state, file.metadata() or {}


if __name__ == "__main__":
    state, facts = joined(Path(sys.argv[1]))
    Path(sys.argv[2]).mkdir(parents=True, exist_ok=True)
    save_file(state, Path(sys.argv[2]) / CHECKPOINT, facts)
