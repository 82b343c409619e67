"""The small tomographic problem that the exact tests share: a digit of scikit-learn on 16 x 16 pixels, 12 views."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from dense_tomography import ImageModel, image_jacobian
from sampla import EM
from sampla.tomography import Geometry, LinearisedDIP, MatrixOperator, Recipe, UNet, ray_transform

SIDE, VIEWS, BINS, NOISE = 16, 12, 23, 0.05
SAMPLES = 200
QUICK = Recipe(steps=60, learning_rate=5e-3, start_steps=100, start_rate=2e-2)


def parallel(side: int = SIDE, views: int = VIEWS, bins: int = BINS) -> Geometry:
    """Views spread over half a turn, bins as wide as pixels."""
    return Geometry((side, side), 1.0, tuple(np.linspace(0, np.pi, views, endpoint=False)), bins, 1.0)


def digit(number: int = 3) -> Tensor:
    """(16, 16) in [0, 1], float64."""
    small = torch.from_numpy(load_digits().images[number] / 16)
    return torch.nn.functional.interpolate(small[None, None], (SIDE, SIDE), mode="bilinear")[0, 0]


def noisy(operator: MatrixOperator, image: Tensor, seed: int = 0) -> tuple[Tensor, float]:
    """(A, D) sinogram with 5 % noise, and the noise's standard deviation."""
    clean = operator.forward(image[None])[0]
    std = NOISE * float(clean.abs().mean())
    noise = torch.randn(len(clean), generator=torch.Generator().manual_seed(seed), dtype=clean.dtype)
    return (clean + std * noise).view(-1, BINS), std


def small_network() -> UNet:
    """Two scales, 4 channels, float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet(2, 4).double()


@dataclass(frozen=True)
class Case:
    """A fit and everything the dense reference needs."""

    image: Tensor
    sinogram: Tensor
    noise_std: float
    operator: MatrixOperator
    dip: LinearisedDIP
    dense: ImageModel
    """In the units of the network's output."""

    @property
    def scale(self) -> float:
        return self.dip.posterior_.scale

    @property
    def hyper(self) -> tuple[float, float]:
        """alpha and beta that the fit found."""
        report = self.dip.report_
        return report.prior_precision[0], float(report.noise_precision)


def small_dip(operator: MatrixOperator, **settings) -> LinearisedDIP:
    """A quiet fit of the small network, quickly."""
    chosen = {"network": small_network(), "recipe": QUICK, "progress": False}
    return LinearisedDIP(operator, **{**chosen, **settings})


@cache
def small_case() -> Case:
    """Fitted once a session, with many samples and many probes, so that tests of covariances are sharp."""
    operator = ray_transform(parallel(), torch.float64)
    image = digit()
    sinogram, std = noisy(operator, image)
    dip = small_dip(operator, num_samples=SAMPLES, em=EM(num_samples=48, max_rows=276, max_steps=60))
    dip.fit(sinogram)
    posterior = dip.posterior_
    jacobian = image_jacobian(dip.network, list(posterior.features.layout.names), dip.input_)
    dense = ImageModel(
        jacobian, torch.from_numpy(operator.scipy.toarray()), dip.prior_.scale, sinogram.flatten() / posterior.scale
    )
    return Case(image, sinogram, std, operator, dip, dense)
