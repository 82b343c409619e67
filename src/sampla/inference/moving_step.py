"""EM where B is taken at the linear mode: a Krylov space of M for every B; after a small one two do as a rule.

The mode depends on alpha alone. Let g(alpha) be EM's fixed point with B at the mode of alpha: a number, found as with
any other M (space_step.py). Its own fixed point is looked for. log g is all but linear, with a slope near .3
(docs/notes/linear-mode.md), so the next alpha is where the line through what is known of g meets the diagonal.

It starts with B at theta = 0, the mode of an infinite alpha: there B does not depend on how well the network has
fitted its data, and alpha falls from there by about the same factor in all networks. The right-hand sides are drawn
from the same standard normals for every B, so that g is smooth.
"""

from dataclasses import replace
from math import exp, log

import torch
from torch import Tensor

from sampla.features import OutputsAt
from sampla.inference.e_step import FEWEST_ITERATIONS, FinalProblem, right_hand_side
from sampla.inference.krylov import krylov_space
from sampla.inference.quadrature import LogError
from sampla.inference.space_step import FURTHEST_DOWN, FURTHEST_UP, SpaceEStep, galerkin_start
from sampla.inference.state import EMState, Task
from sampla.inference.trace import EMStep
from sampla.model import LinearModel, NoiseDraw
from sampla.solvers import LinearSystem

_PROBES, _FEWEST, _TRUNCATION, _ROUGH = 4, 2, 0.2, 0.1
"""With B at theta = 0: start vectors and iterations of the space, truncation error of log alpha and relative error of
the mode allowed. A first guess is all that is wanted."""
_OF_TOP = 0.01
"""alpha to start from, as a part of the largest eigenvalue of that M."""
_NEAR = 1.7
"""Change of log alpha up to which B then leaves theta = 0."""
_FALL = 1.1
"""By how much the fixed point of log alpha falls when B goes from theta = 0 to its own mode: .8 to 1.7."""
_FIRST = 0.02
"""Truncation error of log alpha allowed at the first alpha, which is some tenths off."""
_SLOPE, _STEEPEST = 0.3, 0.6
"""d log g / d log alpha where no two steps tell it (.28 to .35), and the largest that is believed."""
_LEAST = 0.1
"""The smallest that is believed where it says that B need not move again: between steps far apart |mode|^2 is no power
of alpha, and a slope of zero only says so."""
_APART = 0.2
"""Distance of two steps in log alpha from which they tell a slope: nearer, the errors of g would."""


