"""Images and labels from files; everywhere images are (n, channels, side, side) float32 in [0, 1].

CIFAR comes as npz files of lossless WebP strips of a hundred images, ordered by class (experiments/README.md).
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from experiments.common.corruptions import CORRUPTIONS, SEVERITIES, corrupted, rotated, turned
from sampla.apps.demo.data import ImageSet

_STRIP, _FILES = 100, 5
"""Images in one strip; files of CIFAR's training images."""
CLEAN = "clean"
_PARTS = ("train", "held_out", "test")


class Images(ImageSet):
    """Images (n, channels, side, side) with their labels (n,)."""

    def rows(self, chosen: Tensor | slice) -> "Images":
        """Some of them."""
        return Images(self.images[chosen], self.labels[chosen])


@dataclass(frozen=True)
class Data:
    """Everything that an experiment is about, apart from the network.

    Posteriors, and the network where the experiment trains it, see ``train``; ``held_out`` is for temperatures and
    grid searches and never scored; ``foreign`` are images (m, channels, side, side) of something else, by name.
    """

    train: Images
    held_out: Images
    test: Images
    foreign: dict[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, for a file."""
        found = {f"foreign/{name}": _bytes(inputs) for name, inputs in self.foreign.items()}
        for name in _PARTS:
            images: Images = getattr(self, name)
            found |= {f"{name}/inputs": _bytes(images.images), f"{name}/labels": images.labels}
        return found

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "Data":
        """The inverse of ``tensors``."""
        parts = [Images(floats(tensors[f"{n}/inputs"]), tensors[f"{n}/labels"]) for n in _PARTS]
        foreign = {n.removeprefix("foreign/"): floats(t) for n, t in tensors.items() if n.startswith("foreign/")}
        return cls(*parts, foreign)


@dataclass(frozen=True)
class Shift:
    """One way of changing the test images, at rising strengths; ``unit`` stands after them, such as " degrees"."""

    kind: str
    strengths: tuple[float, ...]
    unit: str
    change: Callable[[np.ndarray, float], np.ndarray]

    def name(self, strength: float) -> str:
        """Of one set."""
        return f"{self.kind} {strength:g}{self.unit}"

    @property
    def names(self) -> list[str]:
        """Of all its sets."""
        return [self.name(strength) for strength in self.strengths]


def rotations(degrees: tuple[float, ...]) -> Shift:
    """Turned by so many degrees."""
    return Shift("rotated by", degrees, " degrees", rotated)


def turns(degrees: tuple[float, ...], fill: tuple[float, ...], seed: int) -> Shift:
    """Each image turned by a random angle of at most so many degrees, either way."""
    return Shift("turned by up to", degrees, " degrees", partial(turned, fill=fill, seed=seed))


def corruptions(seed: int) -> tuple[Shift, ...]:
    """All corruptions at five severities."""
    return tuple(Shift(kind, SEVERITIES, "", partial(corrupted, kind=kind, seed=seed)) for kind in CORRUPTIONS)


def scored_sets(data: Data, shifts: tuple[Shift, ...], shifted: int) -> Iterator[tuple[str, Images]]:
    """The clean test images, then every shift of the first ``shifted`` of them."""
    yield CLEAN, data.test
    few = data.test.rows(slice(shifted))
    for shift in shifts:
        for strength in shift.strengths:
            changed = shift.change(few.images.numpy(), strength)
            yield shift.name(strength), Images(torch.from_numpy(np.ascontiguousarray(changed, np.float32)), few.labels)


def cifar(root: Path, name: str, part: str, chosen: Tensor | None = None, count: int = 0, seed: int = 0) -> Images:
    """Images of CIFAR-10 or CIFAR-100, decoding only the strips that hold them.

    Args:
        root: folder that holds cifar10/ and cifar100/.
        name: "cifar10" or "cifar100".
        part: "train" or "test".
        chosen: positions; None: ``count`` of them at random.
        count: how many, if they are not given.
        seed: of their choice.
    """
    sources, labels = _cifar_files(root, name, part), cifar_labels(root, name, part)
    if chosen is None:
        chosen = some(torch.arange(len(labels)), count, seed)
    rows, found = chosen.numpy(), np.empty((len(chosen), 32, 32, 3), np.uint8)
    start = 0
    for source in sources:
        data, offsets, size = source["data"].tobytes(), source["offsets"], len(source["labels"])
        for strip in np.unique((rows[(rows >= start) & (rows < start + size)] - start) // _STRIP):
            picture = Image.open(io.BytesIO(data[offsets[strip] : offsets[strip + 1]])).convert("RGB")
            wanted = (rows - start) // _STRIP == strip
            found[wanted] = np.asarray(picture).reshape(-1, 32, 32, 3)[(rows[wanted] - start) % _STRIP]
        start += size
    pixels = floats(torch.from_numpy(found).permute(0, 3, 1, 2).contiguous())
    return Images(pixels, torch.from_numpy(labels[rows]))


def cifar_labels(root: Path, name: str, part: str) -> np.ndarray:
    """(n,) the classes of a part; images are ordered by class within each file, in strips of a hundred."""
    return np.concatenate([source["labels"] for source in _cifar_files(root, name, part)]).astype(np.int64)


def _cifar_files(root: Path, name: str, part: str) -> list[Any]:
    files = ["test"] if part == "test" else [f"train_{k}" for k in range(_FILES)]
    return [np.load(root / name / f"{file}.npz") for file in files]


def some(values: Tensor, count: int, seed: int) -> Tensor:
    """So many of them, chosen at random."""
    if count > len(values):
        raise ValueError(f"expected at most {len(values):,} images to choose, got {count:,}.")
    return values[torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))[:count]]


def _bytes(pixels: Tensor) -> Tensor:
    """Every image file holds bytes, so nothing is lost."""
    return (pixels * 255).round().to(torch.uint8)


def floats(pixels: Tensor) -> Tensor:
    """In [0, 1], from bytes."""
    return pixels.float() / 255
