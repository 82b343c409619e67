"""Gaussian priors N(mu, A^-1) with diagonal A = alpha_g(i) / s_i^2: isotropic, by layer, g-prior.

The scales s are put into the features (phi diag(s)), so every solver works in the coordinates psi = theta / s,
in which the prior precision of parameter i is just alpha of its group. A mean mu other than zero (given_prior.py) goes
into them as well: they are then about theta - mu.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sampla.core.by_parameter import flat_by_parameter
from sampla.core.checks import require, require_known
from sampla.core.params import ParameterLayout

Precision: TypeAlias = float | Sequence[float] | Mapping[str, float] | Tensor | None
"""alpha: one number, one for each group in their order, or by the names of the groups; None leaves it to the data."""


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
    """Parameter tensors on which the data say nothing at all: the g-prior takes them out, others leave them as wide as
    they were before the data."""
    guessed: bool = False
    """Whether alpha is only a guess to start EM from, which may choose another."""
    mean: Tensor | None = None
    """(P,) mu in float64; None: zero."""

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

    def from_zero(self, theta: Tensor) -> Tensor:
        """theta (P,), given it less mu."""
        return theta if self.mean is None else (theta.double() + self.mean).to(theta)

    def with_precision(self, precision: Tensor) -> "BoundPrior":
        """The same prior with other alpha (G,)."""
        return replace(self, precision=precision, guessed=False)


_START = 30.0
"""First alpha over the mean curvature of the group: solves are cheap where the prior is strong, and EM comes down."""


class Prior(ABC):
    """How the prior precision is tied together and scaled; ``bind`` fits it to given parameters."""

    mean: Tensor | dict[str, Tensor] | None = None
    """mu, as ``checked_by_parameter`` gives it; None: zero."""

    def __init__(self, precision: Precision = None, learn: bool = True) -> None:
        """Args: precision: alpha to start from, or to keep if not learn; None starts from what the data say.

        learn: whether EM updates it.

        Raises:
            ValueError: for a precision that is no positive number, or no number for each group.
        """
        require(learn or precision is not None, "a prior precision to keep with learn=False", "None", "Give a number.")
        self.precision, self.learn = _checked(precision), learn

    @abstractmethod
    def bind(self, layout: ParameterLayout, curvature_diagonal: Tensor) -> BoundPrior:
        """The prior for these parameters; ``curvature_diagonal`` (P,) estimates the diagonal of M."""

    def mean_of(self, layout: ParameterLayout) -> Tensor | None:
        """(P,) mu of these parameters in float64, on the CPU; None: zero.

        Raises:
            ValueError: for names, shapes or lengths that are not those of the parameters.
        """
        return None if self.mean is None else flat_by_parameter(self.mean, layout, "prior mean", both=False)

    def starting(self, diagonal: Tensor, scale: Tensor, group: Tensor, names: tuple[str, ...]) -> BoundPrior:
        """The prior with these scales and groups, at the precision that it was given or at one to start EM from.

        A group on which the data say nothing at all keeps its alpha.
        """
        given = _for_groups(self.precision, names)
        precision = torch.tensor(given, dtype=torch.float64, device=scale.device)
        bound = BoundPrior(precision, scale, group.to(scale.device), names, self.learn)
        informed = (bound.group_sum(diagonal) != 0).tolist()
        unknown = tuple(name for name, known in zip(names, informed, strict=True) if not known)
        bound = replace(bound, fixed=unknown, learn=self.learn and any(informed))
        if self.precision is not None:
            return bound
        mean = bound.group_sum(diagonal * scale.square()) / bound.group_sum((scale > 0).to(scale)).clamp_min(1)
        return replace(bound, precision=torch.where(mean > 0, _START * mean, precision), guessed=True)


class Isotropic(Prior):
    """A = alpha I."""

    def __init__(self, precision: float | None = None, learn: bool = True) -> None:
        super().__init__(_one_number(precision), learn)

    def bind(self, layout: ParameterLayout, curvature_diagonal: Tensor) -> BoundPrior:
        ones = torch.ones_like(curvature_diagonal)
        _require_informed(curvature_diagonal, self.learn)
        bound = self.starting(curvature_diagonal, ones, _one_group(layout), ("all",))
        return replace(bound, dead=dead_tensors(layout, curvature_diagonal))


class Layerwise(Prior):
    """A = alpha_g I on each group of parameter tensors; by default one group per layer (weight and bias together).

    A group on which the data say nothing at all keeps its alpha.

    Args:
        precision: alpha to start from, or to keep: one number, a sequence with one for each group in the order of the
            layers (or of ``groups``), or a dict from the names of the groups; None starts from what the data say.
        learn: whether EM updates it.
        groups: names of groups -> prefixes of parameter names; every parameter must belong to exactly one.
    """

    def __init__(
        self, precision: Precision = None, learn: bool = True, groups: dict[str, list[str]] | None = None
    ) -> None:
        super().__init__(precision, learn)
        self.groups = groups
        if groups is not None and isinstance(self.precision, list):
            self.precision = dict(zip(groups, _for_groups(self.precision, tuple(groups)), strict=True))

    def bind(self, layout: ParameterLayout, curvature_diagonal: Tensor) -> BoundPrior:
        of_tensor = [self._group_of(name) for name in layout.names]
        names = tuple(dict.fromkeys(of_tensor))
        numbers = torch.tensor([names.index(g) for g in of_tensor])
        group = numbers[layout.tensor_index(torch.device("cpu"))]
        _require_informed(curvature_diagonal, self.learn)
        bound = self.starting(curvature_diagonal, torch.ones_like(curvature_diagonal), group, names)
        return replace(bound, dead=dead_tensors(layout, curvature_diagonal))

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
        super().__init__(_one_number(precision), learn)
        require(0 < floor <= 1, "a floor in (0, 1]", f"{floor:g}", "The default is 1e-2.")
        self.floor = floor

    def bind(self, layout: ParameterLayout, curvature_diagonal: Tensor) -> BoundPrior:
        tensors = curvature_diagonal.split(list(layout.sizes))
        scale = torch.cat([self._scale(t) for t in tensors])
        dead = dead_tensors(layout, curvature_diagonal)
        _require_informed(curvature_diagonal, True)  # there is no scale either
        bound = self.starting(curvature_diagonal, scale, _one_group(layout), ("all",))
        return replace(bound, dead=dead)

    def _scale(self, diagonal: Tensor) -> Tensor:
        level = diagonal.double().mean()
        if level == 0:
            return torch.zeros_like(diagonal)
        return diagonal.double().clamp_min(self.floor * level).rsqrt().to(diagonal)


def _require_informed(diagonal: Tensor, needed: bool) -> None:
    """Refuse data that inform no parameter, where an alpha or a scale is to be learnt from them."""
    require(
        not needed or bool((diagonal != 0).any()),
        "data that inform at least one parameter",
        "a curvature of zero everywhere",
        "The outputs do not depend on the chosen parameters, or the likelihood is saturated on every datum.",
    )


def _one_group(layout: ParameterLayout) -> Tensor:
    return torch.zeros(layout.total, dtype=torch.int64)


def dead_tensors(layout: ParameterLayout, diagonal: Tensor) -> tuple[str, ...]:
    """The parameter tensors whose whole diagonal is zero."""
    tensors = diagonal.split(list(layout.sizes))
    return tuple(name for name, part in zip(layout.names, tensors, strict=True) if not bool(part.any()))


def _checked(precision: Precision) -> float | list[float] | dict[str, float] | None:
    """The same in plain Python, every number positive."""
    if isinstance(precision, Mapping):
        return {name: _positive(value, f" for group {name!r}") for name, value in precision.items()}
    single = isinstance(precision, str) or (isinstance(precision, Tensor) and precision.ndim == 0)
    if isinstance(precision, Iterable) and not single:
        return [_positive(value) for value in precision]
    return None if precision is None else _positive(precision)


def _positive(precision: Any, where: str = "") -> float:
    try:
        value = float(precision)
    except (TypeError, ValueError):
        value = float("nan")
    fix = "Give 1 / prior variance."
    got = f"{precision!r}" if value != value else f"{value:g}"
    require(0 < value < float("inf"), f"a positive prior precision{where}", got, fix)
    return value


def _one_number(precision: float | None) -> float | None:
    """Refuse several precisions where there is one group."""
    fix = "Layerwise takes one for each layer."
    several = isinstance(precision, Mapping) or (isinstance(precision, Iterable) and getattr(precision, "ndim", 1) > 0)
    require(not several or isinstance(precision, str), "one prior precision", f"{precision!r}", fix)
    return precision


def _for_groups(precision: float | list[float] | dict[str, float] | None, names: tuple[str, ...]) -> list[float]:
    """alpha of each group, ones where none is given.

    Raises:
        ValueError: naming the groups, if there is not one number for each.
    """
    if not isinstance(precision, list | dict):
        return [precision or 1.0] * len(names)
    each = f"one prior precision for each of {len(names)} groups ({', '.join(map(repr, names))})"
    if isinstance(precision, list):
        fix = "Give one for each, in this order, or a dict from these names."
        require(len(precision) == len(names), each, f"{len(precision)}", fix)
        return precision
    for name in precision:
        require_known(name, names, "prior group")
    missing = [name for name in names if name not in precision]
    require(not missing, each, f"none for {', '.join(map(repr, missing))}", "Give one for each of these names.")
    return [precision[name] for name in names]
