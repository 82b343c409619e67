"""The two networks of the demo; both begin by standardising pixels with the training set's mean and deviation."""

import torch
from torch import Tensor, nn


class Standardise(nn.Module):
    """(x - mean) / std with two fixed numbers."""

    mean: Tensor
    std: Tensor

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", images.mean())
        self.register_buffer("std", images.std())

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def digits_network(images: Tensor) -> nn.Module:
    """Convolution, batch normalisation, ReLU, twice, then one linear layer: 3,866 parameters for 8 x 8 pixels."""
    return nn.Sequential(
        Standardise(images),
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


def lenet(images: Tensor) -> nn.Module:
    """LeNet (LeCun et al. 1998) with ReLU and max pooling: 29,066 parameters for 28 x 28 pixels."""
    return nn.Sequential(
        Standardise(images),
        nn.Conv2d(1, 8, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(256, 96), nn.ReLU(), nn.Linear(96, 10),
    )  # fmt: skip


def count_parameters(network: nn.Module) -> int:
    """How many numbers training changes."""
    return sum(parameter.numel() for parameter in network.parameters())


def network_for(name: str, images: Tensor, seed: int) -> nn.Module:
    """The untrained network for a data set, its initial weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {"digits": digits_network, "mnist": lenet}[name](images)
