"""The network comes back as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", *_BACKWARD_HOOKS)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Give the network back exactly as it was, whatever happens inside: also after an exception or Ctrl-C.

    Forward hooks stay active, since they may be part of the function (weight normalisation); backward hooks are about
    the user's own training, and torch.func cannot run them: they are put aside meanwhile.
    """
    modules = [
        (m, m.training, dict(m._parameters), dict(m._buffers), {kind: dict(getattr(m, kind)) for kind in _HOOKS})
        for m in model.modules()
    ]
    leaves = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        for module in model.modules():
            for kind in _BACKWARD_HOOKS:
                getattr(module, kind).clear()
        yield
    finally:
        for module, training, parameters, buffers, hooks in modules:
            module.training = training
            module._parameters.update(parameters)
            module._buffers.update(buffers)
            for kind, kept in hooks.items():
                getattr(module, kind).clear()
                getattr(module, kind).update(kept)
        for parameter, requires_grad, grad in leaves:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
