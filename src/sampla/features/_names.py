"""Names of a network's tensors without those of wrappers, and the fingerprint of its weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from sampla.core.checkpoint import digest
from sampla.core.hashes import earlier_fingerprint, strided
from sampla.features._lock import locked

COMPILED = "_orig_mod"
"""The name under which what torch.compile returns holds the module."""
_UNCOMPARED: tuple[torch.dtype | None, ...] = (getattr(torch, "float4_e2m1fn_x2", None),)
"""Types that torch does not compare."""
_EARLIER = 16
"""Digits of the fingerprints of earlier versions."""


def plain_names(model: nn.Module) -> dict[str, str]:
    """Name of each parameter and buffer (of tied ones every name) -> the name it has without wrappers.

    torch.compile adds "_orig_mod." wherever a module was compiled, DataParallel and DistributedDataParallel "module.".
    """
    wrapped = _wrapped(model)
    every = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return {name: _without(name, wrapped) for name, _ in every}


@locked
def plain_parameters(model: nn.Module, remove_duplicate: bool = True) -> dict[str, nn.Parameter]:
    """The parameters under their names without wrappers."""
    plain = plain_names(model)
    return {plain[name]: p for name, p in model.named_parameters(remove_duplicate=remove_duplicate)}


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile made any of its modules."""
    return any(COMPILED in module._modules for module in model.modules())


def functional_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers: a posterior stays about them, even if the network is trained on."""
    plain = plain_names(model)
    every = [*model.named_parameters(), *model.named_buffers()]
    return {plain[name]: tensor.detach().clone() for name, tensor in every}


def castable(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that a coarser type serves as well: all but those of normalisation by running moments."""
    plain, held = plain_names(model), {id(p) for m in model.modules() if _normalises(m) for p in m.parameters(False)}
    return frozenset(plain[name] for name, p in model.named_parameters() if id(p) not in held)


def _normalises(module: nn.Module) -> bool:
    return getattr(module, "running_var", None) is not None


def slots(model: nn.Module) -> dict[str, str]:
    """Every place where a module keeps a parameter or buffer -> the name of the tensor, one for all places it is in.

    functional_call's own way with tied weights leaves a module that has two names with the wrong parameters. What
    torch.jit has compiled keeps its tensors to itself.
    """
    plain = plain_names(model)
    names = {id(tensor): plain[name] for name, tensor in reversed([*model.named_parameters(), *model.named_buffers()])}
    return {
        f"{prefix}.{name}".lstrip("."): names[id(tensor)]
        for prefix, module in model.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]
        if tensor is not None
    }


def network_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the state_dict, under names without wrappers; extra state, text and the like are none."""
    wrapped = _wrapped(model)
    return {_without(name, wrapped): t for name, t in _own_state(model).items()}


def _own_state(model: nn.Module) -> dict[str, Tensor]:
    return {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}


@locked
def changed_tensors(model: nn.Module, held: Mapping[str, Tensor]) -> list[str]:
    """Names of parameters and persistent buffers whose values are not those that are held, in the types of these.

    Counters of batches say nothing of the function, and buffers that no file keeps may be caches.
    """
    plain = plain_names(model)
    passing = {
        f"{prefix}.{name}".lstrip(".") for prefix, m in model.named_modules() for name in m._non_persistent_buffers_set
    }
    here = [*model.named_parameters(), *((name, t) for name, t in model.named_buffers() if name not in passing)]
    return [
        plain[name]
        for name, tensor in here
        if plain[name] in held and not name.endswith("num_batches_tracked") and _differ(tensor, held[plain[name]])
    ]


def _differ(tensor: Tensor, held: Tensor) -> bool:
    if tensor.is_meta:
        return False
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_mkldnn or tensor.dtype in _UNCOMPARED:
        return digest({"": strided(tensor.detach())}) != digest({"": strided(held)})  # torch compares none of them
    here = tensor.detach().to(held)
    return not (torch.equal(here, held) or torch.equal(here.nan_to_num(), held.nan_to_num()))


@locked
def network_fingerprint(model: nn.Module) -> str:
    """SHA-256 of the weights, hexadecimal; the same for a network that is compiled or wrapped."""
    return _digest(network_state(model))


@locked
def has_fingerprint(model: nn.Module, expected: str, dtypes: Mapping[str, str]) -> bool:
    """Whether a network has the weights of a fingerprint, as they are or in the types that they were hashed in.

    Args:
        model: the network.
        expected: as ``network_fingerprint`` gave it, in this version or an earlier one.
        dtypes: name -> type of each tensor when that was, as ``network_dtypes`` gave them.
    """
    state = network_state(model)
    kinds = {str(kind): kind for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
    cast = {name: t.to(kinds.get(dtypes.get(name, ""), t.dtype)) for name, t in state.items()}
    if len(expected) == _EARLIER:
        return expected in map(earlier_fingerprint, (state, cast, _own_state(model)))
    return expected in map(_digest, (state, cast))


def _digest(state: Mapping[str, Tensor]) -> str:
    return digest({name: strided(tensor) for name, tensor in state.items()})


@locked
def network_dtypes(model: nn.Module) -> dict[str, str]:
    """Name -> type of each floating-point tensor of the state_dict."""
    return {name: str(t.dtype) for name, t in network_state(model).items() if t.is_floating_point()}


def _wrapped(model: nn.Module) -> set[str]:
    """Names of modules that a wrapper holds."""
    found = set()
    for name, module in model.named_modules():
        held = "module" if isinstance(module, (DataParallel, DistributedDataParallel)) else COMPILED
        if held in module._modules:
            found.add(f"{name}.{held}".lstrip("."))
    return found


def _without(name: str, wrapped: set[str]) -> str:
    parts = name.split(".")
    kept = [part for number, part in enumerate(parts) if ".".join(parts[: number + 1]) not in wrapped]
    return ".".join(kept)
