"""A trained ResNet-20 of CIFAR-10, its posteriors fitted to some of its training images."""

from pathlib import Path
from typing import Any

from torch import nn

from experiments.classification.experiment import Experiment, Settings
from experiments.classification.runner import main
from experiments.common.images import Data, Shift, corruptions, split_cifar
from experiments.common.networks import CIFAR10_MEAN, CIFAR10_STD, ResNet20, Standardise, resnet20_checkpoint
from experiments.common.training import Swag, loss_and_accuracy

CHECKPOINT = "resnet20_cifar10.safetensors"
TRAINED_ON = 50_000
"""Images that the checkpoint has seen: all of CIFAR-10's training set."""
SWAG = Swag(epochs=10, learning_rate=0.002, augment=True)
FULL = Settings(
    images=400, held_out=300, test=500, shifted=40, foreign=200, samples=16, swag=SWAG, laplace_batch=4,
    own_predictions=False, ella_points=60, ella_rank=40,
)  # fmt: skip
QUICK = Settings(
    images=40, held_out=40, test=40, shifted=40, foreign=40, samples=2, ella_points=20, ella_rank=10, laplace_batch=4,
    own_predictions=False,
    swag=Swag(epochs=5, learning_rate=0.002, snapshots=5, batch=30, augment=True),
)  # fmt: skip


def architecture() -> nn.Module:
    """ResNet-20, with whatever weights."""
    return nn.Sequential(Standardise(CIFAR10_MEAN, CIFAR10_STD), ResNet20())


def load(root: Path, settings: Settings) -> Data:
    """CIFAR-10, with CIFAR-100 as what is foreign to it; held-out images from the test set."""
    sizes = (settings.images, settings.held_out, settings.test, settings.foreign)
    return split_cifar(root, "cifar10", *sizes, settings.seed, held_out_of="test")


def trained(data: Data, settings: Settings, checkpoint: Path | None, member: int) -> tuple[nn.Module, dict[str, Any]]:  # noqa: ARG001
    """The checkpoint."""
    assert checkpoint is not None
    network = resnet20_checkpoint(checkpoint)
    loss, accuracy = loss_and_accuracy(network, data.train)
    return network, {
        "parameters": sum(p.numel() for p in network.parameters()),
        "trained on": f"{TRAINED_ON:,} images",
        "loss on the fitted ones": loss,
        "accuracy there": accuracy,
    }


def shifts(settings: Settings) -> tuple[Shift, ...]:
    """Five corruptions at five severities."""
    return corruptions(settings.seed)


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
    checkpoint=CHECKPOINT,
    load=load,
    architecture=architecture,
    trained=trained,
    shifts=shifts,
    methods=(
        "network", "temperature", "swag", "laplace-diag", "laplace-kron", "laplace-kron-layers", "laplace-last",
        "laplace-full", "laplace-ella", "sampla-isotropic", "sampla-g", "sampla-g-scaled",
        "sampla-isotropic-mode",
    ),
    full=FULL,
    quick=QUICK,
    scale_to=TRAINED_ON,
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
