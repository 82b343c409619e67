"""A run from beginning to end: prepare, one process for each method, one page.

    python -m experiments.classification.NAME --root DIR [--checkpoints DIR] [--quick] [--only METHOD] [--out DIR]

Each method runs in a process of its own with one thread, so that its peak memory is its own. What a method gives is
kept in OUT/results.json as soon as it is done, what it predicts in the cache, with images and weights; a run that was
cut off goes on there, within a fit of sampla too, and a new measure is computed from the kept predictions. Where images
or weights are missing they are made again, and all methods run anew if they come out otherwise. ``--again METHOD`` runs
one anew, ``--anew`` all that ran with another state of the library. Times are CPU seconds of the thread: what others do
on the machine, or a pause, does not change them.
"""

import argparse
import hashlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from experiments.classification import report
from experiments.classification.experiment import Experiment, Settings, Task
from experiments.classification.peers import full_if_it_fits
from experiments.classification.registry import FULL, METHODS, SAMPLA
from experiments.common.command import command, say
from experiments.common.devices import Meter
from experiments.common.images import CLEAN, Data, scored_sets
from experiments.common.metrics import AUROC, MEASURES, Labelled, Measure, Prediction, Score, auroc
from experiments.common.page import RESULTS
from experiments.common.process import Case, apart
from experiments.common.store import Arrays, Measures, Store, fingerprint, save_arrays
from sampla.core.allocator import freed_memory_kept

PREPARED, FOREIGN, FITS = "prepared", "foreign: ", "fits"
_MOST_BYTES, _MOST_SECONDS = 8 * 2.0**30, 900.0
"""What laplace-torch's full Laplace may take; otherwise its cost is stated."""


def main(experiment: Experiment) -> None:
    """The command line."""
    asked = command(
        experiment.title, RESULTS / experiment.name, "the data (experiments/README.md)", experiment.checkpoint,
        "a run of minutes, whose figures mean little", experiment.methods, anew=True,
        again=(experiment.methods, "run this anew"), images=(int, "training images that are fitted"),
        test=(int, "test images"), samples=(int, "K"),
    )  # fmt: skip
    settings, checkpoint = _settings(experiment, asked), None
    if experiment.checkpoint:
        checkpoint = asked.checkpoints / experiment.checkpoint
        if not checkpoint.is_file():
            raise SystemExit(f"expected --checkpoints DIR with {experiment.checkpoint}, got {asked.checkpoints}.")
    store = Store(asked.out / "results.json", asdict(settings), asked.cache, asked.anew)
    for key in asked.again or ():
        store.rows.pop(key, None)
        if METHODS[key].family == SAMPLA:
            _forget_fits(store)
    case = {"experiment": experiment.name, "settings": asdict(settings), "cache": str(store.cache)}
    _prepare(store, case | {"root": str(asked.root), "checkpoint": checkpoint and str(checkpoint)})
    wanted = [key for key in experiment.methods if not asked.only or key in asked.only]
    for key in wanted:
        if store.lacks(key) or store.rows[key].failed:
            store.put(key, apart(run_method, case | {"key": key, "file": str(store.predictions(key))}, threads=1))
            say(f"{key}: {_brief(store.scored(key, measures(settings.seed)))}")
            report.write(experiment, store, asked.out)
        store.scored(key, measures(settings.seed))
    report.write(experiment, store, asked.out)
    failed = [key for key in wanted if store.rows[key].failed]
    if failed:
        raise SystemExit(f"failed, with the reason in {asked.out / 'results.md'}: {', '.join(failed)}")


def _settings(experiment: Experiment, asked: argparse.Namespace) -> Settings:
    settings = experiment.quick if asked.quick else experiment.full
    changed = {name: getattr(asked, name) for name in ("images", "test", "samples") if getattr(asked, name)}
    if "test" in changed:
        changed["shifted"] = min(settings.shifted, asked.test)
    return replace(settings, **changed)


def _prepare(store: Store, case: Case) -> None:
    """Images and networks in the cache; what was fitted to other ones is forgotten."""
    known = store.rows.get(PREPARED)
    if known is not None and (store.cache / "data.safetensors").is_file():
        return
    found = apart(prepare, case, threads=1)
    if "failed" in found:
        raise SystemExit(f"preparing images and network failed: {found['failed']}")
    if known is None or known["fingerprint"] != found["fingerprint"]:
        store.rows.clear()
        _forget_fits(store)
    store.put(PREPARED, found, ours=False)


def _forget_fits(store: Store) -> None:
    """All that is kept of sampla's: methods share them."""
    rmtree(store.cache / FITS, ignore_errors=True)


def prepare(case: Case) -> Case:
    """Images and trained networks into files; what is to be said of them."""
    experiment, settings, folder = _given(case)
    folder.mkdir(parents=True, exist_ok=True)
    data = experiment.load(Path(case["root"]), settings)
    checkpoint, facts = Path(case["checkpoint"]) if case["checkpoint"] else None, []
    for member in range(max(1, settings.ensemble)):
        network, said = experiment.trained(data, settings, checkpoint, member)
        save_file({n: t.contiguous() for n, t in network.state_dict().items()}, folder / _weights(member))
        facts.append(said)
    save_file(data.tensors(), folder / "data.safetensors")
    total = hashlib.sha256()  # results belong to these images and weights and no others
    for path in sorted(folder.glob("*.safetensors")):
        total.update(path.name.encode() + path.read_bytes())
    return {"members": facts, "fingerprint": total.hexdigest()[:16]}


def run_method(case: Case) -> Case:
    """One method: its facts are returned, its predictions written."""
    torch.set_num_threads(1)
    with freed_memory_kept():  # for every method: without it page faults cost more than arithmetic
        facts, arrays = fitted_and_predicted(experiment_of(case["experiment"]), task_of(case), case["key"])
    if arrays:
        save_arrays(Path(case["file"]), **arrays)
    return facts


