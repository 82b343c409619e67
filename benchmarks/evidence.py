"""Which log evidence ranks trained regression networks as data do that they have not seen?

    python -m benchmarks.evidence [--quick] [--out benchmarks]

Run by hand; seven minutes on one core. Writes evidence.md. Everything after training is exact, in float64, from
matrices, and shares no code with sampla. For a network with outputs f, trained weights w and Jacobian J, the prior
N(0, A^-1) on theta and the noise precision beta, three definitions, each with the alpha and beta that maximise it:

    surrogate   log N(y; 0, J A^-1 J' + 1 / beta)             y ~ J theta + noise           (Antoran et al. 2023)
    tangent     log N(y - f + J w; 0, J A^-1 J' + 1 / beta)   y ~ f + J (theta - w) + noise (Antoran et al. 2022)
    weights     log N(y; f, 1 / beta) - |w|_A^2 / 2 - log det(I + beta A^-1 J'J) / 2        (Immer et al. 2021)

theta is integrated out in the first two, so its optimum is each model's own. Held out are the network with the one
noise that suits it best there (a function of its error alone), and the linearised predictive,
N(f, J H^-1 J' + 1 / beta).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import log, pi
from typing import Any

import numpy as np
import torch
from experiments.common.command import parser, say
from experiments.common.page import ROOT, grid, write_page
from scipy.optimize import minimize
from scipy.stats import spearmanr
from sklearn.datasets import load_diabetes, load_digits, make_friedman1
from torch import Tensor, nn

DEFINITIONS = ("surrogate", "tangent", "weights")
PRIORS = ("g-prior", "isotropic")
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "sigmoid": nn.Sigmoid}
NORMS: dict[str, Callable[[int], nn.Module] | None] = {"none": None, "layer": nn.LayerNorm, "batch": nn.BatchNorm1d}
SEEDS = 6
NOISE_STD = 1e-4, 10.0
"""Bounds of the noise, in standard deviations of the targets: without them it runs to zero where P exceeds N."""


@dataclass(frozen=True)
class Recipe:
    """A network and how it is trained."""

    width: int = 20
    depth: int = 2
    activation: str = "tanh"
    norm: str = "none"
    decay: float = 0.01
    """AdamW's, decoupled from the gradient."""
    steps: int = 600
    bias: bool = True


LENGTHS = (5, 15, 50, 150, 500, 1500, 4000)
DECAYS = (0.0, 0.01, 0.1, 0.5, 2.0, 8.0)
FAMILIES: dict[str, list[Recipe]] = {
    "width": [Recipe(width=w) for w in (1, 2, 4, 8, 20, 60)],
    "width, LayerNorm": [Recipe(width=w, norm="layer") for w in (2, 4, 8, 20, 60)],
    "depth": [Recipe(depth=d) for d in (1, 2, 3, 4, 6)],
    "depth, relu without biases": [Recipe(depth=d, activation="relu", bias=False) for d in (1, 2, 3, 4, 6)],
    "weight decay": [Recipe(decay=d) for d in DECAYS],
    "weight decay, LayerNorm": [Recipe(decay=d, norm="layer") for d in DECAYS],
    "activation": [Recipe(activation=a) for a in ACTIVATIONS],
    "normalisation": [Recipe(norm=n, activation=a) for n in NORMS for a in ("tanh", "relu")],
    "training length": [Recipe(steps=s, decay=0.0) for s in LENGTHS],
    "training length, LayerNorm": [Recipe(steps=s, decay=0.0, norm="layer") for s in LENGTHS],
}


@dataclass(frozen=True)
class Split:
    """Standardised data."""

    x: Tensor
    y: Tensor
    held_x: Tensor
    held_y: Tensor


