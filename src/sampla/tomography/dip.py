"""The deep image prior: train a U-Net from nothing until its image explains one sinogram (Ulyanov et al. 2018).

Of all images that miss the m measurements by no more than their noise sigma (the discrepancy principle, Morozov 1966)
the one with the least total variation is sought:

    minimise TV(f(w))   subject to   |T f(w) - y|^2 <= m sigma^2,

by Adam on |T f - y|^2 / (2 sigma^2) + lambda TV(f), where log lambda falls while the misfit is too large and rises
while it is too small (dual ascent). So there is no strength of regularisation to tune.
"""

from dataclasses import dataclass, field
from math import exp, inf, log
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from sampla.core.checks import require
from sampla.core.progress import Progress
from sampla.tomography.operators import Operator

_MEMORY = 0.98
"""Of the running mean that early stopping watches: about the last 50 steps."""
_DUAL_STEP = 0.01
"""Change of log lambda a step, at most."""
_DIFFERENCE = 6**0.5 * 0.6745
"""Median |y_(j-1) - 2 y_j + y_(j+1)| of white Gaussian noise, over its standard deviation."""
_LEAST_NOISE = 1e-3
"""Least sigma, as a part of the root mean square of the measurements: no reconstruction is better than that."""


@dataclass(frozen=True)
class Recipe:
    """Number of steps and learning rates of the training.

    Args:
        steps: of Adam, at most.
        learning_rate: at first; it falls to nothing over ``steps`` along a cosine.
        patience: steps without a better running merit after which training stops.
        gain: what counts as better: log misfit beyond the noise, plus variation per pixel.

    Raises:
        ValueError: for settings out of range.
    """

    steps: int = 1500
    learning_rate: float = 5e-3
    patience: int = 300
    gain: float = 1e-3

    def __post_init__(self) -> None:
        require(self.steps >= 1, "at least one training step", f"{self.steps}", "The default is 1500.")
        require(self.patience >= 1, "a patience of at least 1", f"{self.patience}", "The default is 300.")
        for name in ("learning_rate", "gain"):
            require(0 < getattr(self, name) < 1, f"{name} in (0, 1)", f"{getattr(self, name)}", "See the default.")


@dataclass(frozen=True)
class Training:
    """The record of a training."""

    misfits: list[float]
    """|T f - y| / (sqrt(m) sigma) before each step."""
    tv_strength: float
    """lambda at the end."""
    stopped_early: bool
    seconds: float

    @property
    def steps(self) -> int:
        """Number of steps that were made."""
        return len(self.misfits)


def total_variation(images: Tensor) -> Tensor:
    """(K,) sum of the absolute differences of neighbours, for images (K, H, W)."""
    down = (images[:, 1:] - images[:, :-1]).abs().sum((1, 2))
    right = (images[:, :, 1:] - images[:, :, :-1]).abs().sum((1, 2))
    return down + right


def noise_seen(sinogram: Tensor) -> float:
    """Standard deviation of white noise from second differences along the detector, (A, D) -> float.

    Their median: edges of the object hardly move it. Zero with fewer than three bins. No less than a thousandth of
    the root mean square of the sinogram.
    """
    least = _LEAST_NOISE * float(sinogram.square().mean().sqrt())
    if sinogram.shape[1] < 3:
        return least
    second = sinogram[:, 2:] - 2 * sinogram[:, 1:-1] + sinogram[:, :-2]
    return max(least, float(second.abs().median()) / _DIFFERENCE)


def train(
    network: nn.Module,
    fixed_input: Tensor,
    operator: Operator,
    measurements: Tensor,
    noise_std: float,
    recipe: Recipe | None = None,
    progress: Progress | None = None,
) -> Training:
    """Train in place, and leave the network at its best, in evaluation mode.

    Args:
        network: (1, channels, H, W) -> (1, 1, H, W), an image of about unit size.
        fixed_input: its input.
        operator: T.
        measurements: (m,) y.
        noise_std: sigma.
        recipe: how long.
        progress: where to say so.

    Raises:
        ValueError: if the loss becomes NaN or infinite.
    """
    recipe, progress, start = recipe or Recipe(), progress or Progress(False), perf_counter()
    count, target = measurements.numel(), measurements.numel() * noise_std**2
    network.train()
    optimiser = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.steps)
    watch, strength, misfits = _Watch(recipe, network), 1.0, []
    progress.enter("training the deep image prior")
    for _ in progress.sweep(range(recipe.steps), recipe.steps):
        optimiser.zero_grad()
        image = network(fixed_input)[0]
        misfit, variation = (operator(image)[0] - measurements).square().sum(), total_variation(image)[0]
        loss = misfit / (2 * noise_std**2 * count) + strength * variation / count
        require(bool(loss.isfinite()), "a finite training loss", f"{loss.item()}", "Check the sinogram's scale.")
        excess = float(misfit.detach()) / target
        misfits.append(excess**0.5)
        if watch.finished(max(0.0, log(max(excess, 1e-30)) / 2) + float(variation.detach()) / image.numel()):
            break
        loss.backward()
        optimiser.step()
        schedule.step()
        strength *= exp(_DUAL_STEP * max(-1.0, min(1.0, 1 - excess)))
    network.load_state_dict(watch.best)
    network.eval()
    optimiser.zero_grad()
    return Training(misfits, strength, watch.idle >= recipe.patience, perf_counter() - start)


@dataclass
class _Watch:
    """Early stopping on a running mean of the merit."""

    recipe: Recipe
    network: nn.Module
    best: dict[str, Any] = field(default_factory=dict)
    best_merit: float = inf
    running: float = inf
    idle: int = 0

    def finished(self, merit: float) -> bool:
        """Take note of one more step; whether there was no gain for too long."""
        self.running = merit if self.running == inf else _MEMORY * self.running + (1 - _MEMORY) * merit
        if self.running < self.best_merit - self.recipe.gain:
            self.best_merit, self.best, self.idle = self.running, _copied(self.network), 0
        else:
            self.idle += 1
        return self.idle >= self.recipe.patience


def _copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}
