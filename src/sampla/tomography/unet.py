"""The U-Net of the deep image prior (Ronneberger et al. 2015): any image size, group normalisation, skips."""

from itertools import pairwise
from math import log2

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from sampla.core.checks import require

_GROUPS = 4
_WIDE_FROM = 256
"""Pixels of the shorter side from which the first scale has 16 channels instead of 8 (2 million parameters in all)."""
_COARSEST = 2
"""Pixels that the shorter side must have left on the coarsest scale."""
INPUT_CHANNELS = 8


class UNet(nn.Module):
    """(n, 8, H, W) -> (n, 1, H, W); each scale has half the pixels, rounded up, and twice the channels of the last.

    The last layer is linear, so that f(w) is nearly J(w) w and the linear model can reproduce the image.

    Args:
        scales: 3 to 5 in the field; with one there is nothing to skip.
        channels: of the finest scale, a multiple of 4.
        dropout: probability of dropping a channel after each convolution; for comparisons with MC dropout only, since
            a posterior needs a network that is not random.

    Raises:
        ValueError: for fewer than two scales or channels that do not make groups of four.
    """

    def __init__(self, scales: int, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        require(scales >= 2, "at least 2 scales", f"{scales}", "3 to 5 are usual.")
        whole = channels >= _GROUPS and channels % _GROUPS == 0
        require(whole, f"channels as a multiple of {_GROUPS}", f"{channels}", "8 and 16 are usual.")
        widths = [channels * 2**scale for scale in range(scales)]
        self.first = _convolutions(INPUT_CHANNELS, widths[0], 1, dropout)
        self.down = nn.ModuleList(_convolutions(a, b, 2, dropout) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_convolutions(a + b, a, 1, dropout) for a, b in pairwise(widths))
        self.last = nn.Conv2d(channels, 1, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.first(inputs)
        skipped = []
        for block in self.down:
            skipped.append(x)
            x = block(x)
        for block, skip in zip(reversed(self.up), reversed(skipped), strict=True):
            x = interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([skip, x], dim=1))
        image: Tensor = self.last(x)
        return image


def _convolutions(inside: int, outside: int, stride: int, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels, step in ((inside, stride), (outside, 1)):
        convolution = nn.Conv2d(channels, outside, 3, stride=step, padding=1, bias=False)  # normalised away again
        layers += [convolution, nn.GroupNorm(_GROUPS, outside), nn.LeakyReLU(0.2)]
        if dropout:
            layers.append(nn.Dropout2d(dropout))
    return nn.Sequential(*layers)


def unet_for(image_shape: tuple[int, int], seed: int = 0, scales: int | None = None, dropout: float = 0.0) -> UNet:
    """The U-Net for an image, its size by rule: as many scales as leave about 8 pixels, at least 3 and at most 5.

    Args:
        image_shape: (H, W) in pixels.
        seed: of the first weights; the global generator is left as it was.
        scales: instead of the rule's.
        dropout: as for ``UNet``.

    Raises:
        ValueError: if the image cannot be halved so often.
    """
    shorter = min(image_shape)
    count = scales or min(5, max(3, int(log2(max(shorter, 1) / 8)) + 2))
    left = -(-shorter // 2 ** (count - 1))
    require(
        left >= _COARSEST,
        f"an image that can be halved {count - 1} times and keep {_COARSEST} pixels a side",
        f"{image_shape[0]} x {image_shape[1]} pixels",
        f"Reconstruct on at least {_COARSEST * 2 ** (count - 1)} x {_COARSEST * 2 ** (count - 1)} pixels.",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet(count, 16 if shorter >= _WIDE_FROM else 8, dropout)


def fixed_input(image_shape: tuple[int, int], seed: int = 0, image: Tensor | None = None) -> Tensor:
    """(1, 8, H, W) uniform on [0, 0.1), the same for the same seed (Ulyanov et al. 2018).

    With an image (H, W) of about unit size that is the first channel, and the result of its type.
    """
    generator = torch.Generator().manual_seed(seed)
    found = 0.1 * torch.rand(1, INPUT_CHANNELS, *image_shape, generator=generator)
    if image is None:
        return found
    found = found.to(image)
    found[0, 0] = image
    return found
