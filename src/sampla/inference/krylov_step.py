"""EM for the price of one Krylov space: gamma for every alpha, and for Gaussian likelihoods the mean too, from M alone.

Works where H = f M + alpha I with one M: one prior group, and no noise to learn or scalar noise, whose precision is the
factor f. A prior with several alphas shifts M by different amounts in different coordinates, and noise by output, or B
at the linear mode, changes M itself: there EM works with posterior samples (sampled_step.py).
"""

from dataclasses import replace
from math import inf, log

import torch
from torch import Tensor

from sampla.inference.e_step import FEWEST_ITERATIONS, EStep, FinalProblem, right_hand_side, target_part
from sampla.inference.exact import grown_to_range, unseen_draws
from sampla.inference.krylov import KrylovSpace, krylov_space
from sampla.inference.mackay import has_settled, tolerance_factor
from sampla.inference.quadrature import FixedPoint, Hyper, LogError, Settled, estimated, gamma
from sampla.inference.state import EMState, Task
from sampla.inference.trace import EMStep
from sampla.model import LinearModel
from sampla.solvers import LinearSystem, Mode, RightHandSide, Sketch, Start, linear_mode

_AT_ONCE = 8
"""A space of so many iterations grows by one more in a step: it then reaches any size in few steps, and at most an
eighth of its products is too much."""
_FURTHEST_DOWN, _FURTHEST_UP = 10.0, 1e4
"""Factors by which alpha may change before the mode is found again. Downwards the space must resolve smaller
eigenvalues, and the mode's norm may grow as it likes. Upwards gamma is known; |mode|^2 is extrapolated, but it falls
more and more steeply, so that a jump usually ends short of the fixed point; and beyond it a mode costs least, and two
that enclose the fixed point tell it best."""
_AFRESH = 10.0
"""Factor by which alpha must have risen for its mode to be searched from zero: it is small then, and what the search
has learnt about the loss far from zero misleads it."""
_FAR_ENOUGH = 2.0
"""Factor by which alpha must change for the space not to grow before the mode is found again."""
_COARSEST, _SHARE = 0.05, 0.02
"""Relative error of the mode allowed at first, and as a part of the last change of log alpha."""
_OF_TOP = 0.1
"""Least alpha to start from, as a part of the largest eigenvalue of M: modes are cheap there, EM comes down at once,
and one search of the mode far below the fixed point can cost more than all others together (docs/notes/solvers.md)."""
_UNKNOWN = 10.0
"""What the trace says of an alpha that the space cannot reach yet: it may be off by more than so many times itself."""


