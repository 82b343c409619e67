"""Checks of the user's network on its first batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

import torch
from torch import Tensor

from sampla.core.checks import require
from sampla.core.data import Batch, Data
from sampla.core.inputs import describe_inputs, input_tensors, map_inputs, pick
from sampla.core.memory import is_of_the_machine
from sampla.core.noise import ADJOINT, standard_normal
from sampla.core.typing import Inputs
from sampla.features import NetworkFeatures, check_adjoint
from sampla.laplace.guards.precision import explain_coarse, require_liftable


def check_network(features: NetworkFeatures, batch: Batch) -> float | None:
    """Deterministic, one row for each datum, and its two products adjoint; how they are taken is settled here.

    Returns:
        The adjoint error; None where the outputs are not finite, so that no check was made.

    Raises:
        ValueError: if the network is not what a posterior can stand on.
        RuntimeError: if its products cannot be taken, naming the module.
    """
    minibatch = next(batch.minibatches(min(8, max(1, batch.size // 2))))
    if features.products.lifted:
        require_liftable(features, batch.inputs)
    features.check_eager_call(minibatch.inputs)
    once, again = (features.evaluate(batch.inputs) for _ in range(2))
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
        return None  # the survey of all data says where
    try:
        return _settled(features, batch, minibatch, once)
    except (ValueError, RuntimeError) as error:
        if is_of_the_machine(error):
            raise
        if features.products.lifted or not features.types.low:
            explain_coarse(features, minibatch.inputs, error)
    features.lift()  # coarse types lie on the way to the parameters
    require_liftable(features, batch.inputs)
    try:
        return _settled(features, batch, minibatch, features.evaluate(batch.inputs))
    except (ValueError, RuntimeError) as error:
        if is_of_the_machine(error):
            raise
        explain_coarse(features, minibatch.inputs, error)


def _settled(features: NetworkFeatures, batch: Batch, minibatch: Batch, once: Tensor) -> float:
    """How the products are taken, settled on a few data; their adjoint error."""
    few = _telling(features, minibatch.inputs, once[: minibatch.size])
    features.choose_products(few)
    at = features.linearise(few)
    alone = at if few is minibatch.inputs else features.linearise(minibatch.inputs)
    _require_own_outputs(features, alone.outputs, once[: minibatch.size], at.outputs)
    _require_any_place(features, batch, once, at.outputs)
    return check_adjoint(at, features.layout.total, features.rounding)


def _telling(features: NetworkFeatures, inputs: Inputs, outputs: Tensor) -> Inputs:
    """Inputs on which the derivatives can be checked: the given ones, or some near them.

    Outputs that are zero for every weight, such as the force on an atom in the middle of a crystal, have no derivative
    but rounding, and two rounding errors do not agree. They are not zero where the inputs are moved by a tenth.
    """

    def size(tensors: list[Tensor]) -> float:
        return max((float(t.detach().double().square().mean().sqrt()) for t in tensors), default=0.0)

    rounding = torch.finfo(outputs.dtype).eps ** 0.5
    continuous = [t for t in input_tensors(inputs) if t.is_floating_point()]
    if not continuous or size([outputs]) > rounding * size(continuous):
        return inputs

    def moved(t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t
        return t + 0.1 * (size([t]) or 1.0) * standard_normal(0, ADJOINT, range(1), 0, tuple(t.shape), t)[0]

    near = map_inputs(moved, inputs)
    try:
        there = size([features.evaluate(near)])
    except RuntimeError as error:  # it may not take just any inputs
        if is_of_the_machine(error):
            raise
        return inputs
    return near if size([outputs]) < rounding * there < inf else inputs


def _require_own_outputs(features: NetworkFeatures, alone: Tensor, together: Tensor, near: Tensor) -> None:
    """Refuse a network whose output for one datum depends on the rest of the batch; rounding is let pass.

    Args:
        features: of the network.
        alone, together: outputs for the same data.
        near: outputs for ``_telling`` inputs, whose size says what rounding does where the others are zero.
    """
    same, difference = _compared(features, alone, together, near)
    integers = features.quantised
    require(
        same,
        "the same outputs for a datum whatever else is in its batch",
        f"{difference} when the batch is cut",
        f"{integers[0]} is quantised by the range of the whole batch: use the network before quantisation."
        if integers
        else "Normalisation by batch statistics (track_running_stats=False?) or a mean over the batch does that.",
    )


def _require_any_place(features: NetworkFeatures, batch: Batch, outputs: Tensor, near: Tensor) -> None:
    """Refuse a network whose output for one datum depends on where in the batch it stands, or on what stands before."""
    count = min(8, batch.size)
    if batch.opaque or count < 2:
        return
    for rows, when in (
        (list(reversed(range(count))), "when the batch is turned round"),
        (list(range(1, count)), "without the first datum"),
    ):
        same, difference = _compared(features, features.evaluate(pick(batch.inputs, rows)), outputs[rows], near)
        require(
            same,
            "the same outputs for a datum wherever it stands in its batch",
            f"{difference} {when}",
            "A term by position, such as arange(len(x)), a shift or a sum along the first axis, does that. What "
            "belongs to a datum goes into its inputs.",
        )


def _compared(features: NetworkFeatures, found: Tensor, expected: Tensor, near: Tensor) -> tuple[bool, str]:
    """Whether outputs agree up to rounding, and by how much they differ, in words."""
    scale = float(torch.stack([expected.abs().max(), near.abs().max()]).max())
    shift = float((found - expected).abs().max()) if found.shape == expected.shape else float("inf")
    kind = expected.dtype if features.products.lifted else features.types.coarsest
    eps = max(torch.finfo(kind).eps, torch.finfo(expected.dtype).eps)
    same = shift <= eps**0.5 * max(scale, 1e-30)
    return same, f"a difference of {shift:.2g} (outputs up to {scale:.2g})"


@contextmanager
def not_finite_explained(features: NetworkFeatures, data: Data) -> Iterator[None]:
    """Add to an ArithmeticError the module and the datum in which NaN or infinity appear first."""
    try:
        yield
    except ArithmeticError as error:
        places = (features.where_not_finite(batch.inputs, batch.position) for batch in data)
        none = "All activations are finite: it may be a derivative that is not, such as that of a root at zero."
        raise ArithmeticError(f"{error} {next(filter(None, places), none)}") from error
