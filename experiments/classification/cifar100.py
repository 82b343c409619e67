"""A ResNet-18 trained by cifar100_train.py, its posteriors fitted to some of its training images."""

from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from experiments.classification import cifar
from experiments.classification.experiment import Experiment, Settings
from experiments.classification.runner import main
from experiments.common.images import Data
from experiments.common.networks import cifar100_network
from experiments.common.training import Swag

CHECKPOINT = "resnet18_cifar100.safetensors"
TRAINED_ON = 49_000
"""Images that cifar100_train.py sees; the other 1,000 training images are for temperatures."""


def load(root: Path, settings: Settings) -> Data:
    """CIFAR-100, with CIFAR-10 as what is foreign to it; held-out images are the last of the training set's order."""
    return cifar.split(root, settings, "cifar100", "train", held_out_from=TRAINED_ON)


def trained(data: Data, settings: Settings, checkpoint: Path | None, member: int) -> tuple[nn.Module, dict[str, Any]]:  # noqa: ARG001
    """The checkpoint."""
    assert checkpoint is not None
    network = cifar100_network()
    network.load_state_dict(load_file(checkpoint))
    with safe_open(checkpoint, "pt") as file:
        said = file.metadata() or {}
    return cifar.described(network, data, f"{int(said['images']):,} images, {said['epochs']} epochs")


EXPERIMENT = Experiment(
    name="cifar100",
    title="CIFAR-100, ResNet-18: sampla beside its peers",
    introduction=(
        "11 million parameters and 100 outputs. laplace-torch's diagonal forms Jacobians of 100 x 11 million numbers "
        "for each image, and is left out; the full matrices, of all weights and of the last layer's 51,300, do not "
        "fit, so that the last layer's Kronecker approximation stands for it. Foreign: CIFAR-10. Parameters of "
        "BatchNorm are fixed for every posterior. plan.md says what a run on all images would take."
    ),
    checkpoint=CHECKPOINT, load=load, architecture=cifar100_network, trained=trained, shifts=cifar.shifts,
    methods=("network", "temperature", "swag", "laplace-kron", "laplace-last-kron", "sampla-g", "sampla-isotropic"),
    full=Settings(
        images=TRAINED_ON, held_out=1_000, test=10_000, shifted=2_000, foreign=5_000, samples=16,
        own_predictions=False, swag=Swag(epochs=10, learning_rate=0.005, augment=True),
    ),
    quick=Settings(  # an hour of a CPU, with a network that ``make cifar100-subset`` trains in another
        images=192, held_out=200, test=500, shifted=60, foreign=250, samples=8, own_predictions=False,
        swag=Swag(epochs=40, learning_rate=0.005, augment=True),
    ),
    classes=100, scale_to=TRAINED_ON,
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
