"""EM steps by a Krylov space of M, for likelihoods whose mode is searched: what those with one M, and with a new M for
every mode, share.

gamma is known for every alpha; |mode|^2 is found at one, and taken for a power of alpha near it.
"""

from collections.abc import Callable
from dataclasses import replace
from math import log

from torch import Tensor

from sampla.inference.e_step import FEWEST_ITERATIONS, EStep
from sampla.inference.exact import grown_to_range
from sampla.inference.krylov import KrylovSpace
from sampla.inference.mackay import tolerance_factor
from sampla.inference.quadrature import FixedPoint, Settled, estimated, gamma
from sampla.inference.state import EMState
from sampla.inference.trace import EMStep
from sampla.model import LinearModel
from sampla.solvers import ModeSearch, RightHandSide, Start

FURTHEST_DOWN, FURTHEST_UP = 10.0, 1e4
"""Factors by which alpha may change before the mode is found again. Downwards the space must resolve smaller
eigenvalues, and the mode's norm may grow as it likes. Upwards gamma is known; |mode|^2 is extrapolated, but it falls
more and more steeply, so that a jump usually ends short of the fixed point; and beyond it a mode costs least, and two
that enclose the fixed point tell it best."""
UNKNOWN = 10.0
"""What the trace says of an alpha that the space cannot reach yet: it may be off by more than so many times itself."""
_AFRESH = 10.0
"""Factor by which alpha must have risen for its mode to be searched from zero: it is small then, and what the search
has learnt about the loss far from zero misleads it."""
_OF_ERROR = 5.0
"""How many times the relative error of a mode log alpha must have changed since for the two modes to tell a slope."""
_FAR_ENOUGH = 2.0
"""Factor by which alpha must change for the space not to grow before the mode is found again."""


