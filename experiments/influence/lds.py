"""The linear datamodelling score (Park et al. 2023) of influence: do sums over data left out tell what retraining does?

    python -m experiments.influence.lds [--subsets 80] [--seeds 6] [--bases 2] [--out DIR]

Writes results.md and results.json. Networks on the digits inside scikit-learn are trained on random halves of the
training data, from several seeds each; needs curvlinops (experiments/requirements.txt) for EK-FAC. One thread.
"""

from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sampla
from experiments.common.command import command, say
from experiments.common.page import RESULTS, Target, provenance, table, write_page
from experiments.common.store import Store, save_arrays

TRAIN, TEST, BATCH, SEED = 600, 100, 60, 2023
REGIMES = {"weight decay": (3e-3, 40), "no weight decay": (0.0, 80)}
"""Weight decay (of the mean loss) and epochs of Adam."""
DAMPINGS = tuple(10 ** (half / 2) for half in range(-12, 1))
"""Of EK-FAC, on the scale of the mean loss."""
PRECISIONS = tuple(10 ** (half / 2) for half in range(-4, 7))
"""Of a dense H, on the scale of the summed loss (of a g-prior without unit)."""
FITS: dict[str, dict[str, Any]] = {
    "default": {}, "curvature at the linear mode": {"curvature_at": "linear-mode"}, "isotropic": {"prior": "isotropic"},
}  # fmt: skip


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images (n, 64) and labels."""
    images, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(digits))[: TRAIN + TEST]
    x, y = torch.from_numpy(images[order]).float() / 16, torch.from_numpy(digits[order]).long()
    return x[:TRAIN], y[:TRAIN], x[TRAIN:], y[TRAIN:]


def trained(x: Tensor, y: Tensor, regime: str, seed: int) -> nn.Module:
    """A network of 64, 32 and 10 units: 2,410 parameters."""
    decay, epochs = REGIMES[regime]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        optimiser = torch.optim.Adam(network.parameters(), lr=0.01, weight_decay=decay, foreach=True)
        for epoch in range(epochs):
            for group in optimiser.param_groups:
                group["lr"] = 0.01 * (1 - epoch / epochs)
            for rows in torch.randperm(len(x)).split(BATCH):
                optimiser.zero_grad()
                cross_entropy(network(x[rows]), y[rows]).backward()
                optimiser.step()
    return network.eval()


def margin(outputs: Tensor, targets: Tensor | None) -> Tensor:
    """(n,) log p_y - log(1 - p_y): what a datamodel predicts."""
    assert targets is not None
    own = outputs.gather(1, targets[:, None])[:, 0]
    return own - outputs.scatter(1, targets[:, None], -torch.inf).logsumexp(1)


def loss(outputs: Tensor, targets: Tensor | None) -> Tensor:
    """(n,) -log p(y | f)."""
    assert targets is not None
    return cross_entropy(outputs, targets, reduction="none")


Changes: TypeAlias = Iterator[tuple[str, list[Tensor]]]
"""Name of a method -> (TEST, TRAIN) predicted changes of each of QUANTITIES when one datum is left out."""
QUANTITIES = {"margin": margin, "loss": loss}


def kept(subsets: int) -> np.ndarray:
    """(subsets, TRAIN) which data each subset has: a random half."""
    rng = np.random.default_rng(SEED + 1)
    return np.stack([rng.permutation(TRAIN) < TRAIN // 2 for _ in range(subsets)])


def retrained(store: Store, key: str, regime: str) -> dict[str, Any]:
    """Networks trained on the subsets; what they say of the test data is kept: (subsets, seeds, TEST)."""
    x, y, test, labels = data()
    start, found = perf_counter(), []
    for rows in kept(store.settings["subsets"]):
        few = torch.from_numpy(rows)
        networks = [trained(x[few], y[few], regime, 1000 + seed) for seed in range(store.settings["seeds"])]
        with torch.no_grad():
            found.append([[f(n(test), labels).numpy() for f in QUANTITIES.values()] for n in networks])
    array = np.array(found)  # (subsets, seeds, quantities, TEST)
    save_arrays(store.predictions(key), **{name: array[:, :, k] for k, name in enumerate(QUANTITIES)})
    return {"seconds": perf_counter() - start}


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(TEST,) rank correlation of two (subsets, TEST) arrays over the subsets."""
    ranks = [rankdata(each, axis=0) for each in (a, b)]
    ranks = [each - each.mean(0) for each in ranks]
    return (ranks[0] * ranks[1]).sum(0) / np.sqrt((ranks[0] ** 2).sum(0) * (ranks[1] ** 2).sum(0))


