"""A LeNet on MNIST and a ResNet-20 on part of CIFAR-10: every solver at the alpha that EM finds, and whole fits."""

import warnings
from copy import deepcopy

import numpy as np
import torch
from experiments.common.command import say
from experiments.common.images import cifar, cifar_labels, some
from experiments.common.networks import cifar10_checkpoint
from experiments.common.store import Store
from torch import Tensor

from benchmarks.solvers.contestants import TABLE
from benchmarks.solvers.fits import Subject, fit, sampling_problem
from benchmarks.solvers.measure import measure
from benchmarks.solvers.paper import paper_schedule
from benchmarks.solvers.problem import SEED, Problem, Run, Truth, kept, surveyed
from sampla.apps.demo import data
from sampla.apps.demo.networks import network_for
from sampla.apps.demo.training import RECIPES, train
from sampla.features import NetworkFeatures, ScaledFeatures
from sampla.likelihoods import Categorical
from sampla.solvers import BlockCG, LinearSystem, RightHandSide, solve

CHECKPOINT = "resnet20_cifar10.safetensors"
_COLUMNS, _FEWER = 16, 8  # K of a fit, the library's default, and of a second one on the ResNet
_KNOWN = 16  # columns whose truth is found: enough to judge the error of 64 on
_BATCH, _RESNET_BATCH = 500, 50
_ACCURACY = 1e-10
_STRIP, _FILE = 100, 10_000  # images of a strip and of a file of CIFAR


def mnist(given: Run) -> None:
    """Fill the store with ``mnist/...``; whole fits against the paper's schedule too."""
    store, columns, subject = given.store, given.sizes.mnist[1], trained_lenet(given)
    found = store.once("mnist/fit", lambda: fit(subject, _COLUMNS))
    store.once(f"mnist/fit-{columns}", lambda: fit(subject, columns))
    _run_table(sampling_problem(subject, found, columns, _KNOWN, store.cache, solved_in_float64), "mnist", store)
    store.once("mnist/paper", lambda: paper_schedule(subject, found, given.sizes.paper))


def resnet(given: Run) -> None:
    """Fill the store with ``resnet/...``."""
    store, subject = given.store, loaded_resnet(given)
    found = store.once("resnet/fit", lambda: fit(subject, _COLUMNS))
    store.once(f"resnet/fit-{_FEWER}", lambda: fit(subject, _FEWER))
    _run_table(sampling_problem(subject, found, _COLUMNS, _COLUMNS, store.cache, solved_by_kernel), "resnet", store)


def _run_table(problem: Problem, part: str, store: Store) -> None:
    """Every contestant of this part; each is kept as soon as it is done."""
    store.once(f"{part}/problem", lambda: {"name": problem.name, "alpha": problem.alpha, **problem.facts})
    for entry in (entry for entry in TABLE if part in entry.parts):
        store.once(f"{part}/rows/{entry.name}", lambda e=entry: measure(e, problem, say))


def trained_lenet(given: Run) -> Subject:
    """Trained on the images that the posterior is about, or kept from an earlier run."""
    count = given.sizes.mnist[0]
    images = data.mnist(given.root).train.first(count)
    network = network_for("mnist", images.images, SEED)

    def trained() -> dict[str, Tensor]:
        train(network, images, RECIPES["mnist"], SEED, progress=False)
        return network.state_dict()

    network.load_state_dict(kept(given.store.cache / f"lenet-{count}.safetensors", trained))
    return Subject("mnist", network.eval(), images.batches(_BATCH))


def loaded_resnet(given: Run) -> Subject:
    """The checkpoint, and some of the first hundred images of every class in every file, mixed."""
    labels = cifar_labels(given.root, "cifar10", "train").reshape(-1, _FILE)
    first = [k * _FILE + int(np.argmax(file == label)) for k, file in enumerate(labels) for label in np.unique(file)]
    rows = torch.tensor([start // _STRIP * _STRIP + n for start in first for n in range(_STRIP)])
    images = cifar(given.root, "cifar10", "train", some(rows, given.sizes.resnet, SEED))
    return Subject("resnet", cifar10_checkpoint(given.checkpoints / CHECKPOINT), images.batches(_RESNET_BATCH))


def solved_in_float64(subject: Subject, scale: Tensor, rhs: Tensor, alpha: float) -> Truth:
    """Block CG on all columns at once, the network in float64; the residual is computed anew at the end."""
    exact = Subject(subject.name, deepcopy(subject.network).double(), [(x.double(), y) for x, y in subject.batches])
    model = surveyed(ScaledFeatures(exact.features, scale.double()), Categorical(), exact.batches)
    precision = torch.full_like(rhs[0], alpha)
    system = LinearSystem(model, precision, torch.ones_like(precision))  # the g-prior makes diag M one
    target = RightHandSide(rhs, torch.zeros_like(rhs), len(rhs), SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what matters is the residual, which is told
        found = solve(
            BlockCG(), system, target, tolerance=_ACCURACY, max_passes=120, say=lambda text: say(f"truth: {text}")
        )
    curvature_value = model.curvature_product(found.value)
    residual = rhs - curvature_value - alpha * found.value
    words = f"block CG in float64, K = {len(rhs)}, {found.passes} passes, stated error {found.error:.0e}"
    return Truth(found.value, curvature_value, float(residual.norm() / rhs.norm()), words)


def solved_by_kernel(subject: Subject, scale: Tensor, rhs: Tensor, alpha: float) -> Truth:
    """z = (b - G' (alpha + G G')^-1 G b) / alpha with G = S' phi written out: N C is small beside P."""
    say("resnet: the Jacobian of all images in float64, and its kernel")
    features = NetworkFeatures(deepcopy(subject.network).double(), subject.features.layout.names)
    images = [image.double() for x, _ in subject.batches for image in x]
    each = len(_weighted(features, images[0]))
    g = rhs.new_empty(each * len(images), rhs.shape[1])
    for number, image in enumerate(images):
        g[each * number : each * (number + 1)] = _weighted(features, image) * scale.double()
    kernel = g @ g.mT
    root = torch.linalg.cholesky(kernel + alpha * torch.eye(len(kernel), dtype=kernel.dtype))

    def solved(right: Tensor) -> Tensor:
        return (right - torch.cholesky_solve(g @ right.mT, root).mT @ g) / alpha

    value = solved(rhs)
    value = value + solved(rhs - (value @ g.mT) @ g - alpha * value)  # one step of refinement
    curvature_value = (value @ g.mT) @ g
    accuracy = float((curvature_value + alpha * value - rhs).norm() / rhs.norm())
    return Truth(value, curvature_value, accuracy, f"Cholesky of the kernel in float64, {len(g)} x {len(g)}")


def _weighted(features: NetworkFeatures, image: Tensor) -> Tensor:
    """(C, P) S' phi of one image, S S' = diag(p) - p p'."""
    at = features.linearise(image[None])
    p = at.outputs[0].softmax(-1)
    root = p.sqrt().diag() - p[:, None] * p.sqrt()[None, :]  # S
    return at.vjp(root.mT[:, None])
