"""A fit that was stopped goes on: the noise in one file, the state after every EM step in another.

Where several processes hold slices of the Krylov space, its parts have files of their own (space_files.py).

The noise belongs to the data in the order of one pass, and the prior's scales to the noise. A fit that goes on takes
both as they were, so that a loader which shuffles does no harm: the state is in the same coordinates.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from sampla.core import checkpoint
from sampla.core.checks import require
from sampla.core.chunks import Chunks
from sampla.core.stack import Stack
from sampla.distributed import Held, Ranks, Slices
from sampla.inference.krylov import KrylovSpace
from sampla.inference.quadrature import LogError
from sampla.inference.space_files import read_parts, remove_parts, write_parts
from sampla.inference.state import EMState
from sampla.inference.trace import EMStep, trace_rows
from sampla.model import LinearModel, NoiseDraw
from sampla.solvers import Memory, Mode, Start

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

_FILE, _NOISE = "em-state.safetensors", "noise.safetensors"
_VERSION = 5
"""Of what the two files hold."""
_HARMLESS = "em_tolerance"
"""The part of an identity that may change: where it has become smaller, a loop that had settled goes on."""
_SPACE = "space."
_OF_P = (f"{_SPACE}basis.", f"{_SPACE}following")
"""Tensors of the space of which each of several processes holds a slice."""
_SMALL = ("gram", "coupling", "start")
_ERRORS = ("precision_error", "noise_error")


def save_state(folder: str | Path | None, state: EMState, identity: dict[str, Any]) -> None:
    """Write the state after an EM step, which begins another stage of the journal; does nothing without a folder.

    Of several processes the first one writes; all must call it.
    """
    if folder is None:
        return
    ranks, path = state.model.data.ranks, Path(folder) / _FILE
    tensors = {"precision": state.prior.precision, **_tensors_of(state)}
    parts = None
    if state.space is not None and ranks is not None:
        parts = write_parts(path.parent, state.space.basis, ranks)
    noise = state.model.likelihood.noise_precision
    if noise is not None:
        tensors["noise_precision"] = noise
    facts = {
        "identity": identity,
        "version": _VERSION,
        "products": state.model.ledger.products,
        "sweeps": state.model.data.sweeps,
        "curvature_exact": state.start is None or state.start.curvature_exact,
        "mode": _mode_facts(state.mode),
        "trace": trace_rows(state.trace),
        "settled": state.settled,
        "stuck": state.stuck,
        "noise_unknown": state.noise_unknown,
        "noise_factor": state.noise_factor,
        "errors": {name: getattr(state, name) and asdict(getattr(state, name)) for name in _ERRORS},
        **_chunks_of_all(state.model.chunks, ranks),
        "widths": None if state.space is None else state.space.widths,
        "exact": 0 if state.space is None else state.space.exact,
        "parts": parts,
        "full_precision": state.model.exact,
    }
    _write(path, tensors, facts, ranks)
    if ranks is None or ranks.rank == 0:
        remove_parts(path.parent, parts)
    state.model.journal.begin(len(state.trace))


def _chunks_of_all(chunks: Chunks, ranks: Ranks | None) -> dict[str, Any]:
    """The chunks of this process, and where there are several those of each."""
    own = chunks.facts()
    return {"chunks": own} if ranks is None else {"chunks": own, "chunks of ranks": ranks.gathered("chunks", own)}


def _write(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any], ranks: Ranks | None) -> None:
    if ranks is None or ranks.rank == 0:
        checkpoint.save(path, tensors, facts)


def _read(path: Path, ranks: Ranks | None, slices: Slices | None = None) -> Held | None:
    """What the file holds, as the first of several processes finds it; None: there is no such file.

    Args:
        path: of the file.
        ranks: the processes.
        slices: of which each keeps its own of the vectors of a Krylov space.
    """

    def read() -> Held | None:
        return checkpoint.load(path) if path.exists() else None

    def keep(name: str, tensor: Tensor) -> Tensor:
        return slices.own(tensor) if slices is not None and name.startswith(_OF_P) else tensor

    return read() if ranks is None else ranks.of_first(path.name, read, keep)


@contextmanager
def held(folder: str | Path | None, ranks: Ranks | None = None) -> Iterator[None]:
    """Have a checkpoint's folder for one fit alone, and know before any work that it can be written to.

    Args:
        folder: of the checkpoint.
        ranks: the processes of the fit, of which the first one has the folder.

    Raises:
        TypeError: if it is no folder's path.
        OSError: if it cannot be made or written to.
        RuntimeError: if another fit, in this process or another one, is using it.
    """
    if not isinstance(folder, (str, PathLike, NoneType)):
        raise TypeError(f"expected checkpoint as the path of a folder, or None, got {folder!r}.")
    if folder is None or (ranks is not None and ranks.rank > 0):
        yield
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=folder, prefix=".tried."):
            pass
    except OSError as error:
        raise OSError(f"expected checkpoint as a folder that can be written to, got {folder}: {error}.") from error
    with _alone(Path(folder)) as alone:
        if not alone:
            raise RuntimeError(
                f"expected a checkpoint folder for one fit, got {folder}, which another fit is using now. Wait until "
                "it has ended, or use another folder."
            )
        yield


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether nobody else has the folder; the lock ends with the process that has it, however that ends."""
    if fcntl is None:  # no such locks on this system
        yield True
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        yield False
        return
    except OSError:  # a file system without locks
        os.close(handle)
        yield True
        return
    try:
        yield True
    finally:
        os.close(handle)


