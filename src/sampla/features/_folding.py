"""Normalisation in evaluation mode taken into the convolution before it: a (w * x) + b = (a w) * x + b.

Exact for the linearised network too, because a does not depend on what is linearised: phi = phi_folded diag(a).
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from sampla.features._coarse import affine
from sampla.features._modules import Call, watched


@dataclass(frozen=True)
class Fold:
    """Names of a convolution's tensors and of those of the normalisation that follows it."""

    scaled: tuple[str, ...]
    """Weight, and bias where there is one: all have the output channels first."""
    mean: str
    variance: str
    weight: str | None
    bias: str | None
    eps: float

    def factor(self, state: Mapping[str, Tensor]) -> Tensor:
        """(D,) by which the scaled ones are multiplied."""
        weight, bias = (None if name is None else state[name] for name in (self.weight, self.bias))
        return affine(state[self.mean], state[self.variance], weight, bias, self.eps)[0]


def folds(model: nn.Module, slots: Mapping[str, str], constant: frozenset[str], run: Callable[[], Any]) -> list[Fold]:
    """Every convolution that is called once, and whose output is what a normalisation layer is given.

    Whether anything else uses that output is not seen here: the folded network must be compared with the network.

    Args:
        model: in evaluation mode.
        slots: place of each tensor in the model -> its name.
        constant: names of the tensors that are not linearised.
        run: calls the model once.
    """
    calls: list[Call] = []
    with watched(model, calls.append):
        run()
    times, places = Counter(call.name for call in calls), Counter(slots.values())
    made = {id(call.outputs): call for call in calls if isinstance(call.module, nn.Conv2d)}
    found = []
    for call in calls:
        before = made.get(id(call.args[0])) if call.args else None
        norm = call.module
        if before is None or not isinstance(norm, _NormBase) or norm.running_var is None:
            continue
        if not isinstance(norm, nn.BatchNorm2d) or times[call.name] != 1 or times[before.name] != 1:
            continue
        own = {n: slots[f"{call.name}.{n}"] for n in ("running_mean", "running_var", "weight", "bias") if _has(norm, n)}
        scaled = tuple(slots[f"{before.name}.{n}"] for n in ("weight", "bias") if _has(before.module, n))
        if constant.issuperset(own.values()) and all(places[name] == 1 for name in (*scaled, *own.values())):
            found.append(
                Fold(scaled, own["running_mean"], own["running_var"], own.get("weight"), own.get("bias"), norm.eps)
            )
    return found


def _has(module: nn.Module, name: str) -> bool:
    return getattr(module, name, None) is not None
