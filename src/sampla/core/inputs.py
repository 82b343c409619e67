"""The inputs that a network may have, and how they are cut into single data.

Tensors (alone, in a tuple or in a mapping) are cut along their first axis, a list has one object for each datum, and
any other object belongs to its batch as a whole.
"""

from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from sampla.core.checks import require
from sampla.core.typing import Inputs, Opaque

_CONSTANTS = (type(None), bool, int, float, complex, str, bytes, Enum, torch.dtype, torch.device, np.generic)
"""What may stand beside tensors, the same for all data, and is handed on as it is."""
_DEPTH = 6
"""How deep an object is looked into for tensors."""
_WHOLE = (
    "What belongs to the batch as a whole, such as the edges of its graphs, goes with the rest into one object that "
    "the network takes: it is never cut."
)


def as_inputs(given: Any, where: str) -> Inputs:
    """Convert inputs into the form that all modules take; NumPy arrays become tensors.

    Raises:
        TypeError: if they are nothing that a network can be called with.
        ValueError: if tensors are sparse or nested, or their first axes differ or are empty.
    """
    if isinstance(given, (Tensor, np.ndarray)):
        return _with_first_axis(as_tensor(given, where), where)
    if isinstance(given, PackedSequence):
        return Opaque(given)
    if isinstance(given, Mapping):
        converted = _converted(given, where)
        return _with_first_axis(converted, where) if _only_tensors(converted) else Opaque(given)
    if isinstance(given, (tuple, list)):
        converted = _converted(tuple(given), where)
        if any(isinstance(each, Tensor) for each in converted) and _only_tensors(converted):
            return _with_first_axis(converted, where)
        objects = isinstance(given, list) and given and not any(_is_number(each) for each in given)
        if objects:
            return list(given)
    elif not isinstance(given, (*_CONSTANTS, set, frozenset)):
        return Opaque(given)
    raise TypeError(
        f"{where}: expected inputs as a tensor, a tuple or a dict of tensors, got {type(given).__name__}. Convert them "
        "in the data set or with a collate_fn. (A list with one object for each datum, or one object for all that the "
        "network takes whole, will do too.)"
    )


def as_tensor(given: Tensor | np.ndarray, where: str) -> Tensor:
    """A dense tensor as it is; an array as a tensor.

    Raises:
        TypeError: for an array of objects or strings.
        ValueError: for a sparse or nested tensor.
    """
    if isinstance(given, np.ndarray):
        usable = given.flags.writeable and given.dtype.isnative and all(stride >= 0 for stride in given.strides)
        array = given if usable else given.astype(given.dtype.newbyteorder("="), order="C")
        try:
            return torch.as_tensor(array)
        except TypeError as error:
            raise TypeError(
                f"{where}: expected a tensor or an array of numbers, got an array of {given.dtype}. Convert it."
            ) from error
    nested = given.is_nested
    require(
        not nested and given.layout == torch.strided,
        f"a dense tensor in {where}",
        "a nested one" if nested else f"one of layout {str(given.layout).removeprefix('torch.')}",
        "Pad it to one shape: torch.nested.to_padded_tensor." if nested else "Call .to_dense() on it.",
    )
    return given


def map_inputs(function: Callable[[Any], Any], inputs: Inputs) -> Inputs:
    """Apply a function to every tensor with one row for each datum, keeping tuple or mapping; objects stay."""
    if isinstance(inputs, (Opaque, list)):
        return inputs
    mapped: Inputs = _mapped(function, inputs)
    return mapped


def pick(inputs: Inputs, rows: slice | list[int]) -> Inputs:
    """Select data by a slice or a list of rows, in that order. An ``Opaque`` object cannot be cut."""
    assert not isinstance(inputs, Opaque), "the caller keeps a whole batch together"
    if isinstance(inputs, list):
        return inputs[rows] if isinstance(rows, slice) else [inputs[row] for row in rows]
    return map_inputs(lambda t: t[rows], inputs)


def num_inputs(inputs: Inputs) -> int | None:
    """How many data they are of; None for an object that only the network understands."""
    if isinstance(inputs, Opaque):
        return None
    if isinstance(inputs, list):
        return len(inputs)
    return int(next(leaf.shape[0] for _, leaf in named_leaves(inputs) if _is_data(leaf)))


def moved(inputs: Inputs, device: torch.device, wait: bool = True) -> Inputs:
    """Return the inputs on a device; objects of the user's own classes are moved as copies, and waited for."""
    if isinstance(inputs, Opaque):
        return Opaque(_applied("to", inputs.content, device))
    if isinstance(inputs, list):
        return [_applied("to", each, device) for each in inputs]
    return map_inputs(lambda t: brought(t, device, wait), inputs)


def detached(inputs: Inputs) -> Inputs:
    """Return tensors and objects detached from the caller's graph, for which a network may ask for gradients.

    Tensors in objects that require gradients still do, as those of a network that takes forces are made to.
    """
    if isinstance(inputs, Opaque):
        return Opaque(_applied("detach", inputs.content))
    if isinstance(inputs, list):
        return [_applied("detach", each) for each in inputs]
    return map_inputs(torch.Tensor.detach, inputs)


def brought(tensor: Tensor, device: torch.device, wait: bool = True) -> Tensor:
    """A tensor where it is needed, and one that derivatives may go through, which those of inference mode are not."""
    there = tensor.to(device, non_blocking=not wait)
    return there.clone() if tensor.is_inference() else there


def input_tensors(inputs: Inputs) -> list[Any]:
    """The tensors of the inputs, in a fixed order."""
    if isinstance(inputs, (Opaque, list)):
        return [leaf for leaf in object_leaves(inputs) if isinstance(leaf, Tensor)]
    return [leaf for _, leaf in named_leaves(inputs) if _is_data(leaf)]


