"""Stochastic dual descent, for fewer outputs than parameters, N C < P (Lin et al. 2310.20581, for any likelihood).

With B_n = S_n S_n' and the functions w = S' phi z, (N C) numbers a column, H z = b reads A z + phi' S w = b, or

    (I + G) w = S' phi A^-1 b,    G = S' phi A^-1 phi' S,    z = A^-1 (b - phi' S w).

For b = phi' S xi + A^(1/2) xi_0 and u = xi - w this is Matheron's rule, z = A^(-1/2) xi_0 + A^-1 phi' S u with
(I + G) u = xi - S' phi A^(-1/2) xi_0, in a form that needs no noise again and serves the mean as well. Descent takes
one batch of coordinates after the other, with z kept in step, so that a batch costs what it costs the primal:

    v <- rho v - eta (w + rho v - S' phi z(w + rho v)) on the batch,    w <- w + v,    z <- z - A^-1 phi' S v.

The noise of the coordinates' choice is proportional to the gradient: it vanishes at the solution.
"""

from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import Tensor

from sampla.core.blocks import dots
from sampla.core.checks import require
from sampla.core.chunks import COLUMNS
from sampla.core.noise import PROBE, standard_normal
from sampla.linear_batch import LinearBatch
from sampla.model import LinearModel
from sampla.solvers._base import Iterate, LinearSystem, RightHandSide, Solver, Start, num_outputs
from sampla.solvers._descent import batch_size, minibatch_rows

_REACH = 3.0
"""eta lambda / (1 - rho), at most 1 for eta lambda: momentum makes steps 1 / (1 - rho) times as long. Measured."""
_POWER_STEPS = 5
_WORSE = 2.0
"""A certificate so many times the best one shows that the steps are too long."""


@dataclass(frozen=True)
class DualState:
    """Coordinates and averages, all (K, N C) or, with z for w, (K, P)."""

    value: Tensor
    """z of the average."""
    functions: Tensor
    """w averaged."""
    step_size: float
    curvature: Tensor
    """(K, P) M times value."""
    missing: Tensor
    """(K,) no error |z - z*|_M^2 is larger."""
    velocity: Tensor
    velocity_value: Tensor
    """A^-1 phi' S v."""
    last: Tensor
    last_value: Tensor
    """w and z of the last step."""
    best: float
    """The smallest sum of ``missing`` so far."""
    steps: int = 0


@dataclass(frozen=True)
class DualDescent(Solver[DualState]):
    """Stochastic dual descent; one step of the loop is one sweep over the coordinates and one product with M.

    Here as the reference for N C < P: block CG, in either space, needs as many products or fewer wherever it was
    measured. Stores three numbers for each output and column, hence the restriction.

    The error stated is a rigorous bound: with t = S' phi z, |z - z*|_M = |G (I + G)^-1 (w - t)| <= |w - t|, and
    |z - z*|_M <= |A^(-1/2) r| / 2 with r the residual b - M z - A z; the smaller one, e, counts, as e / (|z|_M - e). It
    is infinite at first: w = 0 makes z far too large.

    Args:
        momentum: Nesterov's rho, in [0, 1). 0.9 is the paper's; with the coordinates in the order of the data, 0 was
            faster in most cases measured.
        step_size: eta; None: from a power iteration on I + G restricted to each batch. Cut to a third, from the best
            average, when the certificate shows that it is too long.

    Raises:
        ValueError: for settings out of range; in ``solve`` if N C >= P, or if the loader shuffles.
    """

    momentum: float = 0.0
    step_size: float | None = None

    def __post_init__(self) -> None:
        fix = "0 is plain coordinate descent, 0.9 the paper's."
        require(0 <= self.momentum < 1, "a momentum in [0, 1)", f"{self.momentum}", fix)
        given = self.step_size
        require(given is None or 0 < given < float("inf"), "a positive step_size", f"{given}", "None finds one.")

    def init(self, system: LinearSystem, rhs: RightHandSide, guess: Start | None) -> DualState:
        model, total = system.model, rhs.total
        entries = num_outputs(model)
        require(
            entries < model.num_parameters,
            f"fewer outputs than parameters, N C < P = {model.num_parameters:,}",
            f"N C = {entries:,}",
            "DualDescent stores N C numbers a column: use BlockCG or Minibatch.",
        )
        require(
            model.data.fixed_order,
            "a loader with a fixed order, by which the coordinates are kept",
            "a shuffled one",
            "Use BlockCG or Minibatch, or a loader that does not shuffle.",
        )
        functions, value = total.new_zeros(len(total), entries), total / system.precision
        if guess is not None:
            functions, pulled = _functions(model, guess.value, entries)
            value = (total - pulled) / system.precision
        step_size = self.step_size or min(1.0, _REACH * (1 - self.momentum)) * _shortest(system, len(total))
        still = torch.zeros_like(functions), torch.zeros_like(value)
        missing, curvature = _certified(system, rhs, functions, value)
        return DualState(
            value, functions, step_size, curvature, missing, *still, functions, value, float(missing.sum())
        )

    def step(self, system: LinearSystem, rhs: RightHandSide, state: DualState) -> DualState:
        swept = self._sweep(system, state)
        missing, curvature = _certified(system, rhs, swept.functions, swept.value)
        if float(missing.sum()) <= _WORSE**2 * state.best:
            best = min(state.best, float(missing.sum()))
            return replace(swept, curvature=curvature, missing=missing, best=best)
        return replace(  # from the last good average, at rest
            state, step_size=state.step_size / 3, velocity=torch.zeros_like(state.velocity),
            velocity_value=torch.zeros_like(state.value), last=state.functions, last_value=state.value,
        )  # fmt: skip

    def _sweep(self, system: LinearSystem, state: DualState) -> DualState:
        """Every coordinate once, in the order of the data; geometric averaging over about one sweep."""
        model, rho, eta = system.model, self.momentum, state.step_size
        last, value, velocity, pulled = (
            t.clone() for t in (state.last, state.last_value, state.velocity, state.velocity_value)
        )
        mean, mean_value, steps = state.functions.clone(), state.value.clone(), state.steps
        minibatches = ceil(model.data.num_data / batch_size(model))
        for batch in model.batches(rows=minibatch_rows(model, len(value))):
            part = _coordinates(batch)
            gradient = last[:, part] + rho * velocity[:, part] - _pushed(batch, value - rho * pulled)
            velocity *= rho
            velocity[:, part] -= eta * gradient
            pulled = rho * pulled - eta * _pulled(batch, gradient) / system.precision
            last += velocity
            value -= pulled
            steps += 1
            newest = 1 / min(steps, minibatches)
            mean += newest * (last - mean)
            mean_value += newest * (value - mean_value)
        model.ledger.products += len(value)
        return replace(
            state, value=mean_value, functions=mean, velocity=velocity, velocity_value=pulled, last=last,
            last_value=value, steps=steps,
        )  # fmt: skip

    def error(self, state: DualState) -> float:
        missing = float(state.missing.sum().sqrt())
        size = float(dots(state.value, state.curvature).clamp_min(0).sum().sqrt())
        if missing == 0 or missing != missing:
            return missing
        return missing / (size - missing) if size > missing else float("inf")

    def solution(self, system: LinearSystem, rhs: RightHandSide, state: DualState) -> Iterate:
        return Iterate(state.value, state.curvature)


