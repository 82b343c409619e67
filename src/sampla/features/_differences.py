"""Checks phi v against a finite difference of the network's outputs."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from sampla.core.noise import ADJOINT, standard_normal
from sampla.core.params import ParameterLayout
from sampla.core.typing import Inputs
from sampla.features._base import Linearisation


class Differentiated(Protocol):
    """What is needed of a network."""

    layout: ParameterLayout

    @property
    def rounding(self) -> float:
        """Relative rounding error of the products."""

    @property
    def point(self) -> Mapping[str, Tensor]:
        """The trained values of the chosen parameters."""

    def call(self, point: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
        """f(point, inputs)."""

    def linearise(self, inputs: Inputs) -> Linearisation:
        """The features of one batch."""


def check_differences(features: Differentiated, inputs: Inputs) -> None:
    """Compare phi v with a central difference of outputs; in double reverse mode the adjoint check cannot fail.

    Raises:
        ValueError: if they differ by more than curvature, kinks and rounding explain.
    """
    point, total = features.point, features.layout.total
    like = next(iter(point.values())).new_empty(0)
    v = standard_normal(0, ADJOINT, range(1), 0, (total,), like)
    eps = features.rounding
    weights = torch.cat([p.flatten() for p in point.values()])
    step = eps ** (1 / 3) * float(weights.norm() or 1.0) / float(v.norm())
    views = features.layout.views(v)
    ahead, behind = (
        features.call({n: p + sign * step * views[n][0] for n, p in point.items()}, inputs).detach() for sign in (1, -1)
    )
    found, expected = features.linearise(inputs).jvp(v)[0], (ahead - behind) / (2 * step)
    rounding = 10 * eps * float(ahead.norm()) / step
    error = float((found - expected).norm()) - rounding
    bound = 20 * eps ** (1 / 3) * float(expected.norm())
    if not error <= bound:
        raise ValueError(
            f"expected phi v to be the change of the outputs up to {bound:.1e}, got a difference of {error:.1e}. Some "
            "operation has a wrong derivative (a custom autograd function, a detach() or an in-place change, gradients "
            "taken inside without create_graph=True); the posterior would be wrong."
        )