def named_leaves(inputs: Inputs) -> list[tuple[str, Any]]:
    """Tensors and constants of a tensor, tuple or mapping, in a fixed order, with the name of the entry they are in."""
    if isinstance(inputs, Mapping):
        return [(str(name), leaf) for name in sorted(inputs, key=str) for _, leaf in named_leaves(inputs[name])]
    if isinstance(inputs, (tuple, list)):
        return [("", leaf) for value in inputs for _, leaf in named_leaves(value)]
    return [("", inputs)]


def object_leaves(thing: Any, depth: int = _DEPTH) -> Iterator[Any]:
    """Tensors, arrays and constants in any object, in a fixed order."""
    if isinstance(thing, (Tensor, np.ndarray, *_CONSTANTS)):
        yield thing
    elif depth:
        for part in _parts(thing):
            yield from object_leaves(part, depth - 1)


def describe_inputs(inputs: Inputs) -> str:
    """Shapes and dtypes, for messages."""
    shapes = ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in input_tensors(inputs)[:12])
    if isinstance(inputs, list):
        return f"list of {len(inputs)} {type(inputs[0]).__name__}"
    return f"{type(inputs.content).__name__} with {shapes or 'no tensor'}" if isinstance(inputs, Opaque) else shapes


def _mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return _with_values(tree, {name: _mapped(function, value) for name, value in tree.items()})
    if isinstance(tree, (tuple, list)):
        return tuple(_mapped(function, value) for value in tree)
    return function(tree) if _is_data(tree) else tree


def _with_values(tree: Mapping[Any, Any], values: dict[Any, Any]) -> Mapping[Any, Any]:
    """The same mapping with other values: the network may want its own kind of mapping."""
    if type(tree) is dict or not isinstance(tree, (dict, UserDict)):
        return values
    same = copy(tree)
    same.update(values)
    return same


def _converted(tree: Any, where: str) -> Any:
    """A tree with its arrays as tensors."""
    if isinstance(tree, (Tensor, np.ndarray)):
        return as_tensor(tree, where)
    if isinstance(tree, Mapping):
        return _with_values(tree, {name: _converted(value, where) for name, value in tree.items()})
    if isinstance(tree, (tuple, list)) and not _is_number(tree):
        return tuple(_converted(value, where) for value in tree)
    return tree


def _only_tensors(tree: Any) -> bool:
    """Whether there are tensors and constants only; a list of numbers or strings is neither."""
    if isinstance(tree, Mapping):
        return all(_only_tensors(value) for value in tree.values())
    if isinstance(tree, (tuple, list)):
        return any(isinstance(leaf, Tensor) for _, leaf in named_leaves(tree)) and all(map(_only_tensors, tree))
    return isinstance(tree, (Tensor, *_CONSTANTS))


def _with_first_axis(inputs: Any, where: str) -> Inputs:
    sizes = {t.shape[0] if t.ndim else 0 for t in input_tensors(inputs)}
    require(
        len(sizes) == 1 and 0 not in sizes,
        f"inputs that share a first axis of n > 0 data in {where}",
        describe_inputs(inputs) or "no tensor",
        f"Give every input tensor the shape (n, ...). {_WHOLE}",
    )
    checked: Inputs = inputs
    return checked


def _is_data(leaf: Any) -> bool:
    return not isinstance(leaf, (Opaque, *_CONSTANTS))


def _is_number(thing: Any) -> bool:
    """A number, nothing, or lists of them."""
    if isinstance(thing, (tuple, list)):
        return all(map(_is_number, thing))
    return isinstance(thing, (type(None), bool, int, float, complex, np.generic))


def _parts(thing: Any) -> list[Any]:
    """What an object is made of, in a fixed order."""
    if isinstance(thing, Opaque):
        return [thing.content]
    if isinstance(thing, Mapping):
        return [thing[name] for name in sorted(thing, key=str)]
    if isinstance(thing, (tuple, list)):
        return list(thing)
    to_dict = getattr(thing, "to_dict", None)
    if callable(to_dict) and not isinstance(thing, type):
        return _parts(dict(to_dict()))
    if getattr(thing, "__array_interface__", None) is not None:  # a picture
        return [np.asarray(thing)]
    if is_dataclass(thing) and not isinstance(thing, type):
        return [getattr(thing, field.name) for field in fields(thing)]
    return _parts(getattr(thing, "__dict__", {}))


def _asking(tensor: Tensor) -> Tensor:
    """A tensor of an object's, detached; one that requires gradients still does, where torch.func lets it."""
    alone = tensor.detach()
    inside = torch._C._functorch.peek_interpreter_stack() is not None
    return alone.requires_grad_() if tensor.requires_grad and not inside else alone


def _applied(method: str, thing: Any, *args: Any) -> Any:
    """A copy of any object with a method of tensors applied to all that are in it, by its own method if it has one."""
    if isinstance(thing, Tensor):
        return brought(thing, *args) if method == "to" else _asking(thing)
    if isinstance(thing, (*_CONSTANTS, np.ndarray)):
        return thing
    if callable(getattr(thing, method, None)):
        return getattr(copy(thing), method)(*args)  # which may change the object itself
    if not any(isinstance(leaf, Tensor) for leaf in object_leaves(thing)):
        return thing
    if isinstance(thing, Mapping):
        return _with_values(thing, {name: _applied(method, value, *args) for name, value in thing.items()})
    if isinstance(thing, (tuple, list)):
        values = [_applied(method, value, *args) for value in thing]
        return type(thing)(*values) if hasattr(thing, "_fields") else type(thing)(values)
    same = copy(thing)
    for name, value in vars(thing).items():
        object.__setattr__(same, name, _applied(method, value, *args))
    return same
