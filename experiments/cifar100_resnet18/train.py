"""Train the ResNet-18 for CIFAR-100 in the usual way, on a GPU where there is one.

    python experiments/cifar100_resnet18/train.py --root DIR --checkpoints DIR [--epochs 30] [--images 49000] [--quick]

SGD with Nesterov momentum, a one-cycle schedule, random shifts and flips, on the first images of the order that run.py
uses. Writes DIR/resnet18_cifar100.safetensors after every epoch, with what it was trained on and its test accuracy.
``--bfloat16`` takes the forwards under autocast, less than half of the time on a CPU that has bfloat16 (measured).
``--quick`` trains on 100 images for two steps: a network that is good for nothing but trying the scripts.
"""

import argparse
import sys
from pathlib import Path
from time import perf_counter

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder that holds classification/

from classification.data import Images, cifar
from classification.networks import cifar100_network
from classification.swag import augmented
from config import CHECKPOINT, TRAINED_ON

_BATCH, _DECAY, _SEED = 128, 5e-4, 0
_QUICK_IMAGES, _QUICK_EPOCHS = 100, 2


def main() -> None:
    """Train and save."""
    arguments = _arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    order = torch.randperm(50_000, generator=torch.Generator().manual_seed(_SEED))
    count = _QUICK_IMAGES if arguments.quick else arguments.images
    train = cifar(arguments.root, "cifar100", "train", order[:count])
    test = cifar(arguments.root, "cifar100", "test", count=_QUICK_IMAGES if arguments.quick else min(count, 10_000))
    torch.manual_seed(_SEED)
    network = cifar100_network().to(device)
    epochs = _QUICK_EPOCHS if arguments.quick else arguments.epochs
    optimiser = torch.optim.SGD(network.parameters(), arguments.rate, momentum=0.9, weight_decay=_DECAY, nesterov=True)
    steps = epochs * -(-count // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, arguments.rate, total_steps=steps)
    generator, start = torch.Generator().manual_seed(_SEED), perf_counter()
    for epoch in range(1, epochs + 1):
        loss = _epoch(network, train, optimiser, schedule, generator, device, arguments.bfloat16)
        accuracy = _accuracy(network, test, device)
        print(
            f"{perf_counter() - start:6.0f} s  epoch {epoch}: loss {loss:.3f}, test accuracy {accuracy:.2%}", flush=True
        )
        state = {name: t.cpu().contiguous() for name, t in network.state_dict().items()}
        arguments.checkpoints.mkdir(parents=True, exist_ok=True)
        facts = {"images": count, "epochs": epoch, "test accuracy": f"{accuracy:.4f}"}
        save_file(state, arguments.checkpoints / CHECKPOINT, {name: str(fact) for name, fact in facts.items()})


def _epoch(
    network: nn.Module,
    train: Images,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    generator: torch.Generator,
    device: torch.device,
    bfloat16: bool,
) -> float:
    """Mean loss."""
    network.train()
    total = 0.0
    for rows in torch.randperm(len(train), generator=generator).split(_BATCH):
        inputs, labels = augmented(train.inputs[rows], generator).to(device), train.labels[rows].to(device)
        optimiser.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            outputs = network(inputs)
        loss = cross_entropy(outputs.float(), labels)
        loss.backward()
        optimiser.step()
        schedule.step()
        total += float(loss.detach()) * len(rows)
    return total / len(train)


@torch.no_grad()
def _accuracy(network: nn.Module, test: Images, device: torch.device) -> float:
    network.eval()
    right = [(network(x.to(device)).argmax(-1).cpu() == y).sum() for x, y in test.batches(500)]
    return float(torch.stack(right).sum()) / len(test)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder that holds cifar100/")
    parser.add_argument("--checkpoints", type=Path, required=True, help="where the network goes")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--rate", type=float, default=0.2, help="largest learning rate; less for few steps")
    parser.add_argument("--images", type=int, default=TRAINED_ON)
    parser.add_argument("--bfloat16", action="store_true", help="forwards under autocast")
    parser.add_argument("--quick", action="store_true", help="a few steps, to try the scripts")
    return parser.parse_args()


if __name__ == "__main__":
    main()
