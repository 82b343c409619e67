"""How often a whole fit reads the loader, by what it reads for, with the products and CPU seconds of each: K = 16.

    python -m benchmarks.readings [--root DATA] [--only digits] [--prior g-prior] [--tolerance 0.02] [--repeats 1]

Run by hand; a few minutes on two cores. ``--root`` holds mnist/; without it that network is left out. Readings are
counted at the loader, from outside; what they are for is the method of LinearModel that they are made in.
"""

import argparse
import gzip
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any
from unittest import mock

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import sampla
from sampla.model import LinearModel

SAMPLES, BATCH = 16, 250
PASSES = {
    "survey": "survey", "draw_noise": "noise", "_loss_gradient": "gradients", "_newton_product": "Newton products",
    "_curvature_product": "products with M",
}  # fmt: skip
"""Methods of LinearModel that read the data, and what they read for; readings outside of them are for the width."""
Case = tuple[nn.Module, Tensor, Tensor, str]


class Counted:
    """Batches that know how often they have been read, and what for."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.batches = list(zip(x.split(BATCH), y.split(BATCH), strict=True))
        self.purpose, self.readings, self.seconds, self.products = "other", Counter(), Counter(), Counter()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.readings[self.purpose] += 1
        yield from self.batches

    @contextmanager
    def told(self) -> Iterator[None]:
        """Within it, readings are counted for what they are made for."""
        kept = {name: getattr(LinearModel, name) for name in PASSES if hasattr(LinearModel, name)}
        with mock.patch.multiple(LinearModel, **{name: self._timed(PASSES[name], each) for name, each in kept.items()}):
            yield

    def _timed(self, purpose: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(model: LinearModel, *given: Any, **named: Any) -> Any:
            before, self.purpose = (process_time(), model.ledger.products), purpose
            found = method(model, *given, **named)
            self.purpose = "other"
            self.seconds[purpose] += process_time() - before[0]
            self.products[purpose] += model.ledger.products - before[1]
            return found

        return timed


def trained(network: nn.Module, x: Tensor, y: Tensor, loss: Any, steps: int) -> nn.Module:
    """By Adam on batches of 100."""
    optimiser, generator = torch.optim.Adam(network.parameters(), lr=3e-3), torch.Generator().manual_seed(1)
    for _ in range(steps):
        rows = torch.randint(len(x), (100,), generator=generator)
        optimiser.zero_grad()
        loss(network(x[rows]), y[rows]).backward()
        optimiser.step()
    return network.eval()


def convolutions(side: int, channels: int) -> nn.Module:
    """Two convolutions and a linear layer."""
    left = ((side - 3) // 2 + 1 - 3) // 2 + 1
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, stride=2), nn.ReLU(), nn.Conv2d(channels, 2 * channels, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(2 * channels * left**2, 10),
    )  # fmt: skip


def on_digits(steps: int = 600) -> Case:
    x, y = (torch.from_numpy(each) for each in load_digits(return_X_y=True))
    x = x.float().view(-1, 1, 8, 8) / 16
    torch.manual_seed(0)
    return trained(convolutions(8, 12), x, y, functional.cross_entropy, steps), x, y, "categorical"


def on_labels() -> Case:
    x, y = (torch.from_numpy(each) for each in load_digits(return_X_y=True))
    x, y = x.float() / 16, torch.stack([y % 2 == 0, y >= 5, torch.isin(y, torch.tensor([0, 6, 8, 9]))], 1).float()
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 3))
    return trained(network, x, y, functional.binary_cross_entropy_with_logits, 600), x, y, "bernoulli"


def on_regression() -> Case:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2000, 8, generator=generator) * 2 - 1
    clean = torch.sin(3 * x[:, :1]) + x[:, 1:2] * x[:, 2:3] + x[:, 3:4].abs()
    y = clean + 0.2 * torch.randn(2000, 1, generator=generator)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 1))
    return trained(network, x, y, functional.mse_loss, 2000), x, y, "gaussian"


def on_mnist(root: Path, count: int = 5000) -> Case:
    def read(name: str, skipped: int) -> Tensor:
        with gzip.open(root / "mnist" / name) as file:
            return torch.from_numpy(np.frombuffer(file.read(), np.uint8, offset=skipped).copy())

    x = read("train-images-idx3-ubyte.gz", 16).view(-1, 1, 28, 28)[:count].float() / 255
    y = read("train-labels-idx1-ubyte.gz", 8)[:count].long()
    torch.manual_seed(0)
    return trained(convolutions(28, 8), x, y, functional.cross_entropy, 600), x, y, "categorical"


CASES: dict[str, Callable[[Path], Case]] = {
    "digits, convolutions": lambda _: on_digits(),
    "digits, underfitted": lambda _: on_digits(60),
    "digits, Bernoulli": lambda _: on_labels(),
    "regression": lambda _: on_regression(),
    "MNIST, convolutions": on_mnist,
}


def fitted(case: Case, prior: str, tolerance: float, width: Any, curvature_at: Any) -> tuple[dict[str, Any], Counted]:
    """What a fit found, and what it read."""
    network, x, y, likelihood = case
    data = Counted(x, y)
    la = sampla.LinearisedLaplace(
        network, likelihood, prior, num_samples=SAMPLES, solver="block-cg", em=sampla.EM(tolerance=tolerance),
        progress=False, chunks=(64, 16), width=width, curvature_at=curvature_at,
    )  # fmt: skip
    start = process_time()
    with data.told(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        la.fit(data)
    report = la.report_
    return {
        "alpha": report.prior_precision[0], "gamma": sum(report.effective_dimension), "passes": report.passes,
        "seconds": process_time() - start, "steps": len(report.trace), "settled": report.settled,
        "evidence": report.log_evidence, "warned": len(caught),
    }, data  # fmt: skip


def main() -> None:
    """Fit each network and print a row for each, and what its readings were for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--prior", default="g-prior")
    parser.add_argument("--tolerance", type=float, default=0.02)
    parser.add_argument("--width", default="loo")
    parser.add_argument("--curvature-at", default="network")
    parser.add_argument("--repeats", type=int, default=1)
    asked = parser.parse_args()
    print("| network | readings | passes | CPU s | alpha | gamma | EM steps | read for: readings, products, CPU s |")
    print("|---|---|---|---|---|---|---|---|")
    for name, make in CASES.items():
        if asked.only not in name or (make is on_mnist and asked.root is None):
            continue
        case = make(asked.root)
        given = (case, asked.prior, asked.tolerance, asked.width, asked.curvature_at)
        runs = [fitted(*given) for _ in range(asked.repeats)]
        found, data = runs[-1]
        what = "; ".join(
            f"{each} {count}, {data.products[each]:.1f}, {data.seconds[each]:.1f}"
            for each, count in data.readings.items()
        )
        seconds = median(run["seconds"] for run, _ in runs)
        said = "" if found["settled"] and not found["warned"] else f" (settled {found['settled']}, warned)"
        print(
            f"| {name} | {sum(data.readings.values())} | {found['passes']:.1f} | {seconds:.1f} | {found['alpha']:.4g} "
            f"| {found['gamma']:.1f} | {found['steps']}{said} | {what} |", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
