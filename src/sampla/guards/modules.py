"""What must be true of the modules and weights themselves, before the network is called."""

import torch
from torch import nn

from sampla._checks import require


def check_evaluation_mode(model: nn.Module) -> None:
    """Refuse a network whose output is not a function of its input alone.

    Raises:
        ValueError: if any module is in train mode.
    """
    training = [name or type(model).__name__ for name, m in model.named_modules() if m.training]
    require(
        not training,
        "a model in evaluation mode",
        f"{len(training)} module(s) in train mode, such as {training[0] if training else ''!r}",
        "Call model.eval() first: dropout and batch statistics would change the function between passes.",
    )


def only_device(model: nn.Module) -> torch.device:
    """The device of all weights and buffers.

    Raises:
        ValueError: if they lie on several, or have no values yet.
    """
    where = {tensor.device: name for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    devices = ", ".join(f"{name!r} on {device}" for device, name in where.items())
    require(
        len(where) == 1 and next(iter(where)).type != "meta",
        "a model with all its weights and buffers on one device",
        devices,
        "Move it with model.to(device); the data follow by themselves. A model on 'meta' has no weights yet.",
    )
    return next(iter(where))
