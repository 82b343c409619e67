"""SGD with augmentation, and SWAG: a Gaussian fitted to where SGD with a constant learning rate goes.

Everything runs where the network and its images are; a generator may be on the CPU all the same.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.swa_utils import update_bn

from experiments.common.devices import device_of
from experiments.common.images import Images

_SHIFT = 4  # pixels


@dataclass(frozen=True)
class OneCycle:
    """SGD with Nesterov momentum along one cycle of the learning rate, on shifted and flipped images."""

    epochs: int
    rate: float = 0.2  # the largest
    batch: int = 128
    weight_decay: float = 5e-4
    bfloat16: bool = False  # forwards under autocast
    channels_last: bool = False  # how the network's weights lie in memory meanwhile


def one_cycle(
    network: nn.Module, train: Images, recipe: OneCycle, seed: int, after: Callable[[int, float], None] | None = None
) -> None:
    """Train a network in place.

    Args:
        network: where the images are.
        train: the images.
        recipe: of the run.
        seed: of minibatches, shifts and flips, which are drawn where the images are.
        after: told the epoch, from 1, and the mean loss in it.
    """
    device = train.images.device
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    generator = torch.Generator(device).manual_seed(seed)
    network.to(memory_format=layout)
    optimiser = torch.optim.SGD(
        network.parameters(), recipe.rate, momentum=0.9, weight_decay=recipe.weight_decay, nesterov=True
    )
    steps = recipe.epochs * -(-len(train) // recipe.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=steps)
    for epoch in range(1, recipe.epochs + 1):
        network.train()
        total = torch.zeros((), device=device)  # read once an epoch: reading it waits for the device
        for rows in torch.randperm(len(train), generator=generator, device=device).split(recipe.batch):
            inputs, labels = augmented(train.images[rows], generator).to(memory_format=layout), train.labels[rows]
            optimiser.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bfloat16):
                outputs = network(inputs)
            loss = cross_entropy(outputs.float(), labels)
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.detach() * len(rows)
        if after is not None:
            after(epoch, float(total) / len(train))
    network.to(memory_format=torch.contiguous_format).eval()


@dataclass(frozen=True)
class Swag:
    """The run of SGD with a constant learning rate from which SWAG takes its weights (Maddox et al. 2019)."""

    epochs: float
    learning_rate: float
    snapshots: int = 20  # taken at equal distances; all of them give the low-rank part
    batch: int = 128
    weight_decay: float = 5e-4
    augment: bool = False  # shifts by up to four pixels and horizontal flips, for a network that was trained with them


def swag_samples(network: nn.Module, train: Images, recipe: Swag, count: int, seed: int) -> list[nn.Module]:
    """Networks whose weights are drawn from SWAG's Gaussian, in evaluation mode.

    w = mean + sqrt(variance / 2) e + D u / sqrt(2 (R - 1)), with D the R last deviations from the running mean, and the
    averages of BatchNorm found anew on the training images.

    Args:
        network: trained; left as it is.
        train: the images that SGD sees.
        recipe: of the run.
        count: K.
        seed: of minibatches and draws.
    """
    generator = torch.Generator().manual_seed(seed)
    mean, square, deviations = _run(deepcopy(network), train, recipe, generator)
    variance = (square - mean.square()).clamp_min(0)
    drawn = []
    for _ in range(count):
        diagonal = torch.randn(mean.shape, generator=generator).to(mean) * (variance / 2).sqrt()
        weights = torch.randn(len(deviations), generator=generator).to(mean)
        low_rank = weights @ deviations / (2 * (len(deviations) - 1)) ** 0.5
        sample = deepcopy(network)
        vector_to_parameters(mean + diagonal + low_rank, sample.parameters())
        update_bn(train.images.split(recipe.batch), sample.train())  # BatchNorm's averages, over one pass
        drawn.append(sample.eval())
    return drawn


def _run(network: nn.Module, train: Images, recipe: Swag, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(P,) mean and (P,) mean square of the weights along the run, and (R, P) deviations."""
    optimiser = torch.optim.SGD(
        network.parameters(), lr=recipe.learning_rate, momentum=0.9, weight_decay=recipe.weight_decay
    )
    steps = max(recipe.snapshots, int(recipe.epochs * len(train) / recipe.batch))
    due = {steps * (k + 1) // recipe.snapshots for k in range(recipe.snapshots)}
    zero = torch.zeros((), device=train.images.device)
    count, mean, square, deviations = 0, zero, zero, []
    network.train()
    order = torch.empty(0, dtype=torch.int64)
    for step in range(1, steps + 1):
        if len(order) < recipe.batch:
            order = torch.randperm(len(train), generator=generator)
        rows, order = order[: recipe.batch], order[recipe.batch :]
        inputs = augmented(train.images[rows], generator) if recipe.augment else train.images[rows]
        optimiser.zero_grad()
        cross_entropy(network(inputs), train.labels[rows]).backward()
        optimiser.step()
        if step in due:
            weights = parameters_to_vector(network.parameters()).detach().clone()
            mean, square = (mean * count + weights) / (count + 1), (square * count + weights.square()) / (count + 1)
            count += 1
            deviations.append(weights - mean)
    return mean, square, torch.stack(deviations)


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every image flipped or not, and shifted by up to four pixels (reflected at the border)."""
    drawn, here, (count, channels, height, width) = generator.device, images.device, images.shape
    flip = torch.rand(count, generator=generator, device=drawn).to(here) < 0.5
    images = torch.where(flip.view(-1, 1, 1, 1), images.flip(3), images)
    wide = pad(images, (_SHIFT,) * 4, mode="reflect")
    corner = torch.randint(0, 2 * _SHIFT + 1, (2, count), generator=generator, device=drawn).to(here)
    rows = (corner[0][:, None] + torch.arange(height, device=here)).view(count, 1, height, 1)
    columns = (corner[1][:, None] + torch.arange(width, device=here)).view(count, 1, 1, width)
    number = torch.arange(count, device=here).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=here).view(1, -1, 1, 1)
    return wide[number, channel, rows, columns]


@torch.no_grad()
def loss_and_accuracy(network: nn.Module, images: Images, batch: int = 500) -> tuple[float, float]:
    """Mean cross-entropy and share of right answers, wherever the network is; it is left in evaluation mode."""
    device = device_of(network)
    outputs = torch.cat([network.eval()(part.to(device)).cpu() for part in images.images.split(batch)])
    return float(cross_entropy(outputs, images.labels)), float((outputs.argmax(-1) == images.labels).double().mean())
