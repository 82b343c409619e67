"""Training as people train: AdamW, a one-cycle schedule, shuffled minibatches, until the training loss is small."""

from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from sampla.apps.demo.data import ImageSet


@dataclass(frozen=True)
class Recipe:
    """How the network is trained."""

    epochs: int
    batch_size: int = 64
    learning_rate: float = 5e-3
    """The highest of the schedule."""
    weight_decay: float = 1e-2


RECIPES = {"digits": Recipe(epochs=30), "mnist": Recipe(epochs=10, batch_size=128)}


@dataclass(frozen=True)
class Training:
    """What training did."""

    loss: float
    """Mean cross-entropy of the trained network on the training images, in nats."""
    accuracy: float
    """On the training images."""
    seconds: float


def train(network: nn.Module, data: ImageSet, recipe: Recipe, seed: int, progress: bool) -> Training:
    """Train in place and leave the network in evaluation mode.

    Args:
        network: anything that maps images to logits (n, C).
        data: the training images.
        recipe: epochs, batch size and optimiser settings.
        seed: of the order of the minibatches.
        progress: show a bar if it takes over two seconds.
    """
    start = perf_counter()
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    steps = recipe.epochs * -(-len(data) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, total_steps=steps)
    network.train()
    bar = tqdm(total=steps, desc="training", delay=2, leave=False, disable=not progress, dynamic_ncols=True)
    with bar:
        for _ in range(recipe.epochs):
            for rows in torch.randperm(len(data), generator=generator).split(recipe.batch_size):
                optimiser.zero_grad()
                cross_entropy(network(data.images[rows]), data.labels[rows]).backward()
                optimiser.step()
                schedule.step()
                bar.update()
    network.eval()
    loss, accuracy = _measure(network, data)
    return Training(loss, accuracy, perf_counter() - start)


@torch.no_grad()
def _measure(network: nn.Module, data: ImageSet) -> tuple[float, float]:
    logits: Tensor = torch.cat([network(images) for images, _ in data.batches(1000)])
    correct = (logits.argmax(-1) == data.labels).double().mean()
    return float(cross_entropy(logits, data.labels)), float(correct)
