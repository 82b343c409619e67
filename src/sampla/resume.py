"""A fit that was stopped goes on: the state after every EM step, in one file."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sampla import checkpoint
from sampla._checks import require
from sampla.em import EMState, EMStep, trace_rows
from sampla.likelihoods import Gaussian
from sampla.solvers import Solution, Status

_FILE = "em-state.safetensors"


def keep_state(folder: str | Path | None, state: EMState, identity: dict[str, Any]) -> None:
    """Write the state after an EM step; does nothing without a folder."""
    if folder is None:
        return
    assert state.solution is not None
    assert state.mode is not None
    Path(folder).mkdir(parents=True, exist_ok=True)
    tensors = {
        "precision": state.prior.precision,
        "value": state.solution.value,
        "curvature_value": state.solution.curvature_value,
        "mode": state.mode,
    }
    likelihood = state.model.likelihood
    if isinstance(likelihood, Gaussian) and likelihood.noise_precision is not None:
        tensors["noise_precision"] = likelihood.noise_precision
    facts = {"identity": identity, "trace": trace_rows(state.trace), "settled": state.settled}
    checkpoint.save(Path(folder) / _FILE, tensors, facts)


def restore_state(folder: str | Path | None, state: EMState, identity: dict[str, Any]) -> EMState:
    """The stored state if the folder holds one, else the given one.

    Raises:
        ValueError: if the stored state belongs to another network, prior, seed or number of samples.
    """
    if folder is None or not (Path(folder) / _FILE).exists():
        return state
    tensors, facts = checkpoint.load(Path(folder) / _FILE)
    require("trace" in facts, f"an EM state in {folder}", "another file of sampla's", "Use another folder.")
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
    solution = Solution(here("value"), here("curvature_value"), Status.MAX_PASSES, 0, float("nan"))
    trace = [EMStep(**row) for row in facts["trace"]]
    prior = state.prior.with_precision(here("precision").to(torch.float64))
    return EMState(prior, model, solution, here("mode"), trace, facts["settled"])
