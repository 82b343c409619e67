"""Makes batches of what loaders yield, whatever form that has."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sampla.core.batch import Batch
from sampla.core.checks import require
from sampla.core.inputs import as_inputs, as_tensor, moved, num_inputs
from sampla.core.typing import Inputs
from sampla.core.unpacking import Unpack, pair_of


def asked_about(item: Any, device: torch.device, unpack: Unpack | None) -> tuple[Inputs, Tensor | None]:
    """Inputs and targets of one batch of test data, in the form that the loader of the fit gives them; targets or None.

    Raises:
        TypeError, ValueError: as for a batch of a loader.
    """
    inputs, targets = pair_of(item, "the test data", unpack)
    if targets is None:
        return moved(as_inputs(inputs, "the test data"), device), None
    batch = _batch_of(inputs, targets, "the test data", 0).on(device)
    return batch.inputs, batch.targets


def as_batch(item: Any, index: int, position: int, unpack: Unpack | None) -> Batch:
    """The batch of that number, whose first datum has that position.

    Raises:
        TypeError, ValueError: naming the batch, for what is none.
    """
    where = f"batch {index} of the loader"
    return _batch_of(*pair_of(item, where, unpack), where, position)


def _batch_of(inputs: Any, targets: Any, where: str, position: int) -> Batch:
    inputs = as_inputs(inputs, where)
    if isinstance(targets, (Tensor, np.ndarray)):
        targets = as_tensor(targets, f"the targets of {where}")
    number = num_inputs(inputs)
    size = len(targets) if number is None and isinstance(targets, Tensor) and targets.ndim else number
    require(
        isinstance(targets, Tensor) and targets.ndim > 0 and targets.shape[0] == size and size > 0,
        f"targets as a tensor with first axis {size or 'n > 0'}, like the inputs, in {where}",
        f"{tuple(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__,
        "Give one target per datum.",
    )
    assert size is not None
    if targets.is_floating_point() and targets.element_size() < 4:
        targets = targets.float()  # the same numbers; what is computed from them is float32 at least
    return Batch(inputs, targets, position, size)
