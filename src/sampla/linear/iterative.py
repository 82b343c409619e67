"""The matrix-free way: block conjugate gradients and one Krylov space of M, by the library's own loop."""

from dataclasses import dataclass, replace
from time import perf_counter

import torch
from torch import Tensor

from sampla.core.checks import one_of_each
from sampla.core.params import ParameterLayout
from sampla.core.progress import Progress
from sampla.inference.infer import e_step_of, finished, maximised, prepared, solved, with_samples
from sampla.inference.report import FitReport, build_report
from sampla.inference.settings import EM
from sampla.inference.state import Inference
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


class ColumnGroups(Prior):
    """A = alpha_g on groups of columns, the same for all outputs.

    Args:
        group: (D,) int64, numbered from 0.
        precision: alpha, kept; None: learnt.
        columns: whose units a given alpha is in; constant ones say nothing, though rounding says that they do.
    """

    def __init__(self, group: Tensor, precision: float | None, columns: Columns) -> None:
        super().__init__(precision, learn=precision is None)
        self.group, self.columns = group, columns

    def bind(self, layout: ParameterLayout, curvature_diagonal: Tensor) -> BoundPrior:
        outputs = layout.total // len(self.group)
        group = self.group.repeat_interleave(outputs).to(curvature_diagonal.device)
        count = int(self.group.max()) + 1
        names = tuple(f"group {g}" for g in range(count)) if count > 1 else ("all",)
        diagonal = self.columns.informed(curvature_diagonal, outputs)
        bound = self.starting(diagonal, torch.ones_like(diagonal), group, names)
        unit = self.columns.precision_unit.to(bound.precision)
        return bound if self.learn else bound.with_precision(bound.precision * unit)


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
    if uneven(columns.power):
        em = replace(em, method="samples")
    progress.enter("checking the data")
    task, state = prepared(
        model, model.survey(), prior, BlockCG(), num_samples=num_samples, seed=seed, em=em, tolerance=tolerance,
        say=progress.enter,
    )  # fmt: skip
    with one_of_each(stacklevel=4):
        e_step = e_step_of(task, state)
        state = maximised(e_step, state)
        if task.route.method == "krylov" and not state.settled:
            e_step, state = with_samples(e_step, state)
            state = maximised(e_step, state)
        found = solved(e_step.task, *finished(e_step, state))
    report = build_report(found, data, {}, None, perf_counter() - start, tolerance)
    assert found.mean is not None
    shape = (source.num_columns, outputs)
    return IterativeFit(found.mean.view(shape).double(), found.samples.view(-1, *shape), found, report)


def uneven(power: Tensor) -> bool:
    """Whether the columns' sizes, and so the eigenvalues of M, are too far apart for one unscaled Krylov space."""
    alive = power[power > 0]
    return len(alive) > 0 and float(alive.max()) > _UNEVEN * float(alive.median())