def _coordinates(batch: LinearBatch) -> slice:
    """Where the batch's outputs are among the N C."""
    return slice(batch.first_output, batch.first_output + batch.features.outputs.numel())


def _pushed(batch: LinearBatch, vectors: Tensor) -> Tensor:
    """S' phi z on the batch: (K, P) -> (K, n C)."""
    parts = [batch.root_transpose_product(batch.features.jvp(part)).flatten(1) for part in vectors.split(COLUMNS)]
    return torch.cat(parts)


def _pulled(batch: LinearBatch, functions: Tensor) -> Tensor:
    """phi' S w of the batch: (K, n C) -> (K, P)."""
    shape = batch.features.outputs.shape
    parts = [batch.features.vjp(batch.root_product(part.view(len(part), *shape))) for part in functions.split(COLUMNS)]
    return torch.cat(parts)


def _functions(model: LinearModel, vectors: Tensor, entries: int) -> tuple[Tensor, Tensor]:
    """S' phi z and M z = phi' S (S' phi z), one pass: (K, P) -> (K, N C), (K, P)."""
    functions, product = vectors.new_zeros(len(vectors), entries), torch.zeros_like(vectors)
    for batch in model.batches(len(vectors)):
        pushed = _pushed(batch, vectors)
        functions[:, _coordinates(batch)] = pushed
        product += _pulled(batch, pushed)
    model.ledger.products += len(vectors)
    return functions, product


def _certified(system: LinearSystem, rhs: RightHandSide, functions: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """(K,) the smaller of the two bounds of |z - z*|_M^2, and (K, P) M z; one pass."""
    seen, curvature = _functions(system.model, value, functions.shape[1])
    residual = rhs.total - curvature - system.precision * value
    primal = dots(residual, residual / system.precision) / 4
    return torch.minimum(dots(functions - seen, functions - seen), primal), curvature


def _shortest(system: LinearSystem, columns: int) -> float:
    """1 / lambda, lambda the largest eigenvalue of I + G on any batch, by power iteration; NaN without one."""
    model, largest = system.model, 1.0
    for batch in model.batches(rows=minibatch_rows(model, columns)):
        count = batch.features.outputs.numel()
        vector = standard_normal(0, PROBE, range(1), 0, (count,), system.precision)
        for _ in range(_POWER_STEPS):
            vector = vector / vector.norm()
            pushed = vector + _pushed(batch, _pulled(batch, vector) / system.precision)
            size, vector = float(dots(vector, pushed)), pushed
        largest = max(largest, size)
    model.ledger.products += _POWER_STEPS
    return 1 / largest
