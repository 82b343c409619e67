"""What a posterior says about an image: samples, standard deviations, patches, calibration.

With K samples the covariance of a patch of d pixels has at most rank K, and its small eigenvalues are far too small. It
is stabilised in two stated ways before a density is taken:

    C = (1 - rho) S + rho diag(S) + s^2 I,    S = (1/K) sum_k d_k d_k'.

rho shrinks towards the diagonal as far as the sampling error of S demands (Schaefer and Strimmer 2005, the optimum for
the squared error of the off-diagonal entries, pooled over all patches of the image; zero for one pixel, and it vanishes
as K grows). s^2 is a hundredth of the mean variance, far below what K samples leave open: it keeps pixels without
variance from being certain. No measurement noise is added: what it leaves uncertain is in the samples already.
"""

from dataclasses import dataclass
from math import log, pi

import torch
from torch import Tensor

from sampla.core.checks import require, require_finite

PATCH_SIZES = (1, 2, 3, 5, 8, 10)
"""Sides, in pixels, of the square patches whose joint density is scored."""
_ENTRIES = 2**24
"""Entries of patch covariances in flight: 128 MiB."""
DEVIATIONS = (1, 2, 3)
_STABILITY = 0.1
"""s over the root mean square of the standard deviations."""


@dataclass(frozen=True)
class ImagePredictive:
    """N(mean, C) over the pixels of one image, in the image's own units."""

    mean: Tensor
    """(H, W) the reconstruction."""
    deviations: Tensor
    """(K, H, W) zero-mean posterior samples."""
    floor: float
    """s; zero leaves the covariance without it."""

    @classmethod
    def stabilised(cls, mean: Tensor, deviations: Tensor) -> "ImagePredictive":
        """With s a tenth of the root mean square standard deviation."""
        return cls(mean, deviations, _STABILITY * float(deviations.double().square().mean().sqrt()))

    @classmethod
    def uniform(cls, mean: Tensor, std: float) -> "ImagePredictive":
        """Independent pixels with the same standard deviation: what other predictives are held against."""
        return cls(mean, torch.zeros_like(mean)[None], std)

    @property
    def samples(self) -> Tensor:
        """(K, H, W) images that explain the measurements about equally well."""
        return self.mean + self.deviations

    @property
    def variance(self) -> Tensor:
        """(H, W) posterior variance of each pixel, without s^2; relative standard error sqrt(2 / K)."""
        return self.deviations.square().mean(0)

    @property
    def std(self) -> Tensor:
        """(H, W) its root: the map of standard deviations."""
        return self.variance.sqrt()

    @property
    def total_std(self) -> Tensor:
        """(H, W) sqrt(variance + s^2), what a calibration is about."""
        return (self.variance + self.floor**2).sqrt()

    def region(self, mask: Tensor) -> tuple[float, float]:
        """Mean of the image over a region of interest, (H, W) booleans, and that mean's standard deviation.

        Raises:
            ValueError: if the region has another shape, or no pixel.
        """
        own = tuple(self.mean.shape)
        require(mask.shape == self.mean.shape, f"a region of shape {own}", f"{tuple(mask.shape)}", "Draw it anew.")
        require(bool(mask.any()), "a region with at least one pixel", "none", "Rows count from the top.")
        inside = mask.to(device=self.mean.device, dtype=torch.bool)
        means = self.deviations[:, inside].double().mean(1)
        return float(self.mean[inside].double().mean()), float(means.square().mean().sqrt())

    def shrinkage(self, size: int) -> float:
        """rho for patches of size x size, in [0, 1].

        Over the off-diagonal entries, a = sum S_ij^2 has expectation sum C_ij^2 + V, V = sum (C_ii C_jj + C_ij^2) / K,
        and V / (sum C_ij^2 + V) is the best shrinkage. b = sum S_ii S_jj has expectation sum C_ii C_jj + 2 C_ij^2 / K,
        so that both sums follow from a and b.
        """
        square = product = 0.0
        for part in self._parts(size):
            covariance, variances = self._moment(part), part.square().mean(0)
            square += float(covariance.square().sum() - variances.square().sum())
            product += float((variances.sum(1).square() - variances.square().sum(1)).sum())
        if size == 1 or square <= 0:
            return 0.0
        count = len(self.deviations)
        common = (square - product / count) / (1 + 1 / count - 2 / count**2)
        spread = (common + product - 2 * common / count) / count
        return min(1.0, max(0.0, spread / square))

    def patch_covariances(self, size: int) -> Tensor:
        """(N, d, d) stabilised covariances of the d = size^2 pixels of all N patches, row by row; float64."""
        rho = self.shrinkage(size)
        return torch.cat([self._stable(part, rho) for part in self._parts(size)])

    def patch_log_prob(self, image: Tensor, size: int) -> Tensor:
        """(N,) log density in nats of each patch of an image (H, W), its d pixels jointly; NaN for one that holds NaN.

        Raises:
            ValueError: if the image has another shape, is infinite, or is smaller than a patch; or if a covariance is
                singular, which takes s = 0 and a pixel without variance.
        """
        own = tuple(self.mean.shape)
        require(image.shape == self.mean.shape, f"an image of shape {own}", f"{tuple(image.shape)}", "Resize it.")
        require_finite(image[~image.isnan()], "pixels", "Remove or impute them; NaN stands for a truth nobody knows.")
        missed = patches((image.to(self.mean) - self.mean).double()[None], size)[0]
        rho, found, start = self.shrinkage(size), [], 0
        for part in self._parts(size):
            covariance = self._stable(part, rho)
            residual = missed[start : start + len(covariance), :, None]
            start += len(covariance)
            root, info = torch.linalg.cholesky_ex(covariance)
            fix = "Give a positive floor."
            require(not bool(info.any()), "covariances that are positive definite", "a singular one", fix)
            white = torch.linalg.solve_triangular(root, residual, upper=False)
            log_det = 2 * root.diagonal(dim1=1, dim2=2).log().sum(1)
            found.append(-0.5 * (white.square().sum((1, 2)) + log_det + size**2 * log(2 * pi)))
        return torch.cat(found)

    def log_prob_per_pixel(self, image: Tensor, size: int) -> float:
        """Mean of ``patch_log_prob`` over patches without NaN, divided by their pixels: comparable between sizes."""
        return float(self.patch_log_prob(image, size).nanmean()) / size**2

    def inside(self, image: Tensor) -> dict[int, float]:
        """Share of the pixels of an image within 1, 2, 3 total standard deviations: .683, .954, .997 if calibrated.

        Of those that are not NaN.
        """
        ratio = ((image.to(self.mean) - self.mean).abs() / self.total_std)[~image.to(self.mean).isnan()]
        return {k: float((ratio <= k).double().mean()) for k in DEVIATIONS}

    def _parts(self, size: int) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = patches(self.deviations, size).split(max(1, _ENTRIES // size**4), dim=1)
        return parts

    def _moment(self, part: Tensor) -> Tensor:
        """(K, n, d) -> (n, d, d) S."""
        each = part.double().movedim(0, 1)
        return each.mT @ each / len(part)

    def _stable(self, part: Tensor, rho: float) -> Tensor:
        moment = self._moment(part)
        diagonal = moment.diagonal(dim1=1, dim2=2)
        stable = (1 - rho) * moment
        stable.diagonal(dim1=1, dim2=2).add_(rho * diagonal + self.floor**2)
        return stable


def patches(images: Tensor, size: int) -> Tensor:
    """Whole patches without overlap from the middle of the image, row by row: (K, H, W) -> (K, N, size^2).

    Raises:
        ValueError: if the image is smaller than a patch.
    """
    count, height, width = images.shape
    require(
        1 <= size <= min(height, width), f"a patch size from 1 to {min(height, width)}", f"{size}", "Take smaller ones."
    )
    rows, columns = height // size, width // size
    top, left = (height - rows * size) // 2, (width - columns * size) // 2
    middle = images[:, top : top + rows * size, left : left + columns * size]
    tiles = middle.reshape(count, rows, size, columns, size).movedim(3, 2)
    return tiles.reshape(count, rows * columns, size**2)
