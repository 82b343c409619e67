"""What must be true of the modules and weights themselves, before the network is called."""

import sys
from collections.abc import Collection

import torch
from torch import nn

from sampla.core.checks import require
from sampla.core.memory import has_float64
from sampla.features import locked, network_dtypes, plain_names

_DISTRIBUTED = (
    ("torch.distributed.tensor", "DTensor"),
    ("torch.distributed.fsdp", "FlatParameter"),
    ("torch.distributed.fsdp", "FullyShardedDataParallel"),
)
"""Where the types of weights that lie on several processes are found, once something has made such weights."""


@locked
def check_modules(model: nn.Module, names: Collection[str]) -> None:
    """Refuse modules whose weights cannot be replaced for a product.

    Args:
        model: the network.
        names: the parameters that form theta.

    Raises:
        ValueError: for chosen parameters of a ScriptModule, and for weights that are spread over processes.
        RuntimeError: for a network whose state_dict, by which its weights are told from others, cannot be taken.
    """
    plain, chosen = plain_names(model), set(names)
    for prefix, module in model.named_modules():
        own = [name for name, _ in module.named_parameters(prefix, recurse=False)]
        scripted = isinstance(module, torch.jit.ScriptModule) and any(plain[name] in chosen for name in own)
        require(
            not scripted,
            "modules of Python code around the chosen parameters",
            f"a module compiled by torch.jit, {prefix or type(model).__name__!r}",
            "Pass the nn.Module that was scripted or traced (its state_dict is the same), or choose parameters "
            "elsewhere with parameters=[...].",
        )
    try:
        network_dtypes(model)
    except Exception as error:
        raise RuntimeError(
            f"expected a network whose state_dict() can be taken, got {type(error).__name__}: {error}. A posterior is "
            "saved with a hash of these weights: repair state_dict or the hooks on it."
        ) from error
    spread = _spread_types()
    found = [name for name, part in [*model.named_parameters(), *model.named_modules()] if isinstance(part, spread)]
    require(
        not found,
        "a network whose weights are whole on one device",
        f"weights that FSDP or tensor parallelism spread over several processes, {found[0]!r} first" if found else "",
        "Gather them into a plain copy of the network: get_model_state_dict(model, "
        "options=StateDictOptions(full_state_dict=True)) of torch.distributed.checkpoint.state_dict, then "
        "copy.load_state_dict(...).",
    )


def _spread_types() -> tuple[type, ...]:
    """Looked up, not imported: where nothing has imported them there can be no such weights."""
    found = (getattr(sys.modules.get(module), name, None) for module, name in _DISTRIBUTED)
    return tuple(kind for kind in found if isinstance(kind, type))


def check_evaluation_mode(model: nn.Module) -> None:
    """Refuse a network whose output is not a function of its input alone.

    Raises:
        ValueError: if any module is in train mode.
    """
    exported = {id(part) for module in model.modules() if _is_exported(module) for part in module.modules()}
    training = [
        name or type(model).__name__ for name, m in model.named_modules() if m.training and id(m) not in exported
    ]
    require(
        not training,
        "a model in evaluation mode",
        f"{len(training)} module(s) in train mode, such as {training[0] if training else ''!r}",
        "Call model.eval() first: dropout and batch statistics would change the function between passes.",
    )


def _is_exported(module: nn.Module) -> bool:
    """Whether torch.export made it: its graph has the mode it was exported in, its flag says nothing."""
    return isinstance(module, torch.fx.GraphModule) and "eval" in vars(module)


@locked
def only_device(model: nn.Module) -> torch.device:
    """The device of all weights and buffers.

    Raises:
        ValueError: if they lie on several, or have no values yet, or if the device has no float64.
    """
    where = {tensor.device: name for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    devices = ", ".join(f"{name!r} on {device}" for device, name in where.items())
    require(
        len(where) == 1 and next(iter(where)).type != "meta",
        "a model with all its weights and buffers on one device",
        devices,
        "Move it with model.to(device); the data follow by themselves. A model on 'meta' has no weights yet.",
    )
    device = next(iter(where))
    require(
        has_float64(device), "a device that computes in float64, in which sums over the data are taken", f"{device}",
        "Move the network to the CPU, model.cpu(): it may stay in float32 itself.",
    )  # fmt: skip
    return device