def saved_noise(
    folder: str | Path | None, draw: Callable[[], NoiseDraw], identity: dict[str, Any], model: LinearModel
) -> NoiseDraw:
    """The noise that the folder holds; else a new draw, which is kept there with its cost and the model's chunks.

    Raises:
        ValueError: if what the folder holds belongs to another fit.
    """
    if folder is None:
        return draw()
    path, ranks = Path(folder) / _NOISE, model.data.ranks
    kept = _read(path, ranks)
    if kept is not None:
        tensors, facts = kept
        _require_same(folder, facts, identity)
        counted = (Path(folder) / _FILE).exists()  # by the state
        if not (counted if ranks is None else ranks.gathered("state", counted)[0]):
            model.ledger.products += facts.get("products", 0)
        return NoiseDraw(tensors["data_part"], tensors["diagonal"])
    before = model.ledger.products
    drawn = draw()
    products = model.ledger.products - before
    chunks = _chunks_of_all(model.chunks, ranks)
    facts = {"identity": identity, "version": _VERSION, **chunks, "products": products}
    _write(path, {"data_part": drawn.data_part, "diagonal": drawn.diagonal}, facts, ranks)
    return drawn


def _require_same(folder: str | Path, facts: dict[str, Any], identity: dict[str, Any]) -> None:
    require("identity" in facts, f"an EM state in {folder}", "another file of sampla's", "Use another folder.")
    known = facts.get("version") == _VERSION
    require(known, "a state of this version", "one of another version", "Use another folder, or that version.")
    different = sorted(k for k in identity if k != _HARMLESS and facts["identity"].get(k) != identity[k])
    require(
        not different,
        f"a checkpoint of this fit in {folder}",
        f"one with other {', '.join(different)}",
        "Use another folder, or remove this one to start again.",
    )


def restore_chunks(folder: str | Path | None, chunks: Chunks, ranks: Ranks | None = None) -> None:
    """Go on with the chunks of the stored state, else of the noise, if the folder knows: the same sums to the last bit.

    As many processes as had written it take their own each, others those of the first. Whether the state belongs to
    this fit at all is checked when it is restored.
    """
    if folder is None:
        return

    def read() -> Held | None:
        path = next((p for p in (Path(folder) / name for name in (_FILE, _NOISE)) if p.exists()), None)
        return None if path is None else ({}, checkpoint.load(path)[1])

    found = read() if ranks is None else ranks.of_first("chunks", read)
    facts: dict[str, Any] = {} if found is None else found[1]
    kept, each = facts.get("chunks"), facts.get("chunks of ranks", [])
    if ranks is not None and len(each) == ranks.size:
        kept = each[ranks.rank]
    if kept is not None:
        chunks.prefer(kept["entries"], kept["columns"], "restored")
        chunks.way = kept.get("way", "")


