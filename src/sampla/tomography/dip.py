"""The deep image prior: train a U-Net from nothing until its image explains one sinogram (Ulyanov et al. 2018).

Of all images that miss the m measurements by no more than their noise sigma (the discrepancy principle, Morozov 1966)
the one with the least total variation is sought:

    minimise TV(f(w))   subject to   |T f(w) - y|^2 <= m sigma^2,

by Adam on |T f - y|^2 / (2 sigma^2) + lambda TV(f), where log lambda falls while the misfit is too large and rises
while it is too small (dual ascent). So there is no strength of regularisation to tune.

From nothing that takes thousands of steps, because T hides most of an image from the gradient. The image that solves
the same problem without a network (``tv.py``) is known in a second: given as part of the network's input, and as its
target at first, it leaves some hundred steps to the sinogram, which end where the misfit has reached the noise.
"""

from dataclasses import dataclass, field, fields
from math import exp, inf, log
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from sampla.core.checks import require
from sampla.core.progress import Progress
from sampla.tomography.operators import Operator
from sampla.tomography.tv import TotalVariation

_MEMORY = 0.98
"""Of the running mean that early stopping watches: about the last 50 steps."""
_SHARE = 0.1
"""Of the lambda of least total variation without a network. At 1 images were worse (notes/tomography.md)."""
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
        steps: of Adam on the sinogram, at most.
        learning_rate: at first; it falls to nothing over ``steps`` along a cosine.
        patience: steps without a better running merit after which training stops.
        gain: what counts as better: log misfit beyond the noise, plus variation per pixel.
        start_steps: before these, towards the image of least total variation, which is then part of the network's
            input as well. 0: from nothing and a random input, as the deep image prior was published; give some 1,500
            ``steps`` and a ``learning_rate`` of .005 with it.
        start_rate: learning rate of the start; it falls to nothing along a root.

    Raises:
        ValueError: for settings out of range.
    """

    steps: int = 200
    learning_rate: float = 5e-4
    patience: int = 300
    gain: float = 1e-3
    start_steps: int = 500
    start_rate: float = 1e-2

    def __post_init__(self) -> None:
        require(self.steps >= 1, "at least one training step", f"{self.steps}", "The default is 200.")
        require(self.start_steps >= 0, "start_steps of at least 0", f"{self.start_steps}", "The default is 500.")
        require(self.patience >= 1, "a patience of at least 1", f"{self.patience}", "The default is 300.")
        for name in ("learning_rate", "gain", "start_rate"):
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
    start_steps: int = 0
    """Steps towards the image that it was started from."""
    final_misfit: float = float("nan")
    """|T f - y| / (sqrt(m) sigma) of the network as it was left."""
    start: dict[str, Any] | None = None
    """How well the image that it was started from is known: ``TotalVariation`` without the image itself."""

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
    start: TotalVariation | None = None,
) -> Training:
    """Train in place, and leave the network in evaluation mode: at its best, or with a start as it is at the end.

    What is best has least variation among what meets the noise: with a start that would be the start.

    Args:
        network: (1, channels, H, W) -> (1, 1, H, W), an image of about unit size.
        fixed_input: its input.
        operator: T.
        measurements: (m,) y.
        noise_std: sigma.
        recipe: how long.
        progress: where to say so.
        start: whose image the network is brought to first, in ``recipe.start_steps``, and a tenth of whose lambda,
            sqrt(m) / (sigma |q|), is the first: the network smooths by itself. None: no start, and lambda = 1.

    Raises:
        ValueError: if the loss becomes NaN or infinite.
    """
    recipe, progress, begun = recipe or Recipe(), progress or Progress(False), perf_counter()
    strength = 1.0
    if start is not None:
        _bring_to(network, fixed_input, start.image, recipe, progress)
        strength = _SHARE * measurements.numel() ** 0.5 / (noise_std * max(start.price, 1e-30))
    count, target = measurements.numel(), measurements.numel() * noise_std**2
    network.train()
    optimiser = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.steps)
    watch, misfits = _Watch(recipe, network), []
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
    if start is None:
        network.load_state_dict(watch.best)
    network.eval()
    optimiser.zero_grad()
    left = _misfit(network, fixed_input, operator, measurements)
    early, made = watch.idle >= recipe.patience, 0 if start is None else recipe.start_steps
    known = None if start is None else {one.name: getattr(start, one.name) for one in fields(start)[1:]}
    return Training(misfits, strength, early, perf_counter() - begun, made, (left / target) ** 0.5, known)


def untrained(
    network: nn.Module, fixed_input: Tensor, operator: Operator, measurements: Tensor, noise_std: float
) -> Training:
    """The record of a network that is taken as it is, put into evaluation mode."""
    network.eval()
    left = _misfit(network, fixed_input, operator, measurements)
    ratio = (left / (measurements.numel() * noise_std**2)) ** 0.5
    return Training([ratio], 0.0, False, 0.0, 0, ratio)


def _misfit(network: nn.Module, fixed_input: Tensor, operator: Operator, measurements: Tensor) -> float:
    """|T f - y|^2."""
    with torch.no_grad():
        return float((operator(network(fixed_input)[0])[0] - measurements).square().sum())


def _bring_to(network: nn.Module, fixed_input: Tensor, image: Tensor, recipe: Recipe, progress: Progress) -> None:
    """The least squared distance to an image (H, W), which no operator hides anything of."""
    network.train()
    optimiser = torch.optim.Adam(network.parameters(), lr=recipe.start_rate)
    progress.enter("training towards the image of least total variation")
    for step in progress.sweep(range(recipe.start_steps), recipe.start_steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.start_rate * (1 - step / recipe.start_steps) ** 0.5
        optimiser.zero_grad()
        (network(fixed_input)[0, 0] - image).square().mean().backward()
        optimiser.step()


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
