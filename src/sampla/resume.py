"""A fit that was stopped goes on: the state after every EM step, in one file."""

from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from sampla import checkpoint
from sampla._checks import require
from sampla._chunks import Chunks
from sampla._stack import Stack
from sampla.em import EMState, EMStep, trace_rows
from sampla.krylov import KrylovSpace
from sampla.likelihoods import Gaussian
from sampla.solvers import Solution, Status
from sampla.spectral import LogError

_FILE = "em-state.safetensors"
_SMALL = ("gram", "coupling", "start")
_NUMBERS = ("noise_factor", "objective", "mode_error")
_ERRORS = ("precision_error", "noise_error")


def keep_state(folder: str | Path | None, state: EMState, identity: dict[str, Any]) -> None:
    """Write the state after an EM step; does nothing without a folder."""
    if folder is None:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    tensors = {"precision": state.prior.precision, **_tensors_of(state)}
    likelihood = state.model.likelihood
    if isinstance(likelihood, Gaussian) and likelihood.noise_precision is not None:
        tensors["noise_precision"] = likelihood.noise_precision
    facts = {
        "identity": identity,
        "trace": trace_rows(state.trace),
        "settled": state.settled,
        "noise_unknown": state.noise_unknown,
        "numbers": {name: getattr(state, name) for name in _NUMBERS},
        "errors": {name: getattr(state, name) and asdict(getattr(state, name)) for name in _ERRORS},
        "chunks": state.model.chunks.facts(),
        "widths": None if state.space is None else state.space.widths,
        "exact": 0 if state.space is None else state.space.exact,
    }
    checkpoint.save(Path(folder) / _FILE, tensors, facts)


def restore_chunks(folder: str | Path | None, chunks: Chunks) -> None:
    """Go on with the chunks of the stored state, if the folder holds one that knows: the same sums to the last bit.

    Whether the state belongs to this fit at all is checked when it is restored.

    Raises:
        TypeError: if it is no folder's path.
    """
    if not isinstance(folder, (str, PathLike, NoneType)):
        raise TypeError(f"expected checkpoint as the path of a folder, or None, got {folder!r}.")
    if folder is None or not (Path(folder) / _FILE).exists():
        return
    kept = checkpoint.load(Path(folder) / _FILE)[1].get("chunks")
    if kept is not None:
        chunks.settle(kept["entries"], kept["columns"], "restored")


def restore_state(folder: str | Path | None, state: EMState, identity: dict[str, Any]) -> EMState:
    """The stored state if the folder holds one, else the given one.

    Raises:
        ValueError: if the stored state belongs to another network, prior, seed or number of samples, or was written
            by an earlier version.
    """
    if folder is None or not (Path(folder) / _FILE).exists():
        return state
    tensors, facts = checkpoint.load(Path(folder) / _FILE)
    require("trace" in facts, f"an EM state in {folder}", "another file of sampla's", "Use another folder.")
    known = facts["widths"] is None or "space.basis.0" in tensors
    require(known, "a state of this version", "one of an earlier version", "Use another folder, or that version.")
    different = sorted(k for k in identity if facts["identity"].get(k) != identity[k])
    require(
        not different,
        f"a checkpoint of this fit in {folder}",
        f"one with other {', '.join(different)}",
        "Use another folder, or remove this one to start again.",
    )

    def here(name: str) -> Tensor:
        return tensors[name].to(state.model.features.like.device)

    model = state.model
    if "noise_precision" in tensors and isinstance(model.likelihood, Gaussian) and model.likelihood.learns_noise:
        model = model.replaced(likelihood=Gaussian(tensors["noise_precision"], learn=True))
    solution = None
    if "value" in tensors:
        solution = Solution(here("value"), here("curvature_value"), Status.MAX_PASSES, 0, float("nan"))
    space = None
    if facts["widths"] is not None:
        basis = Stack([here(f"space.basis.{number}") for number in range(1 + len(facts["widths"]))])
        small: dict[str, Any] = {name: tensors[f"space.{name}"] for name in _SMALL}
        space = KrylovSpace(basis, following=here("space.following"), **small, widths=tuple(facts["widths"]))
        space = replace(space, exact=facts.get("exact", 0))
    errors = {name: row and LogError(**row) for name, row in facts["errors"].items()}
    return EMState(
        state.prior.with_precision(here("precision").to(torch.float64)), model, solution,
        here("mode") if "mode" in tensors else None, None,
        [EMStep(**row) for row in facts["trace"]], facts["settled"], space, **{**facts["numbers"], **errors},
        noise_unknown=facts.get("noise_unknown", ""),
    )  # fmt: skip


def _tensors_of(state: EMState) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    if state.solution is not None:
        tensors |= {"value": state.solution.value, "curvature_value": state.solution.curvature_value}
    if state.mode is not None:
        tensors["mode"] = state.mode
    if state.space is not None:
        tensors |= {f"space.{name}": getattr(state.space, name) for name in (*_SMALL, "following")}
        tensors |= {f"space.basis.{number}": part for number, part in enumerate(state.space.basis.parts)}
    return tensors
