"""The networks, with the standardising of pixels inside: each takes images in [0, 1]."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import pad

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)


class Standardise(nn.Module):
    """(x - mean) / std, channel by channel."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Block(nn.Module):
    """relu(shortcut(x) + bn2(conv2(relu(bn1(conv1(x)))))), He et al. 2016."""

    shortcut: Callable[[Tensor], Tensor]

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)

    def forward(self, x: Tensor) -> Tensor:
        return (self.shortcut(x) + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()


class PaddedBlock(Block):
    """The block of ResNet-20: the shortcut is subsampled and padded with zero channels."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__(inside, outside, stride)
        self.stride, self.extra = stride, (outside - inside) // 2

    def shortcut(self, x: Tensor) -> Tensor:
        return pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra, self.extra))


class ResNet20(nn.Module):
    """He et al. 2016 for CIFAR, option-A shortcuts: 269,722 parameters for ten classes."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        shapes = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)] + [(64, 64, 1)] * 2
        self.layers = nn.Sequential(*(PaddedBlock(*shape) for shape in shapes))
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return self.fc(self.layers(x).mean((2, 3)))


class ProjectedBlock(Block):
    """The block of ResNet-18, with a 1 x 1 convolution as shortcut where the shape changes."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__(inside, outside, stride)
        self.shortcut = nn.Sequential()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))


class ResNet18(nn.Module):
    """He et al. 2016 with a first convolution for 32 x 32 pixels: 11.2 million parameters."""

    def __init__(self, classes: int = 100) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        shapes = [(64, 64, 1)] * 2 + [(64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
        self.layers = nn.Sequential(*(ProjectedBlock(*shape) for shape in [*shapes, (512, 512, 1)]))
        self.fc = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(self.bn1(self.conv1(x)).relu()).mean((2, 3)))


def resnet20_checkpoint(path: Path) -> nn.Module:
    """The trained ResNet-20 of CIFAR-10, in evaluation mode.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    network = ResNet20()
    network.load_state_dict(load_file(path))
    return nn.Sequential(Standardise(CIFAR10_MEAN, CIFAR10_STD), network).eval()


def cifar100_network() -> nn.Module:
    """An untrained ResNet-18 for CIFAR-100."""
    return nn.Sequential(Standardise(CIFAR100_MEAN, CIFAR100_STD), ResNet18())


def without_normalisation(network: nn.Module) -> nn.Module:
    """The same network, in place, with the parameters of normalisation layers fixed, as sampla leaves them out too."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.requires_grad_(False)
    return network