class MovingEStep(SpaceEStep):
    """gamma for every alpha from one Krylov space for each B, which is taken at the mode of every alpha tried."""

    def __init__(self, task: Task, model: LinearModel) -> None:
        """Args: task: what stays the same over the steps. model: with B at the network's outputs."""
        super().__init__(task)
        self._network = model
        self._draw: NoiseDraw | None = None  # of the present B, unless the loop was stopped since

    def start(self, state: EMState) -> EMState:
        """With B where it was in a loop that was stopped, if it is one."""
        return state if state.place is None else replace(state, model=self._model_at(state.place))

    def step(self, state: EMState) -> EMState:
        em, rounds = self.task.em, _next_round(state.trace)
        if state.place is None:
            state = self._begun(state)
        state = self._with_mode(state, _ROUGH if rounds == 0 else self.finest)
        mode, before = state.mode, state.space
        assert mode is not None
        if rounds > 0:
            state, before = self._moved(state, self.task.em_samples), None
        size, used = float(mode.value.double().square().sum()), float(state.prior.precision[0])
        space, allowed = state.space, (_TRUNCATION, max(_FIRST, em.tolerance / 2), em.tolerance / 2)[min(rounds, 2)]
        while True:
            state = replace(state, space=space)
            space, found = self.space_that_tells(state, size, allowed, FEWEST_ITERATIONS if rounds > 1 else _FEWEST)
            updated = min(max(found.hyper.ratio, used / FURTHEST_DOWN), used * FURTHEST_UP)
            alpha, slope = _proposed(state.trace, rounds, used, updated)
            moving = max(slope, _LEAST) * abs(log(alpha / used)) if rounds else _FALL
            if 2 * moving > em.tolerance or allowed <= em.tolerance / 2:
                break
            allowed = em.tolerance / 2  # B need not move again, so alpha is wanted as well as it can be told
        truncation = found.precision_error.truncation
        row = self.row(
            state, space, found, abs(log(updated / used)), truncation, (used * size) ** 0.5,
            space.iterations - (0 if before is None else before.iterations), mode.error,
        )  # fmt: skip
        trace = [*state.trace, replace(row, rounds=rounds, moving=moving)]
        exact = mode.error <= self.finest
        settled = em.has_settled(trace, 2 * moving, truncation) and exact and rounds > 0
        spread, left = found.precision_error.standard_error, truncation + 2 * mode.error + moving
        return replace(
            state, prior=state.prior.with_precision(torch.full_like(state.prior.precision, alpha)), space=space,
            trace=trace, settled=settled,
            stuck=not settled and 2 * moving <= em.tolerance and not (exact and truncation <= em.tolerance / 2),
            precision_error=LogError(spread / (1 - slope), left / (1 - slope)),
        )  # fmt: skip

    def finish(self, state: EMState) -> FinalProblem:
        """With B where EM has settled, and the space of it; else B moves to the mode of the present alpha first."""
        task, precision = self.task, state.prior.diagonal
        state = self._with_mode(state, self.finest, check=True)
        if not state.settled:
            state = self._moved(state, task.num_samples)
        elif self._draw is None or len(self._draw.data_part) < task.num_samples:
            self._draw = state.model.draw_noise(task.seed, task.num_samples)
        draw, model, space, ratio = self._draw, state.model, state.space, float(state.prior.precision[0])
        assert draw is not None
        assert space is not None
        if task.route.log_evidence:
            space = self.space_for_determinant(space, model, ratio, draw.data_part[task.em_samples :])
        rhs = right_hand_side(task.seed, precision, draw.data_part, None)
        system, start = LinearSystem(model, precision, draw.diagonal), None
        if space.iterations > 0 and task.route.solver_uses_space:
            system = replace(system, preconditioner=space.sketch().at(precision))
            start = galerkin_start(space, rhs, precision)
        return FinalProblem(
            state.without_memory(), system, rhs, start, determinant=self.determinant(space, ratio),
            effective_dimension=space.determined(ratio) if space.exact else None,
        )  # fmt: skip

    def _begun(self, state: EMState) -> EMState:
        """B at theta = 0, with a space that tells where alpha may start and preconditions the first mode."""
        zero = torch.zeros(1, state.model.num_parameters).to(state.model.features.like)
        model = self._model_at(zero)
        draw = model.draw_noise(self.task.seed, min(_PROBES, self.task.em_samples))
        state = replace(state, model=model, place=zero)
        state = replace(state, space=self.grown_to(_FEWEST, state, krylov_space(draw.data_part, model.slices)))
        if not state.prior.guessed:
            return state
        assert state.space is not None
        least = _OF_TOP * float(state.space.spectrum[0].max())
        return replace(state, prior=state.prior.with_precision(torch.full_like(state.prior.precision, least)))

    def _with_mode(self, state: EMState, tolerance: float, check: bool = False) -> EMState:
        """With the mode at the present alpha; the space of the last B preconditions the search."""
        return replace(state, mode=self.search(state, self._network, tolerance, check).found())

    def _moved(self, state: EMState, count: int) -> EMState:
        """With B at the mode: right-hand sides of it, and the first iterations of its space, or all of a small one."""
        assert state.mode is not None
        place, route = state.mode.value, self.task.route
        model = self._model_at(place)
        self._draw = model.draw_noise(self.task.seed, count)
        start, unseen = self._draw.data_part.tensor_split([self.task.em_samples])
        state = replace(state, model=model, place=place, space=krylov_space(start, model.slices))
        if not route.one_space:
            return state
        return replace(state, space=self.grown_to(_FEWEST, state, self.first_space(state, unseen)))

    def _model_at(self, place: Tensor) -> LinearModel:
        return self._network.replaced(features=OutputsAt(self._network.features, place))


def _next_round(trace: list[EMStep]) -> int:
    """How often B will have moved in the next step: it stays at theta = 0 while alpha is far from what that says."""
    if not trace:
        return 0
    last = trace[-1]
    assert last.rounds is not None
    return last.rounds + 1 if last.rounds or last.change <= _NEAR else 0


def _proposed(trace: list[EMStep], rounds: int, used: float, updated: float) -> tuple[float, float]:
    """alpha where log g is expected to be log alpha, and d log g / d log alpha.

    Args:
        trace: of the steps before.
        rounds: how often B has moved.
        used: alpha of this step.
        updated: g(alpha).
    """
    if rounds == 0:
        return updated * (exp(-_FALL) if abs(log(updated / used)) <= _NEAR else 1.0), _SLOPE
    slope = _SLOPE
    if rounds > 1:
        apart = log(used / trace[-1].precision[0])
        if abs(apart) > _APART:
            slope = min(max(log(updated / trace[-1].updated_precision[0]) / apart, 0.0), _STEEPEST)
    return used * exp(log(updated / used) / (1 - slope)), slope
