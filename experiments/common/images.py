"""Images and labels from files; everywhere images are (n, channels, side, side) float32 in [0, 1].

CIFAR comes as npz files of lossless WebP strips of a hundred images, ordered by class (experiments/README.md).
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from experiments.common.corruptions import CORRUPTIONS, SEVERITIES, corrupted, rotated
from sampla.apps.demo.data import mnist, read_idx

_STRIP = 100
"""Images in one strip."""
_FILES = 5
"""Files of CIFAR's training images."""
CLEAN = "clean"


@dataclass(frozen=True)
class Images:
    """Images with their labels."""

    inputs: Tensor
    """(n, channels, side, side) float32 in [0, 1]."""
    labels: Tensor
    """(n,) int64."""

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, chosen: Tensor | slice) -> "Images":
        """Some of them."""
        return Images(self.inputs[chosen], self.labels[chosen])

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        """A re-iterable loader, in order."""
        return list(zip(self.inputs.split(size), self.labels.split(size), strict=True))


@dataclass(frozen=True)
class Data:
    """Everything that an experiment is about, apart from the network."""

    train: Images
    """What the network (where the experiment trains it) and every posterior sees."""
    held_out: Images
    """For temperatures and grid searches; never scored."""
    test: Images
    foreign: dict[str, Tensor]
    """Name -> (m, channels, side, side): images of something else."""

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, for a file."""
        found = {}
        for name, images in (("train", self.train), ("held_out", self.held_out), ("test", self.test)):
            found |= {f"{name}/inputs": _bytes(images.inputs), f"{name}/labels": images.labels}
        return found | {f"foreign/{name}": _bytes(inputs) for name, inputs in self.foreign.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "Data":
        """The inverse of ``tensors``."""
        parts = {
            n: Images(_floats(tensors[f"{n}/inputs"]), tensors[f"{n}/labels"]) for n in ("train", "held_out", "test")
        }
        foreign = {n.removeprefix("foreign/"): _floats(t) for n, t in tensors.items() if n.startswith("foreign/")}
        return cls(**parts, foreign=foreign)


@dataclass(frozen=True)
class Shift:
    """One way of changing the test images, at rising strengths."""

    kind: str
    strengths: tuple[float, ...]
    unit: str
    """What stands after the strength, such as " degrees"."""
    change: Callable[[np.ndarray, float], np.ndarray]

    def name(self, strength: float) -> str:
        """Of one set."""
        return f"{self.kind} {strength:g}{self.unit}"


def rotations(degrees: tuple[float, ...]) -> Shift:
    """Turned by so many degrees."""
    return Shift("rotated by", degrees, " degrees", rotated)


def corruptions(seed: int) -> tuple[Shift, ...]:
    """All corruptions at five severities."""

    def change(kind: str) -> Callable[[np.ndarray, float], np.ndarray]:
        return lambda images, severity: corrupted(images, kind, int(severity), seed)

    return tuple(Shift(kind, SEVERITIES, "", change(kind)) for kind in CORRUPTIONS)


def test_sets(data: Data, shifts: tuple[Shift, ...], shifted: int) -> Iterator[tuple[str, Images]]:
    """The clean test images, then every shift of the first ``shifted`` of them."""
    yield CLEAN, data.test
    few = data.test.rows(slice(shifted))
    for shift in shifts:
        for strength in shift.strengths:
            changed = shift.change(few.inputs.numpy(), strength)
            yield shift.name(strength), Images(torch.from_numpy(np.ascontiguousarray(changed, np.float32)), few.labels)


test_sets.__test__ = False  # not a test, whatever pytest makes of its name


def mnist_data(root: Path, images: int, held_out: int, test: int, foreign: int, seed: int) -> Data:
    """MNIST, with Fashion-MNIST, notMNIST and Kuzushiji-MNIST as what is foreign to it.

    Args:
        root: folder that holds mnist/, fashion_mnist/, notmnist/ and kmnist/.
        images: training images.
        held_out: other training images.
        test: test images.
        foreign: images of each foreign set.
        seed: of the choice.
    """
    source = mnist(root)
    order = torch.randperm(len(source.train), generator=torch.Generator().manual_seed(seed))
    if images + held_out > len(order):
        raise ValueError(
            f"expected at most {len(order)} training and held-out images together, got {images + held_out}."
        )
    train = Images(source.train.images, source.train.labels)
    others = {
        "Fashion-MNIST": read_idx(root / "fashion_mnist" / "t10k-images-idx3-ubyte.gz"),
        "notMNIST": read_idx(root / "notmnist" / "t10k-images-idx3-ubyte.gz"),
        "KMNIST": np.load(root / "kmnist" / "kmnist-test-imgs-unlabelled.npz")["arr_0"],
    }
    chosen = {name: _some(_floats(torch.from_numpy(a.copy())[:, None]), foreign, seed) for name, a in others.items()}
    scored = _some(torch.arange(len(source.test)), test, seed)
    test_images = Images(source.test.images[scored], source.test.labels[scored])
    return Data(train.rows(order[:images]), train.rows(order[images : images + held_out]), test_images, chosen)


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
    sources = _cifar_files(root, name, part)
    labels = np.concatenate([source["labels"] for source in sources]).astype(np.int64)
    if chosen is None:
        chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:count]
    rows, found = chosen.numpy(), np.empty((len(chosen), 32, 32, 3), np.uint8)
    start = 0
    for source in sources:
        data, offsets, size = source["data"].tobytes(), source["offsets"], len(source["labels"])
        for strip in np.unique((rows[(rows >= start) & (rows < start + size)] - start) // _STRIP):
            picture = Image.open(io.BytesIO(data[offsets[strip] : offsets[strip + 1]])).convert("RGB")
            wanted = (rows - start) // _STRIP == strip
            found[wanted] = np.asarray(picture).reshape(-1, 32, 32, 3)[(rows[wanted] - start) % _STRIP]
        start += size
    pixels = _floats(torch.from_numpy(found).permute(0, 3, 1, 2).contiguous())
    return Images(pixels, torch.from_numpy(labels[rows]))


def cifar_labels(root: Path, name: str, part: str) -> np.ndarray:
    """(n,) the classes of a part; images are ordered by class within each file, in strips of a hundred."""
    return np.concatenate([source["labels"] for source in _cifar_files(root, name, part)]).astype(np.int64)


def _cifar_files(root: Path, name: str, part: str) -> list[Any]:
    files = ["test"] if part == "test" else [f"train_{k}" for k in range(_FILES)]
    return [np.load(root / name / f"{file}.npz") for file in files]


def split_cifar(
    root: Path,
    name: str,
    images: int,
    held_out: int,
    test: int,
    foreign: int,
    seed: int,
    held_out_of: str,
    held_out_from: int | None = None,
) -> Data:
    """A CIFAR set, the other one's test images foreign to it.

    Args:
        root: folder of the data.
        name: "cifar10" or "cifar100".
        images: training images.
        held_out: images for the temperature.
        test: test images.
        foreign: images of the other CIFAR.
        seed: of every choice.
        held_out_of: "train", or "test" where the network has been trained on every training image; never scored.
        held_out_from: where they begin in the order of their part; None: after the training or the test images.
    """
    sizes = {"train": 50_000, "test": 10_000}
    orders = {p: torch.randperm(n, generator=torch.Generator().manual_seed(seed)) for p, n in sizes.items()}
    start = held_out_from or (images if held_out_of == "train" else test)
    other = "cifar100" if name == "cifar10" else "cifar10"
    return Data(
        cifar(root, name, "train", orders["train"][:images]),
        cifar(root, name, held_out_of, orders[held_out_of][start : start + held_out]),
        cifar(root, name, "test", orders["test"][:test]),
        {other.replace("cifar", "CIFAR-"): cifar(root, other, "test", count=foreign, seed=seed).inputs},
    )


def _some(values: Tensor, count: int, seed: int) -> Tensor:
    return values[torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))[:count]]


def _bytes(pixels: Tensor) -> Tensor:
    """Every image file holds bytes, so nothing is lost."""
    return (pixels * 255).round().to(torch.uint8)


def _floats(pixels: Tensor) -> Tensor:
    return pixels.float() / 255
