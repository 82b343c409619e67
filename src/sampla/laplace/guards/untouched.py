"""Restores the user's network after a call: modes, hooks, gradients, parameters and buffers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sampla.features import NETWORK_LOCK
from sampla.laplace.guards.attributes import attributes_of
from sampla.laplace.guards.precision import without_autocast

_BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", *_BACKWARD_HOOKS)
_users: dict[int, int] = {}
"""id of a module or parameter that is in use -> by how many; the first remembers how it was, the last puts it back."""
_restorers: dict[int, Callable[[], None]] = {}
"""id -> what puts it back."""


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Give the network back exactly as it was, whatever happens inside: also after an exception or Ctrl-C.

    Forward hooks stay active, since they may be part of the function (weight normalisation); backward hooks are about
    the user's own training, and torch.func cannot run them: they are put aside meanwhile. Modules compiled by torch.jit
    keep their tensors and hooks where nothing here reaches them. Derivatives can be taken inside, also where the caller
    is in torch.inference_mode. On several threads the last one to end puts everything back. Tensors that forward keeps
    in attributes are put back too; what it keeps elsewhere (global lists, a hook's own dictionary) is not known here.
    """
    held: list[nn.Module | nn.Parameter] = []
    try:
        with NETWORK_LOCK:
            every: list[nn.Module | nn.Parameter] = [*model.modules(), *model.parameters()]
            for each in every:
                if id(each) not in _users:
                    _restorers[id(each)] = _restorer(each)
                held.append(each)  # only what is counted is given back
                _users[id(each)] = _users.get(id(each), 0) + 1
            for module in model.modules():
                _put_aside(module)
        with torch.inference_mode(False):
            yield
    finally:
        with NETWORK_LOCK:
            for each in held:
                _users[id(each)] = _users.get(id(each), 1) - 1
                if _users[id(each)] <= 0:
                    del _users[id(each)]
                    _restorers.pop(id(each), lambda: None)()


def _put_aside(module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        return
    for kind in _BACKWARD_HOOKS:
        if getattr(module, kind):
            getattr(module, kind).clear()


def _restorer(held: nn.Module | nn.Parameter) -> Callable[[], None]:
    """What makes a module or a parameter what it is now."""
    if isinstance(held, nn.Parameter):
        requires_grad, grad = held.requires_grad, held.grad

        def parameter_back() -> None:
            if held.requires_grad != requires_grad:
                held.requires_grad_(requires_grad)
            if held.grad is not grad:
                held.grad = grad

        return parameter_back
    training, scripted = held.training, isinstance(held, torch.jit.ScriptModule)
    every: tuple[dict[str, Any], ...] = () if scripted else (held._parameters, held._buffers)
    tensors = [(own, dict(own)) for own in every]
    attributes = None if scripted else attributes_of(held)
    hooks = {} if scripted else {kind: dict(getattr(held, kind)) for kind in _HOOKS}

    def module_back() -> None:
        for own, entries in tensors:
            if any(name not in entries for name in own):
                own.clear()
            own.update(entries)
        if attributes is not None:
            attributes()
        for kind, before in hooks.items():
            getattr(held, kind).clear()
            getattr(held, kind).update(before)
        held.training = training

    return module_back


@contextmanager
def apart(model: nn.Module, said: bool = False) -> Iterator[bool]:
    """The network untouched, and an autocast around the call put aside; yields whether there was one.

    Args:
        model: the network.
        said: whether to warn of an autocast.
    """
    with untouched(model), without_autocast(model, said) as ambient:
        yield ambient
