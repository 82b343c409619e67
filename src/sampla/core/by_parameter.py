"""One number for each of P parameters, as users give them: one for all, a flat vector, or tensors by name."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from sampla.core.checks import require, require_finite, require_known
from sampla.core.params import ParameterLayout

ByParameter: TypeAlias = float | Tensor | Mapping[str, float | Tensor]
"""A number for all parameters; (P,) in their order; or parameter name -> a number, or a tensor of its shape."""


def checked_by_parameter(
    values: ByParameter, what: str, fix: str, positive: bool = False
) -> Tensor | dict[str, Tensor]:
    """Copies of the values as tensors, before it is known which parameters they are for.

    Args:
        values: as users give them; lists and NumPy arrays do as tensors.
        what: they are, for messages.
        fix: what is to be done about wrong ones.
        positive: whether they must be real and positive.

    Raises:
        ValueError: for NaN, infinity, no numbers at all, or where they must be positive one that is not.
    """
    if isinstance(values, Mapping):
        return {name: _checked(each, f"{what} of {name!r}", fix, positive) for name, each in values.items()}
    return _checked(values, what, fix, positive)


def flat_by_parameter(values: Tensor | dict[str, Tensor], layout: ParameterLayout, what: str, both: bool) -> Tensor:
    """(P,) float64 of checked values, on the CPU.

    Args:
        values: as ``checked_by_parameter`` returns them.
        layout: of the parameters.
        what: they are, for messages.
        both: whether a real number for a complex parameter is meant for each of its two parts, not for the real one.

    Raises:
        ValueError: for names that are not the parameters', or sizes that are not theirs.
    """
    if isinstance(values, Tensor) and values.ndim > 0:
        fix = "Give one number for all, a vector in the order of the parameters (la.names), or a dict from their names."
        fits = values.shape == (layout.total,)
        require(fits, f"{what} of shape ({layout.total},), one for each parameter", f"{tuple(values.shape)}", fix)
        return values.to("cpu", torch.float64)
    named = dict.fromkeys(layout.names, values) if isinstance(values, Tensor) else values
    for name in named:
        require_known(name, layout.names, f"parameter in {what}")
    missing = [name for name in layout.names if name not in named]
    require(
        not missing, f"{what} of every parameter of the fit", f"none of {', '.join(map(repr, missing[:6]))}",
        "Give a number or a tensor for each, by its name.",
    )  # fmt: skip
    return torch.cat([_of_one(named[name].cpu(), layout, name, what, both) for name in layout.names])


def _of_one(value: Tensor, layout: ParameterLayout, name: str, what: str, both: bool) -> Tensor:
    shape, parts = layout.shapes[layout.names.index(name)], name in layout.complex
    own = shape[:-1] if parts else shape
    fix = "Give a number, or a tensor of the parameter's own shape."
    require(value.shape in ((), own), f"{what} of {name!r} of shape () or {own}", f"{tuple(value.shape)}", fix)
    require(parts or not value.is_complex(), f"a real {what} of {name!r}", "complex numbers", fix)
    if parts:
        value = value[..., None] if both else torch.view_as_real(value.to(torch.complex128))
    return value.double().expand(shape).reshape(-1)


def _checked(value: Any, what: str, fix: str, positive: bool) -> Tensor:
    try:
        tensor = torch.as_tensor(value if isinstance(value, Tensor) else np.array(value)).detach().clone()
        numbers = tensor.dtype != torch.bool
    except (TypeError, ValueError):
        tensor, numbers = torch.empty(0), False
    require(numbers, f"numbers as {what}", f"{value!r}", fix)
    require_finite(tensor, what, fix)
    if positive:
        require(not tensor.is_complex(), f"a real {what}", "complex numbers", fix)
        wrong = tensor[tensor <= 0].flatten().tolist()
        got = f"{wrong[0]:g}" if len(wrong) == tensor.numel() == 1 else f"{len(wrong)} of {tensor.numel()} not positive"
        require(not wrong, f"a positive {what}", got, fix)
    return tensor
