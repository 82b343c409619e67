"""The matrix-free way: block conjugate gradients and one Krylov space of M, by the library's own loop."""

from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter

import torch
from torch import Tensor

from sampla.core.params import ParameterLayout
from sampla.core.progress import Progress
from sampla.inference.infer import EM, EMState, Inference, infer
from sampla.inference.report import FitReport, build_report
from sampla.likelihoods import Gaussian
from sampla.linear.columns import Columns, RowData, centred
from sampla.linear.sources import Source
from sampla.model import LinearModel
from sampla.priors import BoundPrior, Prior
from sampla.solvers import BlockCG

_UNEVEN = 100.0
"""Ratio of the largest to the middle column's mean square from which EM works with samples."""


@dataclass(frozen=True)
class IterativeFit:
    """What the loop found, in standardised columns."""

    mean: Tensor
    """(D, C)."""
    samples: Tensor
    """(K, D, C)."""
    inference: Inference
    report: FitReport


class _Stuck(Exception):  # noqa: N818  (no error: it ends EM where samples go on)
    """The Krylov space may not grow, or EM has used up its steps, and alpha has not settled."""

    def __init__(self, state: EMState) -> None:
        super().__init__()
        self.state = state


class _Watch:
    """Looks at every state of EM with a Krylov space, and raises _Stuck where more steps will not help."""

    def __init__(self, most: int) -> None:
        self._rows, self._most = 0, most

    def first(self, state: EMState) -> EMState:
        """Before the first step; the state as it is."""
        self._rows = 0 if state.space is None else len(state.space.basis)
        return state

    def step(self, state: EMState) -> None:
        """After each step; where EM works with samples anyway there is nothing to look for."""
        if state.space is None:
            return
        rows = len(state.space.basis)
        if not state.settled and (rows == self._rows or len(state.trace) >= self._most):
            raise _Stuck(state)
        self._rows = rows


class ColumnGroups(Prior):
    """A = alpha_g on groups of columns, the same for all outputs.

    Args:
        group: (D,) int64, numbered from 0.
        precision: alpha, kept; None: learnt.
        unit: (G,) what the given alpha is multiplied with for each group.
    """

    def __init__(self, group: Tensor, precision: float | None, unit: Tensor) -> None:
        super().__init__(precision, learn=precision is None)
        self.group, self.unit = group, unit

    def bind(self, layout: ParameterLayout, curvature_diagonal: Tensor) -> BoundPrior:
        outputs = layout.total // len(self.group)
        group = self.group.repeat_interleave(outputs).to(curvature_diagonal.device)
        names = tuple(f"group {g}" for g in range(int(self.group.max()) + 1))
        bound = self.starting(curvature_diagonal, torch.ones_like(curvature_diagonal), group, names)
        return bound if self.learn else bound.with_precision(bound.precision * self.unit.to(bound.precision))


def iterative_fit(
    source: Source,
    columns: Columns,
    outputs: int,
    prior: Prior,
    noise: Gaussian,
    *,
    num_samples: int,
    seed: int,
    tolerance: float,
    em: EM,
    progress: Progress,
) -> IterativeFit:
    """K samples and the mean for a Gaussian likelihood, its hyperparameters learnt where they are not given.

    One Krylov space of M serves EM best, unless the columns differ so much in size that it would not fit into memory:
    then EM works with samples, whose solves are preconditioned by the diagonal. It does so, too, from where it stands
    when the space is full and alpha has not settled.
    """
    start = perf_counter()
    data = RowData(source, centred(columns), progress)
    model = LinearModel(columns.design(source, outputs), noise, data)

    run = partial(
        infer, solver=BlockCG(), num_samples=num_samples, seed=seed, tolerance=tolerance, say=progress.enter
    )  # fmt: skip
    with_samples = replace(em, method="samples")
    if uneven(columns.power):
        found = run(model, prior, em=with_samples)
    else:
        watch = _Watch(em.max_steps)
        try:
            found = run(model, prior, em=em, restore=watch.first, keep=watch.step)
        except _Stuck as stuck:
            state = stuck.state
            if isinstance(state.model.likelihood, Gaussian) and noise.learns_noise:
                model = model.replaced(likelihood=state.model.likelihood.scaled(state.noise_factor))
            found = run(model, _continued(prior, state.prior), em=with_samples)
    report = build_report(found, data, {}, None, perf_counter() - start, tolerance)
    assert found.mean is not None
    shape = (source.num_columns, outputs)
    return IterativeFit(found.mean.view(shape).double(), found.samples.view(-1, *shape), found, report)


def uneven(power: Tensor) -> bool:
    """Whether the columns' sizes, and so the eigenvalues of M, are too far apart for one unscaled Krylov space."""
    alive = power[power > 0]
    return len(alive) > 0 and float(alive.max()) > _UNEVEN * float(alive.median())


def _continued(prior: Prior, found: BoundPrior) -> Prior:
    """The same prior, to be learnt from the alpha that was found last."""
    again = copy(prior)
    if prior.learn:
        again.precision = float(found.precision[0])
    return again
