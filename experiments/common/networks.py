"""The networks, with the standardising of pixels inside: each takes images in [0, 1]."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import pad


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
    """Its shortcut is subsampled and padded with zero channels (option A)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__(inside, outside, stride)
        self.stride, self.extra = stride, (outside - inside) // 2

    def shortcut(self, x: Tensor) -> Tensor:
        return pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra, self.extra))


class ProjectedBlock(Block):
    """Its shortcut is a 1 x 1 convolution where the shape changes (option B)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__(inside, outside, stride)
        self.shortcut = nn.Sequential()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))


class ResNet(nn.Module):
    """He et al. 2016 with a first convolution for 32 x 32 pixels; each stage halves the picture but the first.

    Args:
        block: of two convolutions.
        widths: channels of each stage.
        depth: blocks in a stage.
        classes: outputs.
    """

    def __init__(self, block: type[Block], widths: tuple[int, ...], depth: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        firsts = [(widths[0], widths[0], 1), *((a, b, 2) for a, b in pairwise(widths))]
        shapes = [shape for one in firsts for shape in (one, *[(one[1], one[1], 1)] * (depth - 1))]
        self.layers = nn.Sequential(*(block(*shape) for shape in shapes))
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.fc(self.layers(self.bn1(self.conv1(x)).relu()).mean((2, 3)))
        return outputs


def resnet18() -> ResNet:
    """11.2 million parameters for a hundred classes."""
    return ResNet(ProjectedBlock, (64, 128, 256, 512), 2, 100)


def cifar10_network() -> nn.Module:
    """An untrained ResNet-20 for CIFAR-10: 269,722 parameters."""
    pixels = Standardise((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    return nn.Sequential(pixels, ResNet(PaddedBlock, (16, 32, 64), 3, 10))


def cifar100_network() -> nn.Module:
    """An untrained ResNet-18 for CIFAR-100."""
    return nn.Sequential(Standardise((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)), resnet18())


def cifar10_checkpoint(path: Path) -> nn.Module:
    """The trained ResNet-20 of CIFAR-10, in evaluation mode; the file holds the weights without the standardising.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    network = cifar10_network()
    network[1].load_state_dict(load_file(path))
    return network.eval()


def without_normalisation(network: nn.Module) -> nn.Module:
    """The same network, in place, with the parameters of normalisation layers fixed, as sampla leaves them out too."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.requires_grad_(False)
    return network
