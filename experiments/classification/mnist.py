"""A LeNet on MNIST, trained and fitted on the same images."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.classification.experiment import Experiment, Settings
from experiments.classification.runner import main
from experiments.common.images import Data, Shift, corruptions, mnist_data, rotations
from experiments.common.training import Swag
from sampla.apps.demo.data import ImageSet
from sampla.apps.demo.networks import count_parameters, lenet
from sampla.apps.demo.training import RECIPES, train

ANGLES = (15, 30, 45, 60, 75, 90, 120, 150, 180)
SWAG = Swag(epochs=5, learning_rate=0.01)
FULL = Settings(
    images=2_000, held_out=500, test=2_000, shifted=500, foreign=500, samples=16, swag=SWAG, ensemble=5,
    reference_samples=32, ella_points=200,
)  # fmt: skip
QUICK = Settings(
    images=500, held_out=200, test=200, shifted=100, foreign=100, samples=8, swag=Swag(epochs=2, learning_rate=0.01),
    ensemble=2, reference_samples=16, ella_points=50, ella_rank=20,
)  # fmt: skip


def architecture() -> nn.Module:
    """LeNet; the mean and deviation of pixels come with its weights."""
    return lenet(torch.rand(2, 1, 28, 28))


def load(root: Path, settings: Settings) -> Data:
    """MNIST and three sets foreign to it."""
    return mnist_data(root, settings.images, settings.held_out, settings.test, settings.foreign, settings.seed)


def trained(data: Data, settings: Settings, checkpoint: Path | None, member: int) -> tuple[nn.Module, dict[str, Any]]:  # noqa: ARG001
    """One member of the ensemble, trained as in ``sampla demo``; the first is the network itself."""
    seed = settings.seed + member
    torch.manual_seed(seed)
    network = lenet(data.train.inputs)
    done = train(network, ImageSet(data.train.inputs, data.train.labels), RECIPES["mnist"], seed, progress=False)
    facts = {
        "parameters": count_parameters(network), "training loss": done.loss, "training accuracy": done.accuracy,
        "wall seconds of training, each member of the ensemble too": done.seconds,
    }  # fmt: skip
    return network, facts


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
    load=load,
    architecture=architecture,
    trained=trained,
    shifts=shifts,
    methods=(
        "network", "temperature", "swag", "ensemble", "laplace-diag", "laplace-kron", "laplace-kron-layers",
        "laplace-last", "laplace-full", "laplace-ella", "sampla-isotropic", "sampla-g", "sampla-g-scaled",
        "sampla-isotropic-mode", "sampla-g-mode", "sampla-reference",
    ),
    full=FULL,
    quick=QUICK,
    angles=True,
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
