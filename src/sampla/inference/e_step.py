"""What an E-step is, and what the two of them share.

An E-step tells what the posterior at the present hyperparameters determines: gamma and the mode, of which MacKay's
updates are made (mackay.py). There are three: one Krylov space of M for all hyperparameters (krylov_step.py), one for
each B where that is taken at the linear mode (moving_step.py), and a few posterior samples at each step
(sampled_step.py). The loop (infer.py) runs any of them by the methods ``start``, ``step`` and ``finish``.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sampla.core.noise import PRIOR, standard_normal
from sampla.inference.exact import grown_to_range
from sampla.inference.krylov import KrylovSpace
from sampla.inference.quadrature import Estimate, estimated, log_determinant
from sampla.inference.state import EMState, Seeds, Task
from sampla.model import LinearModel
from sampla.solvers import Jacobi, LinearSystem, ModeSearch, Preconditioner, RightHandSide, Sketch, Solution, Start

FEWEST_ITERATIONS = 3
"""Iterations of a Krylov space before the change of an estimate says anything about its error."""
_SHARE = 0.5
"""Truncation error of the log determinant allowed, in standard errors."""


@dataclass(frozen=True)
class FinalProblem:
    """What the final solve is given by an E-step, once the hyperparameters are known."""

    state: EMState
    """With the model of the final noise."""
    system: LinearSystem
    rhs: RightHandSide
    """K samples, and for a quadratic likelihood the mean behind them."""
    start: Start | None
    """Where the solve starts; None: at zero."""
    scale: Tensor | None = None
    """(P,) unit of the coordinates of system, right-hand side and start; None: they are those of the model."""
    determinant: Estimate | None = None
    """log det(I + A^-1 M), where a Krylov space tells it."""
    effective_dimension: Tensor | None = None
    """(P,) diagonal of H^-1 M, where a Krylov space holds the whole range of M."""
    gamma: Estimate | None = None
    """Its trace alone, where that is known better than the samples tell it."""
    sketch: Sketch | None = None
    """Of M in the coordinates of the system, which it is preconditioned by."""
    solution: Solution | None = None
    """Where the samples have been solved for already."""
    search: ModeSearch | None = None
    """For the mode that is still wanted: it goes along with the solve, and ends after it."""


class EStep(ABC):
    """One way to learn what the data determine at the present hyperparameters, for one fit."""

    def __init__(self, task: Task) -> None:
        """Args: task: what stays the same over the steps."""
        self.task = task

    @abstractmethod
    def start(self, state: EMState) -> EMState:
        """The state before the first step, or that of a loop which was stopped, ready for the next step."""

    @abstractmethod
    def step(self, state: EMState) -> EMState:
        """One EM step: E-step, mode, and MacKay's updates, with one row more in the trace."""

    @abstractmethod
    def finish(self, state: EMState) -> FinalProblem:
        """What the final solve of K samples needs, with all that EM has learnt about M."""

    def with_mode(self, state: EMState) -> EMState:
        """The state with the linear mode at its hyperparameters, and with an error that has been measured.

        EM's last mode belongs to the alpha before the last update; where none has been found, one is only if the
        evidence needs it.
        """
        search = self.final_search(state)
        return state if search is None else replace(state, mode=search.found())

    def final_search(self, state: EMState) -> ModeSearch | None:
        """The search for the mode that ``with_mode`` needs; None where none is wanted."""
        wanted = state.mode is not None or self.task.route.log_evidence
        if state.model.likelihood.is_quadratic or not wanted:
            return None
        return ModeSearch(
            state.model, state.prior.diagonal, self.preconditioner(state), guess=state.mode,
            tolerance=self.task.em.mode_tolerance, check=True, say=lambda text: self.task.say("final mode: " + text),
        )  # fmt: skip

    def preconditioner(self, state: EMState) -> Preconditioner:
        """What is near the Hessian at the mode: the Krylov space once there is one, the diagonal before."""
        if state.space is None or state.space.iterations == 0:
            return Jacobi(self.task.draw.diagonal + state.prior.diagonal)
        return state.space.sketch().at(state.prior.diagonal)

    def space_for_determinant(
        self, space: KrylovSpace, model: LinearModel, ratio: float, unseen: Tensor
    ) -> KrylovSpace:
        """The space, grown until the log determinant depends less on its iterations than on its probes.

        Where the problem is small it is grown to the whole range of M.

        Args:
            space: of M, from ``task.em_samples`` draws of N(0, M) as first start vectors.
            model: in whose coordinates M is meant.
            ratio: alpha over the noise's factor.
            unseen: (k, P), k >= 0, draws from N(0, M) that the space has not seen.
        """
        task = self.task
        if not space.exact and task.route.exact_traces:
            return grown_to_range(task, model, space, unseen, "log evidence: ")
        while not space.complete and len(space.basis) + len(space.following) <= task.route.max_rows:
            if space.iterations >= FEWEST_ITERATIONS:
                found = estimated(space, task.em_samples, log_determinant, ratio)
                if found.truncation <= _SHARE * found.standard_error:
                    break
            task.say(f"log evidence: Krylov space of {len(space.basis) + len(space.following)} vectors")
            space = space.grown(model)
        return space

    def determinant(self, space: KrylovSpace | None, ratio: float) -> Estimate | None:
        """log det(I + M / ratio), where the evidence needs it and there is a space."""
        if space is None or not self.task.route.log_evidence:
            return None
        return estimated(space, self.task.em_samples, log_determinant, ratio)


def right_hand_side(
    seed: int, precision: Tensor, data_part: Tensor, target: Tensor | None, seeds: Seeds = ()
) -> RightHandSide:
    """Posterior samples, and the mean of a quadratic likelihood behind them, as one block (docs/method.md, section 2).

    Args:
        seed: of the prior's noise.
        precision: (P,) the diagonal of A.
        data_part: (k, P) sum_n phi_n' S_n xi_n of k samples.
        target: (1, P) sum_n phi_n' B_n y_n, or None.
        seeds: of the prior's noise, where that is not all of the one seed.
    """
    count, root = len(data_part), precision.sqrt()
    if target is not None:
        data_part = torch.cat([data_part, target])
    prior_part = torch.zeros_like(data_part)  # A theta0 = A^(1/2) xi; the mean has none
    done = 0
    for own, number in seeds or ((seed, count),):
        rows = range(min(number, count - done))
        prior_part[done : done + len(rows)] = root * standard_normal(own, PRIOR, rows, 0, tuple(root.shape), root)
        done += len(rows)
    return RightHandSide(data_part, prior_part, count, seed)


def target_part(model: LinearModel) -> Tensor | None:
    """(1, P) sum_n phi_n' B_n y_n of a quadratic likelihood; for a tangent with y_n - f_n + J_n w in place of y_n."""
    if not model.likelihood.is_quadratic:
        return None
    return -model.loss_gradient(torch.zeros(1, model.num_parameters).to(model.features.like))[1]
