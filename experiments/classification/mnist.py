"""A LeNet on MNIST, trained and fitted on the same images."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.classification.experiment import Experiment, Settings
from experiments.classification.runner import main
from experiments.common.images import Data, Images, Shift, corruptions, floats, rotations, some
from experiments.common.training import Swag
from sampla.apps.demo import data, networks
from sampla.apps.demo.training import RECIPES, train

ANGLES = (15, 30, 45, 60, 75, 90, 120, 150, 180)


def architecture() -> nn.Module:
    """LeNet; the mean and deviation of pixels come with its weights."""
    return networks.lenet(torch.rand(2, 1, 28, 28))


def load(root: Path, settings: Settings) -> Data:
    """MNIST, with Fashion-MNIST, notMNIST and Kuzushiji-MNIST as what is foreign to it."""
    source, seed = data.mnist(root), settings.seed
    train, test = (Images(part.images, part.labels) for part in (source.train, source.test))
    order = some(torch.arange(len(train)), settings.images + settings.held_out, seed)
    foreign = {
        "Fashion-MNIST": data.read_idx(root / "fashion_mnist" / "t10k-images-idx3-ubyte.gz"),
        "notMNIST": data.read_idx(root / "notmnist" / "t10k-images-idx3-ubyte.gz"),
        "KMNIST": np.load(root / "kmnist" / "kmnist-test-imgs-unlabelled.npz")["arr_0"],
    }
    return Data(
        train.rows(order[: settings.images]),
        train.rows(order[settings.images :]),
        test.rows(some(torch.arange(len(test)), settings.test, seed)),
        {n: some(floats(torch.from_numpy(a.copy())[:, None]), settings.foreign, seed) for n, a in foreign.items()},
    )


def trained(images: Data, settings: Settings, checkpoint: Path | None, member: int) -> tuple[nn.Module, dict[str, Any]]:  # noqa: ARG001
    """One member of the ensemble, trained as in ``sampla demo``; the first is the network itself."""
    seed = settings.seed + member
    torch.manual_seed(seed)
    network = networks.lenet(images.train.images)
    done = train(network, images.train, RECIPES["mnist"], seed, progress=False)
    return network, {
        "parameters": networks.count_parameters(network), "training loss": done.loss,
        "training accuracy": done.accuracy,
        "wall seconds of training, each member of the ensemble too": done.seconds,
    }  # fmt: skip


def shifts(settings: Settings) -> tuple[Shift, ...]:
    """Rotations, and Gaussian noise at five severities."""
    return (rotations(ANGLES), corruptions(settings.seed)[0])


EXPERIMENT = Experiment(
    name="mnist",
    title="MNIST, LeNet: sampla beside its peers",
    introduction=(
        "The network is trained on exactly the images that every posterior is fitted to, and each member of the "
        "ensemble too. The reference is sampla with an isotropic prior, more samples and a small tolerance: as far as "
        "sampla with that prior and the run's own K differs from it, sampling and solving are the cause."
    ),
    load=load, architecture=architecture, trained=trained, shifts=shifts, angles=True,
    methods=(
        "network", "temperature", "swag", "ensemble", "laplace-diag", "laplace-kron", "laplace-kron-layers",
        "laplace-last", "laplace-full", "laplace-ella", "sampla-isotropic", "sampla-g", "sampla-g-scaled",
        "sampla-isotropic-mode", "sampla-g-mode", "sampla-reference",
    ),
    full=Settings(
        images=58_000, held_out=2_000, test=10_000, shifted=10_000, foreign=10_000, samples=16, ensemble=5,
        reference_samples=32, ella_points=200, swag=Swag(epochs=5, learning_rate=0.01),
    ),
    quick=Settings(
        images=500, held_out=200, test=200, shifted=100, foreign=100, samples=8, ensemble=2,
        reference_samples=16, ella_points=50, ella_rank=20, swag=Swag(epochs=2, learning_rate=0.01),
    ),
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
