"""Train the ResNet-18 for CIFAR-100 in the usual way, on a GPU where there is one.

    python -m experiments.classification.cifar100_train --root DIR --checkpoints DIR [--epochs 30] [--quick]

SGD with Nesterov momentum, a one-cycle schedule, random shifts and flips, on the first images of the order that
cifar100.py uses. Writes DIR/resnet18_cifar100.safetensors after every epoch, with what it was trained on and its test
accuracy. ``--bfloat16`` takes the forwards under autocast, less than half of the time on a CPU that has bfloat16
(measured). ``--quick`` trains on 100 images for two steps: a network that is good for nothing but trying the scripts.
"""

import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from experiments.classification.cifar100 import CHECKPOINT, TRAINED_ON
from experiments.common.command import command, say
from experiments.common.images import cifar
from experiments.common.networks import cifar100_network
from experiments.common.page import RESULTS
from experiments.common.training import augmented, loss_and_accuracy

_BATCH, _DECAY, _SEED = 128, 5e-4, 0
_QUICK_IMAGES, _QUICK_EPOCHS = 100, 2


def main() -> None:
    """Train and save."""
    asked = command(
        __doc__, RESULTS / "cifar100", "cifar100/", "the network, when this is done", "a few steps, to try the scripts",
        threads=None, epochs=(30, "passes over the images"), images=(TRAINED_ON, "that are trained on"),
        rate=(0.2, "largest learning rate; less for few steps"), bfloat16=(False, "forwards under autocast"),
    )  # fmt: skip
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    count, epochs = (_QUICK_IMAGES, _QUICK_EPOCHS) if asked.quick else (asked.images, asked.epochs)
    order = torch.randperm(50_000, generator=torch.Generator().manual_seed(_SEED))
    train = cifar(asked.root, "cifar100", "train", order[:count])
    test = cifar(asked.root, "cifar100", "test", count=min(count, 10_000))
    torch.manual_seed(_SEED)
    network = cifar100_network().to(device)
    optimiser = torch.optim.SGD(network.parameters(), asked.rate, momentum=0.9, weight_decay=_DECAY, nesterov=True)
    steps, generator = epochs * -(-count // _BATCH), torch.Generator().manual_seed(_SEED)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, asked.rate, total_steps=steps)
    asked.checkpoints.mkdir(parents=True, exist_ok=True)
    for epoch in range(1, epochs + 1):
        network.train()
        total = 0.0
        for rows in torch.randperm(len(train), generator=generator).split(_BATCH):
            inputs, labels = augmented(train.images[rows], generator).to(device), train.labels[rows].to(device)
            optimiser.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=asked.bfloat16):
                outputs = network(inputs)
            loss = cross_entropy(outputs.float(), labels)
            loss.backward()
            optimiser.step()
            schedule.step()
            total += float(loss.detach()) * len(rows)
        accuracy = loss_and_accuracy(network, test)[1]
        say(f"epoch {epoch}: loss {total / len(train):.3f}, test accuracy {accuracy:.2%}")
        state = {name: t.cpu().contiguous() for name, t in network.state_dict().items()}
        facts = {"images": str(count), "epochs": str(epoch), "test accuracy": f"{accuracy:.4f}"}
        save_file(state, asked.checkpoints / CHECKPOINT, facts)


if __name__ == "__main__":
    main()
