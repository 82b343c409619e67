"""Classifiers in full: a ResNet-18 trained on CIFAR-100, the published ResNets of CIFAR-10; sampla and its peers."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from experiments.accelerator.run import opened
from experiments.accelerator.stage import DONE, FIT, TRAINING, Cost, Place, Stage
from experiments.accelerator.weights import rounded, split
from experiments.classification import cifar, cifar100, published
from experiments.classification.experiment import Experiment, Settings, Task
from experiments.classification.runner import fitted_and_predicted, measures
from experiments.common.command import say
from experiments.common.devices import forward_flop, meter
from experiments.common.images import CLEAN, Data, Images, corruptions
from experiments.common.metrics import ECE, NLL
from experiments.common.networks import ProjectedBlock, ResNet, Standardise
from experiments.common.process import Case
from experiments.common.store import Store
from experiments.common.training import OneCycle, Swag, loss_and_accuracy, one_cycle
from experiments.width.networks import published_resnet
from sampla.core.allocator import freed_memory_kept

CIFAR100, DEPTHS, MEMBERS = "cifar100", (20, 32, 44), 5
_RECIPE = OneCycle(30, 0.3, 256, bfloat16=True, channels_last=True)
_TINY_RECIPE = OneCycle(3, 0.1, 16, bfloat16=True, channels_last=True)
_PASSES = 12
"""Of a whole fit, assumed; a finished fit's rate makes up for the truth."""
_SCORING = 10.0
"""Seconds of the processor for corruptions and scores of a method."""
_METHODS = (
    ("g", ("sampla-g",)), ("g-8", ("sampla-g-8",)), ("network", ("network", "temperature")),
    ("last", ("sampla-last",)), ("swag", ("swag",)),
    ("isotropic", ("sampla-isotropic",)), ("g-64", ("sampla-g-64",)), ("laplace", ("laplace-last-kron",)),
)  # fmt: skip
"""End of a stage's name -> keys of ``registry.METHODS``; the ensemble comes after its members."""
_SAMPLES = {"sampla-g-8": 8, "sampla-g-64": 64}
_TINY = Settings(
    images=48, held_out=40, test=40, shifted=40, foreign=40, samples=4, draws=32, ensemble=2, own_predictions=False,
    swag=Swag(epochs=1, learning_rate=0.01, snapshots=2, batch=16),
)  # fmt: skip


@lru_cache
def experiment(name: str, tiny: bool) -> Experiment:
    """What is compared: "cifar100", or "cifar10-D" with the published ResNet of D layers."""
    if name == CIFAR100:
        settings = replace(cifar100.EXPERIMENT.full, ensemble=MEMBERS, shifted=1_000, foreign=2_000)
        methods = (*(key for _, keys in _METHODS for key in keys), "ensemble")
        found = replace(cifar100.EXPERIMENT, methods=methods, full=settings)
    else:
        depth = int(name.removeprefix("cifar10-"))
        whole = published.experiment(depth)
        found = replace(
            whole, name=name, title=f"CIFAR-10, published ResNet-{depth}",
            methods=("network", "sampla-g", "sampla-isotropic"), shifts=cifar.shifts, angles=False,
            full=replace(whole.full, held_out=1_000, shifted=1_000),
        )  # fmt: skip
    if tiny:
        found = replace(found, load=_made, architecture=_small, shifts=lambda s: corruptions(s.seed)[:1], full=_TINY)
    return found


def shown(made: Experiment) -> Experiment:
    """With words that are true of a run on all images."""
    words = (
        "Every posterior is fitted to all images that the network was trained on. Parameters of BatchNorm are fixed."
    )
    if made.name == CIFAR100:
        words += (
            " 11 million parameters and 100 outputs; the network is rounded to float16 once it is trained, so that its "
            'weights can be kept. "Last layer alone" is the last-layer Laplace approximation, sampled, its prior found '
            "as for all weights. Foreign: CIFAR-10."
        )
    else:
        words += " The held-out images have been seen in training, and nothing is fitted to them. Foreign: CIFAR-100."
    return replace(made, introduction=words, scale_to=None)


def _made(root: Path, settings: Settings) -> Data:  # noqa: ARG001
    """Images of 8 x 8 that have a bright row for each class."""
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> Images:
        labels, pixels = torch.arange(count) % 8, 0.6 * torch.rand(count, 3, 8, 8, generator=generator)
        pixels[torch.arange(count), :, labels] += 0.3
        return Images(pixels, labels)

    parts = [images(count) for count in (settings.images, settings.held_out, settings.test)]
    return Data(*parts, {"noise": torch.rand(settings.foreign, 3, 8, 8, generator=generator)})


