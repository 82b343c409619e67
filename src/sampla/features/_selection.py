"""Which parameters of a network form theta."""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias

from torch import nn

from sampla._checks import require_known
from sampla.features._names import plain_names, plain_parameters

Selection: TypeAlias = str | Sequence[str] | Callable[[str, nn.Parameter], bool] | None

_NORMALISATION = (
    nn.modules.batchnorm._NormBase,  # BatchNorm and InstanceNorm, every dimension
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)

LAST_LAYER = "last-layer"
"""The selection of the last module that has trainable parameters of its own and does not normalise."""


def select_parameters(model: nn.Module, selection: Selection = None) -> tuple[list[str], dict[str, str]]:
    """Which parameters form theta.

    Args:
        model: the network.
        selection: None for all that require grad except those of normalisation layers; names or shell patterns
            ("head.*", "*lora_*"); "last-layer" for the module registered last that has trainable parameters of its own
            and does not normalise; or a predicate (name, parameter) -> bool. A selection made by the user is taken as
            it is. A tensor with two names is one parameter, found under either.

    Returns:
        The chosen names in the model's order, and for every parameter left out the reason.

    Raises:
        ValueError: if a name or pattern matches nothing, or nothing is left.
    """
    every = plain_parameters(model)
    if selection == LAST_LAYER:
        selection = _last_layer(model)
    if selection is None:
        normalisation = {
            id(p) for m in model.modules() if isinstance(m, _NORMALISATION) for p in m.parameters(recurse=False)
        }
        excluded = {
            name: "normalisation layer" if id(p) in normalisation else "does not require grad"
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
        if not isinstance(module, _NORMALISATION) and any(p.requires_grad for p in module.parameters(recurse=False))
    ]
    if not layers:
        return []
    own, plain = model.get_submodule(layers[-1]).named_parameters(layers[-1], recurse=False), plain_names(model)
    return [plain[name] for name, p in own if p.requires_grad]


def _matching(model: nn.Module, every: Mapping[str, nn.Parameter], selection: Selection) -> set[str]:
    if callable(selection):
        return {name for name, parameter in every.items() if selection(name, parameter)}
    assert selection is not None
    first = {id(p): name for name, p in every.items()}
    written = {name: first[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}
    aliases = {**{plain_names(model)[name]: own for name, own in written.items()}, **written}
    chosen: set[str] = set()
    for pattern in [selection] if isinstance(selection, str) else selection:
        found = {own for name, own in aliases.items() if fnmatchcase(name, pattern)}
        if not found:
            require_known(pattern, aliases, "parameter")
        chosen |= found
    return chosen
