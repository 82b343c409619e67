"""Does rescaling weights before a BatchNorm change the error bars? It must not: the function is the same.

Run from the repository's root (about two minutes on two cores):

    make figures

Writes docs/images/gprior_invariance.png and the numbers next to it, gprior_invariance.json.
"""

import copy
import json
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import sampla

FACTORS = (0.1, 1.0, 10.0)
PRIORS = {"isotropic": "isotropic prior", "g-prior": "g-prior"}
STYLES = {
    0.1: {"marker": "o", "s": 30, "facecolor": "none", "edgecolor": "#0072b2", "linewidth": 0.7},
    10.0: {"marker": "^", "s": 8, "facecolor": "#d55e00", "edgecolor": "none"},
}
OUT = Path(__file__).parents[1] / "images"


def digits() -> tuple[Tensor, Tensor]:
    """The 1,797 images as (n, 1, 8, 8) in [0, 1], and their labels."""
    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)


def trained(x: Tensor, y: Tensor) -> nn.Sequential:
    """A convolution, a BatchNorm and a linear layer: 1,338 parameters outside the BatchNorm."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        for index in torch.randperm(len(x)).split(50):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[index]), y[index]).backward()
            optimiser.step()
    return model.eval()


def rescaled(model: nn.Sequential, factor: float) -> nn.Sequential:
    """The same function with the weights before the BatchNorm multiplied; eps scales like the variance it joins."""
    other = copy.deepcopy(model)
    convolution, norm = other[0], other[1]
    with torch.no_grad():
        convolution.weight.mul_(factor)
        convolution.bias.mul_(factor)
        norm.running_mean.mul_(factor)
        norm.running_var.mul_(factor**2)
    norm.eps *= factor**2
    return other


def error_bars(model: nn.Module, prior: str, data: list[tuple[Tensor, Tensor]], x: Tensor) -> tuple[Tensor, float]:
    """(n,) root mean square of the predictive std over the ten logits, and alpha.

    The solver is the exact one, so that only the prior can make a difference.
    """
    la = sampla.LinearisedLaplace(model, prior=prior, num_samples=16, solver="dense").fit(data)
    return la.predict(x).variance.mean(1).sqrt(), float(la.prior_precision_)


def measure() -> dict[str, dict[float, tuple[Tensor, float]]]:
    """Prior -> factor -> error bars on the 597 held-out images, and alpha."""
    x, y = digits()
    model = trained(x[:1200], y[:1200])
    data = list(zip(x[:1200].split(200), y[:1200].split(200), strict=True))
    networks = {factor: rescaled(model, factor) for factor in FACTORS}
    for factor, network in networks.items():
        shift = float((network(x) - model(x)).abs().max().detach())
        print(f"weights x {factor:g}: logits move by at most {shift:.1e}")
    return {prior: {c: error_bars(networks[c], prior, data, x[1200:]) for c in FACTORS} for prior in PRIORS}


def numbers(found: dict[str, dict[float, tuple[Tensor, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """What the picture shows, as figures: change of the variance against the network as it was trained."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for prior, by_factor in found.items():
        reference = by_factor[1.0][0]
        table[prior] = {}
        for factor, (std, alpha) in by_factor.items():
            change = (std / reference).square() - 1
            table[prior][f"{factor:g}"] = {
                "prior_precision": round(alpha, 6),
                "mean_std": round(float(std.mean()), 4),
                "median_change_of_variance": round(float(change.median()), 5),
                "largest_change_of_variance": round(float(change.abs().max()), 5),
            }
    return table


def draw(found: dict[str, dict[float, tuple[Tensor, float]]], path: Path) -> None:
    """Error bars of the rescaled networks against those of the trained one; on the diagonal nothing changed."""
    figure, panels = plt.subplots(1, len(PRIORS), figsize=(8.6, 4.8), sharex=True, sharey=True, layout="constrained")
    top = 1.05 * max(float(std.max()) for by_factor in found.values() for std, _ in by_factor.values())
    for axes, (prior, title) in zip(panels, PRIORS.items(), strict=True):
        for factor, style in STYLES.items():
            axes.scatter(found[prior][1.0][0], found[prior][factor][0], label=f"weights x {factor:g}", **style)
        axes.plot([0, top], [0, top], color="0.3", linewidth=1, zorder=0, label="no change")
        axes.set(title=title, xlim=(0, top), ylim=(0, top), aspect="equal", xlabel="predictive std, network as trained")
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("predictive std, same function, rescaled weights")
    panels[0].legend(frameon=False, loc="upper left")
    figure.suptitle("One function, written with other weights before a BatchNorm (597 held-out digits)")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Measure, print, write."""
    found = measure()
    table = numbers(found)
    OUT.mkdir(exist_ok=True)
    (OUT / "gprior_invariance.json").write_text(json.dumps(table, indent=2) + "\n")
    draw(found, OUT / "gprior_invariance.png")
    print(json.dumps(table, indent=2))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # torch's own
    main()
