"""Find wrong labels: the data that the posterior finds least likely when each is left out.

5 % and 15 % of the labels of real digits are made wrong. A small network is trained on them twice: stopped early, and
until it has memorised them all. Prints how well leave-one-out ranks the wrong labels, with the curvature at the network
(the default) and at the linear model's mode, beside the loss of the network and of that linear model on the same data:
precision among as many as were planted, which is also their recall, and average precision over all ranks. Draws the
most suspicious digits with the labels that they were given. `python mislabelled.py` takes one share and seed and some
seconds; `--full` two of each, `--size` other numbers of digits.

Where the network was stopped early, its own loss tells as much as anything, and with `--full --size 400` more than
leave-one-out. Where it has memorised the labels, the
linear model tells more: by leave-one-out with the curvature at its mode, and as much by its mere loss.
"""

import argparse

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score
from torch import nn

import sampla

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--full", action="store_true", help="5 % and 15 % wrong, two seeds".replace("%", "%%"))
parser.add_argument("--size", type=int, help="digits: 600 where the rest is full, otherwise 300")
options = parser.parse_args()
SIZE = options.size or (600 if options.full else 300)
SHARES, SEEDS = ((0.05, 0.15), (0, 1)) if options.full else ((0.15,), (0,))
TRAINING = {"stopped early": 30, "memorised": 400}
"""Passes of full-batch Adam."""


def planted(share: float, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Digits, labels of which a share is wrong, and which those are."""
    rng = np.random.default_rng(seed)
    images, digits = load_digits(return_X_y=True)
    chosen = rng.permutation(len(images))[:SIZE]
    labels = torch.from_numpy(digits[chosen]).long()
    wrong = torch.zeros(SIZE, dtype=torch.bool)
    wrong[rng.permutation(SIZE)[: round(share * SIZE)]] = True
    others = (labels + torch.from_numpy(rng.integers(1, 10, SIZE))) % 10
    return torch.from_numpy(images[chosen] / 16).float(), labels.where(~wrong, others), wrong


def trained(x: torch.Tensor, y: torch.Tensor, passes: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(passes):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    return net.eval()


def losses(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs.detach(), y, reduction="none")


def linear_outputs(la: sampla.LinearisedLaplace, net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """J theta* of the linear model itself."""
    weights, mode = dict(net.named_parameters()), la.linear_mean_
    assert mode is not None
    return torch.func.jvp(lambda w: torch.func.functional_call(net, w, (x,)), (weights,), (mode,))[1]


def found(suspicion: torch.Tensor, wrong: torch.Tensor) -> tuple[float, float]:
    """Precision among as many as there are, and average precision."""
    first = suspicion.argsort(descending=True)[: int(wrong.sum())]
    return float(wrong[first].float().mean()), float(average_precision_score(wrong, suspicion))


print("precision = recall at the planted number / average precision, means over seeds")
print("wrong | network, its loss     | its loss    | leave-one-out | same, linear mode | loss of the linear mode")
for share in SHARES:
    for name, passes in TRAINING.items():
        rows, training_loss = [], []
        for seed in SEEDS:
            x, y, wrong = planted(share, seed)
            net = trained(x, y, passes, seed)
            loader = list(zip(x.split(200), y.split(200), strict=True))
            training_loss.append(float(losses(net(x), y).mean()))
            suspicions = [losses(net(x), y)]
            for at in ("network", "linear-mode"):
                la = sampla.LinearisedLaplace(net, curvature_at=at, progress=False).fit(loader)
                loo = la.leave_one_out(loader)
                suspicions.append(-loo.log_prob)
            suspicions.append(losses(linear_outputs(la, net, x), y))
            rows.append([found(suspicion, wrong) for suspicion in suspicions])
        cells = [f"{precision:.2f} / {average:.2f}" for precision, average in np.mean(rows, 0)]
        print(f"{share:5.0%} | {name:13} {np.mean(training_loss):7.4f} | {' | '.join(cells)}")
print(loo)

figure, axes = plt.subplots(2, 6, figsize=(9, 3.6))
for n, axis in zip(loo.least_likely(axes.size).tolist(), axes.flat, strict=True):
    axis.imshow(x[n].view(8, 8).numpy(), cmap="gray_r")
    axis.set_title(f"said to be {y[n]}", color="firebrick" if wrong[n] else "black", fontsize=9)
    axis.axis("off")
figure.suptitle("Least likely labels without them (red: made wrong)")
figure.savefig("mislabelled.png", dpi=150)
