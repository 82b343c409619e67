"""Widths of error bars on many small networks: none, EM's, the one that training data choose, the best in hindsight.

    python -m experiments.width.suite --root DIR --checkpoints DIR [--only dig-wd] [--at network] [--anew] [--out DIR]

``--root`` holds mnist/, fashion_mnist/, notmnist/, cifar10/, cifar100/ and uci/. Networks are trained once and kept in
the cache with their data, predictions beside them; results come as they are found. Writes OUT/results.md and pictures.
"""

import hashlib
import warnings
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from experiments.common.command import command, say
from experiments.common.page import RESULTS
from experiments.common.store import Row, Store, save_arrays
from experiments.width.cases import BY_NAME, Case
from experiments.width.data import Split
from experiments.width.networks import train
from experiments.width.page import write
from experiments.width.scores import neighbours, scores
from sampla import LinearisedLaplace

AT = ("network", "linear-mode")
_BATCH = 200
Prepared = tuple[nn.Module, Split]


def main() -> None:
    """Everything that is not known yet, then the page."""
    asked = command(
        __doc__, RESULTS / "width", "the data", "the ResNets of CIFAR-10", only=BY_NAME, anew=True,
        at=(AT, "where the curvature is taken; default: both"),
    )  # fmt: skip
    store = Store(asked.out / "results.json", {}, asked.cache, asked.anew)
    cases = [BY_NAME[name] for name in asked.only or BY_NAME]
    for at in asked.at or AT:
        for case in cases:
            if at == AT[0] or case.classes:  # a Gaussian likelihood has the same curvature everywhere
                say(brief(f"{at}/{case.name}", once(store, case, at, asked.root, asked.checkpoints)))
        write(store, asked.out)


def once(store: Store, case: Case, at: str, root: Path, checkpoints: Path) -> Row:
    """The row of a network, from the store if it is there."""
    key = f"{at}/{case.name}"
    compute = partial(_measured, store, key, case, at, root, checkpoints)
    return store.once(key, compute, measures={"scores": scores})


def _measured(store: Store, key: str, case: Case, at: str, root: Path, checkpoints: Path) -> dict[str, Any]:
    """Fit one network twice, with the rule and with EM's width; predictions go to the cache."""
    network, split = prepared(case, store.cache / "networks", root, checkpoints)
    facts, la = fitted(case, network, split, at)
    save_arrays(store.predictions(key), **predicted(case, la, split))
    return facts


def prepared(case: Case, cache: Path, root: Path, checkpoints: Path) -> Prepared:
    """The trained network and its data, from the cache if they are there."""
    path = cache / f"{case.name}-{hashlib.sha256(repr(case).encode()).hexdigest()[:8]}.safetensors"
    torch.manual_seed(case.seed)
    network = case.network() if case.recipe else case.network(checkpoints)
    if path.is_file():
        kept = load_file(path)
        network.load_state_dict({name[2:]: value for name, value in kept.items() if name.startswith("w/")})
        return network.eval(), Split(**{name: value for name, value in kept.items() if not name.startswith("w/")})
    split = case.data(root)
    if case.recipe:
        train(network, split, case.recipe, case.likelihood)
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {f"w/{name}": value.contiguous() for name, value in network.state_dict().items()}
    save_file(split.tensors() | weights, path)
    return network, split


def fitted(case: Case, network: nn.Module, split: Split, at: str) -> tuple[dict[str, Any], LinearisedLaplace]:
    """A fit with the library's defaults, and what is worth telling of it; at the network beside one with EM's width."""
    loader = list(zip(split.x.split(_BATCH), split.y.split(_BATCH), strict=True))
    facts, said = {}, []
    for width, name in (*([("em", ", em")] if at == AT[0] else []), ("loo", "")):
        la = LinearisedLaplace(
            network, case.likelihood, parameters=case.parameters, curvature_at=at, width=width, progress=False
        )
        start = process_time()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            la.fit(loader)
        facts |= {f"seconds{name}": process_time() - start, f"passes{name}": la.report_.passes}
        said = sorted({str(one.message) for one in told})
    report = la.report_
    alone = la.predict(split.x).scaled(0.0).log_prob(split.y)
    return facts | {
        "used": case.used, "classifier": case.classes, "data": len(split.y), "parameters": report.num_parameters,
        "outputs": _outputs(split), "train NLL": -float(alone.double().mean()),
        "effective dimension": report.effective_dimension[0], "rule": report.width, "warnings": said,
    }, la  # fmt: skip


def predicted(case: Case, la: LinearisedLaplace, split: Split) -> dict[str, Any]:
    """Means and deviations at all test sets, with what is needed to score them."""
    order = torch.arange(len(split.test_y)) if case.classes else neighbours(split.test_x)
    arrays: dict[str, Any] = {
        "targets": split.test_y[order], "likelihood": np.array(case.likelihood),
        "noise": np.array(1.0 if la.noise_precision_ is None else float(la.noise_precision_)),
        "widths": np.array([la.report_.width["marginal"], la.report_.width["joint"]]),
    }  # fmt: skip
    for name, inputs in split.test_sets().items():
        said = la.predict(inputs[order])
        arrays |= {f"{name}/mean": said.mean, f"{name}/deviations": said.deviations}
    return arrays


def brief(key: str, row: Row) -> str:
    """A line for the terminal."""
    nll, joint = (" ".join(f"{value:.3f}" for value in row["scores"][m].values()) for m in ("NLL", "joint NLL"))
    return f"{key}: NLL {nll}; joint {joint}; {row['seconds']:.1f} s"


def _outputs(split: Split) -> int:
    return int(split.y.max()) + 1 if split.y.dim() == 1 else 1


if __name__ == "__main__":
    main()
