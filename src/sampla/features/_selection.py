"""Which parameters of a network form theta."""

import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import Tensor, nn

from sampla.core.checks import require_known
from sampla.features._lock import locked
from sampla.features._names import plain_names, plain_parameters

_Item: TypeAlias = str | nn.Module | nn.Parameter
Selection: TypeAlias = _Item | Iterable[_Item] | Callable[[str, nn.Parameter], bool] | None
"""Which parameters are meant: names, patterns, modules or parameters, several of them, or a predicate; None for all."""

_NORMALISATION = (
    nn.modules.batchnorm._NormBase,  # BatchNorm and InstanceNorm, every dimension
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)

_NAMED = re.compile("norm(?!al(?!i))")
"""LlamaRMSNorm, T5LayerNorm, Normalization; not NormalHead."""

LAST_LAYER = "last-layer"
"""The selection of the last module that has trainable parameters of its own and does not normalise."""


@locked
def select_parameters(model: nn.Module, selection: Selection = None) -> tuple[list[str], dict[str, str]]:
    """Which parameters form theta.

    Args:
        model: the network.
        selection: None for all that require grad except those of normalisation layers; names or shell patterns
            ("head.*", "*lora_*"); "last-layer" for the module registered last that has trainable parameters of its own
            and does not normalise; modules or parameters of the network (model.head, model.head.parameters()); or a
            predicate (name, parameter) -> bool. A selection made by the user is taken as it is. A tensor with two names
            is one parameter, found under either. What normalises is told by torch's class, or by a class whose name
            says "norm" and whose own parameters are vectors, as the RMSNorm of every language model.

    Returns:
        The chosen names in the model's order, and for every parameter left out the reason.

    Raises:
        TypeError: if the selection is of another kind, such as a mask or numbers of single weights.
        ValueError: if a name or pattern matches nothing, if a module or parameter is not the network's, or if nothing
            is left.
    """
    every = plain_parameters(model)
    if isinstance(selection, str) and selection == LAST_LAYER:
        selection = _last_layer(model)
    if selection is None:
        normalisation = {
            id(p): reason for m in model.modules() if (reason := _normalises(m)) for p in m.parameters(recurse=False)
        }
        excluded = {
            name: normalisation.get(id(p), "does not require grad")
            for name, p in every.items()
            if id(p) in normalisation or not p.requires_grad
        }
    else:
        chosen = _matching(model, every, selection)
        excluded = {name: "not selected" for name in every if name not in chosen}
    names = [name for name in every if name not in excluded]
    if not names:
        reasons = ", ".join(sorted(set(excluded.values()))) or "the model has none"
        raise ValueError(
            f"expected at least one parameter to be uncertain about, got none of {len(every)} ({reasons}). "
            "Set requires_grad=True on some, or pass parameters=[...] with names or patterns."
        )
    return names, excluded


def _last_layer(model: nn.Module) -> list[str]:
    layers = [
        name
        for name, module in model.named_modules()
        if not _normalises(module) and any(p.requires_grad for p in module.parameters(recurse=False))
    ]
    if not layers:
        return []
    own, plain = model.get_submodule(layers[-1]).named_parameters(layers[-1], recurse=False), plain_names(model)
    return [plain[name] for name, p in own if p.requires_grad]


def _normalises(module: nn.Module) -> str:
    """Why the module's own parameters are those of a normalisation layer; empty if they are not.

    Beside torch's own these are layers whose name says so and that have nothing but a number for each channel, also as
    (C, 1, 1). Parametrisations of a weight (weight_norm, spectral_norm) have other parameters, or none.
    """
    if isinstance(module, _NORMALISATION):
        return "normalisation layer"
    name = type(module).__name__
    if not _NAMED.search(name.lower()):
        return ""
    own = list(module.parameters(recurse=False))
    vectors = all(p.numel() == max(p.shape, default=1) for p in own)
    if own and vectors and len(own) == len(list(module.parameters())):
        return f"normalisation layer (by its name {name!r})"
    return ""


def _matching(model: nn.Module, every: Mapping[str, nn.Parameter], selection: Any) -> set[str]:
    first = {id(p): name for name, p in every.items()}
    if isinstance(selection, nn.Module | nn.Parameter | str):
        selection = [selection]
    elif callable(selection) and not isinstance(selection, type):
        return {name for name, parameter in every.items() if selection(name, parameter)}
    written = {name: first[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}
    aliases = {**{plain_names(model)[name]: own for name, own in written.items()}, **written}
    chosen: set[str] = set()
    for item in _items(selection):
        if isinstance(item, str):
            found = {own for name, own in aliases.items() if fnmatchcase(name, item)}
            if not found:
                require_known(item, aliases, "parameter")
        else:
            tensors = list(item.parameters()) if isinstance(item, nn.Module) else [item]
            found = {first[id(p)] for p in tensors if id(p) in first}
            if len({id(p) for p in tensors}) > len(found):
                what = type(item).__name__ if isinstance(item, nn.Module) else f"a parameter {tuple(item.shape)}"
                raise ValueError(
                    f"expected modules and parameters of the network itself, got {what} that it does not have. Take "
                    "them from the model that is passed (not from a copy), or give names: " + _HOW
                )
        chosen |= found
    return chosen


_HOW = "parameters=['head.*'], parameters=model.head, or a predicate (name, parameter) -> bool."


def _items(selection: Any) -> list[Any]:
    """The parts of a selection.

    Raises:
        TypeError: if it is not names, modules and parameters.
    """
    if isinstance(selection, Iterable) and not isinstance(selection, Tensor | Mapping):
        items = list(selection)
        wrong = next((item for item in items if not isinstance(item, str | nn.Module | nn.Parameter)), None)
        if wrong is None:
            return items
        got = f"{type(selection).__name__} with {_described(wrong)}"
    else:
        got = _described(selection)
    raise TypeError(
        f"expected parameters= as names, modules or parameters, got {got}. A posterior is over whole parameter "
        f"tensors, not over single weights of them: {_HOW}"
    )


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} {tuple(value.shape)}"
    return f"{value!r:.60} ({type(value).__name__})"
