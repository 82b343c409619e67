"""Small architectures of many kinds, and how they are trained."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from experiments.common.networks import ProjectedBlock, ResNet, Standardise, cifar10_checkpoint
from experiments.width.data import Split

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bernoulli": binary_cross_entropy_with_logits, "gaussian": mse_loss,
}  # fmt: skip
"""By likelihood; otherwise cross-entropy."""
CIFAR_MEAN, CIFAR_DEVIATION = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
"""Of the pixels, as the published ResNets were trained with them."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: minibatches drawn with replacement, one cycle of the learning rate."""

    steps: int
    rate: float = 3e-3
    """A third of the largest learning rate."""
    decay: float = 0.0
    """Coefficient of |w|^2 / 2 in the loss."""
    batch: int = 100
    optimiser: str = "adam"
    """"adam", "sgd" (momentum .9) or "lbfgs" (all data, ``steps`` iterations)."""
    smoothing: float = 0.0
    """Of labels."""
    shifted: bool = False
    """Whether every image is shifted by up to one pixel each time it is seen."""
    seed: int = 0


def mlp(
    inputs: int, hidden: tuple[int, ...], outputs: int, act: str = "tanh", drop: float = 0.0, norm: bool = False
) -> nn.Module:
    """Linear layers with an activation, dropout and BatchNorm where they are asked for."""
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise((inputs, *hidden)):
        layers += [nn.Linear(before, after), *([nn.BatchNorm1d(after)] if norm else []), ACTIVATIONS[act]()]
        layers += [nn.Dropout(drop)] if drop else []
    return nn.Sequential(*layers, nn.Linear((inputs, *hidden)[-1], outputs))


def cnn(
    channels: tuple[int, int], side: int, outputs: int, act: str = "relu", drop: float = 0.0, norm: bool = False,
    colours: int = 1,
) -> nn.Module:  # fmt: skip
    """Two convolutions, halving the picture after the first and averaging it to a quarter after the second."""
    first, second = channels
    small = side // 4
    return nn.Sequential(
        nn.Conv2d(colours, first, 3, padding=1), *([nn.BatchNorm2d(first)] if norm else []), ACTIVATIONS[act](),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1), *([nn.BatchNorm2d(second)] if norm else []), ACTIVATIONS[act](),
        nn.AdaptiveAvgPool2d(small), nn.Flatten(), *([nn.Dropout(drop)] if drop else []),
        nn.Linear(second * small * small, outputs),
    )  # fmt: skip


class Recurrent(nn.Module):
    """An LSTM that reads an image row by row."""

    def __init__(self, side: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(side, hidden, batch_first=True), nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.lstm(x[:, 0])[0][:, -1])
        return outputs


class Attention(nn.Module):
    """A transformer of one layer whose tokens are the rows of an image."""

    def __init__(self, side: int, width: int, outputs: int, drop: float = 0.0) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(side, width), nn.Parameter(0.1 * torch.randn(side, width))
        self.layer = nn.TransformerEncoderLayer(width, 2, 2 * width, drop, "gelu", batch_first=True)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.layer(self.embed(x[:, 0]) + self.place).mean(1))
        return outputs


def own_resnet(checkpoints: Path) -> nn.Module:
    """The ResNet-20 of CIFAR-10 that this project has trained."""
    return cifar10_checkpoint(checkpoints / "resnet20_cifar10.safetensors")


def projected_resnet(depth: int) -> nn.Sequential:
    """A ResNet of CIFAR-10 with 6 n + 2 = ``depth`` layers, of pixels in [0, 1]; with whatever weights."""
    return nn.Sequential(
        Standardise(CIFAR_MEAN, CIFAR_DEVIATION), ResNet(ProjectedBlock, (16, 32, 64), (depth - 2) // 6, 10)
    )  # fmt: skip


def published_resnet(checkpoints: Path, depth: int) -> nn.Module:
    """A published ResNet of CIFAR-10 with 6 n + 2 = ``depth`` layers, its names those of ``ResNet``."""
    whole, blocks, found = projected_resnet(depth), (depth - 2) // 6, {}
    network = whole[1]
    for name, value in load_file(checkpoints / f"published_resnet{depth}_cifar10.safetensors").items():
        head, _, rest = name.partition(".")
        if head.startswith("layer"):
            number, _, rest = rest.partition(".")
            head = f"layers.{(int(head[5:]) - 1) * blocks + int(number)}"
        found[f"{head}.{rest.replace('downsample', 'shortcut')}"] = value
    missing = network.load_state_dict(found, strict=False)
    assert not missing.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in missing.missing_keys)
    return whole.eval()


def train(network: nn.Module, split: Split, recipe: Recipe, likelihood: str) -> nn.Module:
    """Train in place; it is left in evaluation mode."""
    generator = torch.Generator().manual_seed(recipe.seed)
    loss = LOSSES.get(likelihood) or (lambda f, y: cross_entropy(f, y, label_smoothing=recipe.smoothing))
    weights = list(network.train().parameters())

    def objective(rows: Tensor | slice) -> Tensor:
        x = _moved(split.x[rows], generator) if recipe.shifted else split.x[rows]
        return loss(network(x), split.y[rows]) + recipe.decay / 2 * sum(w.square().sum() for w in weights)

    if recipe.optimiser == "lbfgs":
        _lbfgs(weights, lambda: objective(slice(None)), recipe.steps)
        return network.eval()
    kind = torch.optim.Adam if recipe.optimiser == "adam" else torch.optim.SGD
    momentum = {} if recipe.optimiser == "adam" else {"momentum": 0.9}
    optimiser = kind(weights, recipe.rate, **momentum)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3 * recipe.rate, total_steps=recipe.steps)
    size = min(recipe.batch, len(split.y))
    for _ in range(recipe.steps):
        optimiser.zero_grad()
        objective(torch.randint(len(split.y), (size,), generator=generator)).backward()
        optimiser.step()
        schedule.step()
    return network.eval()


def _lbfgs(weights: list[nn.Parameter], objective: Callable[[], Tensor], steps: int) -> None:
    optimiser = torch.optim.LBFGS(weights, max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = objective()
        value.backward()
        return value

    optimiser.step(closure)


def _moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """All images of a minibatch by the same shift."""
    by = torch.randint(-1, 2, (2,), generator=generator).tolist()
    return images.roll(tuple(by), (2, 3))
