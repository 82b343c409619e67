"""(c) A ResNet-20 on a small part of CIFAR-10, the truth from its explicit kernel."""

import io
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import pad

from sampla.features import NetworkFeatures
from solver_cases.fits import Subject, fit, sampling_problem, two_digits
from solver_cases.part_mnist import run_table
from solver_cases.problem import SEED, Batches, Say, Truth
from solver_cases.settings import Settings
from solver_cases.store import Store

COLUMNS, FEWER = 16, 8
"""K of the problem, which is the library's default, and of a second fit with half as many."""
_BATCH = 50
_CHUNKS = 5
_IMAGES_IN_FILE = 100
_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Block(nn.Module):
    """relu(shortcut + bn2(conv2(relu(bn1(conv1(x)))))), the shortcut subsampled and padded with zero channels."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.stride, self.extra = stride, (outside - inside) // 2

    def forward(self, x: Tensor) -> Tensor:
        shortcut = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra, self.extra))
        return (shortcut + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()


class ResNet20(nn.Module):
    """He et al. 2016 for CIFAR, option-A shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        shapes = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)] + [(64, 64, 1)] * 2
        self.layers = nn.Sequential(*(Block(*shape) for shape in shapes))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return self.fc(self.layers(x).mean((2, 3)))


def run(settings: Settings, store: Store) -> None:
    """Fill the store with ``resnet/...``."""
    subject = load_subject(settings)
    found = store.once("resnet/fit", lambda: fit(subject, COLUMNS, settings.say)[1])
    settings.say(f"resnet: alpha {found['alpha']:.4g}, {found['passes']:.1f} passes, {found['seconds']:.0f} s")
    store.once(f"resnet/fit-{FEWER}", lambda: fit(subject, FEWER, settings.say)[1])
    alpha = two_digits(found["alpha"])

    def truth(features: NetworkFeatures, scale: Tensor, rhs: Tensor, alpha: float) -> Truth:  # noqa: ARG001
        return solved_by_kernel(subject, scale, rhs, alpha, settings.say)

    problem = sampling_problem(subject, alpha, COLUMNS, COLUMNS, settings.cache, truth, settings.say)
    store.once("resnet/problem", lambda: {"name": problem.name, "alpha": alpha, **problem.facts})
    run_table("resnet", problem, settings, store)


def load_subject(settings: Settings) -> Subject:
    """The checkpoint, and as many training images of every class."""
    assert settings.root is not None
    assert settings.checkpoints is not None
    network = ResNet20()
    network.load_state_dict(load_file(settings.checkpoints / "resnet20_cifar10.safetensors"))
    return Subject("resnet", network.eval(), cifar_batches(settings.root, settings.resnet_images))


def cifar_batches(root: Path, count: int) -> Batches:
    """The first images of every class, mixed, standardised as the network was trained."""
    images, labels = [], []
    for number in range(_CHUNKS):
        found = np.load(root / "cifar10" / f"train_{number}.npz")
        data, offsets = found["data"].tobytes(), found["offsets"]
        for label in np.unique(found["labels"]):
            first = int(np.argmax(found["labels"] == label))  # files are ordered by class, in strips of a hundred
            strip = first // _IMAGES_IN_FILE
            stacked = Image.open(io.BytesIO(data[offsets[strip] : offsets[strip + 1]])).convert("RGB")
            images.append(np.asarray(stacked).reshape(-1, 32, 32, 3))
            labels.append(found["labels"][strip * _IMAGES_IN_FILE : (strip + 1) * _IMAGES_IN_FILE])
    order = torch.randperm(_IMAGES_IN_FILE * len(images), generator=torch.Generator().manual_seed(SEED))[:count]
    pixels = torch.from_numpy(np.concatenate(images))[order].permute(0, 3, 1, 2).float() / 255
    inputs = (pixels - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_STD).view(3, 1, 1)
    targets = torch.from_numpy(np.concatenate(labels).astype(np.int64))[order]
    return list(zip(inputs.split(_BATCH), targets.split(_BATCH), strict=True))


def solved_by_kernel(subject: Subject, scale: Tensor, rhs: Tensor, alpha: float, say: Say) -> Truth:
    """z = (b - G' (alpha + G G')^-1 G b) / alpha with G = S' phi written out: N C is small beside P."""
    say("resnet: the Jacobian of all images in float64")
    features = NetworkFeatures(deepcopy(subject.network).double(), subject.features.layout.names)
    images = [image.double() for x, _ in subject.batches for image in x]
    each = len(_weighted(features, images[0]))
    g = rhs.new_empty(each * len(images), rhs.shape[1])
    for number, image in enumerate(images):
        g[each * number : each * (number + 1)] = _weighted(features, image) * scale.double()
    say(f"resnet: its kernel, {len(g)} x {len(g)}")
    kernel = g @ g.mT
    root = torch.linalg.cholesky(kernel + alpha * torch.eye(len(kernel), dtype=kernel.dtype))

    def solve(right: Tensor) -> Tensor:
        return (right - torch.cholesky_solve(g @ right.mT, root).mT @ g) / alpha

    value = solve(rhs)
    value = value + solve(rhs - (value @ g.mT) @ g - alpha * value)  # one step of refinement
    curvature_value = (value @ g.mT) @ g
    accuracy = float((curvature_value + alpha * value - rhs).norm() / rhs.norm())
    return Truth(value, curvature_value, accuracy, f"Cholesky of the kernel in float64, {len(g)} x {len(g)}")


def _weighted(features: NetworkFeatures, image: Tensor) -> Tensor:
    """(C, P) S' phi of one image, S S' = diag(p) - p p'."""
    at = features.linearise(image[None])
    classes = at.outputs.shape[1]
    p = at.outputs[0].softmax(-1)
    root = p.sqrt().diag() - p[:, None] * p.sqrt()[None, :]  # S
    return at.vjp(root.mT.reshape(classes, 1, classes))
