"""A trained ResNet-20 of CIFAR-10, its posteriors fitted to some of its training images."""

from pathlib import Path
from typing import Any

from torch import nn

from experiments.classification import cifar
from experiments.classification.experiment import Experiment, Settings
from experiments.classification.runner import main
from experiments.common.images import Data
from experiments.common.networks import cifar10_checkpoint, cifar10_network
from experiments.common.training import Swag

TRAINED_ON = 50_000
"""Images that the checkpoint has seen: all of CIFAR-10's training set."""


def load(root: Path, settings: Settings) -> Data:
    """CIFAR-10, with CIFAR-100 as what is foreign to it; held-out images from the test set."""
    return cifar.split(root, settings, "cifar10", "test", held_out_from=settings.test)


def trained(data: Data, settings: Settings, checkpoint: Path | None, member: int) -> tuple[nn.Module, dict[str, Any]]:  # noqa: ARG001
    """The checkpoint."""
    assert checkpoint is not None
    return cifar.described(cifar10_checkpoint(checkpoint), data, f"{TRAINED_ON:,} images")


EXPERIMENT = Experiment(
    name="cifar10",
    title="CIFAR-10, ResNet-20: sampla beside its peers",
    introduction=(
        "The network has seen all training images; every posterior is fitted to the same few of them, because one "
        "product with M over all of them is too dear for a CPU. A posterior of fewer images is wider, and each method "
        "finds the prior precision that fits these. The temperature is fitted to images of the test set that are not "
        "scored, since no training image is unseen. SWAG's SGD sees the fitted images only, augmented as in training. "
        "Foreign: CIFAR-100. Parameters of BatchNorm are fixed for every posterior."
    ),
    checkpoint="resnet20_cifar10.safetensors", load=load, architecture=cifar10_network, trained=trained,
    shifts=cifar.shifts, scale_to=TRAINED_ON,
    methods=(
        "network", "temperature", "swag", "laplace-diag", "laplace-kron", "laplace-kron-layers", "laplace-last",
        "laplace-full", "laplace-ella", "sampla-isotropic", "sampla-g", "sampla-g-scaled", "sampla-isotropic-mode",
    ),
    full=Settings(
        images=400, held_out=300, test=500, shifted=40, foreign=200, samples=16, laplace_batch=4, ella_points=60,
        ella_rank=40, own_predictions=False, swag=Swag(epochs=10, learning_rate=0.002, augment=True),
    ),
    quick=Settings(
        images=40, held_out=40, test=40, shifted=40, foreign=40, samples=2, laplace_batch=4, ella_points=20,
        ella_rank=10, own_predictions=False,
        swag=Swag(epochs=5, learning_rate=0.002, snapshots=5, batch=30, augment=True),
    ),
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
