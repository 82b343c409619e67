"""What the experiments on CIFAR-10 and CIFAR-100 share: a checkpoint, splits, five corruptions at five severities."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.classification.experiment import Settings
from experiments.common.images import Data, Shift, cifar, corruptions
from experiments.common.training import loss_and_accuracy

_SIZES = {"train": 50_000, "test": 10_000}


def split(root: Path, settings: Settings, name: str, held_out_of: str, held_out_from: int) -> Data:
    """A CIFAR set, the other one's test images foreign to it.

    Args:
        root: folder of the data.
        settings: how many of everything, and the seed of every choice.
        name: "cifar10" or "cifar100".
        held_out_of: "train", or "test" where the network has been trained on every training image; never scored.
        held_out_from: where they begin in the order of their part.
    """
    seed, other = settings.seed, "cifar100" if name == "cifar10" else "cifar10"
    orders = {p: torch.randperm(n, generator=torch.Generator().manual_seed(seed)) for p, n in _SIZES.items()}
    held_out = orders[held_out_of][held_out_from : held_out_from + settings.held_out]
    return Data(
        cifar(root, name, "train", orders["train"][: settings.images]),
        cifar(root, name, held_out_of, held_out),
        cifar(root, name, "test", orders["test"][: settings.test]),
        {other.replace("cifar", "CIFAR-"): cifar(root, other, "test", count=settings.foreign, seed=seed).images},
    )


def described(network: nn.Module, data: Data, trained_on: str) -> tuple[nn.Module, dict[str, Any]]:
    """A trained network and what is to be said of it."""
    loss, accuracy = loss_and_accuracy(network, data.train.rows(slice(1000)), 100)
    size = sum(p.numel() for p in network.parameters())
    facts = {"trained on": trained_on, "loss on the fitted images": loss, "accuracy there": accuracy}
    return network, {"parameters": size} | facts


def shifts(settings: Settings) -> tuple[Shift, ...]:
    """Five corruptions at five severities, where the run has shifted sets."""
    return corruptions(settings.seed) if settings.shifted else ()
