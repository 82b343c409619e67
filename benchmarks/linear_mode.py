"""What curvature_at="linear-mode" costs beside curvature_at="network": passes of whole fits, K = 16.

    python -m benchmarks.linear_mode [--root DATA] [--only digits]

Run by hand; a few minutes on two cores. ``--root`` holds mnist/; without it that network is left out. Prints the table
of docs/notes/linear-mode.md: products with M over K for both, where alpha settled, how often B moved, and what the
same posterior costs where B is given.
"""

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import sampla
from sampla.inference.infer import infer
from sampla.model import Ledger, LinearModel

SAMPLES = 16
Loss = Callable[[Tensor, Tensor], Tensor]


def digits(count: int) -> tuple[Tensor, Tensor]:
    """(n, 64) images and their numbers, in random order."""
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))[:count]
    return torch.from_numpy(found.data / 16).float()[order], torch.from_numpy(found.target)[order]


def trained(network: nn.Module, x: Tensor, y: Tensor, loss: Loss, steps: int, decay: float = 0.0) -> nn.Module:
    """By AdamW on batches of 100."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=decay)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        rows = torch.randint(len(x), (100,), generator=generator)
        optimiser.zero_grad()
        loss(network(x[rows]), y[rows]).backward()
        optimiser.step()
    return network.eval()


def perceptron(outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, outputs))


def lenet() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 5, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


Case = tuple[nn.Module, Tensor, Tensor, str]


def on_digits(steps: int, decay: float = 0.0, wrong: float = 0.0, classes: bool = True) -> Case:
    x, y = digits(500)
    if wrong:
        chosen = torch.rand(len(y), generator=torch.Generator().manual_seed(2)) < wrong
        y = torch.where(chosen, (y + 3) % 10, y)
    if classes:
        return trained(perceptron(10), x, y, functional.cross_entropy, steps, decay), x, y, "categorical"
    y = torch.stack([y % 2 == 0, y >= 5, torch.isin(y, torch.tensor([0, 6, 8, 9]))], 1).float()
    return trained(perceptron(3), x, y, functional.binary_cross_entropy_with_logits, steps, decay), x, y, "bernoulli"


def on_mnist(root: Path) -> Case:
    import gzip

    import numpy as np

    def read(name: str, skipped: int) -> Tensor:
        with gzip.open(root / "mnist" / name) as file:
            return torch.from_numpy(np.frombuffer(file.read(), np.uint8, offset=skipped).copy())

    x = read("train-images-idx3-ubyte.gz", 16).view(-1, 1, 28, 28)[:1000].float() / 255
    y = read("train-labels-idx1-ubyte.gz", 8)[:1000].long()
    return trained(lenet(), x, y, functional.cross_entropy, 600), x, y, "categorical"


CASES: dict[str, Callable[[Path], Case]] = {
    "digits, interpolating": lambda _: on_digits(3000),
    "digits, weight decay": lambda _: on_digits(3000, decay=3.0),
    "digits, underfitted": lambda _: on_digits(40),
    "digits, wrong labels": lambda _: on_digits(3000, wrong=0.15),
    "digits, Bernoulli": lambda _: on_digits(1000, classes=False),
    "MNIST, convolutions": on_mnist,
}


def fitted(case: Case, curvature_at: Any, prior: str) -> sampla.LinearisedLaplace:
    network, x, y, likelihood = case
    la = sampla.LinearisedLaplace(
        network, likelihood, prior, num_samples=SAMPLES, solver="block-cg", curvature_at=curvature_at, progress=False,
        chunks=(256, 16), width="em",
    )  # fmt: skip
    return la.fit(list(zip(x.split(250), y.split(250), strict=True)))


def given(la: sampla.LinearisedLaplace, case: Case) -> float:
    """Passes of the same fit where B at its mode is known from the start."""
    found, (_, x, y, _) = la._inference, case
    assert found is not None
    data = list(zip(x.split(250), y.split(250), strict=True))
    model = LinearModel(found.model.features, found.model.likelihood, data, Ledger())
    infer(model, sampla.Isotropic(), sampla.BlockCG(), num_samples=SAMPLES, seed=0, em=sampla.EM())
    return model.ledger.products / SAMPLES


def main() -> None:
    """Fit each network at both curvatures and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--prior", default="g-prior")
    asked = parser.parse_args()
    print("| network | train NLL | at network: passes, alpha, gamma | at mode: the same, rounds | ratio | B given |")
    print("|---|---|---|---|---|---|")
    for name, make in CASES.items():
        if asked.only not in name or (make is on_mnist and asked.root is None):
            continue
        case = make(asked.root)
        network, x, y, likelihood = case
        loss = functional.cross_entropy if likelihood == "categorical" else functional.binary_cross_entropy_with_logits
        words, passes = [], []
        for curvature_at in ("network", "linear-mode"):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                la = fitted(case, curvature_at, asked.prior)
            report = la.report_
            passes.append(report.passes)
            gamma = sum(report.effective_dimension)
            said = "" if report.settled and not caught else ", NOT settled" if not report.settled else ", warned"
            rounds = "" if report.curvature_rounds is None else f", {report.curvature_rounds}"
            words.append(f"{report.passes:.1f}, {report.prior_precision[0]:.3g}, {gamma:.0f}{rounds}{said}")
        with torch.no_grad():
            train = float(loss(network(x), y))
        ratio = f"{passes[1] / passes[0]:.2f} | {given(la, case):.1f}"
        print(f"| {name} | {train:.2g} | {words[0]} | {words[1]} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
