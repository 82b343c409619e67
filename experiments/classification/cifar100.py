"""A ResNet-18 trained by cifar100_train.py, its posteriors fitted to some of its training images."""

from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from experiments.classification.experiment import Experiment, Settings
from experiments.classification.runner import main
from experiments.common.images import Data, Shift, corruptions, split_cifar
from experiments.common.networks import cifar100_network
from experiments.common.training import Swag, loss_and_accuracy

CHECKPOINT = "resnet18_cifar100.safetensors"
TRAINED_ON = 49_000
"""Images that cifar100_train.py sees; the other 1,000 training images are for temperatures."""
SWAG = Swag(epochs=10, learning_rate=0.005, augment=True)
FULL = Settings(
    images=TRAINED_ON, held_out=1_000, test=10_000, shifted=2_000, foreign=5_000, samples=16, swag=SWAG,
    own_predictions=False,
)  # fmt: skip
QUICK = Settings(
    images=192, held_out=200, test=500, shifted=60, foreign=250, samples=8,
    swag=Swag(epochs=40, learning_rate=0.005, augment=True), own_predictions=False,
)  # fmt: skip
"""About an hour of a CPU, with the network of three epochs that ``make cifar100-subset`` trains in another."""


def load(root: Path, settings: Settings) -> Data:
    """CIFAR-100, with CIFAR-10 as what is foreign to it; held-out images are the last of the training set's order."""
    sizes = (settings.images, settings.held_out, settings.test, settings.foreign)
    return split_cifar(root, "cifar100", *sizes, settings.seed, held_out_of="train", held_out_from=TRAINED_ON)


def trained(data: Data, settings: Settings, checkpoint: Path | None, member: int) -> tuple[nn.Module, dict[str, Any]]:  # noqa: ARG001
    """The checkpoint."""
    assert checkpoint is not None
    network = cifar100_network()
    network.load_state_dict(load_file(checkpoint))
    with safe_open(checkpoint, "pt") as file:
        said = file.metadata() or {}
    loss, accuracy = loss_and_accuracy(network, data.train.rows(slice(1000)), 100)
    return network, {
        "trained on": f"{int(said['images']):,} images, {said['epochs']} epochs" if "images" in said else "unknown",
        "parameters": sum(p.numel() for p in network.parameters()),
        "loss on the fitted images": loss,
        "accuracy there": accuracy,
    }


def shifts(settings: Settings) -> tuple[Shift, ...]:
    """Five corruptions at five severities, where the run has shifted sets."""
    return corruptions(settings.seed) if settings.shifted else ()


EXPERIMENT = Experiment(
    name="cifar100",
    title="CIFAR-100, ResNet-18: sampla beside its peers",
    introduction=(
        "11 million parameters and 100 outputs. laplace-torch's diagonal forms Jacobians of 100 x 11 million numbers "
        "for each image, and is left out; the full matrices, of all weights and of the last layer's 51,300, do not "
        "fit, so that the last layer's Kronecker approximation stands for it. Foreign: CIFAR-10. Parameters of "
        "BatchNorm are fixed for every posterior. plan.md says what a run on all images would take."
    ),
    checkpoint=CHECKPOINT,
    load=load,
    architecture=cifar100_network,
    trained=trained,
    shifts=shifts,
    methods=("network", "temperature", "swag", "laplace-kron", "laplace-last-kron", "sampla-g", "sampla-isotropic"),
    full=FULL,
    quick=QUICK,
    classes=100,
    scale_to=TRAINED_ON,
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
