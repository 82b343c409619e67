"""Gaussian priors N(0, A^-1) with diagonal A = alpha_g(i) / s_i^2: isotropic, by layer, g-prior.

The scales s are put into the features (phi diag(s)), so every solver works in the coordinates psi = theta / s,
in which the prior precision of parameter i is just alpha of its group.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sampla._checks import require
from sampla._params import ParameterLayout


@dataclass(frozen=True)
class BoundPrior:
    """A prior for P given parameters."""

    precision: Tensor
    """(G,) alpha of each group."""
    scale: Tensor
    """(P,) s; zero takes a parameter out."""
    group: Tensor
    """(P,) int64, the group of each parameter."""
    names: tuple[str, ...]
    """G names of the groups."""
    learn: bool
    """Whether EM updates alpha."""
    fixed: tuple[str, ...] = ()
    """Names of groups that keep their alpha when the others are learnt."""
    dead: tuple[str, ...] = ()
    """Parameter tensors on which the data say nothing at all, taken out."""
    guessed: bool = False
    """Whether alpha is only a guess to start EM from, which may choose another."""

    @property
    def learnt(self) -> Tensor:
        """(G,) bool: the groups whose alpha EM updates."""
        free = [self.learn and name not in self.fixed for name in self.names]
        return torch.tensor(free, device=self.precision.device)

    @property
    def diagonal(self) -> Tensor:
        """(P,) the diagonal of A in the coordinates theta / s."""
        return self.precision.to(self.scale)[self.group]

    def group_sum(self, values: Tensor) -> Tensor:
        """Sums of a (P,) vector over each group, in float64: (G,)."""
        sums = torch.zeros(len(self.names), dtype=torch.float64, device=values.device)
        return sums.index_add(0, self.group, values.double())

    def with_precision(self, precision: Tensor) -> "BoundPrior":
        """The same prior with other alpha (G,)."""
        return replace(self, precision=precision, guessed=False)


_START = 30.0
"""First alpha over the mean curvature of the group: solves are cheap where the prior is strong, and EM comes down."""


class Prior(ABC):
    """How the prior precision is tied together and scaled; ``bind`` fits it to given parameters."""

    def __init__(self, precision: float | None = None, learn: bool = True) -> None:
        """Args: precision: alpha to start from, or to keep if not learn; None starts from what the data say.

        learn: whether EM updates it.
        """
        require(learn or precision is not None, "a prior precision to keep with learn=False", "None", "Give a number.")
        if precision is not None:
            value = float(precision)
            require(0 < value < float("inf"), "a positive prior precision", f"{value:g}", "Give 1 / prior variance.")
        self.precision, self.learn = precision, learn

    @abstractmethod
    def bind(self, layout: ParameterLayout, curvature_diagonal: Tensor) -> BoundPrior:
        """The prior for these parameters; ``curvature_diagonal`` (P,) estimates the diagonal of M."""

    def starting(self, diagonal: Tensor, scale: Tensor, group: Tensor, names: tuple[str, ...]) -> BoundPrior:
        """The prior with these scales and groups, at the precision that it was given or at one to start EM from."""
        precision = torch.full((len(names),), self.precision or 1.0, dtype=torch.float64, device=scale.device)
        bound = BoundPrior(precision, scale, group.to(scale.device), names, self.learn)
        if self.precision is not None:
            return bound
        mean = bound.group_sum(diagonal * scale.square()) / bound.group_sum((scale > 0).to(scale)).clamp_min(1)
        return replace(bound, precision=torch.where(mean > 0, _START * mean, precision), guessed=True)


class Isotropic(Prior):
    """A = alpha I."""

    def bind(self, layout: ParameterLayout, curvature_diagonal: Tensor) -> BoundPrior:
        return self.starting(curvature_diagonal, torch.ones_like(curvature_diagonal), _one_group(layout), ("all",))


class Layerwise(Prior):
    """A = alpha_g I on each group of parameter tensors; by default one group per layer (weight and bias together).

    Args:
        precision: alpha to start from, or to keep; None starts from what the data say.
        learn: whether EM updates it.
        groups: names of groups -> prefixes of parameter names; every parameter must belong to exactly one.
    """

    def __init__(
        self, precision: float | None = None, learn: bool = True, groups: dict[str, list[str]] | None = None
    ) -> None:
        super().__init__(precision, learn)
        self.groups = groups

    def bind(self, layout: ParameterLayout, curvature_diagonal: Tensor) -> BoundPrior:
        of_tensor = [self._group_of(name) for name in layout.names]
        names = tuple(dict.fromkeys(of_tensor))
        numbers = torch.tensor([names.index(g) for g in of_tensor])
        group = numbers[layout.tensor_index(torch.device("cpu"))]
        return self.starting(curvature_diagonal, torch.ones_like(curvature_diagonal), group, names)

    def _group_of(self, parameter: str) -> str:
        if self.groups is None:
            return parameter.rpartition(".")[0] or parameter
        found = [g for g, prefixes in self.groups.items() if any(parameter.startswith(p) for p in prefixes)]
        require(
            len(found) == 1,
            f"parameter {parameter!r} in exactly one prior group",
            f"{found or 'none'} of {list(self.groups)}",
            "Give prefixes that cover every parameter once.",
        )
        return found[0]


class GPrior(Prior):
    """A = alpha diag(s^-2) with s_i = (diag M)_i^(-1/2), the feature-normalising prior (docs/method.md, section 5).

    The diagonal is estimated in the pass that draws the noise, floored at ``floor`` times the mean over the
    parameter's own tensor (so that rescaling a whole tensor changes nothing): a parameter on which the data say less
    than that is given the prior width of the floor, at most floor^(-1/2) times the typical one. A tensor whose whole
    diagonal is zero says nothing about scale: it is taken out (s = 0) and listed in the report.

    Args:
        precision: alpha to start from, or to keep; None starts from what the data say.
        learn: whether EM updates it.
        floor: relative floor of the diagonal, in (0, 1].
    """

    def __init__(self, precision: float | None = None, learn: bool = True, floor: float = 1e-2) -> None:
        super().__init__(precision, learn)
        require(0 < floor <= 1, "a floor in (0, 1]", f"{floor:g}", "The default is 1e-2.")
        self.floor = floor

    def bind(self, layout: ParameterLayout, curvature_diagonal: Tensor) -> BoundPrior:
        tensors = curvature_diagonal.split(list(layout.sizes))
        scale = torch.cat([self._scale(t) for t in tensors])
        dead = tuple(name for name, t in zip(layout.names, tensors, strict=True) if not bool(t.any()))
        require(
            len(dead) < len(tensors),
            "data that inform at least one parameter",
            "a curvature of zero everywhere",
            "The outputs do not depend on the chosen parameters, or the likelihood is saturated on every datum.",
        )
        bound = self.starting(curvature_diagonal, scale, _one_group(layout), ("all",))
        return replace(bound, dead=dead)

    def _scale(self, diagonal: Tensor) -> Tensor:
        level = diagonal.double().mean()
        if level == 0:
            return torch.zeros_like(diagonal)
        return diagonal.double().clamp_min(self.floor * level).rsqrt().to(diagonal)


def _one_group(layout: ParameterLayout) -> Tensor:
    return torch.zeros(layout.total, dtype=torch.int64)
