"""The network comes back as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sampla.guards.precision import without_autocast

_BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", *_BACKWARD_HOOKS)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Give the network back exactly as it was, whatever happens inside: also after an exception or Ctrl-C.

    Forward hooks stay active, since they may be part of the function (weight normalisation); backward hooks are about
    the user's own training, and torch.func cannot run them: they are put aside meanwhile. Modules compiled by torch.jit
    keep their tensors and hooks where nothing here reaches them. Derivatives can be taken inside, also where the caller
    is in torch.inference_mode.
    """
    kept = [
        (m, dict(m._parameters), dict(m._buffers), {kind: dict(getattr(m, kind)) for kind in _HOOKS})
        for m in model.modules()
        if not isinstance(m, torch.jit.ScriptModule)
    ]
    modes = [(m, m.training) for m in model.modules()]
    leaves = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        for module, _, _, hooks in kept:
            for kind in _BACKWARD_HOOKS:
                if hooks[kind]:
                    getattr(module, kind).clear()
        with torch.inference_mode(False):
            yield
    finally:
        for module, parameters, buffers, hooks in kept:
            module._parameters.update(parameters)
            module._buffers.update(buffers)
            for kind, before in hooks.items():
                getattr(module, kind).clear()
                getattr(module, kind).update(before)
        for module, training in modes:
            module.training = training
        for parameter, requires_grad, grad in leaves:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
            if parameter.grad is not grad:
                parameter.grad = grad


@contextmanager
def apart(model: nn.Module, said: bool = False) -> Iterator[bool]:
    """The network untouched, and an autocast around the call put aside; yields whether there was one.

    Args:
        model: the network.
        said: whether to warn of an autocast.
    """
    with untouched(model), without_autocast(model, said) as ambient:
        yield ambient
