"""What a reconstruction that was stopped goes on from: trained network, diagonal of M, steps of weights; a file each.

The noise, the states of EM and the passes since the last are kept beside them as for any other fit
(inference/checkpointing.py, core/journal.py).
"""

from collections.abc import Callable
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sampla.core import checkpoint
from sampla.core.checks import require
from sampla.core.noise import PROBE, standard_normal
from sampla.features import network_fingerprint
from sampla.tomography.dip import Training
from sampla.tomography.operators import Operator

_TRAINING, _DIAGONAL, _VERSION = "training.safetensors", "diagonal.safetensors", 2

Kept = tuple[dict[str, Tensor], dict[str, Any]]
Made = Callable[[], Kept]


def fingerprint(*tensors: Tensor) -> str:
    """Of the values of tensors, in their order."""
    found = sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def operator_fingerprint(operator: Operator) -> str:
    """Of what it makes of an image of noise: a scan in another geometry is another scan, whatever its numbers."""
    noise = standard_normal(0, PROBE, range(1), 0, operator.image_shape, operator.like)
    return fingerprint(operator.forward(noise))


def kept_training(
    folder: str | Path | None, network: nn.Module, asked: dict[str, Any], train: Callable[[], tuple[Tensor, Training]]
) -> tuple[Tensor, Training]:
    """The input of a network that is trained in place, and the record: those of the folder, or made and kept there.

    Args:
        folder: None: nothing is kept.
        network: untrained; left with the trained weights.
        asked: what must be the same for the kept ones to be the ones that are asked for, beside the first weights.
        train: trains the network in place.

    Raises:
        ValueError: if what the folder holds is of another scan, network or recipe.
    """

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        given, training = train()
        state = {f"network.{name}": each.clone() for name, each in network.state_dict().items()}
        return {"input": given, **state}, {"record": asdict(training), "weights": network_fingerprint(network)}

    first = network_fingerprint(network)
    if folder is not None and (Path(folder) / _TRAINING).exists():
        facts = checkpoint.load(Path(folder) / _TRAINING)[1]
        if first == facts.get("made", {}).get("weights"):  # trained by a fit of this object that was stopped later
            first = facts["asked"]["first weights"]
    tensors, made = _once(folder, _TRAINING, asked | {"first weights": first}, make)
    weights = {name.removeprefix("network."): each for name, each in tensors.items() if name.startswith("network.")}
    network.load_state_dict(weights)
    network.eval()
    return tensors["input"], Training(**made["record"])


def kept_diagonal(folder: str | Path | None, asked: dict[str, Any], measure: Callable[[], Tensor]) -> Tensor:
    """The diagonal of M: that of the folder, or measured and kept there; arguments as for ``kept_training``."""
    return _once(folder, _DIAGONAL, asked, lambda: ({"diagonal": measure()}, {}))[0]["diagonal"]


def kept_step(folder: str | Path | None, number: int, asked: dict[str, Any], make: Made) -> Kept:
    """A step of weights: tensors and facts of the folder, or made and kept; arguments as for ``kept_training``."""
    return _once(folder, f"step-{number:03}.safetensors", asked, make)


def _once(
    folder: str | Path | None,
    name: str,
    asked: dict[str, Any],
    make: Made,
) -> Kept:
    if folder is None:
        return make()
    path, asked = Path(folder) / name, checkpoint.plain(asked | {"version": _VERSION}, "what is asked")
    if path.exists():
        tensors, facts = checkpoint.load(path)
        known = facts.get("asked", {})
        other = sorted(each for each in asked if known.get(each) != asked[each])
        fix = "Use another folder, or remove this one to start again."
        require(not other, f"a checkpoint of this fit in {folder}", f"one with other {', '.join(other)}", fix)
        return tensors, facts["made"]
    tensors, made = make()
    checkpoint.save(path, tensors, {"asked": asked, "made": made})
    return tensors, made
