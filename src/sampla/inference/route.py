"""Which way a fit goes: decided once, from what is asked of it, before anything is solved for.

The loop, the plan of its memory, the report and the linear models all read the same ``Route``.
"""

from dataclasses import dataclass
from typing import Any

from sampla.core.checks import require
from sampla.inference.settings import EM, CurvatureAt, Method
from sampla.likelihoods import Likelihood
from sampla.model import LinearModel
from sampla.priors import BoundPrior
from sampla.solvers import Dense, DenseDual, KrylovDual, Solver

SEARCH = 48
"""Vectors of P behind a search for the mode: twenty pairs, the point, its gradient and what a step makes of them."""


@dataclass(frozen=True)
class Route:
    """Which way a fit goes."""

    e_step: Method
    """From one Krylov space of M, from posterior samples, or from the matrix of all outputs. Also where nothing is
    learnt: it says what the final solve starts from."""
    learns: bool
    """Whether there are hyperparameters to find."""
    log_evidence: bool
    """Whether log p(y) is estimated."""
    solver_tells_determinant: bool
    """Whether log det H for it comes with the final solve, instead of from a Krylov space."""
    solver_uses_space: bool
    """Whether a Krylov space is the final solve's preconditioner and start."""
    moves_curvature: bool
    """Whether B is taken at the linear mode, and moves with it."""
    largest_rank: int
    """min(N C, P): the rank of M is at most this."""
    max_rows: int
    """Vectors of P that a Krylov space may hold."""
    exact_traces: bool
    """Whether traces are exact, without probes: a Krylov space then holds the whole range of M."""
    exact_if_needed: bool
    """Whether they become exact where the noise could not be told otherwise."""
    searches_beside: bool = False
    """Whether the last search for the mode goes along with the final solve: where vectors are small, because it holds
    some dozens of them."""

    @property
    def method(self) -> str:
        """How the hyperparameters are found, for the report: "krylov", "samples", "outputs" or "fixed"."""
        return self.e_step if self.learns else "fixed"

    @property
    def one_space(self) -> bool:
        """Whether one Krylov space of M serves EM, the log determinant and the final solve."""
        return self.e_step == "krylov" and (self.learns or self.log_evidence)

    @property
    def whitened_space(self) -> bool:
        """Whether the log determinant comes from a space of A^(-1/2) M A^(-1/2) of its own, before the final solve."""
        return self.e_step == "samples" and self.log_evidence and not self.solver_tells_determinant


def choose_route(
    model: LinearModel,
    prior: BoundPrior,
    solver: Solver[Any],
    em: EM,
    numbers: int,
    *,
    curvature_at: CurvatureAt = "network",
    log_evidence: bool | None = None,
) -> Route:
    """The route of a fit.

    Args:
        model: features and likelihood.
        prior: over the features' parameters.
        solver: for H Z = B.
        em: when and how the loop over hyperparameters stops.
        numbers: N C, every datum counted once.
        curvature_at: where the outputs lie at which B is taken.
        log_evidence: whether to estimate log p(y); None: if something is learnt, and the solver's own work tells it
            in full precision.

    Raises:
        ValueError: if EM(method="krylov") is asked for what no single Krylov space serves.
    """
    likelihood, like, size = model.likelihood, model.features.like, model.num_parameters
    learns = prior.learn or likelihood.learns_noise
    moves = curvature_at == "linear-mode" and not likelihood.is_quadratic
    possible = _shares_one_space(likelihood, prior)
    require(
        em.method != "krylov" or possible,
        "one alpha, and scalar or fixed noise, for EM(method='krylov')",
        "a model whose M changes with what is learnt, or a prior with several alphas",
        "Use EM(method='samples'), or None to choose.",
    )
    outputs = em.method == "outputs"
    require(
        not outputs or (possible and likelihood.is_quadratic and isinstance(solver, (DenseDual, KrylovDual))),
        "one alpha, scalar or fixed noise of a Gaussian and DenseDual() or KrylovDual() for EM(method='outputs')",
        f"{type(likelihood).__name__}, {len(prior.names)} alpha(s) and {type(solver).__name__}",
        "Use EM(method=None), which chooses.",
    )
    krylov = possible and em.method not in ("samples", "outputs") and (solver.krylov_e_step or em.method == "krylov")
    tells = learns and not (krylov and model.reduced) and (solver.krylov_e_step or solver.exact_determinant)
    wanted = tells if log_evidence is None else log_evidence
    rank = min(numbers, size)
    gamma_is_exact = not krylov and isinstance(solver, Dense) and not likelihood.learns_noise
    return Route(
        e_step="outputs" if outputs else "krylov" if krylov else "samples",
        learns=learns,
        log_evidence=wanted,
        solver_tells_determinant=wanted and not krylov and solver.exact_determinant,
        solver_uses_space=solver.uses_start,
        moves_curvature=moves,
        largest_rank=rank,
        max_rows=em.rows_of(like, size),
        exact_traces=em.holds_range(rank, like, size) and not (gamma_is_exact or outputs),
        exact_if_needed=em.holds_range(rank, like, size, needed=True) and not outputs,
        searches_beside=krylov and not moves and not likelihood.is_quadratic and em.holds(SEARCH, like, size),
    )


def _shares_one_space(likelihood: Likelihood, prior: BoundPrior) -> bool:
    """Whether H = f M + alpha with one M, and EM's fixed point follows from it: one alpha, and no noise to learn, or a
    scalar one of a quadratic likelihood, whose mean is in the space too."""
    fixed = not likelihood.learns_noise or (likelihood.scalar_noise and likelihood.is_quadratic)
    return len(prior.names) == 1 and fixed
