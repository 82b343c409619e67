"""A naive float64 reference for tomography: explicit matrices and loops; nothing here imports sampla."""

from dataclasses import dataclass
from math import hypot, log, sqrt

import numpy as np
import torch
from torch import Tensor, nn


def chord(angle: float, u: float, disc: tuple[float, float, float], fan: tuple[float, float] | None) -> float:
    """Length inside a disc (x, y, radius) of the ray that meets the detector at u; fan = (source, detector) distances.

    Straight from the picture: the source at so (sin b, -cos b), or infinitely far; rays along (-sin b, cos b).
    """
    along, across = np.array([-np.sin(angle), np.cos(angle)]), np.array([np.cos(angle), np.sin(angle)])
    start = u * across if fan is None else -fan[0] * along
    direction = along if fan is None else (fan[1] - fan[0]) * along + u * across - start
    direction = direction / hypot(*direction)
    centre = np.array(disc[:2]) - start
    offset = centre[0] * direction[1] - centre[1] * direction[0]
    return 2 * sqrt(max(0.0, disc[2] ** 2 - offset**2))


def disc_image(shape: tuple[int, int], pixel: float, disc: tuple[float, float, float], cuts: int = 8) -> np.ndarray:
    """(H, W) share of each pixel that lies in the disc, by cutting it into cuts x cuts parts; row 0 is the top."""
    image = np.zeros(shape)
    for row in range(shape[0] * cuts):
        y = ((shape[0] - 1 / cuts) / 2 - row / cuts) * pixel
        for column in range(shape[1] * cuts):
            x = (column / cuts - (shape[1] - 1 / cuts) / 2) * pixel
            image[row // cuts, column // cuts] += hypot(x - disc[0], y - disc[1]) < disc[2]
    return image / cuts**2


def image_jacobian(network: nn.Module, names: list[str], given: Tensor) -> Tensor:
    """(H W, P), one backward pass a pixel."""
    chosen = [dict(network.named_parameters())[name] for name in names]
    image = network(given).flatten()
    rows = [torch.autograd.grad(value, chosen, retain_graph=True, materialize_grads=True) for value in image]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


@dataclass(frozen=True)
class ImageModel:
    """y = T J S psi + noise with psi ~ N(0, I / alpha) and noise N(0, I / beta), over the measurements: no P x P."""

    jacobian: Tensor
    """(H W, P) J."""
    operator: Tensor
    """(m, H W) T."""
    scale: Tensor
    """(P,) the diagonal of S."""
    measurements: Tensor
    """(m,) y."""

    @property
    def prior(self) -> Tensor:
        """(H W, H W) J S S J', the prior's covariance of the image at alpha = 1."""
        rows = self.jacobian * self.scale
        return rows @ rows.mT

    def covariance(self, alpha: float, beta: float) -> Tensor:
        """(H W, H W) of the image, by conditioning a Gaussian."""
        prior = self.prior / alpha
        cross = prior @ self.operator.mT
        seen = self.operator @ cross + torch.eye(len(self.operator)).double() / beta
        return prior - cross @ torch.linalg.solve(seen, cross.mT)

    def mean(self, alpha: float, beta: float) -> Tensor:
        """(H W,) of the linear model's image."""
        cross = self.prior @ self.operator.mT / alpha
        seen = self.operator @ cross + torch.eye(len(self.operator)).double() / beta
        return cross @ torch.linalg.solve(seen, self.measurements)

    def log_evidence(self, alpha: float, beta: float) -> float:
        """log N(y; 0, T prior T' / alpha + I / beta)."""
        seen = self.operator @ self.prior @ self.operator.mT / alpha
        seen = seen + torch.eye(len(self.operator)).double() / beta
        zero = torch.zeros(len(seen)).double()
        return float(torch.distributions.MultivariateNormal(zero, seen).log_prob(self.measurements))

    def em(self, alpha: float, beta: float, learn_noise: bool = True) -> tuple[float, float, float]:
        """alpha, beta and gamma at the fixed point of MacKay's updates, by repetition in the eigenbasis of T J S."""
        kernel = self.operator @ self.prior @ self.operator.mT
        values, rotation = torch.linalg.eigh(kernel)
        values, seen = values.clamp_min(0), rotation.mT @ self.measurements
        for _ in range(100_000):
            ratio = alpha / beta
            gamma = float((values / (values + ratio)).sum())
            size = float((values * seen.square() / (values + ratio).square()).sum())
            residual = float((ratio * seen / (values + ratio)).square().sum())
            before = alpha, beta
            alpha, beta = gamma / size, (len(seen) - gamma) / residual if learn_noise else beta
            if max(abs(alpha / before[0] - 1), abs(beta / before[1] - 1)) < 1e-12:
                return alpha, beta, gamma
        raise AssertionError("the reference's own EM did not settle")


def patch_pixels(shape: tuple[int, int], size: int) -> list[list[tuple[int, int]]]:
    """The pixels of each patch, row by row: whole patches in the middle of the image."""
    rows, columns = shape[0] // size, shape[1] // size
    top, left = (shape[0] - rows * size) // 2, (shape[1] - columns * size) // 2
    return [
        [(top + i * size + a, left + j * size + b) for a in range(size) for b in range(size)]
        for i in range(rows)
        for j in range(columns)
    ]


def patch_log_prob(
    mean: Tensor, covariance: Tensor, image: Tensor, size: int, pixel_noise: float, rho: float = 0.0
) -> Tensor:
    """(N,) log N of each patch by the textbook formula, from the covariance (H W, H W) of all pixels."""
    found = []
    for pixels in patch_pixels(tuple(image.shape), size):
        rows = torch.tensor([a * image.shape[1] + b for a, b in pixels])
        part = covariance[rows][:, rows]
        part = (1 - rho) * part + rho * part.diagonal().diag() + pixel_noise**2 * torch.eye(len(rows)).double()
        normal = torch.distributions.MultivariateNormal(mean.flatten()[rows], part)
        found.append(normal.log_prob(image.flatten()[rows]))
    return torch.stack(found)


def least_total_variation(operator: Tensor, y: Tensor, radius: float, shape: tuple[int, int]) -> tuple[Tensor, float]:
    """(H, W) of least sum of |differences of neighbours| with |T x - y| <= radius, and that sum, to about 1e-7.

    By an interior-point method on (x, t): minimise sum t with |D x| <= t, Newton's method on the logarithmic barrier
    (Boyd and Vandenberghe 2004, section 11.3), whose gap is the number of constraints over its weight.
    """
    height, width = shape
    place = torch.arange(height * width).view(shape)
    pairs = torch.cat([
        torch.stack([place[:-1].flatten(), place[1:].flatten()], 1),
        torch.stack([place[:, :-1].flatten(), place[:, 1:].flatten()], 1),
    ])  # fmt: skip
    slopes = torch.zeros(len(pairs), height * width).double()
    slopes[torch.arange(len(pairs)), pairs[:, 0]], slopes[torch.arange(len(pairs)), pairs[:, 1]] = -1, 1
    x = torch.linalg.pinv(operator, rtol=1e-6) @ y
    assert float((operator @ x - y).norm()) < radius, "the least squares image must be strictly feasible"
    t, weight = 2 * (slopes @ x).abs() + 1, 1e-4

    def barrier(x: Tensor, t: Tensor) -> float:
        edge, room = slopes @ x, radius**2 - float((operator @ x - y).square().sum())
        if room <= 0 or bool((t <= edge.abs()).any()):
            return float("inf")
        return weight * float(t.sum()) - float((t.square() - edge.square()).log().sum()) - float(np.log(room))

    while 2 * len(pairs) / weight > 1e-7 * float((slopes @ x).abs().sum()):
        weight *= 8
        for _ in range(60):
            edge, residual = slopes @ x, operator @ x - y
            room, square = radius**2 - residual.square().sum(), t.square() - edge.square()
            pulled = operator.mT @ residual
            slope_x = slopes.mT @ (2 * edge / square) + 2 * pulled / room
            slope_t = weight - 2 * t / square
            same = 2 / square + 4 * edge.square() / square.square()  # d^2 / d edge^2
            mixed = -4 * edge * t / square.square()
            along = -2 / square + 4 * t.square() / square.square()  # d^2 / d t^2
            inner = slopes.mT @ ((same - mixed.square() / along)[:, None] * slopes)
            inner += 2 * operator.mT @ operator / room + 4 * torch.outer(pulled, pulled) / room**2
            step_x = -torch.linalg.solve(inner, slope_x - slopes.mT @ (mixed / along * slope_t))
            step_t = -(slope_t + mixed * (slopes @ step_x)) / along
            fall = -float(slope_x @ step_x + slope_t @ step_t)
            now, size = barrier(x, t), 1.0
            while size > 1e-12 and not barrier(x + size * step_x, t + size * step_t) < now - 0.1 * size * fall:
                size /= 2
            if fall < 1e-9 or size <= 1e-12:
                break
            x, t = x + size * step_x, t + size * step_t
    return x.view(shape), float((slopes @ x).abs().sum())


def differences(shape: tuple[int, int]) -> Tensor:
    """(E, H W) +1 and -1 for every pair of neighbours, one below the other and then side by side."""
    height, width = shape
    rows = []
    for down, right in ((1, 0), (0, 1)):
        for i in range(height - down):
            for j in range(width - right):
                row = torch.zeros(height, width, dtype=torch.float64)
                row[i + down, j + right], row[i, j] = 1.0, -1.0
                rows.append(row.flatten())
    return torch.stack(rows)


@dataclass(frozen=True)
class SmoothedTV:
    """Total variation bounded by Gaussians at its mode: sigma, the mode, covariance of the pixels, and their score."""

    noise_std: float
    mode: Tensor
    covariance: Tensor
    score: float


def variational_tv(
    operator: Tensor,
    y: Tensor,
    shape: tuple[int, int],
    strength: float,
    anchor: float,
    noise: float,
    smoothing: float,
) -> SmoothedTV:
    """The fixed point of w = sqrt(E d^2) and sigma^2 = E |T x - y|^2 / m at a given lambda, by 100 rounds."""
    between, identity = differences(shape), torch.eye(operator.shape[1], dtype=torch.float64)
    mode, variance = torch.ones(operator.shape[1], dtype=torch.float64), torch.ones(len(between), dtype=torch.float64)
    for _ in range(100):
        gram = operator.mT @ operator / noise**2 + anchor * identity
        mode = smoothed_mode(operator, y, noise, between, strength, smoothing * variance, anchor, mode)
        widths = ((between @ mode) ** 2 + variance).sqrt()
        covariance = torch.linalg.inv(gram + strength * between.mT @ (between / widths[:, None]))
        variance = ((between @ covariance) * between).sum(1)
        missed = float(((operator @ mode - y) ** 2).mean())
        spread = float((operator @ covariance @ operator.mT).trace()) / len(y)
        used, noise = noise, sqrt(missed + spread)
    left = 1 - spread / used**2
    score = missed / used**2 / left**1.2 + log(used**2) - 1.2 * log(left)  # leverages count 1.2 times
    return SmoothedTV(noise, mode, covariance, score)


def likeliest_spread(
    operator: Tensor, shape: tuple[int, int], found: SmoothedTV, anchor: float
) -> tuple[float, Tensor]:  # fmt: skip
    """The lambda = N / sum w of the covariance around a mode that stays, by bisection, and that covariance."""
    between, pixels = differences(shape), operator.shape[1]
    gram = operator.mT @ operator / found.noise_std**2 + anchor * torch.eye(pixels, dtype=torch.float64)
    weak, strong = 1e-3, 1e3
    for _ in range(30):
        strength, variance = sqrt(weak * strong), torch.ones(len(between), dtype=torch.float64)
        for _ in range(60):
            widths = ((between @ found.mode) ** 2 + variance).sqrt()
            covariance = torch.linalg.inv(gram + strength * between.mT @ (between / widths[:, None]))
            variance = ((between @ covariance) * between).sum(1)
        weak, strong = (strength, strong) if pixels / float(widths.sum()) > strength else (weak, strength)
    return strength, covariance


def smoothed_mode(
    operator: Tensor, y: Tensor, noise: float, between: Tensor, strength: float, rounded: Tensor, anchor: float,
    start: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The x of least x' G x / 2 - x' b + lambda sum sqrt(d^2 + rounded), by Newton's steps, halved until they help."""
    gram = operator.mT @ operator / noise**2 + anchor * torch.eye(operator.shape[1], dtype=torch.float64)
    x, right = (
        torch.ones(operator.shape[1], dtype=torch.float64) if start is None else start,
        operator.mT @ y / noise**2,
    )

    def value(at: Tensor) -> float:
        return float(at @ gram @ at / 2 - at @ right + strength * ((between @ at) ** 2 + rounded).sqrt().sum())

    for _ in range(100):
        d = between @ x
        size = (d**2 + rounded).sqrt()
        slope = gram @ x - right + strength * between.mT @ (d / size)
        step = torch.linalg.solve(gram + strength * between.mT @ (between * (rounded / size**3)[:, None]), slope)
        length = 1.0
        while value(x - length * step) > value(x) and length > 1e-6:
            length /= 2
        x = x - length * step
        if float(step.norm() / x.norm()) < 1e-9:
            break
    return x
