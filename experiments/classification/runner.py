"""A run from beginning to end: prepare, one process for each method, one table.

    python experiments/FOLDER/run.py --root DIR [--checkpoints DIR] [--quick] [--only METHOD] [--out DIR]

Each method runs in a process of its own with one thread, so that its peak memory is its own. What a method gives is
kept in OUT/results.json as soon as it is done, and a run that was cut off goes on there; images and weights are kept in
OUT/kept. Where these are missing they are made again, and all methods run anew if they come out otherwise. ``--again
METHOD`` runs one anew. Times are CPU seconds of the one thread: what others do on the machine, or a pause, does not
change them.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import traceback
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from time import process_time
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from classification.data import CLEAN, Data, test_sets
from classification.keeping import Kept, fingerprint
from classification.metrics import Prediction, Score, auroc, scores
from classification.peers import full_if_it_fits
from classification.registry import FULL, METHODS
from classification.settings import Experiment, Settings, Task
from sampla._allocator import freed_memory_kept

PREPARE = "prepare"
_MOST_BYTES, _MOST_SECONDS = 8 * 2.0**30, 900.0
"""What laplace-torch's full Laplace may take; otherwise its cost is stated."""


def main(experiment: Experiment) -> None:
    """The command line."""
    arguments = _arguments(experiment)
    torch.set_num_threads(1)
    if arguments.worker == PREPARE:
        _prepare(experiment, arguments)
    elif arguments.worker:
        _work(experiment, arguments)
    else:
        _run(experiment, arguments)


def _run(experiment: Experiment, arguments: argparse.Namespace) -> None:
    from classification.writing import write

    settings = _settings(experiment, arguments)
    kept = Kept(arguments.out / "results.json", asdict(settings))
    for key in arguments.again or ():
        kept.forget(key)
    if kept.prepared is None or not (arguments.out / "kept" / "data.safetensors").is_file():
        kept.keep_prepared(_in_own_process(PREPARE, arguments))
    wanted = [key for key in experiment.methods if not arguments.only or key in arguments.only]
    failed = []
    for key in wanted:
        found = kept.methods.get(key)
        if found is None or "error" in found:
            print(f"{key}:", end=" ", flush=True)
            found = _in_own_process(key, arguments)
            kept.keep(key, found)
            print(_brief(found), flush=True)
            write(experiment, settings, kept, arguments.out)
        failed += [key] if "error" in found else []
    write(experiment, settings, kept, arguments.out)
    if failed:
        raise SystemExit(f"failed, with the reason in {arguments.out / 'results.md'}: {', '.join(failed)}")


