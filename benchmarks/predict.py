"""What a prediction takes beside the network alone: one input, a thousand and a hundred thousand.

    python -m benchmarks.predict [--most 1000] [--quick] [--anew] [--out benchmarks]

Writes predict.md and predict.json. The network's forward and the predictions take turns in one process, on one thread;
ratios are of CPU seconds, medians over the turns. Inputs are made here.
"""

from collections.abc import Callable
from functools import cache, partial
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch
from experiments.common.command import command, say
from experiments.common.page import BENCHMARKS, Target, provenance, table, write_page
from experiments.common.store import Store
from torch import Tensor, nn

import sampla
from sampla.core.allocator import freed_memory_kept

SIDE, CLASSES, TRAINING = 14, 10, 300
SAMPLES = (16, 64)
TURNS = {1: 60, 1_000: 7, 100_000: 2}
"""Inputs -> how often each contestant has its turn."""
QUICK = {1: 3, 50: 2}
AT_ONCE = 256
"""Inputs of a batch that the network alone is given."""
GOAL = 2
"""A prediction is to take at most K forwards and so many more."""
FORWARD, CLASS, MOMENTS = "the network alone", "probs, entropy, mutual information", "mean, std"


def main() -> None:
    """Every size and K that is not known yet."""
    asked = command(
        __doc__, BENCHMARKS, quick="few inputs, to see that everything works", anew=True,
        most=(max(TURNS), "inputs at most"),
    )  # fmt: skip
    store = Store(asked.out / "predict.json", {"quick": asked.quick}, asked.cache, asked.anew)
    with freed_memory_kept():
        for number, turns in (QUICK if asked.quick else TURNS).items():
            for count in SAMPLES if number <= asked.most else ():
                row = store.once(f"{number}/{count}", partial(compared, count, number, turns))
                say(f"{number} inputs, K = {count}: {row}")
                write_page(asked.out / "predict.md", "benchmarks/predict.md.j2", **page(store))


def convnet() -> nn.Sequential:
    """Two convolutions and two layers, ReLU and maxima between them, for images of 14 x 14."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 3, padding=1), nn.ReLU()]
    heads = [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(144, 48), nn.ReLU(), nn.Linear(48, CLASSES)]
    return nn.Sequential(*layers, *heads)


def made(number: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of ten fixed patterns under noise, and which pattern each shows."""
    patterns = torch.randn(CLASSES, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (number,), generator=generator)
    return patterns[labels] + 3 * torch.randn(number, 1, SIDE, SIDE, generator=generator), labels


def trained(network: nn.Module, inputs: Tensor, labels: Tensor) -> None:
    """Adam until most are right."""
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(30):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(inputs), labels).backward()
        optimiser.step()
    network.eval()


@cache
def fitted(count: int) -> tuple[nn.Module, sampla.LinearisedLaplace]:
    """The network and K samples at a prior precision that is given: how that was found does not matter here."""
    network, (inputs, labels) = convnet(), made(TRAINING, seed=1)
    trained(network, inputs, labels)
    la = sampla.LinearisedLaplace(
        network, "categorical", sampla.GPrior(10.0, learn=False), num_samples=count, progress=False
    )
    return network, la.fit(list(zip(inputs.split(AT_ONCE), labels.split(AT_ONCE), strict=True)))


def compared(count: int, number: int, turns: int) -> dict[str, Any]:
    """[wall, CPU] seconds of each in every turn; where turns are short, one more that only warms up comes before."""
    network, la = fitted(count)
    inputs, _ = made(number, seed=2)
    found: dict[str, list[list[float]]] = {name: [] for name in (FORWARD, CLASS, MOMENTS)}
    for turn in range(-1 if turns > 2 else 0, turns):
        alone, _ = timed(partial(outputs, network, inputs))
        predict, pred = timed(partial(la.predict, inputs))
        classes, _ = timed(lambda pred=pred: (pred.probs, pred.entropy, pred.mutual_information))
        moments, _ = timed(lambda pred=pred: (pred.mean, pred.std))
        if turn >= 0:
            found[FORWARD].append(alone)
            for name, answers in ((CLASS, classes), (MOMENTS, moments)):
                found[name].append([first + second for first, second in zip(predict, answers, strict=True)])
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {"inputs": number, "samples": count, "turns": turns, "seconds": found, "parameters": parameters}


def timed(run: Callable[[], Any]) -> tuple[list[float], Any]:
    """[wall, CPU] seconds, and what came of it."""
    start, busy = perf_counter(), process_time()
    result = run()
    return [perf_counter() - start, process_time() - busy], result


@torch.inference_mode()
def outputs(network: nn.Module, inputs: Tensor) -> Tensor:
    """The network's outputs."""
    return torch.cat([network(part) for part in inputs.split(AT_ONCE)])


def forwards(row: Any, name: str) -> float:
    """CPU seconds in forwards of the same turn, the median."""
    own, network = row["seconds"][name], row["seconds"][FORWARD]
    return median(each[1] / one[1] for each, one in zip(own, network, strict=True))


def page(store: Store) -> dict[str, Any]:
    """What the template is filled with."""
    rows = sorted(store.rows.values(), key=lambda row: (row["inputs"], row["samples"]))
    columns: dict[str, Any] = {"inputs": "{inputs:,}", "K": "{samples}"}
    for name in (FORWARD, CLASS, MOMENTS):
        columns[f"{name}, CPU ms"] = partial(_milliseconds, name=name)
        if name != FORWARD:
            columns[f"{name}, forwards"] = partial(_ratio, name=name)
    columns["goal"] = lambda row: f"{row['samples'] + GOAL}"
    return {
        "provenance": provenance(store, "benchmarks.predict" + " --quick" * store.settings["quick"], "sampla torch"),
        "facts": store.environment, "quick": store.settings["quick"], "table": table(rows, columns, left=0),
        "targets": targets(rows), "turns": {row["inputs"]: row["turns"] for row in rows}, "training": TRAINING,
        "missing": missing(store), "at_once": AT_ONCE, "parameters": rows[0]["parameters"],
    }  # fmt: skip


def missing(store: Store) -> list[str]:
    """Cases that have not been run, in words."""
    sizes = QUICK if store.settings["quick"] else TURNS
    return [f"{n:,} inputs with K = {k}" for n in sizes for k in SAMPLES if f"{n}/{k}" not in store.rows]


def _milliseconds(row: Any, name: str) -> str:
    return f"{1e3 * median(busy for _, busy in row['seconds'][name]):,.1f}"


def _ratio(row: Any, name: str) -> str:
    return f"{forwards(row, name):.1f}"


def targets(rows: list[Any]) -> list[Target]:
    """At most K + 2 forwards, for each size, K and kind of answer."""
    found: list[Target] = []
    for row in rows:
        most, what = row["samples"] + GOAL, f"{row['inputs']:,} input{'s' * (row['inputs'] > 1)}, K = {row['samples']}"
        for name in (CLASS, MOMENTS):
            taken = forwards(row, name)
            found.append((taken <= most, f"{what}: {name} in at most {most} forwards", f"{taken:.1f}"))
    return found


if __name__ == "__main__":
    main()
