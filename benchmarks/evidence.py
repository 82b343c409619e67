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

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import log, pi
from typing import Any

import numpy as np
import torch
from experiments.common.command import command, say
from experiments.common.page import BENCHMARKS, grid, table, write_page
from scipy.optimize import minimize
from scipy.stats import spearmanr
from sklearn.datasets import load_diabetes, load_digits, make_friedman1
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

DEFINITIONS = ("surrogate", "tangent", "weights")
PRIORS = ("g-prior", "isotropic")
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "sigmoid": nn.Sigmoid}
NORMS: dict[str, Callable[[int], nn.Module] | None] = {"none": None, "layer": nn.LayerNorm, "batch": nn.BatchNorm1d}
SEEDS = 6
NOISE_STD = 1e-4, 10.0  # bounds in standard deviations of the targets: else it runs to zero where P exceeds N


@dataclass(frozen=True)
class Recipe:
    """A network and how it is trained, by AdamW."""

    width: int = 20
    depth: int = 2
    activation: str = "tanh"
    norm: str = "none"
    decay: float = 0.01
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
    scaled = [StandardScaler().fit(v[train]).transform(v[rows]) for rows in (train, held) for v in (x, y[:, None])]
    return Split(*(torch.from_numpy(part).double() for part in scaled))


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

    eigenvalues: np.ndarray  # (N,) of J S^2 J', A = alpha S^-2
    turned: dict[str, np.ndarray]  # definition -> (N,) targets in the eigenvectors; of "weights" the residuals y - f
    weight_size: float  # |w|^2 / S^2
    cross: np.ndarray  # (held out, N) covariance at alpha = 1 with the training data, in the eigenvectors
    own: np.ndarray  # (held out,) variance at alpha = 1

    def value(self, definition: str, at: np.ndarray) -> tuple[float, np.ndarray]:
        """The log evidence at (log alpha, log beta), and its slope there."""
        alpha, beta = np.exp(at)
        squared, known = self.turned[definition] ** 2, beta * self.eigenvalues / alpha
        gamma = (known / (1 + known)).sum()
        if definition == "weights":
            misfit = np.array([alpha * self.weight_size, beta * squared.sum()])
        else:
            squared = squared / (1 + known) ** 2
            misfit = beta * np.array([(squared * known).sum(), squared.sum()])
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


def scored(network: nn.Sequential, data: Split) -> dict[Any, Any]:
    """The held-out log likelihood; by prior and definition evidence, predictive, whether the noise collapsed."""
    missed = (data.held_y - network(data.held_x).detach())[:, 0].numpy()
    found: dict[Any, Any] = {"network": -0.5 * (log(2 * pi * float((missed**2).mean())) + 1)}
    for prior, known in exact(network, data).items():
        for definition in DEFINITIONS:
            value, log_alpha, log_beta = known.best(definition)
            collapsed = log_beta > -2 * log(NOISE_STD[0]) - 0.01
            found[prior, definition] = value, known.predictive(missed, log_alpha, log_beta), collapsed
    return found


Rows = list[dict[Any, Any]]
Key = tuple[str, str]
"""Prior and definition."""
KEYS: list[Key] = [(prior, definition) for prior in PRIORS for definition in DEFINITIONS]


def family(recipes: list[Recipe], data: list[Split]) -> list[Rows]:
    """All networks of a family, for each split; those that differ in length only come from one training."""
    rows = {}
    for first in dict.fromkeys(replace(r, steps=0) for r in recipes):
        stops = [r.steps for r in recipes if replace(r, steps=0) == first]
        for step, networks in trained(first, stops, data):
            rows[replace(first, steps=step)] = [scored(net, part) for net, part in zip(networks, data, strict=True)]
    return [list(each) for each in zip(*(rows[r] for r in recipes), strict=True)]


def with_network(rows: Rows, key: Key) -> float:
    """Spearman's correlation of the evidence with the held-out log likelihood of the network."""
    return _spearman([r[key][0] for r in rows], [r["network"] for r in rows])


def with_predictive(rows: Rows, key: Key) -> float:
    """The same with that of the linearised predictive that has the definition's hyperparameters."""
    return _spearman([r[key][0] for r in rows], [r[key][1] for r in rows])


