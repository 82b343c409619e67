"""Records the calls of all modules of a network, to name the one that fails; leaves no hooks behind."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only


@dataclass(frozen=True)
class Call:
    """One module's call."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: Any


@contextmanager
def watched(model: nn.Module, leave: Callable[[Call], None]) -> Iterator[None]:
    """Call a function after every module's forward, inner modules first; all hooks are gone afterwards."""
    handles = []
    try:
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # runs no hooks of ours
            handles.append(
                module.register_forward_hook(
                    lambda m, args, kwargs, out, name=name: leave(Call(name, m, args, kwargs, out)),
                    with_kwargs=True,
                )
            )
        yield
    finally:
        for handle in handles:
            handle.remove()


def describe_module(name: str, module: nn.Module) -> str:
    """A module's qualified name and class, for messages."""
    kind = type(module).__name__
    return f"module {name!r} ({kind})" if name else f"the network itself ({kind})"


def floating(tree: Any) -> list[Tensor]:
    """All floating-point tensors in nested tuples, lists and dicts."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


class Alone(nn.Module):
    """One recorded call as a network of its own: its outputs in one vector, its floating inputs moved by a parameter.

    The parameters are the module's and ``shift``, so that a product asks for the derivative of all that it does.
    """

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.inner = call.module
        like = [*floating((call.args, call.kwargs)), *floating(list(call.module.parameters()))]
        self.shift = nn.Parameter(like[0].detach().new_zeros(()) if like else torch.zeros(()))
        self._call = tree_map_only(Tensor, torch.Tensor.detach, (call.args, call.kwargs))

    def forward(self, _: Tensor) -> Tensor:
        def moved(tensor: Tensor) -> Tensor:
            return tensor + self.shift.to(tensor.dtype) if tensor.is_floating_point() else tensor

        args, kwargs = tree_map_only(Tensor, moved, self._call)
        outputs = floating(self.inner(*args, **kwargs)) or [self.shift]
        return torch.cat([out.flatten() for out in outputs])[None]


class Inside(nn.Module):
    """Holds the network, so that torch.func.functional_call can run more than its forward with other parameters."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], Any]) -> Any:
        return work()