def _small() -> nn.Module:
    return nn.Sequential(Standardise((0.5, 0.5, 0.5), (0.3, 0.3, 0.3)), ResNet(ProjectedBlock, (4, 8), 1, 8))


def images(place: Place, name: str) -> Data:
    """All images, decoded once and then read from the cache; those for fits and training are on the device."""
    path = place.cache / f"{name.split('-')[0]}.safetensors"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = experiment(name, place.tiny)
        tensors = made.load(place.root, made.full).tensors()
        part = path.with_suffix(".part")
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, part)
        part.replace(path)
    found = Data.from_tensors(load_file(path))
    return replace(found, train=Images(found.train.images.to(place.device), found.train.labels.to(place.device)))


def train(case: Case) -> Case:
    """A member of the ensemble into the cache; the first one is the network, whose weights are brought back."""
    place, member, made = Place.of(case), case["member"], experiment(CIFAR100, case["tiny"])
    data, recipe, clock = images(place, CIFAR100), _TINY_RECIPE if place.tiny else _RECIPE, meter(place.device).seconds
    torch.manual_seed(member)
    network = made.architecture().to(place.device)
    start = clock()

    def after(epoch: int, loss: float) -> None:
        if epoch in (1, recipe.epochs) or epoch % 5 == 0:
            say(f"epoch {epoch}: loss {loss:.3f}, {clock() - start:.0f} s")

    one_cycle(network, data.train, recipe, member, after)
    spent = clock() - start
    rounded(network)
    loss, accuracy = loss_and_accuracy(network, data.test)
    state = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, _network(place, member))
    facts = {"images": str(len(data.train)), "epochs": str(recipe.epochs), "test accuracy": f"{accuracy:.4f}"}
    if member == 0:
        split(network, place.out, facts)
    rate = 3 * _forward(CIFAR100, place.tiny) * len(data.train) * recipe.epochs / spent
    said = f"test accuracy {accuracy:.2%}, NLL {loss:.3f} after {recipe.epochs} epochs in {spent:.0f} s"
    return {"accuracy": accuracy, "nll": loss, "rates": {TRAINING: rate}, DONE: f"{said}, {rate / 1e12:.3g} TFLOP/s"}


def compare(case: Case) -> Case:
    """Methods on one network, each into the store of its set as soon as it is scored."""
    place, name, made = Place.of(case), case["set"], experiment(case["set"], case["tiny"])
    settings = made.full
    networks = [
        _loaded(place, name, member) for member in range(settings.ensemble if "ensemble" in case["keys"] else 1)
    ]
    task = Task(networks[0], tuple(networks), images(place, name), settings)
    store = Store(place.out / f"{name}.json", asdict(settings), place.cache)
    size = sum(p.numel() for p in networks[0].parameters())
    store.put("prepared", {"members": [{"parameters": size}]}, ours=False)
    found: Case = {"rates": {}}
    lines = []
    for key in case["keys"]:
        with freed_memory_kept():
            row, arrays = fitted_and_predicted(made, task, key, meter(place.device))
        wanted = {m: f for m, f in measures(settings.seed).items() if m != ECE or find_spec("torchmetrics")}
        row = store.put(key, row | {measure: compute(arrays) for measure, compute in wanted.items()})
        facts, said = row["facts"], f"{key} NLL {row[NLL][CLEAN][''][0]:.4f}, fit {row['fit_seconds']:.1f} s"
        if "passes" in facts and key != "sampla-last":
            each = 4 * _forward(name, place.tiny) * settings.images * facts["samples"]
            found["rates"][FIT] = _PASSES * each / row["fit_seconds"]
            rate = facts["passes"] * each / row["fit_seconds"]
            said += f", {facts['passes']:.1f} passes at {rate / 1e12:.3g} TFLOP/s, error {facts['solve_error']:.2%}"
        lines.append(said)
    return found | {DONE: "; ".join(lines)}


def _loaded(place: Place, name: str, member: int) -> nn.Module:
    made = experiment(name, place.tiny)
    if name == CIFAR100:
        network = made.architecture()
        network.load_state_dict(load_file(_network(place, member)))
    elif place.tiny:
        torch.manual_seed(0)
        network = made.architecture()
    else:
        network = published_resnet(place.checkpoints, int(name.removeprefix("cifar10-")))
    return network.eval().to(place.device)


