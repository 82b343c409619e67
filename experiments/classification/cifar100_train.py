"""Train the ResNet-18 for CIFAR-100 in the usual way, on a GPU where there is one.

    python -m experiments.classification.cifar100_train --root DIR --checkpoints DIR [--epochs 30] [--quick]

SGD with Nesterov momentum, a one-cycle schedule, random shifts and flips, on the first images of the order that
cifar100.py uses. Writes DIR/resnet18_cifar100.safetensors after every epoch, with what it was trained on and its test
accuracy. ``--bfloat16`` takes the forwards under autocast, less than half of the time on a CPU that has bfloat16
(measured). ``--quick`` trains on 100 images for two steps: a network that is good for nothing but trying the scripts.
"""

import torch
from safetensors.torch import save_file

from experiments.classification.cifar100 import CHECKPOINT, TRAINED_ON
from experiments.common.command import command, say
from experiments.common.images import Images, cifar
from experiments.common.networks import cifar100_network
from experiments.common.page import RESULTS
from experiments.common.training import OneCycle, loss_and_accuracy, one_cycle

_SEED = 0
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
    train = Images(train.images.to(device), train.labels.to(device))
    torch.manual_seed(_SEED)
    network = cifar100_network().to(device)
    recipe = OneCycle(epochs, asked.rate, bfloat16=asked.bfloat16)
    asked.checkpoints.mkdir(parents=True, exist_ok=True)

    def after(epoch: int, loss: float) -> None:
        accuracy = loss_and_accuracy(network, test)[1]
        say(f"epoch {epoch}: loss {loss:.3f}, test accuracy {accuracy:.2%}")
        state = {name: t.cpu().contiguous() for name, t in network.state_dict().items()}
        facts = {"images": str(count), "epochs": str(epoch), "test accuracy": f"{accuracy:.4f}"}
        save_file(state, asked.checkpoints / CHECKPOINT, facts)

    one_cycle(network, train, recipe, _SEED, after)


if __name__ == "__main__":
    main()