def _spearman(one: list[float], other: list[float]) -> float:
    return float(np.nan_to_num(spearmanr(one, other).statistic))


def regret(rows: Rows, key: Key) -> float:
    """How far, in nats a datum, the network of the highest evidence is behind the family's best."""
    return max(r["network"] for r in rows) - max(rows, key=lambda r: r[key][0])["network"]


def main() -> None:
    """Measure everything and write."""
    asked = command(__doc__, BENCHMARKS, quick="two seeds and two data sets")
    names, count = list(DATA)[: 2 if asked.quick else None], 2 if asked.quick else SEEDS
    found: dict[tuple[str, str, int], Rows] = {}
    for name in names:
        data = [split(name, seed) for seed in range(count)]
        for title, recipes in FAMILIES.items():
            found |= {(title, name, seed): rows for seed, rows in enumerate(family(recipes, data))}
            say(f"{name}, {title}")
    pooled = {
        ("all networks", name, seed): [r for title in FAMILIES for r in found[title, name, seed]]
        for name in names
        for seed in range(count)
    }
    write_page(
        asked.out / "evidence.md", "benchmarks/evidence.md.j2", names=names, count=count, bound=NOISE_STD[0],
        networks=sum(map(len, found.values())), paired=paired(found, names),
        with_network=by_family(found | pooled, with_network), regret=by_family(found | pooled, regret),
        with_predictive=by_family(found | pooled, with_predictive),
        predictives=predictives([r for rows in found.values() for r in rows]),
    )  # fmt: skip


def by_family(found: dict[tuple[str, str, int], Rows], score: Callable[[Rows, Key], float]) -> str:
    """One row a family, one column a prior and definition."""

    def cell(title: str, key: Key) -> str:
        return _mean_and_error([score(rows, key) for at, rows in found.items() if at[0] == title])

    columns = {f"{key[1]}, {key[0]}": lambda title, key=key: cell(title, key) for key in KEYS}
    return table(list(dict.fromkeys(at[0] for at in found)), {"family": str} | columns)


def _mean_and_error(each: Sequence[float]) -> str:
    return f"{np.mean(each):.2f} ± {np.std(each) / max(len(each) - 1, 1) ** 0.5:.2f}"


def paired(found: dict[tuple[str, str, int], Rows], names: list[str]) -> str:
    """Tangent less surrogate: one row a prior and question, one column a data set."""

    def less(score: Callable[[Rows, Key], Any], rows: Rows, prior: str) -> Any:
        return score(rows, (prior, "tangent")) - score(rows, (prior, "surrogate"))

    def predictive(rows: Rows, key: Key) -> np.ndarray:
        return np.array([r[key][1] for r in rows])

    questions: dict[str, Callable[[Rows, str], float]] = {
        "correlation with the network": partial(less, with_network),
        "nats behind the family's best": partial(less, regret),
        "predictive, median": lambda rows, prior: float(np.median(less(predictive, rows, prior))),
        "predictive, share better": lambda rows, prior: float((less(predictive, rows, prior) > 0).mean()),
    }
    lines = []
    for prior in PRIORS:
        for question, ask in questions.items():
            each = [
                np.mean([ask(rows, prior) for at, rows in found.items() if at[1] == name and "LayerNorm" not in at[0]])
                for name in names
            ]
            lines.append([f"{question}, {prior}", *(f"{mean:.2f}" for mean in each), _mean_and_error(each)])
    return grid(["", *names, "all"], lines)


def predictives(rows: Rows) -> str:
    """Mean, median and worst tenth of the linearised predictive, and how often the noise collapsed."""
    summaries = {"mean": np.mean, "median": np.median, "worst tenth": partial(np.quantile, q=0.1)}
    lines = [[name, *(f"{of([r[key][1] for r in rows]):.2f}" for key in KEYS)] for name, of in summaries.items()]
    lines.append(["noise at its bound", *(f"{np.mean([r[key][2] for r in rows]):.1%}" for key in KEYS)])
    return grid(["", *(f"{key[1]}, {key[0]}" for key in KEYS)], lines)


if __name__ == "__main__":
    main()
