"""EM for the price of one Krylov space: gamma for every alpha, and for Gaussian likelihoods the mean too, from M alone.

Works where H = f M + alpha I with one M: one prior group, and no noise to learn or scalar noise, whose precision is the
factor f. A prior with several alphas shifts M by different amounts in different coordinates, and noise by output
changes M itself: there EM works with posterior samples (sampled_step.py). B at the linear mode takes a space for each
B (moving_step.py).
"""

from dataclasses import replace
from math import inf, log

import torch
from torch import Tensor

from sampla.inference.e_step import FEWEST_ITERATIONS, FinalProblem, right_hand_side, target_part
from sampla.inference.exact import grown_to_range, unseen_draws
from sampla.inference.krylov import KrylovSpace, krylov_space
from sampla.inference.mackay import has_settled, tolerance_factor
from sampla.inference.quadrature import Hyper, LogError, Settled, estimated, gamma
from sampla.inference.space_step import FURTHEST_DOWN, FURTHEST_UP, UNKNOWN, SpaceEStep, galerkin_start
from sampla.inference.state import EMState, Task
from sampla.model import LinearModel
from sampla.solvers import AtZero, LinearSystem, Mode, RightHandSide

_AT_ONCE = 8
"""A space of so many iterations grows by one more in a step: it then reaches any size in few steps, and at most an
eighth of its products is too much."""
_COARSEST, _SHARE = 0.3, 0.1
"""Relative error of a mode allowed at most, and as a part of |log| of how far it says that alpha still is from its
fixed point: of that times itself where it is more than one, because an alpha far off need not be left accurately."""
_TRUNCATION = 0.25
"""Relative truncation error of gamma, in tolerances, down to which the space grows before the mode is found: half of
what the fixed point is allowed, because an error of log gamma is about doubled there."""
_FALLING = 3.0
"""Factor by which alpha falls once more, at least, after a step in which it fell as far as it may, as a rule."""
_OF_TOP = 0.1
"""Least alpha to start from, as a part of the largest eigenvalue of M: modes are cheap there, EM comes down at once,
and one search of the mode far below the fixed point can cost more than all others together (docs/notes/solvers.md)."""