def gradients(network: nn.Module, f: Callable[..., Tensor], x: Tensor, y: Tensor) -> Tensor:
    """(n, P) of each datum, by autograd one after the other."""
    chosen = list(network.parameters())
    each = [torch.autograd.grad(f(network(a[None]), b[None]).sum(), chosen) for a, b in zip(x, y, strict=True)]
    return torch.stack([torch.cat([g.flatten() for g in one]) for one in each])


def by_similarity(network: nn.Module) -> Changes:
    """The product of the two gradients at the trained weights (TracIn of the last step), H = I."""
    x, y, test, labels = data()
    trained_on = gradients(network, loss, x, y)
    yield "gradient similarity", [gradients(network, f, test, labels) @ trained_on.mT for f in QUANTITIES.values()]


def by_ekfac(network: nn.Module) -> Changes:
    """EK-FAC by curvlinops, with the exact Fisher matrix and each damping."""
    from curvlinops import EKFACLinearOperator, FisherType, KFACInverseLinearOperator

    x, y, test, labels = data()
    chosen = list(network.parameters())
    fisher = EKFACLinearOperator(
        network, nn.CrossEntropyLoss(), chosen, [(x, y)], fisher_type=FisherType.TYPE2, check_deterministic=False
    )
    trained_on = gradients(network, loss, x, y)
    tested = [gradients(network, f, test, labels) for f in QUANTITIES.values()]
    usual = 0.1 * float((fisher @ torch.eye(fisher.shape[0])).trace()) / fisher.shape[0]
    for name, damping in {"usual": usual, **{f"{each:.2g}": each for each in DAMPINGS}}.items():
        inverse = KFACInverseLinearOperator(fisher, damping=damping, use_exact_damping=True)
        yield f"EK-FAC, {name}", [(inverse @ each.mT).mT @ trained_on.mT for each in tested]


def by_ggn(network: nn.Module) -> Changes:
    """The dense H of the whole network, with each precision of an isotropic prior and of a g-prior."""
    x, y, test, labels = data()
    trained_on = gradients(network, loss, x, y).double()
    tested = [gradients(network, f, test, labels).double() for f in QUANTITIES.values()]
    p = network(x).detach().softmax(1).double()
    rows = [gradients(network, lambda f, _, c=c: f[:, c], x, y).double() for c in range(10)]  # phi, (C, N, P)
    pushed = sum(p[:, c, None] * rows[c] for c in range(10))
    curvature = sum((p[:, c, None] * rows[c]).mT @ (rows[c] - pushed) for c in range(10))
    assert isinstance(curvature, Tensor)
    diagonal = curvature.diagonal()
    shapes = {"isotropic": torch.ones_like(diagonal), "g-prior": diagonal.clamp_min(1e-3 * float(diagonal.mean()))}
    for name, shape in shapes.items():
        for precision in PRECISIONS:
            root = torch.linalg.cholesky(curvature + (precision * shape).diag())
            solved = [torch.cholesky_solve(each.mT, root).mT @ trained_on.mT for each in tested]
            yield f"dense {name}, {precision:.2g}", [each.float() for each in solved]


def by_sampla(network: nn.Module) -> Changes:
    """la.influence, with the precisions that the fit has found."""
    x, y, test, labels = data()
    for name, settings in FITS.items():
        la = sampla.LinearisedLaplace(network, num_samples=32, progress=False, **settings).fit([(x, y)])
        found = [la.influence([(x, y)], (test, labels), measure=f) for f in QUANTITIES.values()]
        say(f"{name}: alpha {float(la.prior_precision_):.3g}, influence to {found[0].solve_error:.1%}")
        yield f"sampla, {name}", [each.change for each in found]


WAYS = (by_similarity, by_ekfac, by_ggn, by_sampla)


def predicted(store: Store, key: str, regime: str, base: int) -> dict[str, Any]:
    """Every method on one network of all data: what it predicts for each subset is kept, (subsets, TEST)."""
    x, y, _, _ = data()
    network, left_out = trained(x, y, regime, base), torch.from_numpy(~kept(store.settings["subsets"])).float()
    sums, seconds = {}, {}
    for way in WAYS:
        start = perf_counter()
        for name, changes in way(network):
            for quantity, change in zip(QUANTITIES, changes, strict=True):
                sums[f"{quantity}: {name}"] = (left_out @ change.mT).numpy()
        seconds[way.__name__] = perf_counter() - start
    save_arrays(store.predictions(key), **sums)
    return {"seconds": seconds}