def restore_state(folder: str | Path | None, state: EMState, identity: dict[str, Any]) -> EMState:
    """The stored state if the folder holds one, else the given one.

    Raises:
        ValueError: if the stored state belongs to another network, prior, seed or number of samples, or was written
            by an earlier version.
    """
    slices = state.model.slices
    kept = None if folder is None else _read(Path(folder) / _FILE, slices.ranks, slices)
    if folder is None or kept is None:
        state.model.journal.begin(0)
        return state
    tensors, facts = kept
    _require_same(folder, facts, identity)
    state.model.journal.begin(len(facts["trace"]))
    settled = facts["settled"] and facts["identity"][_HARMLESS] <= identity[_HARMLESS]
    state.model.ledger.products += facts["products"]
    state.model.data.sweeps += facts["sweeps"]

    def here(name: str) -> Tensor:
        return tensors[name].to(state.model.features.like.device)

    model = state.model.replaced(exact=facts.get("full_precision", state.model.exact))
    if "noise_precision" in tensors and model.likelihood.learns_noise:
        model = model.replaced(likelihood=model.likelihood.with_noise(tensors["noise_precision"]))
    start = None
    if "value" in tensors:
        start = Start(here("value"), here("curvature_value"), curvature_exact=facts["curvature_exact"])
    space = None
    if facts["widths"] is not None:
        count = 1 + len(facts["widths"])
        if facts.get("parts") is not None:
            rows = read_parts(Path(folder), facts["parts"], count, slices)
            tensors |= {f"{_SPACE}basis.{number}": part for number, part in enumerate(rows)}
        basis = Stack([here(f"{_SPACE}basis.{number}") for number in range(count)], slices)
        small: dict[str, Any] = {name: tensors[f"{_SPACE}{name}"] for name in _SMALL}
        space = KrylovSpace(basis, following=here(f"{_SPACE}following"), **small, widths=tuple(facts["widths"]))
        space = replace(space, exact=facts.get("exact", 0))
    errors = {name: row and LogError(**row) for name, row in facts["errors"].items()}
    return EMState(
        state.prior.with_precision(here("precision").to(torch.float64)), model, start, _mode(facts["mode"], here),
        [EMStep(**row) for row in facts["trace"]], settled, facts["stuck"], space,
        here("place") if "place" in tensors else None, facts["noise_factor"], noise_unknown=facts["noise_unknown"],
        **errors,
    )  # fmt: skip


def _tensors_of(state: EMState) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    if state.start is not None:
        tensors |= {"value": state.start.value, "curvature_value": state.start.curvature_value}
    if state.mode is not None:
        tensors |= _mode_tensors(state.mode)
    if state.place is not None:
        tensors["place"] = state.place.clone()  # the mode's own tensor as a rule, which a file may hold once only
    if state.space is not None:
        slices, parts = state.space.basis.slices, state.space.basis.parts
        tensors |= {f"{_SPACE}{name}": getattr(state.space, name) for name in _SMALL}
        tensors[f"{_SPACE}following"] = slices.whole(state.space.following)
        if slices.ranks is None:
            tensors |= {f"{_SPACE}basis.{number}": part for number, part in enumerate(parts)}
    return tensors


_MODE = ("objective", "error", "steps", "products", "converged", "bound")


def _mode_facts(mode: Mode | None) -> dict[str, Any] | None:
    if mode is None:
        return None
    memory = None if mode.memory is None else {"loss": mode.memory.loss, "pairs": len(mode.memory.pairs)}
    return {name: getattr(mode, name) for name in _MODE} | {"memory": memory}


def _mode_tensors(mode: Mode) -> dict[str, Tensor]:
    if mode.memory is None:
        return {"mode": mode.value}
    tensors = {"mode": mode.value, "mode.precision": mode.memory.precision, "mode.gradient": mode.memory.gradient}
    for number, (step, change) in enumerate(mode.memory.pairs):
        tensors |= {f"mode.step.{number}": step, f"mode.change.{number}": change}
    return tensors


def _mode(facts: dict[str, Any] | None, here: Callable[[str], Tensor]) -> Mode | None:
    """The last mode with all that its search has learnt: an EM that goes on does what it would have done."""
    if facts is None:
        return None
    known, memory = facts["memory"], None
    if known is not None:
        pairs = [(here(f"mode.step.{n}"), here(f"mode.change.{n}")) for n in range(known["pairs"])]
        memory = Memory.of(here("mode.precision"), known["loss"], here("mode.gradient"), pairs)
    return Mode(here("mode"), **{name: facts[name] for name in _MODE}, memory=memory)
