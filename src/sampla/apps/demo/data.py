"""The demo's images: the digits inside scikit-learn, or MNIST from its idx files; rotations and noise.

Everywhere an image set is (n, 1, side, side) float32 in [0, 1] and labels are (n,) int64 in 0..9.
"""

import gzip
import zlib
from dataclasses import dataclass
from math import cos, pi, prod, sin
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from sampla.core.checks import require

_DIGITS_TEST = 500
_MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_DAMAGED = "It is damaged or was cut short while copying: fetch it again."


@dataclass(frozen=True)
class ImageSet:
    """Images with their labels."""

    images: Tensor
    """(n, 1, side, side) float32 in [0, 1]."""
    labels: Tensor
    """(n,) int64."""

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        """The whole set, in order, as the list of (images, labels) batches that ``fit`` takes."""
        return list(zip(self.images.split(size), self.labels.split(size), strict=True))

    def first(self, count: int | None) -> "ImageSet":
        """The first ``count`` images, or all for None."""
        return ImageSet(self.images[:count], self.labels[:count])


@dataclass(frozen=True)
class DemoData:
    """What the network is trained on, and what it has not seen."""

    name: str
    train: ImageSet
    test: ImageSet


def digits(seed: int) -> DemoData:
    """The 1,797 digits of 8 x 8 pixels in scikit-learn: 1,297 to train on, 500 held out, split by the seed."""
    source = load_digits()
    images = torch.from_numpy(source.images / 16).float().unsqueeze(1)
    labels = torch.from_numpy(source.target).long()
    train, test = train_test_split(np.arange(len(labels)), test_size=_DIGITS_TEST, stratify=labels, random_state=seed)
    return DemoData("digits", ImageSet(images[train], labels[train]), ImageSet(images[test], labels[test]))


def mnist(root: Path) -> DemoData:
    """MNIST from its four idx files, 60,000 + 10,000 images of 28 x 28 pixels.

    Args:
        root: a folder that holds the files, or a folder ``mnist`` with the files; gzipped (.gz) or not.

    Raises:
        FileNotFoundError: if the folder or one of the files is missing.
        ValueError: if a file is damaged, or images and labels do not belong together.
    """
    paths = _mnist_paths(root)
    train, test = _labelled(paths[0], paths[1]), _labelled(paths[2], paths[3])
    return DemoData("mnist", train, test)


def _mnist_paths(root: Path) -> list[Path]:
    if not root.is_dir():
        raise FileNotFoundError(f"expected a folder that holds MNIST, found none at {root}.")
    folder = root / "mnist" if (root / "mnist").is_dir() else root
    found = []
    for name in _MNIST_FILES:
        candidates = [folder / f"{name}.gz", folder / name]
        present = [path for path in candidates if path.is_file()]
        if not present:
            raise FileNotFoundError(
                f"expected the idx file {name}.gz (or {name}) in {folder}, found none. "
                "Give --root the folder that holds mnist/ with the four files of MNIST."
            )
        found.append(present[0])
    return found


def _labelled(image_path: Path, label_path: Path) -> ImageSet:
    images, labels = read_idx(image_path), read_idx(label_path)
    require(images.ndim == 3, f"images of shape (n, height, width) in {image_path}", f"{images.shape}", _DAMAGED)
    require(labels.ndim == 1, f"labels of shape (n,) in {label_path}", f"{labels.shape}", _DAMAGED)
    require(
        len(images) == len(labels),
        f"as many labels in {label_path} as images in {image_path.name} ({len(images):,})",
        f"{len(labels):,}",
        "The two files do not belong together.",
    )
    require(
        images.shape[1:] == (28, 28) and bool((labels < 10).all()),
        f"images of 28 x 28 pixels with labels 0 to 9 in {image_path.parent}",
        f"{images.shape[1]} x {images.shape[2]} pixels and labels up to {labels.max()}",
        "The network of this demo is made for MNIST and sets of its format.",
    )
    pixels = torch.from_numpy(images.astype(np.float32) / 255).unsqueeze(1)
    return ImageSet(pixels, torch.from_numpy(labels.astype(np.int64)))


def read_idx(path: Path) -> np.ndarray:
    """A uint8 array from an idx file: two zero bytes, the type 8, the number of axes, big-endian sizes, the data.

    Args:
        path: plain, or gzipped if its name ends in .gz.

    Raises:
        ValueError: if it is not such a file, or shorter or longer than it says.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"could not read {path} ({error}). {_DAMAGED}") from error
    magic = raw[:4]
    require(
        len(magic) == 4 and magic[:3] == b"\0\0\x08" and magic[3] > 0,
        f"an idx file of unsigned bytes (magic number 0000080n) at {path}",
        f"magic number {magic.hex() or 'nothing'}",
        "Another kind of file has this name, or it is damaged.",
    )
    start = 4 + 4 * magic[3]
    require(len(raw) >= start, f"a header of {start} bytes in {path}", f"{len(raw)}", _DAMAGED)
    shape = tuple(int(n) for n in np.frombuffer(raw, ">u4", count=magic[3], offset=4))
    require(
        len(raw) == start + prod(shape) and prod(shape) > 0,
        f"{prod(shape):,} bytes of data for shape {shape} in {path}",
        f"{len(raw) - start:,}",
        _DAMAGED,
    )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def rotated(images: Tensor, degrees: float) -> Tensor:
    """The images turned anticlockwise about their middle, by bilinear interpolation with black outside."""
    angle = degrees * pi / 180
    turn = torch.tensor([[cos(angle), -sin(angle), 0.0], [sin(angle), cos(angle), 0.0]])
    grid = affine_grid(turn.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return grid_sample(images, grid, align_corners=False).clamp(0, 1)


def noisy(images: Tensor, std: float, seed: int) -> Tensor:
    """The images plus independent Gaussian noise of this standard deviation, clipped to [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return (images + std * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def pure_noise(images: Tensor, seed: int) -> Tensor:
    """As many images of the same shape in which every pixel is uniform on [0, 1]."""
    return torch.rand(images.shape, generator=torch.Generator().manual_seed(seed))
