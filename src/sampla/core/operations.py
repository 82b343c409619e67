"""How many floating-point operations a call takes, counted as its matrix products and convolutions are made."""

import sys
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


def operations_of(call: Callable[[], Any]) -> int:
    """Of a call; 0 where they cannot be counted.

    What torch.compile has made does not bear a dispatch mode, and is no longer of use after one. So once anything has
    been compiled in this process nothing is counted.
    """
    if has_compiled():
        return 0
    counted = _Counted()
    with counted:
        call()
    return counted.total


def has_compiled() -> bool:
    """Whether torch.compile has been at work in this process, in whoever's hands: flex_attention calls it by itself."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return dynamo is not None and any(dynamo.counters.values())


class _Counted(TorchDispatchMode):
    """Unlike torch's FlopCounterMode it hooks no modules of the process."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = flop_registry.get(getattr(func, "_overloadpacket", None))
        if formula is not None:
            self.total += int(formula(*args, **kwargs, out_val=result))
        return result