class SpaceEStep(EStep):
    """What E-steps by a Krylov space share; the space of the state is one of the M of its model."""

    def first_space(self, state: EMState, unseen: Tensor) -> KrylovSpace:
        """The space as it is, or the whole range of M where the problem is small.

        Args:
            state: its space may have no product yet.
            unseen: (k, P), k >= 0, draws from N(0, M) that the space has not seen.
        """
        assert state.space is not None
        if state.space.exact or not self.task.route.exact_traces:
            return state.space
        return grown_to_range(self.task, state.model, state.space, unseen, state.label)

    def grown(self, state: EMState, space: KrylovSpace) -> KrylovSpace:
        """One iteration more, if the space is not whole and memory allows."""
        if space.complete or self.is_full(space):
            return space
        self.task.say(f"{state.label}Krylov space of {len(space.basis) + len(space.following)} vectors")
        return space.grown(state.model)

    def is_full(self, space: KrylovSpace) -> bool:
        """Whether memory does not allow another iteration."""
        return len(space.basis) + len(space.following) > self.task.route.max_rows

    def grown_to(self, iterations: int, state: EMState, space: KrylovSpace) -> KrylovSpace:
        """The space with so many iterations at least, where it can have them."""
        while space.iterations < iterations:
            larger = self.grown(state, space)
            if larger is space:
                break
            space = larger
        return space

    def fixed_point(self, state: EMState, space: KrylovSpace) -> FixedPoint:
        """EM's map at the state's hyperparameters."""
        likelihood = state.model.likelihood
        return FixedPoint(
            space, self._probes(space), learn_prior=state.prior.learn, precision=float(state.prior.precision[0]),
            learn_noise=likelihood.learns_noise, target_size=self.task.target_size(likelihood),
            noise_factor=state.noise_factor, entries=self.task.survey.entries,
        )  # fmt: skip

    def with_mode_size(self, state: EMState, space: KrylovSpace, size: float) -> FixedPoint:
        """EM's map where the mode at the state's alpha has |mode|^2 = size."""
        slope = self._slope(state, space, size)
        return replace(self.fixed_point(state, space), mode_size=(float(state.prior.precision[0]), size, slope))

    def space_that_tells(
        self, state: EMState, size: float, tolerance: float, iterations: int = FEWEST_ITERATIONS
    ) -> tuple[KrylovSpace, Settled]:
        """The space, grown until alpha is known as well as it matters now, and where alpha goes by it.

        Args:
            state: its mode is that of its alpha.
            size: |mode|^2.
            tolerance: truncation error of log alpha allowed.
            iterations: of the space, at least.
        """
        space, used = state.space, float(state.prior.precision[0])
        hurried = tolerance_factor(state.last_change, self.task.em.tolerance) > 1
        assert space is not None
        while True:
            found = self.with_mode_size(state, space, size).solved(used, used / FURTHEST_DOWN)
            if found.precision_error.truncation <= tolerance and space.iterations >= iterations:
                return space, found
            if hurried and found.hyper.ratio < used / _FAR_ENOUGH:  # the mode here says little about so far away
                return space, found
            larger = self.grown(state, space)
            if larger is space:
                return space, found
            space = larger

    @property
    def finest(self) -> float:
        """|mode|^2 is off by about twice the error of the mode at worst, which leaves half of the tolerance."""
        return min(self.task.em.mode_tolerance, self.task.em.tolerance / 4)

    def search(
        self, state: EMState, model: LinearModel, tolerance: float | Callable[[float], float], check: bool = False
    ) -> ModeSearch:
        """A search for the mode at the state's alpha, from the last one, unless alpha has risen far from that.

        Args:
            state: with the last mode.
            model: whose mode it is.
            tolerance: relative error allowed, or a function of |mode|^2.
            check: whether its error is to be measured.
        """
        jumped = bool(state.trace) and float(state.prior.precision[0]) > _AFRESH * state.trace[-1].precision[0]
        return ModeSearch(
            model, state.prior.diagonal, self.preconditioner(state), guess=None if jumped else state.mode,
            tolerance=tolerance, check=check, say=lambda text: self.task.say(state.label + text),
        )  # fmt: skip

    def _slope(self, state: EMState, space: KrylovSpace, size: float) -> float:
        """d log |mode|^2 / d log alpha: by a secant to the last mode found at another alpha.

        At the first mode it is taken for that of gamma: the update is then MacKay's own, which needs no such guess.
        """
        used = float(state.prior.precision[0])
        for row in reversed(state.trace):
            before = row.precision[0]
            if abs(log(used / before)) > max(0.02, _OF_ERROR * (row.mode_error or 0.0)):  # errors would hide the change
                old = row.mode_norm**2 / before
                return min(max(log(size / old) / log(used / before), -1.9), 0.0)
        probes = self._probes(space)
        here, there = (float(gamma(space.quadrature, a)[:probes].mean()) for a in (used, 1.1 * used))
        return log(there / here) / log(1.1)

    def _probes(self, space: KrylovSpace) -> int:
        """How many of the space's start vectors are draws from N(0, M) that traces are estimated from."""
        return min(self.task.em_samples, space.start.shape[1])

    def row(
        self, state: EMState, space: KrylovSpace, found: Settled, change: float, truncation: float, norm: float,
        passes: int, mode_error: float = 0.0,
    ) -> EMStep:  # fmt: skip
        """The step's row of the trace.

        Args:
            state: with the hyperparameters that the step used.
            space: at its end.
            found: where they go.
            change: largest |log ratio| of the next to the used.
            truncation: how far they may still move if the space grows.
            norm: |mode|_A.
            passes: products of the space in this step.
            mode_error: relative error of the mode.
        """
        noise, used = state.model.likelihood.noise_precision, float(state.prior.precision[0])
        determined = estimated(space, self._probes(space), gamma, used / state.noise_factor)
        return EMStep(
            precision=[used],
            updated_precision=[found.hyper.precision],
            noise_precision=None if noise is None else (noise * state.noise_factor).tolist(),
            effective_dimension=[determined.value],
            effective_dimension_error=[determined.standard_error],
            mode_norm=norm,
            change=change,
            passes=passes,
            mode_error=mode_error,
            truncation=min(truncation, UNKNOWN),
        )


def galerkin_start(space: KrylovSpace, rhs: RightHandSide, precision: Tensor, factor: float = 1.0) -> Start:
    """(f M + A) z = b in the space of M: (M + A / f) z = b / f."""
    value, image = space.galerkin(rhs.total / factor, precision / factor)
    return Start(value, image * factor)
