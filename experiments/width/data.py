"""The data of the suite: subsets of digits, of images from files and of tables, with two shifts of the test inputs.

Image inputs are (n, channels, side, side) in [0, 1], those of tables (n, D), standardised; all float32.
"""

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from torch import Tensor
from torch.nn.functional import avg_pool2d

from experiments.common.corruptions import gaussian_noise, rotated
from experiments.common.images import CLEAN, cifar

NOISE, TURNED = "noise", "turned"
"""The two shifts: noise on the inputs; images turned, covariates of tables scaled."""
PIXEL_NOISE, TABLE_NOISE, DEGREES, SCALE = 0.2, 0.5, 30.0, 1.5
_SHIPPED = {"breast-cancer": load_breast_cancer, "wine": load_wine, "diabetes": load_diabetes}


@dataclass(frozen=True)
class Split:
    """What a network is trained on, and what it has not seen."""

    x: Tensor
    """(N, ...) training inputs."""
    y: Tensor
    """(N,) classes, or (N, 1) targets."""
    test_x: Tensor
    test_y: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """By name, for a file."""
        return {name: value.contiguous() for name, value in vars(self).items()}

    def test_sets(self) -> dict[str, Tensor]:
        """Name -> test inputs: as they are, and under two shifts."""
        images = self.test_x.dim() == 4
        noise = gaussian_noise(self.test_x.numpy(), PIXEL_NOISE if images else TABLE_NOISE, seed=0)
        noisy = torch.from_numpy(noise.clip(0, 1) if images else noise)
        turned = torch.from_numpy(rotated(self.test_x.numpy(), DEGREES)) if images else SCALE * self.test_x
        return {CLEAN: self.test_x, NOISE: noisy.float(), TURNED: turned.float()}


def digits(_: Path, count: int, seed: int = 0, noise: float = 0.0, classes: int = 10) -> Split:
    """Digits of 8 x 8 pixels; labels are taken modulo ``classes``, and a share of those to train on is replaced."""
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))
    x, y = images[order].reshape(-1, 1, 8, 8) / 16, labels[order]
    wrong = _mislabelled(y[:count], noise, rng)
    return _split(x[:count], wrong % classes, x[1000:], y[1000:] % classes)


def pictures(
    root: Path, name: str, count: int, seed: int = 0, noise: float = 0.0, test: int = 1000, side: int = 14
) -> Split:
    """Images of 28 x 28 of the test part of MNIST, Fashion-MNIST or notMNIST, averaged to 14 x 14 by default."""
    pixels, y = (_idx(root / name / f"t10k-{part}-ubyte.gz") for part in ("images-idx3", "labels-idx1"))
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(pixels))[: count + test]
    x = avg_pool2d(torch.tensor(pixels[order] / 255)[:, None], 28 // side).numpy()
    y = y[order].astype(np.int64)
    return _split(x[:count], _mislabelled(y[:count], noise, rng), x[count:], y[count:])


def colours(root: Path, name: str, count: int, seed: int = 0, test: int = 500, side: int = 32) -> Split:
    """Images of CIFAR-10 or CIFAR-100: some of those to train on, some of the test images, averaged to a side."""
    train, held = (cifar(root, name, part, count=n, seed=seed) for part, n in (("train", count), ("test", test)))
    x, test_x = (avg_pool2d(one.images, 32 // side) for one in (train, held))
    return Split(x, train.labels, test_x, held.labels)


def table(
    root: Path, name: str, count: int | None = None, bins: int = 0, seed: int = 0, bernoulli: bool = False
) -> Split:
    """Rows of a UCI set, the target standardised, or cut at quantiles into ``bins`` classes; at most 1,000 to test on.

    Args:
        root: holds uci/.
        name: of the set, or of one that scikit-learn ships.
        count: training rows; None: half, for regression at most 400.
        bins: classes; 0: the target itself.
        seed: of the choice of rows.
        bernoulli: whether two classes are one output.
    """
    if name in _SHIPPED:
        x, y = _SHIPPED[name](return_X_y=True)
        x = (x - x.mean(0)) / x.std(0)
    else:
        source = np.load(root / "uci" / f"{name}.npz")
        x, y = source["x"], source["y"]
        rows = source["split_00_train"].astype(np.int64)
        x = (x - x[rows].mean(0)) / (x[rows].std(0) + 1e-9)
    order = np.random.default_rng(seed).permutation(len(x))
    half = len(x) // 2
    count = (half if bins else min(400, half)) if count is None else count
    train, test = order[:count], order[count : count + 1000]
    if bins:
        y = np.digitize(y, np.quantile(y[train], np.linspace(0, 1, bins + 1)[1:-1]))
    elif y.dtype.kind == "f":
        y = (y - y[train].mean()) / y[train].std()
    targets = [
        y[rows][:, None].astype(np.float32) if bernoulli or y.dtype.kind == "f" else y[rows] for rows in (train, test)
    ]
    return _split(x[train], targets[0], x[test], targets[1])


def _split(x: np.ndarray, y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray) -> Split:
    tensors = [torch.tensor(np.ascontiguousarray(a)) for a in (x, y, test_x, test_y)]
    return Split(*(t.float() if t.is_floating_point() else t.long() for t in tensors))


def _mislabelled(labels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """About so many of ten classes replaced by one of the other nine."""
    labels = labels.copy()
    if share:
        wrong = rng.random(len(labels)) < share
        labels[wrong] = (labels[wrong] + rng.integers(1, 10, wrong.sum())) % 10
    return labels


def _idx(path: Path) -> np.ndarray:
    with gzip.open(path) as file:
        raw = file.read()
    head = 16 if "images" in path.name else 8
    values = np.frombuffer(raw, np.uint8, offset=head)
    return values.reshape(-1, 28, 28) if head == 16 else values


Source = Callable[..., Split]
"""A function of the root and its own settings."""