def task_of(case: Case) -> Task:
    """What ``prepare`` has left in the cache."""
    experiment, settings, folder = _given(case)
    networks = []
    for member in range(max(1, settings.ensemble)):
        network = experiment.architecture()
        network.load_state_dict(load_file(folder / _weights(member)))
        networks.append(network.eval())
    data = Data.from_tensors(load_file(folder / "data.safetensors"))
    return Task(networks[0], tuple(networks), data, settings, folder / FITS / fingerprint())


def fitted_and_predicted(
    experiment: Experiment, task: Task, key: str, meter: Meter | None = None
) -> tuple[Case, dict[str, np.ndarray]]:
    """What a fit took and found, in CPU seconds or those of a meter, and what it says about every set of images."""
    settings, meter = task.settings, meter or Meter()
    if key == FULL:
        plan = full_if_it_fits(task, _MOST_BYTES, _MOST_SECONDS)
        if not plan["fits"]:
            return {"plan": plan}, {}
    start = meter.seconds()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted = METHODS[key].fit(task)
    found: Case = {"fit_seconds": meter.seconds() - start + fitted.earlier.seconds, "facts": fitted.facts}
    said = {str(w.message) for w in caught if "sampla" in str(w.filename)}
    found["warnings"] = sorted(said.union(fitted.earlier.warnings))
    arrays: dict[str, np.ndarray] = {}
    for name, images in scored_sets(task.data, experiment.shifts(settings), settings.shifted):
        start = meter.seconds()
        answers = fitted.predict(images.images)
        if name == CLEAN:
            found["predict_seconds"] = 1000 * (meter.seconds() - start) / len(images)
        arrays |= _arrays(name, answers, images.labels)
    for name, inputs in task.data.foreign.items():
        arrays |= _arrays(FOREIGN + name, fitted.predict(inputs), None)
    found["peak_bytes"] = max(meter.peak(), fitted.earlier.peak)
    if fitted.own is not None and settings.own_predictions:  # a library's own predictions of the clean images
        answers = {way: Prediction(probs) for way, probs in fitted.own(task.data.test.images).items()}
        arrays |= _arrays(CLEAN, answers, task.data.test.labels)
    return found, arrays


def _arrays(name: str, answers: dict[str, Prediction], labels: Tensor | None) -> dict[str, np.ndarray]:
    """SET|WAY|probs (n, C), SET|WAY|log_prob (S, n) and single (n,) as ``Prediction`` has them; SET|labels."""
    found = {} if labels is None else {f"{name}|labels": labels.numpy()}
    for way, said in answers.items():
        if not bool(said.probs.isfinite().all()):
            raise ValueError(f"expected finite probabilities ({way or 'of functions'}, {name}), got NaN")
        found[f"{name}|{way}|probs"] = said.probs.numpy()
        if labels is not None and said.label_log_prob is not None:
            found[f"{name}|{way}|log_prob"] = said.label_log_prob(labels).numpy()
        if labels is not None and said.single is not None:
            found[f"{name}|{way}|single"] = said.single(labels).numpy()
    return found


def measures(seed: int) -> Measures:
    """Every measure of the tables -> its scores, set by set and way by way, from a method's predictions."""
    return {name: _over_sets(measure, seed) for name, measure in MEASURES.items()} | {AUROC: _areas}


def _over_sets(measure: Measure, seed: int) -> Callable[[Arrays], Any]:
    def scores(arrays: Arrays) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for name, way, probs in _predicted(arrays):
            if not name.startswith(FOREIGN):
                of_labels = (arrays.get(f"{name}|{way}|{what}") for what in ("log_prob", "single"))
                log_prob, single = (None if each is None else torch.from_numpy(each) for each in of_labels)
                said = Labelled(probs, torch.from_numpy(arrays[f"{name}|labels"]), log_prob, seed, single)
                score = measure.score(said)
                if score is not None:
                    found.setdefault(name, {})[way] = _plain(score)
        return found

    return scores


def _areas(arrays: Arrays) -> dict[str, dict[str, Any]]:
    """AUROC of the entropy, foreign images against the clean ones."""
    found: dict[str, dict[str, Any]] = {}
    for name, way, probs in _predicted(arrays):
        if name.startswith(FOREIGN):
            familiar = torch.from_numpy(arrays[f"{CLEAN}|{way}|probs"])
            found.setdefault(name.removeprefix(FOREIGN), {})[way] = _plain(auroc(familiar, probs))
    return found


def _predicted(arrays: Arrays) -> Iterator[tuple[str, str, Tensor]]:
    """Set, way of averaging and (n, C) probabilities."""
    for key in arrays:
        if key.endswith("|probs"):
            name, way, _ = key.split("|")
            yield name, way, torch.from_numpy(arrays[key])


def _plain(score: Score) -> list[Any]:
    return [score.value, score.without]


def _given(case: Case) -> tuple[Experiment, Settings, Path]:
    return experiment_of(case["experiment"]), Settings.from_json(case["settings"]), Path(case["cache"])


def experiment_of(name: str) -> Experiment:
    """That of a module of this package."""
    found: Experiment = import_module(f"experiments.classification.{name}").EXPERIMENT
    return found


def _weights(member: int) -> str:
    return f"network_{member}.safetensors"


def _brief(found: Case) -> str:
    if "fit_seconds" not in found:
        return found.get("failed", "does not fit: its cost is stated")
    value = found["NLL"][CLEAN][""][0]
    return f"fit {found['fit_seconds']:.1f} s, predict {found['predict_seconds']:.1f} s, NLL {value:.4f}"