def scores(store: Store, regime: str, quantity: str) -> dict[str, Any]:
    """Mean over the test data of each method's score, from one network and from the mean over all, with errors."""
    with np.load(store.predictions(f"retrained/{regime}")) as arrays:
        each = arrays[quantity]
    bases = []
    for base in range(store.settings["bases"]):
        with np.load(store.predictions(f"predicted/{regime}/{base}")) as arrays:
            head = f"{quantity}: "
            bases.append({name.removeprefix(head): arrays[name] for name in arrays if name.startswith(head)})
    actual = each.mean(1)
    found = {
        name: (
            np.mean([spearman(one[name], actual) for one in bases], axis=0),
            spearman(np.mean([one[name] for one in bases], axis=0), actual),
        )
        for name in bases[0]
    }
    best = _best(found)
    halves = spearman(each[:, ::2].mean(1), each[:, 1::2].mean(1)).mean()
    peer = found[best["EK-FAC"]]
    rows = {
        name: {"one network": _mean(one), "mean": _mean(every), "over EK-FAC": _mean(every - peer[1])}
        for name, (one, every) in found.items()
    }
    return {"methods": rows, "best": best, "ceiling": float(np.sqrt(2 * halves / (1 + halves)))}


def _best(found: dict[str, Any]) -> dict[str, str]:
    """Of each scan the damping with the highest score itself, on the mean over all networks."""
    scanned = [name for name in found if name.rpartition(", ")[2][0].isdigit()]
    groups = {name.rpartition(", ")[0] for name in scanned}
    return {
        group: max((n for n in scanned if n.startswith(f"{group}, ")), key=lambda n: found[n][1].mean())
        for group in sorted(groups)
    }


def _mean(values: np.ndarray) -> list[float]:
    return [float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)]


def main() -> None:
    """The networks, the predictions, the scores and the page."""
    asked = command(
        __doc__, RESULTS / "influence", anew=True, subsets=(80, "random halves of the training data"),
        seeds=(6, "networks trained on each"), bases=(2, "networks trained on all data"),
    )  # fmt: skip
    settings = {"subsets": asked.subsets, "seeds": asked.seeds, "bases": asked.bases}
    store = Store(asked.out / "results.json", settings, asked.cache, asked.anew)
    for regime in REGIMES:
        key = f"retrained/{regime}"
        row = store.once(key, partial(retrained, store, key, regime), ours=False)
        say(f"{key}: {row['seconds']:.0f} s")
        for base in range(asked.bases):
            key = f"predicted/{regime}/{base}"
            say(f"{key}: {store.once(key, partial(predicted, store, key, regime, base))['seconds']}")
        for quantity in QUANTITIES:
            store.put(f"scores/{regime}/{quantity}", scores(store, regime, quantity))
    write_page(asked.out / "results.md", "experiments/influence/results.md.j2", **page(store))


def page(store: Store) -> dict[str, Any]:
    """What the template is filled with."""
    settings, tables = store.settings, {}
    targets: list[Target] = []
    for regime in REGIMES:
        found = {quantity: store.rows[f"scores/{regime}/{quantity}"] for quantity in QUANTITIES}
        best = found["margin"]["best"]
        names = {
            "gradient similarity": "gradient similarity (TracIn of the last step)",
            "EK-FAC, usual": "EK-FAC, damping a tenth of the mean eigenvalue",
            best["EK-FAC"]: f"EK-FAC at its best damping, {best['EK-FAC'].rpartition(' ')[2]}",
            **{f"sampla, {name}": f"sampla, {name}" for name in FITS},
            **{
                best[way]: f"{way} H at its best precision, {best[way].rpartition(' ')[2]}"
                for way in best
                if way != "EK-FAC"
            },
        }
        rows = [{"name": shown} | {q: found[q]["methods"][name] for q in QUANTITIES} for name, shown in names.items()]
        columns: dict[str, Any] = {"H": "{name}"}
        columns |= {f"margin, {which}": _shown("margin", which) for which in ("one network", "mean", "over EK-FAC")}
        columns |= {f"loss, {which}": _shown("loss", which) for which in ("one network", "mean")}
        tables[regime] = table(rows, columns)
        over, error = found["margin"]["methods"]["sampla, default"]["over EK-FAC"]
        what = f"{regime}: sampla's default ranks subsets better than EK-FAC at its best damping (margin)"
        targets.append((over > 2 * error, what, f"{over:+.3f} +- {error:.3f}"))
    seconds = {
        way: min([r["seconds"][way] for r in store.under("predicted/").values()]) for way in ("by_ekfac", "by_sampla")
    }
    return settings | {
        "provenance": provenance(store, "experiments.influence.lds", "sampla torch"), "targets": targets,
        "tables": tables, "regimes": REGIMES, "train": TRAIN, "test": TEST, "seconds": seconds,
        "ceiling": {regime: store.rows[f"scores/{regime}/margin"]["ceiling"] for regime in REGIMES},
    }  # fmt: skip


def _shown(quantity: str, which: str) -> Callable[[Any], str]:
    return lambda row: "{:.3f} +- {:.3f}".format(*row[quantity][which])


if __name__ == "__main__":
    main()