def sine(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A sine in noise, one input."""
    generator = np.random.default_rng(seed)
    x = generator.uniform(-1, 1, (360, 1))
    return x, np.sin(5 * x[:, 0]) + 0.3 * generator.standard_normal(360)


DATA: dict[str, tuple[Callable[[int], tuple[np.ndarray, np.ndarray]], int]] = {
    "sine": (sine, 60),
    "friedman": (lambda seed: make_friedman1(500, n_features=5, noise=1.0, random_state=seed), 150),
    "diabetes": (lambda _: load_diabetes(return_X_y=True), 150),
    "digits, as a number": (lambda _: load_digits(return_X_y=True), 200),
}
"""Name -> data of a seed, and how many of them are for training."""


def split(name: str, seed: int) -> Split:
    """Training data drawn by the seed, at most 500 others held out, both scaled by the training data."""
    make, count = DATA[name]
    x, y = make(seed)
    order = np.random.default_rng(seed).permutation(len(x))
    train, held = order[:count], order[count : count + 500]
    center, scale = x[train].mean(0), x[train].std(0) + (x[train].std(0) == 0)
    mean, std = y[train].mean(), y[train].std()
    parts = ((x[i] - center) / scale for i in (train, held))
    first, second = (torch.from_numpy(part).double() for part in parts)
    targets = (torch.from_numpy((y[i] - mean) / std).double()[:, None] for i in (train, held))
    return Split(first, next(targets), second, next(targets))


def build(recipe: Recipe, inputs: int) -> nn.Sequential:
    """The untrained network."""
    layers: list[nn.Module] = []
    for _ in range(recipe.depth):
        layers.append(nn.Linear(inputs, recipe.width, bias=recipe.bias))
        norm = NORMS[recipe.norm]
        layers += [norm(recipe.width)] if norm is not None else []
        layers.append(ACTIVATIONS[recipe.activation]())
        inputs = recipe.width
    return nn.Sequential(*layers, nn.Linear(inputs, 1, bias=recipe.bias)).double()


def trained(recipe: Recipe, stops: list[int], data: list[Split]) -> Iterator[tuple[int, list[nn.Sequential]]]:
    """A network for each split, all trained at once, after each of these numbers of Adam's steps; evaluation mode."""
    torch.manual_seed(0)
    networks = [build(recipe, data[0].x.shape[1]) for _ in data]
    weights, buffers = torch.func.stack_module_state(networks)
    x, y = (torch.stack(parts) for parts in zip(*((d.x, d.y) for d in data), strict=True))
    forward = torch.vmap(lambda w, b, inputs: torch.func.functional_call(networks[0], (w, b), inputs))
    optimiser = torch.optim.AdamW(list(weights.values()), 1e-2, weight_decay=recipe.decay, foreach=True)
    for step in range(1, max(stops) + 1):
        optimiser.zero_grad()
        (forward(weights, buffers, x) - y).square().mean((1, 2)).sum().backward()
        optimiser.step()
        if step in stops:
            for index, network in enumerate(networks):
                network.load_state_dict({name: value[index] for name, value in {**weights, **buffers}.items()})
            yield step, [network.eval() for network in networks]
            networks[0].train()


def jacobian(network: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor]:
    """(n, P) over all parameters but those of normalisation layers, and (P,) the weights."""
    normal = (nn.LayerNorm, nn.BatchNorm1d)
    names = [name for name, _ in network.named_parameters() if not isinstance(network[int(name.split(".")[0])], normal)]
    weights = {name: p.detach() for name, p in network.named_parameters()}
    rest = {**{n: p for n, p in weights.items() if n not in names}, **dict(network.named_buffers())}

    def output(chosen: dict[str, Tensor], datum: Tensor) -> Tensor:
        return torch.func.functional_call(network, {**chosen, **rest}, datum[None])[0, 0]

    chosen = {name: weights[name] for name in names}
    each = torch.vmap(torch.func.grad(output), (None, 0))(chosen, x)
    return torch.cat([each[n].flatten(1) for n in names], 1), torch.cat([weights[n].flatten() for n in names])


@dataclass(frozen=True)
class Exact:
    """One network on one prior's features: everything a definition needs, from one decomposition of J A0^-1 J'."""

    eigenvalues: np.ndarray
    """(N,) of J S^2 J', A = alpha S^-2."""
    turned: dict[str, np.ndarray]
    """Definition -> (N,) the targets that it explains, in the eigenvectors; of "weights" the residuals y - f."""
    weight_size: float
    """|w|^2 / S^2."""
    cross: np.ndarray
    """(held out, N) covariance at alpha = 1 with the training data, in the eigenvectors."""
    own: np.ndarray
    """(held out,) variance at alpha = 1."""

    def value(self, definition: str, at: np.ndarray) -> tuple[float, np.ndarray]:
        """The log evidence at (log alpha, log beta), and its slope there."""
        alpha, beta = np.exp(at)
        squared, known = self.turned[definition] ** 2, beta * self.eigenvalues / alpha
        gamma = (known / (1 + known)).sum()
        if definition == "weights":
            misfit = np.array([alpha * self.weight_size, beta * squared.sum()])
        else:
            misfit = np.array(
                [beta * (squared * known / (1 + known) ** 2).sum(), beta * (squared / (1 + known) ** 2).sum()]
            )
        constant = len(squared) * (log(2 * pi) - at[1])
        value = -0.5 * (misfit.sum() + np.log1p(known).sum() + constant)
        return float(value), 0.5 * np.array([gamma - misfit[0], len(squared) - gamma - misfit[1]])

    def best(self, definition: str) -> tuple[float, float, float]:
        """Its maximum over alpha and beta, and where: the best of several starts."""

        def negative(at: np.ndarray) -> tuple[float, np.ndarray]:
            value, slope = self.value(definition, at)
            return -value, -slope

        top = log(self.eigenvalues.max())
        limits = [(top - 25, top + 25), (-2 * log(NOISE_STD[1]), -2 * log(NOISE_STD[0]))]
        starts = [(top + a, b) for a in (-8.0, -3.0, 1.0) for b in (0.0, 4.0, 9.0)]
        found = [minimize(negative, np.array(s), jac=True, bounds=limits, method="L-BFGS-B") for s in starts]
        best = min(found, key=lambda one: one.fun)
        return -float(best.fun), float(best.x[0]), float(best.x[1])

    def predictive(self, missed: np.ndarray, log_alpha: float, log_beta: float) -> float:
        """Mean log N(missed; 0, J H^-1 J' + 1 / beta) over the held-out data."""
        noise = np.exp(-log_beta)
        shrunk = self.cross**2 / (self.eigenvalues + noise * np.exp(log_alpha))
        variance = np.maximum(self.own - shrunk.sum(1), 0) * np.exp(-log_alpha) + noise
        return float(-0.5 * (missed**2 / variance + np.log(variance) + log(2 * pi)).mean())


def exact(network: nn.Sequential, data: Split) -> dict[str, Exact]:
    """The decomposition for each prior."""
    features, w = jacobian(network, data.x)
    held, _ = jacobian(network, data.held_x)
    residual = (data.y - network(data.x).detach())[:, 0]
    targets = dict(zip(DEFINITIONS, (data.y[:, 0], residual + features @ w, residual), strict=True))
    diagonal = features.square().sum(0)
    alive = diagonal > 1e-12 * diagonal.max()
    scales = {"g-prior": torch.where(alive, diagonal, 1.0).rsqrt() * alive, "isotropic": torch.ones_like(w)}
    found = {}
    for prior, scale in scales.items():
        scaled, outside = features * scale, held * scale
        values, vectors = torch.linalg.eigh(scaled @ scaled.mT)
        found[prior] = Exact(
            values.clamp_min(0).numpy(),
            {name: (vectors.mT @ target).numpy() for name, target in targets.items()},
            float((w / scale)[scale > 0].square().sum()),
            (outside @ (scaled.mT @ vectors)).numpy(),
            outside.square().sum(1).numpy(),
        )
    return found


@dataclass(frozen=True)
class Row:
    """One network: held-out scores, and for every prior and definition its evidence and predictive."""

    network: float
    evidence: dict[tuple[str, str], float]
    predictive: dict[tuple[str, str], float]
    collapsed: dict[tuple[str, str], bool]


def scored(network: nn.Sequential, data: Split) -> Row:
    """Everything about one network."""
    missed = (data.held_y - network(data.held_x).detach())[:, 0].numpy()
    row = Row(-0.5 * (log(2 * pi * float((missed**2).mean())) + 1), {}, {}, {})
    for prior, known in exact(network, data).items():
        for definition in DEFINITIONS:
            value, log_alpha, log_beta = known.best(definition)
            key = prior, definition
            row.evidence[key] = value
            row.predictive[key] = known.predictive(missed, log_alpha, log_beta)
            row.collapsed[key] = log_beta > -2 * log(NOISE_STD[0]) - 0.01
    return row


def family(recipes: list[Recipe], data: list[Split]) -> list[list[Row]]:
    """All networks of a family, for each split; those that differ in length only come from one training."""
    rows = {}
    for first in dict.fromkeys(untimed(r) for r in recipes):
        stops = [r.steps for r in recipes if untimed(r) == first]
        for step, networks in trained(first, stops, data):
            rows[first, step] = [scored(network, part) for network, part in zip(networks, data, strict=True)]
    return [list(each) for each in zip(*(rows[untimed(r), r.steps] for r in recipes), strict=True)]


def untimed(recipe: Recipe) -> Recipe:
    """The recipe without its length."""
    return Recipe(**{**vars(recipe), "steps": 0})


def correlation(rows: list[Row], prior: str, definition: str, against: str) -> float:
    """Spearman's, of the evidence with the network or with the predictive that has the definition's hyperparameters."""
    key = prior, definition
    scores = [r.network if against == "network" else r.predictive[key] for r in rows]
    found = spearmanr([r.evidence[key] for r in rows], scores).statistic
    return 0.0 if np.isnan(found) else float(found)


def regret(rows: list[Row], prior: str, definition: str) -> float:
    """How far, in nats a datum, the network of the highest evidence is behind the family's best."""
    chosen = max(rows, key=lambda r: r.evidence[prior, definition])
    return max(r.network for r in rows) - chosen.network


def main() -> None:
    """Measure everything and write."""
    asked = parser(__doc__, ROOT / "benchmarks", quick="two seeds and two data sets").parse_args()
    torch.set_num_threads(1)
    names, count = list(DATA)[: 2 if asked.quick else None], 2 if asked.quick else SEEDS
    found: dict[tuple[str, str, int], list[Row]] = {}
    for name in names:
        data = [split(name, seed) for seed in range(count)]
        for title, recipes in FAMILIES.items():
            for seed, rows in enumerate(family(recipes, data)):
                found[title, name, seed] = rows
            say(f"{name}, {title}")
    write_page(asked.out / "evidence.md", "benchmarks/evidence.md.j2", **page(found))


def page(found: dict[tuple[str, str, int], list[Row]]) -> dict[str, Any]:
    """What the template is filled with: (family, data set, seed) -> the networks of the family."""
    names, seeds = list(dict.fromkeys(k[1] for k in found)), sorted({k[2] for k in found})
    pooled = {
        ("all networks", name, seed): [r for t in FAMILIES for r in found[t, name, seed]]
        for name in names
        for seed in seeds
    }
    whole = {**found, **pooled}
    rows = [r for each in found.values() for r in each]
    return {
        "networks": len(rows), "names": names, "seeds": len(seeds), "lowest_noise": NOISE_STD[0],
        "with_network": by_family(whole, lambda rows, p, d: correlation(rows, p, d, "network")),
        "with_predictive": by_family(whole, lambda rows, p, d: correlation(rows, p, d, "predictive")),
        "regret": by_family(whole, regret), "paired": paired(found, names), "predictives": predictives(rows),
    }  # fmt: skip


def by_family(found: dict[tuple[str, str, int], list[Row]], score: Callable[[list[Row], str, str], float]) -> str:
    """One row a family, one column a prior and definition."""
    lines = []
    for title in dict.fromkeys(k[0] for k in found):
        every = [
            [score(rows, prior, definition) for key, rows in found.items() if key[0] == title]
            for prior in PRIORS
            for definition in DEFINITIONS
        ]
        lines.append([title, *map(mean_and_error, every)])
    return grid(heading("family"), lines)


def heading(first: str) -> list[str]:
    """Heads of the columns of a table with one for each prior and definition."""
    return [first, *(f"{d}, {p}" for p in PRIORS for d in DEFINITIONS)]


def mean_and_error(values: Any) -> str:
    """Mean and its standard error."""
    return f"{np.mean(values):.2f} ± {np.std(values) / max(len(values) - 1, 1) ** 0.5:.2f}"


def paired(found: dict[tuple[str, str, int], list[Row]], names: list[str]) -> str:
    """One row a prior and question, one column a data set."""
    lines = []
    for prior in PRIORS:
        both = partial(told, prior=prior)
        questions: dict[str, Callable[[list[Row]], float]] = {
            "correlation with the network": lambda rows, p=prior: (
                correlation(rows, p, "tangent", "network") - correlation(rows, p, "surrogate", "network")
            ),
            "nats behind the family's best": lambda rows, p=prior: (
                regret(rows, p, "tangent") - regret(rows, p, "surrogate")
            ),
            "predictive, median": lambda rows, f=both: float(np.median(f(rows))),
            "predictive, share better": lambda rows, f=both: float((f(rows) > 0).mean()),
        }
        for question, ask in questions.items():
            each = [
                np.mean([ask(rows) for key, rows in found.items() if key[1] == name and "LayerNorm" not in key[0]])
                for name in names
            ]
            lines.append([f"{question}, {prior}", *(f"{e:.2f}" for e in each), mean_and_error(each)])
    return grid(["", *names, "all"], lines)


def told(rows: list[Row], prior: str) -> np.ndarray:
    """What the tangent's hyperparameters gain over the surrogate's in the predictive of each network."""
    return np.array([r.predictive[prior, "tangent"] - r.predictive[prior, "surrogate"] for r in rows])


def predictives(rows: list[Row]) -> str:
    """Mean, median and worst tenth, and how often the noise collapsed."""
    values = {(p, d): np.array([r.predictive[p, d] for r in rows]) for p in PRIORS for d in DEFINITIONS}
    measures = {"mean": np.mean, "median": np.median, "worst tenth": lambda v: np.quantile(v, 0.1)}
    lines = [[label, *(f"{of(v):.2f}" for v in values.values())] for label, of in measures.items()]
    shares = [np.mean([r.collapsed[key] for r in rows]) for key in values]
    return grid(heading(""), [*lines, ["noise at its bound", *(f"{s:.1%}" for s in shares)]])


if __name__ == "__main__":
    main()
