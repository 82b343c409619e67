"""The types in which a network's numbers are held, and those in which it is linearised: float32 or wider, and real."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from sampla.core.inputs import map_inputs
from sampla.core.params import ParameterLayout
from sampla.core.typing import Inputs
from sampla.features._modules import describe_module

_LEAST = torch.float32
"""Type in which vectors are held at least."""


def _computes(dtype: torch.dtype) -> bool:
    """Whether a type is of floating numbers that tensors hold one by one: not float4, whose bytes hold two."""
    return dtype.is_floating_point and dtype != getattr(torch, "float4_e2m1fn_x2", None)


def is_low(dtype: torch.dtype) -> bool:
    """Whether a type is floating and coarser than float32: bfloat16, float16, float8, or complex of such."""
    real = dtype.to_real() if dtype.is_complex else dtype
    return _computes(real) and torch.finfo(real).eps > torch.finfo(_LEAST).eps


def widened(tensor: Tensor) -> Tensor:
    """The same numbers in float32 (complex64) where the type is coarser; any other tensor itself."""
    if not is_low(tensor.dtype):
        return tensor
    return tensor.to(torch.complex64 if tensor.is_complex() else _LEAST)


def name_of(dtype: torch.dtype) -> str:
    """The type without "torch."."""
    return str(dtype).removeprefix("torch.")


class Types:
    """The own types of a network's parameters and buffers, and the one type and form in which vectors of P are held.

    A complex parameter is two real ones for each entry; a parameter of another type than the vectors' is cast to it
    and back, which is exact, and has the right derivative.

    Args:
        state: every parameter and buffer.
        names: those that form theta.
    """

    def __init__(self, state: Mapping[str, Tensor], names: Sequence[str]) -> None:
        self._own = {name: tensor.dtype for name, tensor in state.items()}
        self._complex = frozenset(name for name in names if state[name].is_complex())
        self.vectors = reduce(torch.promote_types, (_real(self._own[name]) for name in names), _LEAST)
        self.low_points = any(is_low(self._own[name]) for name in names)
        floating = [_real(t) for t in self._own.values() if _computes(_real(t))]
        self.coarsest = max(floating, key=lambda dtype: torch.finfo(dtype).eps)
        """The coarsest type among parameters and buffers: what limits the network's own outputs."""

    @property
    def mixed(self) -> bool:
        """Whether anything is coarser than the type of the vectors."""
        return torch.finfo(self.coarsest).eps > torch.finfo(self.vectors).eps

    @property
    def low(self) -> bool:
        """Whether any parameter or buffer is coarser than float32."""
        return is_low(self.coarsest)

    def point(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters as they are held: real, and in the vectors' type."""
        return {
            name: (torch.view_as_real(widened(p)) if name in self._complex else p).to(self.vectors)
            for name, p in tensors.items()
        }

    def layout(self, point: Mapping[str, Tensor]) -> ParameterLayout:
        """Where the parameters, as they are held, lie in a vector of P."""
        return ParameterLayout(tuple(point), tuple(tuple(p.shape) for p in point.values()), self._complex)

    def changed(
        self, point: Mapping[str, Tensor], change: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Parameters as they are held, changed in the types in which the network computes with them."""
        kinds = {name: torch.empty(0, dtype=_real(self._own[name])) for name in point}
        changed = change({name: p.to(widened(kinds[name]).dtype) for name, p in point.items()})
        return {name: p.to(self.vectors) for name, p in changed.items()}

    def restored(self, values: Mapping[str, Tensor], lifted: bool) -> dict[str, Tensor]:
        """Values as the network takes them: complex where it has them so, each in its own type or float32."""
        return {name: self._restored(name, value, lifted) for name, value in values.items()}

    def _restored(self, name: str, value: Tensor, lifted: bool) -> Tensor:
        own = self._own[name]
        if lifted and is_low(own):
            own = torch.complex64 if own.is_complex else _LEAST
        if name in self._complex:
            value = torch.complex(value[..., 0], value[..., 1])
        return value if value.dtype == own else value.to(own)


def _real(dtype: torch.dtype) -> torch.dtype:
    return dtype.to_real() if dtype.is_complex else dtype


def lift(inputs: Inputs) -> Inputs:
    """Inputs with all coarse floating types made float32."""
    return map_inputs(_widened_tensor, inputs)


def _widened_tensor(given: Any) -> Any:
    return widened(given) if isinstance(given, Tensor) else given


class _Watch(TorchFunctionMode):
    """Remembers the first result that is coarser than float32, and in which module it arose."""

    def __init__(self, device: str, inside: list[str]) -> None:
        super().__init__()
        self.first_coarse = ""
        self._device, self._inside = device, inside

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        low = [leaf.dtype for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and is_low(leaf.dtype)]
        if low and not self.first_coarse:
            cast = torch.is_autocast_enabled(self._device)
            how = "torch.autocast inside forward" if cast else "a cast to it inside forward"
            self.first_coarse = f"results in {name_of(low[0])}, by {how}, in {self._inside[-1]}"
        return result


def coarse_results(model: nn.Module, device: torch.device, run: Callable[[], Any]) -> tuple[str, str]:
    """What the network computes in a coarser type than float32 though it holds none, in words; empty if nothing.

    Args:
        model: whose modules are to be named.
        device: of the network.
        run: calls it; may fail.

    Returns:
        The words, and the innermost module in which the call failed, empty if it did not.
    """
    inside: list[str] = [describe_module("", model)]
    watch = _Watch(device.type, inside)
    with _tracked(model, inside), watch:
        try:
            run()
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            return watch.first_coarse, inside[-1]
    return watch.first_coarse, ""


@contextmanager
def _tracked(model: nn.Module, inside: list[str]) -> Iterator[None]:
    """The modules that are being called, outermost first; where a call fails they stay."""
    handles = []
    try:
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule) or not name:
                continue
            words = describe_module(name, module)
            handles.append(module.register_forward_pre_hook(lambda *_, words=words: inside.append(words)))
            handles.append(module.register_forward_hook(lambda *_: inside.pop() and None))
        yield
    finally:
        for handle in handles:
            handle.remove()


def quantised(model: nn.Module) -> list[str]:
    """Modules that compute in integers, in words."""
    return [
        describe_module(name, module)
        for name, module in model.named_modules()
        if "quantized" in type(module).__module__
    ]