def _network(place: Place, member: int) -> Path:
    return place.cache / f"{CIFAR100}_{member}.safetensors"


@lru_cache
def _forward(name: str, tiny: bool) -> float:
    """FLOP of one image's forward."""
    return forward_flop(experiment(name, tiny).architecture(), (1, 3, 8, 8) if tiny else (1, 3, 32, 32))


def _training(place: Place, member: int) -> Cost:
    settings, recipe = experiment(CIFAR100, place.tiny).full, _TINY_RECIPE if place.tiny else _RECIPE
    first = 0.0 if place.tiny or member else 20.0  # decoding
    return {TRAINING: 3 * _forward(CIFAR100, place.tiny) * settings.images * recipe.epochs, "seconds": first}


def _comparing(place: Place, name: str, keys: tuple[str, ...]) -> Cost:
    settings = experiment(name, place.tiny).full
    flop, shifted = _forward(name, place.tiny), 25 * settings.shifted
    scored = settings.test + shifted + settings.foreign
    cost = {"seconds": 1.0 if place.tiny else _SCORING * len(keys), FIT: 0.0, TRAINING: 0.0}
    for key in keys:
        samples = _SAMPLES.get(key, settings.samples)
        if key == "swag":
            cost[TRAINING] += 3 * flop * settings.images * (3 * settings.swag.epochs + samples)  # without bfloat16
            cost[TRAINING] += flop * samples * scored
        elif key in ("sampla-last", "laplace-last-kron"):
            cost[FIT] += 4 * flop * settings.images * _PASSES + 2 * flop * samples * scored
        elif key.startswith("sampla"):
            cost[FIT] += 4 * flop * settings.images * samples * _PASSES + 2 * flop * samples * scored
    return cost


def _data(name: str) -> Callable[[Place], list[Path]]:
    def files(place: Place) -> list[Path]:
        other = {"cifar100": "cifar10", "cifar10": "cifar100"}[name]
        cached = (place.cache / f"{name}.safetensors").is_file()
        parts = [f"{name}/test.npz", *(f"{name}/train_{k}.npz" for k in range(5)), f"{other}/test.npz"]
        return [] if place.tiny or cached else [place.root / part for part in parts]

    return files


def _trained(members: int) -> Callable[[Place], list[Path]]:
    return lambda place: [_network(place, member) for member in range(members if not place.tiny else min(members, 2))]


def _instead(place: Place) -> str:
    """Half of the samples are for where there is no time for all."""
    return "cifar100-g has been done" if DONE in opened(place).rows.get("cifar100-g", {}) else ""


def _published(depth: int) -> Callable[[Place], list[Path]]:
    def files(place: Place) -> list[Path]:
        weights = place.checkpoints / f"published_resnet{depth}_cifar10.safetensors"
        return [] if place.tiny else [*_data("cifar10")(place), weights]

    return files


def _stages() -> tuple[Stage, ...]:
    found = [Stage("cifar100-train", train, partial(_training, member=0), {"member": 0}, _data(CIFAR100))]
    for end, keys in _METHODS:
        modules = ("laplace",) if end == "laplace" else ()
        more: dict[str, Any] = {"set": CIFAR100, "keys": list(keys)}
        cost = partial(_comparing, name=CIFAR100, keys=keys)
        other = _instead if end == "g-8" else lambda _: ""
        found.append(Stage(f"cifar100-{end}", compare, cost, more, _trained(1), modules, other))
    for member in range(1, MEMBERS):
        cost = partial(_training, member=member)
        found.append(Stage(f"cifar100-member-{member}", train, cost, {"member": member}, _data(CIFAR100)))
    keys, more = ("ensemble",), {"set": CIFAR100, "keys": ["ensemble"]}
    cost = partial(_comparing, name=CIFAR100, keys=keys)
    found.append(Stage("cifar100-ensemble", compare, cost, more, _trained(MEMBERS)))
    return tuple(found)


def _cifar10_stages() -> tuple[Stage, ...]:
    found = []
    for depth in DEPTHS:
        name = f"cifar10-{depth}"
        for end, keys in (("g", ("network", "sampla-g")), ("isotropic", ("sampla-isotropic",))):
            cost, more = partial(_comparing, name=name, keys=keys), {"set": name, "keys": list(keys)}
            found.append(Stage(f"{name}-{end}", compare, cost, more, _published(depth)))
    return tuple(found)


STAGES, CIFAR10_STAGES = _stages(), _cifar10_stages()
