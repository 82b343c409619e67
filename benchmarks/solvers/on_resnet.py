"""(c) A ResNet-20 on a small part of CIFAR-10, the truth from its explicit kernel."""

from copy import deepcopy

import numpy as np
import torch
from experiments.common.command import say
from experiments.common.images import cifar, cifar_labels
from experiments.common.networks import resnet20_checkpoint
from torch import Tensor

from benchmarks.solvers.fits import Subject, fit, sampling_problem
from benchmarks.solvers.on_mnist import run_table
from benchmarks.solvers.problem import SEED, Truth
from benchmarks.solvers.sizes import Run
from sampla.features import NetworkFeatures

COLUMNS, FEWER = 16, 8
"""K of the problem, which is the library's default, and of a second fit with half as many."""
_BATCH, _STRIP, _FILE = 50, 100, 10_000


def run(given: Run) -> None:
    """Fill the store with ``resnet/...``."""
    store, subject = given.store, load_subject(given)
    found = store.once("resnet/fit", lambda: fit(subject, COLUMNS)[1])
    say(f"resnet: alpha {found['alpha']:.4g}, {found['passes']:.1f} passes, {found['seconds']:.0f} s")
    store.once(f"resnet/fit-{FEWER}", lambda: fit(subject, FEWER)[1])
    run_table("resnet", sampling_problem(subject, found, COLUMNS, COLUMNS, store.cache, solved_by_kernel), store)


def load_subject(given: Run) -> Subject:
    """The checkpoint, and some of the first hundred images of every class in every file, mixed."""
    assert given.root is not None
    assert given.checkpoints is not None
    labels = cifar_labels(given.root, "cifar10", "train").reshape(-1, _FILE)
    first = [k * _FILE + int(np.argmax(file == label)) for k, file in enumerate(labels) for label in np.unique(file)]
    rows = torch.tensor([start // _STRIP * _STRIP + n for start in first for n in range(_STRIP)])
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(SEED))[: given.sizes.resnet]
    images = cifar(given.root, "cifar10", "train", rows[order])
    network = resnet20_checkpoint(given.checkpoints / "resnet20_cifar10.safetensors")
    return Subject("resnet", network, images.batches(_BATCH))


def solved_by_kernel(subject: Subject, scale: Tensor, rhs: Tensor, alpha: float) -> Truth:
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