def _in_own_process(key: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the worker of this name writes; if it dies, that."""
    path = arguments.out / "kept" / f"{key}.json"
    path.unlink(missing_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *sys.argv, "--worker", key], env=environment, check=False)
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    if key == PREPARE:
        raise SystemExit(f"preparing images and network failed (exit status {done.returncode}): see above")
    return {"error": f"the process ended with status {done.returncode} and without a result (out of memory?)"}


def _prepare(experiment: Experiment, arguments: argparse.Namespace) -> None:
    """Images and trained networks into files."""
    settings = _settings(experiment, arguments)
    folder = arguments.out / "kept"
    folder.mkdir(parents=True, exist_ok=True)
    data = experiment.load(arguments.root, settings)
    facts = []
    for member in range(max(1, settings.ensemble)):
        network, said = experiment.trained(data, settings, arguments.checkpoints, member)
        save_file({name: t.contiguous() for name, t in network.state_dict().items()}, folder / _weights(member))
        facts.append(said)
    save_file(data.tensors(), folder / "data.safetensors")
    _leave(folder / f"{PREPARE}.json", {"members": facts, "fingerprint": _files_fingerprint(folder)})


def _files_fingerprint(folder: Path) -> str:
    """A hash of images and weights: results belong to these and no others."""
    total = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()[:16]


def _work(experiment: Experiment, arguments: argparse.Namespace) -> None:
    """One method."""
    settings, key = _settings(experiment, arguments), arguments.worker
    task = _task(experiment, arguments.out / "kept", settings)
    path = arguments.out / "kept" / f"{key}.json"
    try:
        with freed_memory_kept():  # for every method: without it page faults cost more than arithmetic
            _leave(path, _measured(experiment, settings, task, key))
    except Exception as error:  # written into the table, and the run goes on with the others
        traceback.print_exc()
        _leave(path, {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"})


def _measured(experiment: Experiment, settings: Settings, task: Task, key: str) -> dict[str, Any]:
    """Fit, predict, score; times in CPU seconds."""
    if key == FULL:
        plan = full_if_it_fits(task, _MOST_BYTES, _MOST_SECONDS)
        if not plan["fits"]:
            return {"plan": plan}
    start = process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted = METHODS[key].fit(task)
    found: dict[str, Any] = {"fit_seconds": process_time() - start, "facts": fitted.facts, "source": fingerprint()}
    found["warnings"] = sorted({str(w.message) for w in caught if "sampla" in str(w.filename)})
    sets: dict[str, dict[str, dict[str, Any]]] = {}
    familiar = {}
    for name, images in test_sets(task.data, experiment.shifts(settings), settings.shifted):
        start = process_time()
        answers = fitted.predict(images.inputs)
        seconds = process_time() - start
        sets[name] = {way: _plain(scores(said, images.labels, settings.seed)) for way, said in answers.items()}
        if name == CLEAN:
            found["predict_seconds"] = 1000 * seconds / len(images)
            familiar = {way: said.entropy for way, said in answers.items()}
    found["auroc"] = {
        name: {way: _plain_one(auroc(familiar[way], said.entropy)) for way, said in fitted.predict(inputs).items()}
        for name, inputs in task.data.foreign.items()
    }
    found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if fitted.own is not None and settings.own_predictions:
        sets[CLEAN] |= _own_scores(fitted.own, task)
    return found | {"sets": sets}


def _own_scores(own: Any, task: Task) -> dict[str, dict[str, Any]]:
    """A library's own predictions of the clean images."""
    found = {}
    for way, probs in own(task.data.test.inputs).items():
        if not bool(probs.isfinite().all()):
            raise ValueError(f"expected finite probabilities ({way}), got NaN")
        found[way] = _plain(scores(Prediction(probs, None), task.data.test.labels, task.settings.seed))
    return found


def _task(experiment: Experiment, folder: Path, settings: Settings) -> Task:
    networks = []
    for member in range(max(1, settings.ensemble)):
        network = experiment.architecture()
        network.load_state_dict(load_file(folder / _weights(member)))
        networks.append(network.eval())
    data = Data.from_tensors(load_file(folder / "data.safetensors"))
    return Task(networks[0], tuple(networks) if settings.ensemble else (), data, settings)


def _plain(found: dict[str, Score]) -> dict[str, Any]:
    return {name: _plain_one(score) for name, score in found.items()}


def _plain_one(score: Score) -> list[Any]:
    return [score.value, score.without]


def _leave(path: Path, found: dict[str, Any]) -> None:
    path.write_text(json.dumps(found), encoding="utf-8")


def _weights(member: int) -> str:
    return f"network_{member}.safetensors"


def _brief(found: dict[str, Any]) -> str:
    if "sets" not in found:
        return found.get("error", "does not fit: its cost is stated")
    value = found["sets"][CLEAN][""]["NLL"][0]
    return f"fit {found['fit_seconds']:.1f} s, predict {found['predict_seconds']:.1f} s, NLL {value:.4f}"


def _settings(experiment: Experiment, arguments: argparse.Namespace) -> Settings:
    settings = experiment.quick if arguments.quick else experiment.full
    changed = {name: getattr(arguments, name) for name in ("images", "test", "samples") if getattr(arguments, name)}
    if "test" in changed:
        changed["shifted"] = min(settings.shifted, arguments.test)
    return replace(settings, **changed)


def _arguments(experiment: Experiment) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=experiment.title)
    parser.add_argument("--root", type=Path, required=True, help="folder of the data (experiments/README.md)")
    parser.add_argument("--checkpoints", type=Path, help="folder of trained networks, where the experiment takes one")
    parser.add_argument("--quick", action="store_true", help="a run of minutes, whose figures mean little")
    parser.add_argument("--images", type=int, help="training images that every posterior is fitted to")
    parser.add_argument("--test", type=int, help="test images")
    parser.add_argument("--samples", type=int, help="K")
    parser.add_argument("--only", action="append", choices=experiment.methods, help="only this method; repeatable")
    parser.add_argument("--again", action="append", choices=experiment.methods, help="run this method anew")
    parser.add_argument("--out", type=Path, help="where results.json and results.md go")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.out is None:
        arguments.out = experiment.folder / "quick" if arguments.quick else experiment.folder
    return arguments
