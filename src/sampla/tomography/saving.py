"""A reconstruction with its error bars as one file: network, samples, and what a loaded one is held against.

The file does not hold the operator, which may be a pair of functions, nor a network's code. It holds the image and its
measurement instead: with another operator or another network of the same shapes these come out different.
"""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sampla.core import checkpoint
from sampla.core.checks import require
from sampla.features import NetworkFeatures
from sampla.tomography.operators import Operator, Whitened
from sampla.tomography.projected import ProjectedFeatures, check_image
from sampla.tomography.unet import UNet

_FILE, _KIND, _VERSION = "reconstruction.safetensors", "reconstruction", 1
_SAME = 1e-3
"""Relative difference of images that rounding may explain, on another device."""


@dataclass(frozen=True)
class Saved:
    """What a folder holds of a fitted LinearisedDIP."""

    network: nn.Module
    """In the type of the operator."""
    given: Tensor
    """(1, 8, H, W) its input."""
    features: ProjectedFeatures
    samples: Tensor
    """(K, P)."""
    noise_std: Tensor | None
    """As given to the constructor."""
    facts: dict[str, Any]
    """Settings and records: JSON only."""


def write(folder: str | Path, saved: Saved, operator: Operator) -> None:
    """Write all to one file in the folder, which is made if there is none.

    Raises:
        OSError: if it cannot be written; an older file is as it was.
    """
    features, state = saved.features, _tensors(saved.network)
    tensors = {
        "input": saved.given, "samples": saved.samples, "image": features.image.outputs[0, 0],
        "measured": features.measured[0], **{f"network.{name}": each.clone() for name, each in state.items()},
    }  # fmt: skip
    if saved.noise_std is not None:
        tensors["noise_std"] = saved.noise_std.clone()  # the deviations may be the same memory
    if features.deviations is not None:
        tensors["deviations"] = features.deviations
    facts = {
        "kind": _KIND, "version": _VERSION, "image_shape": operator.image_shape, "names": features.layout.names,
        "measurements": operator.num_measurements, "dtype": str(operator.like.dtype),
        "network": type(saved.network).__name__, "unet": _unet_facts(saved.network), "fit": saved.facts,
    }  # fmt: skip
    Path(folder).mkdir(parents=True, exist_ok=True)
    checkpoint.save(Path(folder) / _FILE, tensors, facts)


def read(folder: str | Path, operator: Operator, network: nn.Module | None = None) -> Saved:
    """What ``write`` has written, on the operator's device.

    Args:
        folder: that was written to.
        operator: the one of the fit.
        network: of the fit's architecture, which is copied; None: a U-Net is built.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, foreign or of a newer version, or belongs to another operator or network.
    """
    path = Path(folder) / _FILE
    tensors, facts = checkpoint.load(path)
    require_kind(path, facts, _KIND, _VERSION, "LinearisedDIP")
    require_operator(path, operator, facts)
    own = _filled(path, network, tensors, facts).to(operator.like)
    given = tensors["input"].to(operator.like)
    with torch.no_grad():
        check_image(own(given), operator)
    samples, whole = tensors["samples"].to(operator.like.device), operator
    if "deviations" in tensors:
        whole = Whitened(operator, tensors["deviations"].to(operator.like.device))
    inside, at = own, given
    if samples.dtype == torch.float64:
        whole, inside, at = whole.widened(), deepcopy(own).double(), given.double()
    features = ProjectedFeatures(NetworkFeatures(inside, tuple(facts["names"])), whole, at)
    require_equal(
        features.image.outputs[0, 0], tensors["image"], f"the network that {path} was fitted with",
        "Build the same architecture before loading.",
    )  # fmt: skip
    require_equal(
        features.measured[0], tensors["measured"], f"the operator that {path} was fitted with",
        "Give the geometry of that scan.",
    )  # fmt: skip
    return Saved(own, given, features, samples, tensors.get("noise_std"), facts["fit"])


def require_kind(path: Path, facts: dict[str, Any], kind: str, version: int, writer: str) -> None:
    """Refuse another kind of file, or one of a newer version.

    Raises:
        ValueError: naming what was expected.
    """
    fix = f"Give a folder written by {writer}.save()."
    require(facts.get("kind") == kind, f"a {kind} in {path}", "another file of sampla's", fix)
    newer = f"version {facts['version']}, written by a newer sampla"
    require(facts["version"] <= version, f"version {version} or older in {path}", newer, "Update sampla.")


def require_operator(path: Path, operator: Operator, facts: dict[str, Any]) -> None:
    """Refuse an operator of another size or type.

    Raises:
        ValueError: naming both.
    """
    for what, wanted, found in (
        ("image shape", tuple(facts["image_shape"]), tuple(operator.image_shape)),
        ("number of measurements", facts["measurements"], operator.num_measurements),
        ("type", facts["dtype"], str(operator.like.dtype)),
    ):
        fix = "Give the operator that was fitted with."
        require(wanted == found, f"an operator of {what} {wanted} for {path}", f"{found}", fix)


def _filled(path: Path, network: nn.Module | None, tensors: dict[str, Tensor], facts: dict[str, Any]) -> nn.Module:
    """A copy of the network, or the U-Net of the file, with the file's weights, in evaluation mode.

    Raises:
        ValueError: without a network if that was one's own, or if the file's weights do not fit.
    """
    if network is None:
        name, unet = facts["network"], facts["unet"]
        fix = "Build the same architecture and pass it."
        require(unet is not None, f"network=, as {path} was fitted with one of your own, {name}", "none", fix)
        with torch.random.fork_rng(devices=[]):
            own: nn.Module = UNet(unet["scales"], unet["channels"])
    else:
        own = deepcopy(network)
    state = {name.removeprefix("network."): each for name, each in tensors.items() if name.startswith("network.")}
    here = {name: tuple(each.shape) for name, each in _tensors(own).items()}
    there = {name: tuple(each.shape) for name, each in state.items()}
    wrong = next((name for name in sorted(here.keys() | there.keys()) if here.get(name) != there.get(name)), None)
    require(
        wrong is None,
        f"the network that {path} was fitted with",
        f"another one: {wrong!r} is {here.get(wrong or '', 'missing')} here, {there.get(wrong or '', 'missing')} there",
        "Build the same architecture before loading.",
    )
    like = next((each for each in state.values() if each.is_floating_point()), torch.empty(0))
    own.to(like.dtype).load_state_dict(state, strict=False)  # what is no tensor is the network's own
    return own.eval()


def require_equal(found: Tensor, saved: Tensor, what: str, fix: str) -> None:
    """Refuse what makes something else of the same weights.

    Raises:
        ValueError: naming the relative difference.
    """
    apart = float((found.detach().cpu().double() - saved.double()).norm() / saved.double().norm().clamp_min(1e-300))
    require(apart <= _SAME, what, f"one whose result differs by {apart:.1%}", fix)


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {name: each for name, each in network.state_dict().items() if isinstance(each, Tensor)}


def _unet_facts(network: nn.Module) -> dict[str, int] | None:
    """What builds it again; None for a network of one's own. Dropout needs no mention: evaluation leaves it out."""
    if type(network) is not UNet:
        return None
    return {"scales": len(network.down) + 1, "channels": network.last.in_channels}
