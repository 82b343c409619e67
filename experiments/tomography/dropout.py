"""The usual peer of a linearised deep image prior: the same network trained with dropout, which stays on."""

from time import perf_counter
from typing import Any

import torch

from sampla.tomography import ImagePredictive, LinearisedDIP, train, unet_for

_DROPOUT, _PASSES = 0.05, 64
"""As in the literature on Monte Carlo dropout for deep image priors (Laves et al. 2020)."""


def dropout_dip(dip: LinearisedDIP, sinogram: Any, seed: int = 0) -> tuple[ImagePredictive, float]:
    """Mean and spread of its outputs, and the seconds it took; trained in the same way from the same start."""
    begun = perf_counter()
    prepared = dip.prepare(sinogram)
    network = unet_for(prepared.operator.image_shape, seed, dropout=_DROPOUT).to(dip.input_)
    torch.manual_seed(seed)
    train(
        network, dip.input_, prepared.operator, prepared.measurements, prepared.noise_std, dip.recipe, start=dip.start_
    )
    network.train()
    with torch.no_grad():
        images = torch.cat([network(dip.input_)[0] for _ in range(_PASSES)]) * prepared.scale
    mean = images.mean(0)
    return ImagePredictive.stabilised(mean, images - mean), perf_counter() - begun