class KrylovEStep(SpaceEStep):
    """gamma for every alpha from one Krylov space of M, and for a Gaussian likelihood the mean in the same space."""

    def __init__(self, task: Task, model: LinearModel) -> None:
        """Args: task: what stays the same over the steps. model: with the first noise precision."""
        super().__init__(task)
        self._target = target_part(model)

    def start(self, state: EMState) -> EMState:
        """With a space, no product yet, from the noise's right-hand sides, and for a Gaussian likelihood the mean's."""
        if state.space is not None or not self.task.route.one_space:
            return state
        start = self.task.draw.data_part[: self.task.em_samples]
        start = start if self._target is None else torch.cat([start, self._target])
        return replace(state, space=krylov_space(start, state.model.slices))

    def step(self, state: EMState) -> EMState:
        return self._fixed_point_step(state) if state.model.likelihood.is_quadratic else self._mode_step(state)

    def finish(self, state: EMState) -> FinalProblem:
        """The space is the solve's preconditioner and tells its start; f is the noise precision over the first."""
        task, factor, space = self.task, state.noise_factor, state.space
        ratio, precision = float(state.prior.precision[0]) / factor, state.prior.diagonal
        search = self.final_search(state)
        if task.route.log_evidence and space is not None:
            carrying = state.model.carrying(search)
            space = self.space_for_determinant(space, carrying, ratio, unseen_draws(task))
            if search is not None:
                search.precondition(space.sketch().at(precision))
        if search is not None and not task.route.searches_beside:
            state, search = replace(state, mode=search.found()), None
        state, model = replace(state, space=space), state.model
        if factor != 1:
            model = model.replaced(likelihood=model.likelihood.scaled(factor))
        rhs = self._right_hand_side(precision, factor)
        system, start = LinearSystem(model.carrying(search), precision, task.draw.diagonal * factor), None
        sketch = None
        if space is not None and task.route.solver_uses_space:
            sketch = space.sketch().times(factor)
            system = replace(system, preconditioner=sketch.at(precision))
            start = galerkin_start(space, rhs, precision, factor)
        return FinalProblem(
            replace(state.without_memory(), model=model), system, rhs, start,
            determinant=self.determinant(space, ratio),
            effective_dimension=space.determined(ratio) if space is not None and space.exact else None, search=search,
            sketch=sketch,
        )  # fmt: skip

    def _right_hand_side(self, precision: Tensor, factor: float) -> RightHandSide:
        data_part, target = self.task.draw.data_part, self._target
        if factor != 1:
            data_part = data_part * factor**0.5
        return right_hand_side(self.task.seed, precision, data_part, None if target is None else target * factor)

    def _fixed_point_step(self, state: EMState) -> EMState:
        """The space grows by an iteration, or more where it is large; alpha and noise are its fixed point."""
        task, space = self.task, self.first_space(state, unseen_draws(self.task))
        for _ in range(1 + space.iterations // _AT_ONCE):
            space = self.grown(state, space)
        used = float(state.prior.precision[0])
        problem = self.fixed_point(state, space)
        found = problem.solved(used / state.noise_factor)
        if self._needs_exact(state, space, found):
            space = grown_to_range(task, state.model, space, unseen_draws(task), state.label)
            problem = replace(problem, space=space)
            found = problem.solved(used / state.noise_factor)
        unknown = ""
        if problem.learn_noise and found.precision_error.truncation < inf:
            unknown = problem.noise_unknown(found.hyper.ratio)
        if unknown:
            problem = replace(problem, learn_noise=False, noise_factor=state.noise_factor)
            found = problem.solved(used / state.noise_factor)
        hyper, error = found.hyper, found.truncation
        change = max(abs(log(hyper.precision / used)), abs(log(hyper.noise_factor / state.noise_factor)))
        if found.precision_error.truncation == inf:  # out of reach: its border says nothing, and the space grows
            hyper, change = Hyper(used / state.noise_factor, used, state.noise_factor), UNKNOWN
        size = float((space.quadrature.nodes + hyper.ratio).reciprocal().square() @ space.quadrature.weights[:, -1])
        passes = space.iterations - sum(row.passes for row in state.trace)
        row = self.row(state, space, found, change, error, (hyper.precision * size) ** 0.5, passes)
        enough = space.complete or space.iterations >= FEWEST_ITERATIONS
        trace = [*state.trace, row]
        settled = task.em.has_settled(trace, 0.0, error) and enough and not unknown
        grew = state.space is not None and len(space.basis) > len(state.space.basis)
        return replace(
            state, prior=state.prior.with_precision(torch.full_like(state.prior.precision, hyper.precision)),
            space=space, noise_factor=hyper.noise_factor, trace=trace, settled=settled,
            stuck=not (settled or grew), noise_unknown=unknown, precision_error=found.precision_error,
            noise_error=found.noise_error,
        )  # fmt: skip

    def _mode_step(self, state: EMState) -> EMState:
        """The mode at the present alpha, and the alpha at which gamma over the mode's size comes back to itself."""
        task, fall = self.task, self._fall(state)
        state = self._begun(state)
        used = float(state.prior.precision[0])
        state, mode = self._with_space_and_mode(state, fall)
        size = float(mode.value.double().square().sum())
        loose = tolerance_factor(state.last_change, task.em.tolerance)
        space, found = self.space_that_tells(state, size, task.em.tolerance / 2 * loose)
        proposed = min(max(found.hyper.ratio, used / FURTHEST_DOWN), used * FURTHEST_UP)
        change, truncation = abs(log(proposed / used)), found.precision_error.truncation
        passes = space.iterations - sum(row.passes for row in state.trace)
        row = self.row(state, space, found, change, truncation, (used * size) ** 0.5, passes, mode.error)
        trace = [*state.trace, row]
        return replace(
            state, prior=state.prior.with_precision(torch.full_like(state.prior.precision, proposed)), space=space,
            mode=mode, trace=trace,
            settled=task.em.has_settled(trace, change, truncation) and mode.error <= self.finest,
            precision_error=LogError(found.precision_error.standard_error, truncation + 2 * mode.error),
        )  # fmt: skip

    def _begun(self, state: EMState) -> EMState:
        """With the iterations that are needed anyway and precondition the first mode, and an alpha to start from.

        The loss at theta = 0, where the search starts, is found in the same readings.
        """
        begun = AtZero(state.model)
        carrying = replace(state, model=state.model.carrying(None if state.mode else begun))
        space = self.grown_to(FEWEST_ITERATIONS, carrying, self.first_space(carrying, unseen_draws(self.task)))
        state = replace(state, space=space, mode=state.mode or begun.mode(state.prior.diagonal))
        if not state.prior.guessed:
            return state
        least = _OF_TOP * float(space.spectrum[0].max())  # not far below the fixed point
        return replace(state, prior=state.prior.with_precision(state.prior.precision.clamp_min(least)))

    def _with_space_and_mode(self, state: EMState, fall: float) -> tuple[EMState, Mode]:
        """The space that the present alpha needs, and the mode there, which is searched in the same readings.

        A larger space preconditions the search better, and it is needed anyway, because alpha falls. Where it falls
        fast the space grows at once to what the next alpha needs, for as long as the search can go along.

        Args:
            state: with the space of the last step.
            fall: factor by which alpha is expected to fall next.
        """
        space, used = state.space, float(state.prior.precision[0])
        assert space is not None

        def wanted(size: float) -> float:
            assert space is not None
            return self._mode_tolerance(state, space, size)

        search = self.search(state, state.model, wanted)
        carrying, most = replace(state, model=state.model.carrying(search)), _TRUNCATION * self.task.em.tolerance
        while True:
            search.answer_parts()
            along = search.asked is not None and not state.model.reduced
            if self._open(space, used / fall if along else used) <= most:
                break
            larger = self.grown(carrying, space)
            if larger is space:
                break
            space = larger
            search.precondition(space.sketch().at(state.prior.diagonal))
        return replace(state, space=space), search.found()

    def _fall(self, state: EMState) -> float:
        """The factor by which alpha will fall at least, as a rule: from where it starts, and while it falls fast."""
        if state.trace:
            return _FALLING if state.trace[-1].change > 0.99 * log(FURTHEST_DOWN) else 1.0
        return FURTHEST_DOWN if state.prior.guessed else 1.0

    def _open(self, space: KrylovSpace, ratio: float) -> float:
        """Relative truncation error of gamma."""
        found = estimated(space, self._probes(space), gamma, ratio)
        return found.truncation / max(found.value, 1e-300)

    def _mode_tolerance(self, state: EMState, space: KrylovSpace, size: float) -> float:
        """Relative error of a mode of this size: a part of how far it says that alpha is from its fixed point.

        And no more than as much of the last change: where gamma over |mode|^2 hardly depends on alpha, as for data that
        determine nothing, what looks far is the error of the mode itself.
        """
        moved = _SHARE * state.trace[-1].change if state.trace else _COARSEST
        if size == 0:
            return max(self.finest, min(_COARSEST, moved))
        used = float(state.prior.precision[0])
        ahead = self.with_mode_size(state, space, size).ahead(used, used / FURTHEST_DOWN)
        return max(self.finest, min(_COARSEST, moved, _SHARE * ahead * max(1.0, ahead)))

    def _needs_exact(self, state: EMState, space: KrylovSpace, found: Settled) -> bool:
        """Whether the probes, and not the space, keep the noise from being known to EM's tolerance."""
        if space.exact or not state.model.likelihood.learns_noise or not self.task.route.exact_if_needed:
            return False
        if has_settled(self.task.em.tolerance, 0.0, found.truncation):
            return found.noise_error.standard_error > self.task.em.tolerance
        return self.is_full(space)