class KrylovEStep(EStep):
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
        return replace(state, space=krylov_space(start if self._target is None else torch.cat([start, self._target])))

    def step(self, state: EMState) -> EMState:
        return self._fixed_point_step(state) if state.model.likelihood.is_quadratic else self._mode_step(state)

    def finish(self, state: EMState) -> FinalProblem:
        """The space is the solve's preconditioner and tells its start; f is the noise precision over the first."""
        task, factor, space = self.task, state.noise_factor, state.space
        ratio, precision = float(state.prior.precision[0]) / factor, state.prior.diagonal
        if task.route.log_evidence and space is not None:
            space = self.space_for_determinant(space, state.model, ratio, unseen_draws(task))
        state = self.with_mode(replace(state, space=space))
        model = state.model
        if factor != 1:
            model = model.replaced(likelihood=model.likelihood.scaled(factor))
        rhs = self._right_hand_side(precision, factor)
        system, start = LinearSystem(model, precision, task.draw.diagonal * factor), None
        if space is not None and task.route.solver_uses_space:
            system = replace(system, preconditioner=_scaled(space.sketch(), factor).at(precision))
            start = _galerkin(space, rhs, precision, factor)
        return FinalProblem(
            replace(state.without_memory(), model=model), system, rhs, start,
            determinant=self.determinant(space, ratio),
            effective_dimension=space.determined(ratio) if space is not None and space.exact else None,
        )  # fmt: skip

    def _right_hand_side(self, precision: Tensor, factor: float) -> RightHandSide:
        data_part, target = self.task.draw.data_part, self._target
        if factor != 1:
            data_part = data_part * factor**0.5
        return right_hand_side(self.task.seed, precision, data_part, None if target is None else target * factor)

    def _fixed_point_step(self, state: EMState) -> EMState:
        """The space grows by an iteration, or more where it is large; alpha and noise are its fixed point."""
        task, space = self.task, self._first_space(state)
        for _ in range(1 + space.iterations // _AT_ONCE):
            space = self._grown(state, space)
        used = float(state.prior.precision[0])
        problem = self._fixed_point(state, space)
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
            hyper, change = Hyper(used / state.noise_factor, used, state.noise_factor), _UNKNOWN
        size = float((space.quadrature.nodes + hyper.ratio).reciprocal().square() @ space.quadrature.weights[:, -1])
        row = self._row(state, space, found, change, error, (hyper.precision * size) ** 0.5)
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
        state = self._begun(state)
        used = float(state.prior.precision[0])
        mode = self._mode(state)
        size = float(mode.value.double().square().sum())
        space, found = self._space_that_tells(state, size)
        proposed = min(max(found.hyper.ratio, used / _FURTHEST_DOWN), used * _FURTHEST_UP)
        change, truncation = abs(log(proposed / used)), found.precision_error.truncation
        row = self._row(state, space, found, change, truncation, (used * size) ** 0.5, mode.error)
        trace = [*state.trace, row]
        return replace(
            state, prior=state.prior.with_precision(torch.full_like(state.prior.precision, proposed)), space=space,
            mode=mode, trace=trace,
            settled=self.task.em.has_settled(trace, change, truncation) and mode.error <= self._finest,
            precision_error=LogError(found.precision_error.standard_error, truncation + 2 * mode.error),
        )  # fmt: skip

    def _begun(self, state: EMState) -> EMState:
        """With the iterations that are needed anyway and precondition the first mode, and an alpha to start from."""
        space = self._first_space(state)
        while space.iterations < FEWEST_ITERATIONS:
            larger = self._grown(state, space)
            if larger is space:
                break
            space = larger
        state = replace(state, space=space)
        if not state.prior.guessed:
            return state
        least = _OF_TOP * float(space.spectrum[0].max())  # not far below the fixed point
        return replace(state, prior=state.prior.with_precision(state.prior.precision.clamp_min(least)))

    def _space_that_tells(self, state: EMState, size: float) -> tuple[KrylovSpace, Settled]:
        """The space, grown until alpha is known as well as it matters now, and where alpha goes by it."""
        tolerance, space, used = self.task.em.tolerance, state.space, float(state.prior.precision[0])
        factor = tolerance_factor(state.last_change, tolerance)
        assert space is not None
        while True:
            slope = self._slope(state, space, size)
            problem = replace(self._fixed_point(state, space), mode_size=(used, size, slope))
            found = problem.solved(used, used / _FURTHEST_DOWN)
            known = found.precision_error.truncation <= tolerance / 2 * factor
            if known and space.iterations >= FEWEST_ITERATIONS:
                return space, found
            if factor > 1 and found.hyper.ratio < used / _FAR_ENOUGH:  # the mode here says little about so far away
                return space, found
            larger = self._grown(state, space)
            if larger is space:
                return space, found
            space = larger

    def _first_space(self, state: EMState) -> KrylovSpace:
        """The space as it is, or the whole range of M where the problem is small."""
        assert state.space is not None
        if state.space.exact or not self.task.route.exact_traces:
            return state.space
        return grown_to_range(self.task, state.model, state.space, unseen_draws(self.task), state.label)

    def _needs_exact(self, state: EMState, space: KrylovSpace, found: Settled) -> bool:
        """Whether the probes, and not the space, keep the noise from being known to EM's tolerance."""
        if space.exact or not state.model.likelihood.learns_noise or not self.task.route.exact_if_needed:
            return False
        if has_settled(self.task.em.tolerance, 0.0, found.truncation):
            return found.noise_error.standard_error > self.task.em.tolerance
        return self._is_full(space)

    def _fixed_point(self, state: EMState, space: KrylovSpace) -> FixedPoint:
        likelihood = state.model.likelihood
        return FixedPoint(
            space, self.task.em_samples, learn_prior=state.prior.learn, precision=float(state.prior.precision[0]),
            learn_noise=likelihood.learns_noise, target_size=self.task.target_size(likelihood),
            noise_factor=state.noise_factor, entries=self.task.survey.entries,
        )  # fmt: skip

    def _grown(self, state: EMState, space: KrylovSpace) -> KrylovSpace:
        """One iteration more, if the space is not whole and memory allows."""
        if space.complete or self._is_full(space):
            return space
        self.task.say(f"{state.label}Krylov space of {len(space.basis) + len(space.following)} vectors")
        return space.grown(state.model)

    def _is_full(self, space: KrylovSpace) -> bool:
        return len(space.basis) + len(space.following) > self.task.route.max_rows

    @property
    def _finest(self) -> float:
        """|mode|^2 is off by about twice the error of the mode at worst, which leaves half of the tolerance."""
        return min(self.task.em.mode_tolerance, self.task.em.tolerance / 4)

    def _mode(self, state: EMState) -> Mode:
        """|mode|^2 need only be known a few times better than alpha was moving."""
        moved = _SHARE * state.trace[-1].change if state.trace else _COARSEST
        jumped = bool(state.trace) and float(state.prior.precision[0]) > _AFRESH * state.trace[-1].precision[0]
        return linear_mode(
            state.model, state.prior.diagonal, self.preconditioner(state), guess=None if jumped else state.mode,
            tolerance=max(self._finest, min(_COARSEST, moved)), say=lambda text: self.task.say(state.label + text),
        )  # fmt: skip

    def _slope(self, state: EMState, space: KrylovSpace, size: float) -> float:
        """d log |mode|^2 / d log alpha: by a secant to the last mode found at another alpha.

        At the first mode it is taken for that of gamma: the update is then MacKay's own, which needs no such guess.
        """
        used = float(state.prior.precision[0])
        for row in reversed(state.trace):
            before = row.precision[0]
            if abs(log(used / before)) > 0.02:  # nearer, the modes' errors would hide the change
                old = row.mode_norm**2 / before
                return min(max(log(size / old) / log(used / before), -1.9), 0.0)
        probes = self.task.em_samples
        here, there = (float(gamma(space.quadrature, a)[:probes].mean()) for a in (used, 1.1 * used))
        return log(there / here) / log(1.1)

    def _row(
        self, state: EMState, space: KrylovSpace, found: Settled, change: float, truncation: float, norm: float,
        mode_error: float = 0.0,
    ) -> EMStep:  # fmt: skip
        noise, used = state.model.likelihood.noise_precision, float(state.prior.precision[0])
        determined = estimated(space, self.task.em_samples, gamma, used / state.noise_factor)
        return EMStep(
            precision=[used],
            updated_precision=[found.hyper.precision],
            noise_precision=None if noise is None else (noise * state.noise_factor).tolist(),
            effective_dimension=[determined.value],
            effective_dimension_error=[determined.standard_error],
            mode_norm=norm,
            change=change,
            passes=space.iterations - sum(row.passes for row in state.trace),
            mode_error=mode_error,
            truncation=min(truncation, _UNKNOWN),
        )


def _scaled(sketch: Sketch, factor: float) -> Sketch:
    return Sketch(sketch.basis, sketch.gram * factor, sketch.tail * factor)


def _galerkin(space: KrylovSpace, rhs: RightHandSide, precision: Tensor, factor: float) -> Start:
    """(f M + A) z = b in the space of M: (M + A / f) z = b / f."""
    value, image = space.galerkin(rhs.total / factor, precision / factor)
    return Start(value, image * factor)
