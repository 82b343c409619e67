"""What must be true of the user's network before a fit, and that it comes back as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sampla._batches import Batch, Data, describe_inputs
from sampla._checks import require
from sampla.features import NetworkFeatures, check_adjoint

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


def check_network(features: NetworkFeatures, batch: Batch) -> float:
    """Deterministic, one row for each datum, and its two products adjoint; how they are taken is settled here.

    Returns:
        The adjoint error; NaN where the outputs are not finite.

    Raises:
        ValueError: if the network is not what a posterior can stand on.
        RuntimeError: if its products cannot be taken, naming the module.
    """
    with torch.no_grad():
        once, again = (features.call(features.point, batch.inputs) for _ in range(2))
    same = once.shape == again.shape and torch.equal(once.nan_to_num(), again.nan_to_num())
    require(
        same,
        f"the same outputs twice for the same inputs {describe_inputs(batch.inputs)}",
        "different ones",
        "Something in the network is random even in evaluation mode (dropout with training=True?): switch it off.",
    )
    require(
        once.ndim > 0 and once.shape[0] == batch.size,
        f"outputs with first axis {batch.size}, one row per datum",
        f"shape {tuple(once.shape)}",
        "The network must not sum or average over the batch.",
    )
    if not bool(torch.isfinite(once).all()):
        return float("nan")  # the survey of all data says where
    piece = next(batch.pieces(min(8, max(1, batch.size // 2))))
    features.settle(piece.inputs)
    few = features.linearise(piece.inputs)
    _require_own_outputs(few.outputs, once[: piece.size])
    return check_adjoint(few, features.layout.total)


def _require_own_outputs(alone: Tensor, together: Tensor) -> None:
    """Refuse a network whose output for one datum depends on the rest of the batch; rounding is let pass."""
    scale = float(together.abs().max())
    shift = float((alone - together).abs().max()) if alone.shape == together.shape else float("inf")
    require(
        shift <= torch.finfo(together.dtype).eps ** 0.5 * max(scale, 1e-30),
        "the same outputs for a datum whatever else is in its batch",
        f"a difference of {shift:.2g} (outputs up to {scale:.2g}) when the batch is cut",
        "Normalisation by batch statistics (track_running_stats=False?) or a mean over the batch does that.",
    )


@contextmanager
def located(features: NetworkFeatures, data: Data) -> Iterator[None]:
    """Say of a solve that met NaN which module and datum they come from, where outputs are finite all the same."""
    try:
        yield
    except ArithmeticError as error:
        places = (features.where_not_finite(batch.inputs, batch.position) for batch in data)
        none = "All activations are finite: it may be a derivative that is not, such as that of a root at zero."
        raise ArithmeticError(f"{error} {next(filter(None, places), none)}") from error
