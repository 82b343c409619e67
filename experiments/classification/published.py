"""ResNets of CIFAR-10 whose weights others have published, with every training image: figures to compare with."""

from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from experiments.classification import cifar
from experiments.classification.experiment import Experiment, Settings
from experiments.common.images import Data, Shift, corruptions, turns
from experiments.common.training import Swag
from experiments.width.networks import CIFAR_MEAN, projected_resnet, published_resnet

_DEGREES = tuple(float(most) for most in range(10, 190, 10))
_OTHERS = {
    20: "network alone .2815 / .039 / 3.09, last layer .2566 / .020 / 2.72, ELLA .2310 / .008 / 2.35, "
    "VaLLA .2273 / .013 / 2.26, FMGP .2275 / .007 / 2.14",
    32: "network alone .2921 / .041 / 3.42, last layer .2377 / .024 / 2.67, ELLA .2177 / .014 / 2.28, "
    "VaLLA .2092 / .011 / 2.33, FMGP .2099 / .007 / 2.18",
    44: "network alone .2753 / .039 / 3.34, last layer .2208 / .021 / 2.49, ELLA .2069 / .019 / 2.23, "
    "VaLLA .1958 / .010 / 2.27, FMGP .1980 / .010 / 2.19",
}
"""Depth -> what others have published: NLL, ECE and the mean NLL of the turned images."""


def load(root: Path, settings: Settings) -> Data:
    """All of CIFAR-10, with CIFAR-100 as what is foreign to it; the network has seen every training image."""
    return cifar.split(root, settings, "cifar10", "train", held_out_from=0)


def shifts(settings: Settings) -> tuple[Shift, ...]:
    """Turned as others turned them, black being the mean pixel; then five corruptions at five severities."""
    return (turns(_DEGREES, CIFAR_MEAN, settings.seed), *corruptions(settings.seed)) if settings.shifted else ()


def experiment(depth: int) -> Experiment:
    """The ResNet of this depth, which is 6 n + 2."""

    def trained(data: Data, _: Settings, checkpoint: Path | None, __: int) -> tuple[nn.Module, dict[str, Any]]:
        assert checkpoint is not None
        return cifar.described(published_resnet(checkpoint.parent, depth), data, "50,000 images, by others")

    return Experiment(
        name=f"resnet{depth}",
        title=f"CIFAR-10 in full: the published ResNet-{depth}",
        introduction=(
            "Every posterior is fitted to all images that the network was trained on; no image is held out, so that "
            "nothing is fitted to images that it has not seen. Shifted images: each turned by an angle of its own, "
            f"uniform up to {_DEGREES[0]:.0f}, .. {_DEGREES[-1]:.0f} degrees either way (nearest pixel, the mean pixel "
            "outside), then the corruptions. Parameters of BatchNorm are fixed for every posterior. Foreign: "
            "CIFAR-100. Published for this network (NLL / ECE / mean NLL of the turned images, 10,000 each), from "
            f"the result files of Ludvins/FixedMeanGaussianProcesses: {_OTHERS[depth]}. ELLA, VaLLA and FMGP had their "
            "settings chosen by training images that were cut out at random."
        ),
        checkpoint=f"published_resnet{depth}_cifar10.safetensors", load=load,
        architecture=partial(projected_resnet, depth), trained=trained, shifts=shifts, angles=True,
        methods=(
            "network", "swag", "laplace-last", "laplace-last-kron", "laplace-kron", "sampla-g-bfloat16",
            "sampla-isotropic-bfloat16",
        ),
        full=Settings(
            images=50_000, held_out=0, test=10_000, shifted=2_000, foreign=2_000, samples=16, laplace_batch=4,
            own_predictions=False, swag=Swag(epochs=5, learning_rate=0.002, augment=True),
        ),
        quick=Settings(
            images=40, held_out=0, test=40, shifted=40, foreign=40, samples=2, laplace_batch=4, own_predictions=False,
            swag=Swag(epochs=2, learning_rate=0.002, snapshots=2, batch=20, augment=True),
        ),
    )  # fmt: skip
