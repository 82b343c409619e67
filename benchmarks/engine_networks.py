"""The networks that benchmarks/engine.py times, each with a batch; architectures as published, images small."""

import torch
from torch import Tensor, nn

from sampla.apps.demo.networks import lenet
from sampla.tomography.unet import INPUT_CHANNELS, unet_for


class _Residual(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outside), nn.BatchNorm2d(outside)])
        same = stride == 1 and inside == outside
        convolution = nn.Conv2d(inside, outside, 1, stride, bias=False)
        self.short = nn.Identity() if same else nn.Sequential(convolution, nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norms[1](self.second(self.norms[0](self.first(x)).relu()))
        result: Tensor = (inner + self.short(x)).relu()
        return result


def resnet18() -> tuple[nn.Module, Tensor]:
    """He et al. 2016 in the form for 32 x 32 images, 100 classes."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    inside = 64
    for outside, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [_Residual(inside, outside, stride), _Residual(outside, outside, 1)]
        inside = outside
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 100)]
    torch.manual_seed(0)
    return nn.Sequential(*layers).eval(), torch.randn(8, 3, 32, 32)


class _Vit(nn.Module):
    """ViT-S/16 (Touvron et al. 2021): width 384, depth 12, 6 heads."""

    def __init__(self, side: int, outputs: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 384, 16, 16)
        self.start = nn.Parameter(torch.zeros(1, 1, 384))
        self.places = nn.Parameter(0.02 * torch.randn(1, (side // 16) ** 2 + 1, 384))
        layer = nn.TransformerEncoderLayer(384, 6, 1536, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 12, nn.LayerNorm(384), enable_nested_tensor=False)
        self.head = nn.Linear(384, outputs)

    def forward(self, x: Tensor) -> Tensor:
        words = self.patches(x).flatten(2).mT
        words = torch.cat([self.start.expand(len(x), -1, -1), words], dim=1) + self.places
        outputs: Tensor = self.head(self.layers(words)[:, 0])
        return outputs


def vit_small() -> tuple[nn.Module, Tensor]:
    """On 64 x 64 images, so 17 tokens; 22 million parameters."""
    torch.manual_seed(0)
    return _Vit(64, 100).eval(), torch.randn(8, 3, 64, 64)


def unet() -> tuple[nn.Module, Tensor]:
    """The deep image prior's, on one image of 64 x 64."""
    torch.manual_seed(0)
    return unet_for((64, 64)).eval(), torch.rand(4, INPUT_CHANNELS, 64, 64)


def lenet_mnist() -> tuple[nn.Module, Tensor]:
    """On 64 images of 28 x 28."""
    torch.manual_seed(0)
    images = torch.rand(64, 1, 28, 28)
    return lenet(images).eval(), images


NETWORKS = {"LeNet": lenet_mnist, "ResNet-18": resnet18, "ViT-S/16": vit_small, "U-Net": unet}
