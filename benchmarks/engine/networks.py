"""The networks that the engine is timed on, each with a batch: architectures as published, images small; its memory."""

from typing import Any

import torch
from experiments.common.facts import peak_memory
from experiments.common.networks import resnet18
from torch import Tensor, nn

from sampla import Categorical, NetworkFeatures
from sampla.apps.demo.networks import lenet
from sampla.core.chunks import Chunks
from sampla.model import LinearModel
from sampla.tomography.unet import INPUT_CHANNELS, unet_for


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


def lenet_mnist() -> tuple[nn.Module, Tensor]:
    """On 64 images of 28 x 28."""
    torch.manual_seed(0)
    images = torch.rand(64, 1, 28, 28)
    return lenet(images).eval(), images


def resnet_cifar() -> tuple[nn.Module, Tensor]:
    """On 8 images of 32 x 32, 100 classes."""
    torch.manual_seed(0)
    return resnet18().eval(), torch.randn(8, 3, 32, 32)


def vit_small() -> tuple[nn.Module, Tensor]:
    """On 64 x 64 images, so 17 tokens; 22 million parameters."""
    torch.manual_seed(0)
    return _Vit(64, 100).eval(), torch.randn(8, 3, 64, 64)


def unet() -> tuple[nn.Module, Tensor]:
    """The deep image prior's, on one image of 64 x 64."""
    torch.manual_seed(0)
    return unet_for((64, 64)).eval(), torch.rand(4, INPUT_CHANNELS, 64, 64)


NETWORKS = {"LeNet": lenet_mnist, "ResNet-18": resnet_cifar, "ViT-S/16": vit_small, "U-Net": unet}


def memory_of(case: dict[str, Any]) -> dict[str, Any]:
    """A product with M for K = 8 in a network with so many outputs, and how far it raised this process's peak."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, case["outputs"])).eval()
    inputs, targets = torch.randn(512, 64), torch.zeros(512, dtype=torch.long)
    features = NetworkFeatures(network, ["0.weight", "0.bias"])
    model = LinearModel(features, Categorical(), [(inputs, targets)], chunks=Chunks())
    model.survey()
    vectors = torch.randn(8, features.layout.total)
    before = peak_memory()
    model.curvature_product(vectors)
    peak = peak_memory()
    return {"outputs": case["outputs"], "MiB": peak / 2**20, "added MiB": (peak - before) / 2**20}
