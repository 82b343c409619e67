"""What must be true of the user's network on its first batch."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sampla._batches import Batch, Data, describe_inputs
from sampla._checks import require
from sampla.features import NetworkFeatures, check_adjoint


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
