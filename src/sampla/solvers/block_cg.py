"""Preconditioned block conjugate gradients: all right-hand sides share one Krylov space.

O'Leary 1980 in the form of Dubrulle 2001 (BCGrQ), in the inner product of P^-1: the block residual is kept as R = C' Q
with Q P^-1 Q' = I, so that columns that converge or become dependent do no harm. Q has as many rows as the block has
rank, and that only falls. One pass, with S = P^-1 Q and search directions D:

    G = D H D',    Z <- Z + C' G^-1 D,    T' Q_new = Q - G^-1 D H,    C_new = T C,    D_new = S_new + T D.

Whatever has no P entries is on the CPU, and a pass reads it off an accelerator in four copies: G, which tells whether
H is positive; Gram matrices whose eigenvectors tell the rank, twice (core/blocks.py); and what the error is told by.
"""

from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor

from sampla.core.blocks import dots, gram, on_host, orthonormal_pair
from sampla.core.noise import PROBE, standard_normal
from sampla.solvers._base import INDEFINITE, NOT_FINITE, SLACK, Iterate, LinearSystem, RightHandSide, Solver, Start

_WINDOW = 4
"""Passes over which the rate of convergence is measured."""
_SLOWEST = 0.99
"""Largest rate (of squares) that is believed."""
_TRUST = 1.5
"""By which factor the extrapolated error may be below what has been measured or proved."""
_RELIABLE = 0.3
"""The error is known once so small a part of it is extrapolated: a tenth of its square."""
_MOST = 30
"""Products that one measurement of the error may cost."""
_FEW, _PART = 4, 4
"""Products, and part of a pass, whichever is more, that it may cost from then on to prove that nothing is hidden."""
_BRACKET = 3.0
"""By how much the error proved may exceed the error found for these products not to be spent."""
_PATIENCE = 0.5
"""Power of what was lacking in a proof by which the squared residual must fall before the next attempt."""
_FADING = 0.5
"""Power a pass by which the last measurement's correction of the cheap estimate fades: plateaus end."""
_TINY = 1e-300
_DRIFT = 4.0
"""Rounding errors a pass by which the recurred residual departs from the true one."""
_FAR = 10.0
"""A start whose residual is so many times as large as the right-hand side is further from the solution than zero."""


@dataclass(frozen=True)
class Pass:
    """What one pass did to each column; (K,) float64."""

    residual: Tensor
    """|r|^2 before, in the norm of P^-1."""
    energy: Tensor
    """|dz|_H^2."""
    curvature: Tensor
    """|dz|_M^2."""


@dataclass(frozen=True)
class BlockCGState:
    """The iterate, its residual and the next search directions, vectors as rows; all else on the CPU in float64."""

    value: Tensor
    """(K, P) Z."""
    basis: Tensor
    """(m, P) Q of the residual R = B - H Z = C' Q, Q P^-1 Q' = I."""
    factor: Tensor
    """(m, K) C."""
    direction: Tensor
    """(m, P) D."""
    drift: Tensor
    """() a square: how far rounding may have taken the recurred residual from the true one, in the norm of P^-1."""
    scale: Tensor
    """(K,) |b|, in the norm of P^-1."""
    start: float
    """|R|^2 when it was last computed from its definition."""
    size: Tensor
    """(K,) |z|_M^2."""
    bound: Tensor
    """(K,) no error |z - z*|_M^2 is larger."""
    weakest: float
    """A lower bound, near enough, of the eigenvalues of P^-1 H: what a unit of residual can mean at worst."""
    recent: tuple[Pass, ...] = ()
    """The last passes since the residual was last computed from its definition."""
    stuck: bool = False
    complaint: str = ""
    """Why there is no next iterate."""
    correction: float = 1.0
    """The error measured last over its cheap estimate, fading with the passes since."""
    checks: int = 0
    """How many times the error has been measured."""
    check_products: int = 0
    """What that has cost."""
    checked: bool = False
    """Whether the error has been measured at this very iterate."""
    limit: float = inf
    """No error |z - z*|_M^2 of the block is larger, as far as the measurement of this very iterate tells."""
    hold: float = inf
    """|R|^2 above which another measurement would not tell enough either."""


@dataclass(frozen=True)
class BlockCG(Solver[BlockCGState]):
    """Block conjugate gradients (the default solver): no step size, K columns help one another.

    The error |z - z*|_M is ESTIMATED after each pass and MEASURED where the solve would stop.

    The estimate: each later step is taken to be as long, for the residual before it, as the last one was, and
    residuals to go on falling as they have lately, so that with q = |dz|_M^2 / |r_before|^2 of the last step and rate
    rho of the squared residuals the missing |z - z*|_M^2 is q |r|^2 / (1 - rho). It is not believed outside
    [U/2.25, U], where U is the smaller of the missing part ONE PASS AGO (the same plus |dz|_M^2, which has been
    measured) and what the residual proves: H^-1 M H^-1 <= A^-1 / 4, so that |z - z*|_M^2 <= r' A^-1 r / 4.

    The measurement (``certify``): the columns of the residual are added with random signs, r_s = sum_k s_k r_k, and
    H e = r_s is solved by the same iteration, one vector a product, until the rest is estimated at 0.3 of |e|_M: mostly
    3 to 6 products. Then E|e|_M^2 = sum_k |z_k - z*_k|_M^2, times sum_k |r_k|^2 / |r_s|^2, which
    takes out most of the chance in the signs. A measured error above the tolerance corrects the estimate from there
    on, fading with the passes, until that is below the tolerance again. Errors that rounding hides are not measured.

    The proof: where the prior is weak, directions of small eigenvalues may hold an error that residual and measurement
    do not show yet: a plateau. A solve has converged only when 1.5 times the tolerance cannot be exceeded, either
    because r' A^-1 r / 4 of the whole block is so small, which is rigorous, or because |e_j|_M + |r_j|_{A^-1} / 2 is,
    with e_j and r_j what the measurement has solved and left; that holds for the random combination, so for the block
    up to the chance in the signs. The measurement may go on for a quarter of a pass for it (and to know its own result
    within a factor 3); if that is not enough the block goes on, and does not try again before its residual has fallen
    by the square root of what was missing.

    What it is worth, on random systems (tests/random_systems.py, 200, 100 and 200 seeds that nothing was tuned on):
    with a prior precision of lambda_max / 3 to lambda_max / 1,000, lambda_max the largest eigenvalue of M, the error
    stated is within a factor 1.5 of the truth in 97 % and never below 0.4 of it. The measurement costs a quarter to a
    third of a pass with 16 columns, 0.05 to 0.1 with 64, but five to eight passes with one; the proof next to nothing.
    With lambda_max / 1,000 to lambda_max / 100,000: within 1.5 in 90 %, never below a third, and the proof costs
    15 to 35 % more passes. The true error was as small as was asked in 99 % of all, and always below 1.5 times that.

    Rounding makes the recurred residual depart from the true one. When it has become as small as this may be, or this
    as large as the right-hand side (the iteration diverges), it is computed from its definition, which costs a pass;
    two such passes without progress between them end the solve.
    """

    uses_start = True
    krylov_e_step = True

    def init(self, system: LinearSystem, rhs: RightHandSide, guess: Start | None) -> BlockCGState:
        total, inverse = rhs.total, system.inverse
        (scale,) = on_host(dots(total, inverse.solve(total)).clamp_min(0).sqrt())
        if guess is None:
            return _started(system, rhs, torch.zeros_like(total), total, scale)
        residual = (total - guess.curvature_value).addcmul_(system.precision, guess.value, value=-1)
        (length,) = on_host(dots(residual, inverse.solve(residual)).sqrt())
        usable = length <= _FAR * scale  # NaN is not
        if not bool(usable.all()):
            usable = usable[:, None].to(total.device)
            start, residual = torch.where(usable, guess.value, 0), torch.where(usable, residual, total)
            return _started(system, rhs, start, residual, scale)
        return _started(system, rhs, guess.value, residual, scale)

    def step(self, system: LinearSystem, rhs: RightHandSide, state: BlockCGState) -> BlockCGState:
        if len(state.basis) == 0 and not state.recent:  # the start solves the system
            return state
        if len(state.basis) == 0 or min(_size_of(state.factor), state.scale.square().sum()) <= state.drift:
            return _recomputed(system, rhs, state)
        pushed = system.product(state.direction)
        direction_gram, prior = on_host(
            gram(state.direction, pushed), gram(state.direction, state.direction, system.precision)
        )
        complaint, root = _root(direction_gram, system)
        if root is None:
            if complaint or not state.recent:
                return replace(state, complaint=complaint or INDEFINITE)
            return _recomputed(system, rhs, state)
        remainder = torch.addmm(state.basis, _like(torch.cholesky_inverse(root), pushed), pushed, alpha=-1)
        del pushed
        return _moved(system, rhs, state, remainder, direction_gram, prior, root)

    def error(self, state: BlockCGState) -> float:
        if state.complaint:
            return float("nan")
        missing, size = float(_missing(state).sum()), float(state.size.sum())
        if size == 0:  # only a residual of zero is solved by z with phi z = 0
            return 0.0 if missing == 0 and not bool(state.factor.any()) else float("inf")
        return state.correction * float((missing / size) ** 0.5)

    def certify(self, system: LinearSystem, rhs: RightHandSide, state: BlockCGState, tolerance: float) -> BlockCGState:
        """Measure the error of this iterate, unless that is done, rounding hides it or it would prove nothing."""
        residual = float(_size_of(state.factor))
        target = (SLACK * tolerance) ** 2 * float(state.size.sum())
        proved = float(state.bound.sum()) <= target
        hidden = residual <= float(state.drift)
        posed = (
            None
            if state.checked or hidden or not (proved or residual <= state.hold)
            else _error_system(system, rhs, state)
        )
        if posed is None:
            return state
        error_rhs, probe = posed
        # E|e_s|_M^2 = sum_k |e_k|_M^2 for random signs s. That the combined residual is longer or shorter than the same
        # sum says is known, and tells most of the chance: the ratio estimator |e_s|_M^2 sum_k |r_k|^2 / |r_s|^2.
        blind, share = _blind(state), (residual + float(state.drift)) / probe.start
        products, most, found, limit = 0, _MOST, 0.0, inf
        while products < most and not probe.stuck:
            probe = self.step(system, error_rhs, probe)
            products += 1
            if probe.complaint:  # what is wrong with M is wrong for the iterate too
                return replace(state, complaint=probe.complaint)
            found, limit = share * float(probe.size.sum()), _limit(probe, share, blind)
            if self.error(probe) <= _RELIABLE:
                most = min(most, products + max(_FEW, len(state.basis) // _PART))
                if found > target / SLACK**2 or ((proved or limit <= target) and limit <= _BRACKET**2 * found):
                    break
        lacking = max(limit / target, 1.0) if target > 0 else 1.0
        return replace(
            state, correction=_over_cheap(state, found), limit=limit, hold=residual / lacking**_PATIENCE,
            checks=state.checks + 1, check_products=state.check_products + products, checked=True,
        )  # fmt: skip

    def proved(self, state: BlockCGState) -> float:
        size, most = float(state.size.sum()), min(state.limit, float(state.bound.sum()))
        return (most / size) ** 0.5 if size > 0 else self.error(state)

    def stagnated(self, state: BlockCGState) -> bool:
        return state.stuck

    def complaint(self, state: BlockCGState) -> str:
        return state.complaint

    def solution(self, system: LinearSystem, rhs: RightHandSide, state: BlockCGState) -> Iterate:
        curvature_value = rhs.total.addmm_(_like(state.factor.mT, state.basis), state.basis, alpha=-1)
        curvature_value.addcmul_(system.precision, state.value, value=-1)
        relative = _missing(state) / torch.where(state.size > 0, state.size, torch.ones_like(state.size))
        return Iterate(
            state.value, curvature_value, errors=state.correction * relative.sqrt().to(state.value.device),
            check_products=state.check_products,
        )  # fmt: skip


def _root(direction_gram: Tensor, system: LinearSystem) -> tuple[str, Tensor | None]:
    """Cholesky's factor of G; without one, the reason, empty if rounding explains it."""
    if not bool(direction_gram.isfinite().all()):
        return NOT_FINITE, None
    direction_gram = (direction_gram + direction_gram.mT) / 2
    root, info = torch.linalg.cholesky_ex(direction_gram)
    if int(info) == 0:
        return "", root
    lowest = torch.linalg.eigvalsh(direction_gram)[0]
    return ("" if lowest > -_rounding(direction_gram, system) else INDEFINITE), None


def _rounding(direction_gram: Tensor, system: LinearSystem) -> Tensor:
    """Negative curvature that rounding explains."""
    return 1e3 * system.model.rounding * direction_gram.diagonal().abs().max()


def _error_system(
    system: LinearSystem, rhs: RightHandSide, state: BlockCGState
) -> tuple[RightHandSide, BlockCGState] | None:
    """H e = r, r the sum of the residual's columns with random signs, to be solved from e = 0; None if r is zero.

    It goes on along the same combination of the present search directions, which are H-conjugate to the ones before:
    for one column these are the very next passes.
    """
    columns, turn = state.factor.shape[1], state.checks
    signs = standard_normal(rhs.seed, PROBE, range(turn, turn + 1), 0, (columns,), state.factor).sign()
    mix = state.factor @ signs.mT
    length = mix.norm()
    if not float(length) > 0:
        return None
    shares = _like((mix / length).mT, state.basis)
    basis = shares @ state.basis
    residual = _like(length, basis) * basis
    zero, square = length.new_zeros(1), length.square()
    start = BlockCGState(
        torch.zeros_like(basis), basis, length.reshape(1, 1), shares @ state.direction, _drift(system) * square,
        length.reshape(1), float(square), zero, square.new_full((1,), torch.inf), state.weakest,
    )  # fmt: skip
    return RightHandSide(residual, torch.zeros_like(residual), 0, rhs.seed), start


def _limit(probe: BlockCGState, share: float, blind: float) -> float:
    """What the whole error may be: what the probe has solved, what its residual leaves open, what rounding hides."""
    parts = (share * float(probe.size.sum()), share * float(probe.bound.sum()), blind)
    return float(sum(part**0.5 for part in parts)) ** 2


def _blind(state: BlockCGState) -> float:
    """|z - z*|_M^2 that may stem from the recurred residual not being the true one."""
    return float(state.drift) / (4 * max(state.weakest, _TINY))


def _over_cheap(state: BlockCGState, found: float) -> float:
    """The error of the block that has been found over the cheap estimate."""
    cheap = float(_missing(state).sum())
    return (min(found, float(state.bound.sum())) / cheap) ** 0.5 if cheap > 0 else 1.0


def _started(system: LinearSystem, rhs: RightHandSide, value: Tensor, residual: Tensor, scale: Tensor) -> BlockCGState:
    """The state at an iterate whose residual has been computed from its definition."""
    weakest = (system.precision / (system.diagonal + system.precision)).min()
    finite, weakest = on_host(residual.isfinite().all(), weakest)
    if not bool(finite):
        empty, none = residual[:0], scale.new_zeros(0, len(scale))
        zero = scale.new_zeros(len(scale))
        return BlockCGState(value, empty, none, empty, zero.sum(), scale, 0.0, zero, zero, 0.0, complaint=NOT_FINITE)
    basis, dual, factor = orthonormal_pair(residual, system.inverse.solve, scale)
    terms = scale.square().sum() + _size_of(factor)  # the residual is a difference of b and of H z = b - r
    state = BlockCGState(
        value, basis, factor, dual, _drift(system) * terms, scale, float(_size_of(factor)), scale, scale, float(weakest)
    )
    return _measured(system, rhs, state)


def _moved(
    system: LinearSystem, rhs: RightHandSide, state: BlockCGState, remainder: Tensor, direction_gram: Tensor,
    prior: Tensor, root: Tensor,
) -> BlockCGState:  # fmt: skip
    """One pass of the recurrences, from Q - G^-1 D H, G, D A D' and the root of G."""
    weights = torch.cholesky_solve(state.factor, root)  # (m, K)
    energy, prior_energy = (weights * (direction_gram @ weights)).sum(0), (weights * (prior @ weights)).sum(0)
    if bool((energy - prior_energy < -_rounding(direction_gram, system) * weights.square().sum(0)).any()):
        return replace(state, complaint=INDEFINITE)  # of M, although H may still be positive
    try:
        basis, dual, change = orthonormal_pair(remainder, system.inverse.solve, torch.ones(len(remainder)))
    except ArithmeticError:
        return replace(state, complaint=NOT_FINITE)
    direction = torch.addmm(dual, _like(change, dual), state.direction)
    del dual  # a block of K vectors is much memory
    done = Pass(state.factor.square().sum(0), energy, (energy - prior_energy).clamp_min(0))
    moved = replace(
        state,
        value=torch.addmm(state.value, _like(weights.mT, state.value), state.direction),
        basis=basis,
        factor=change @ state.factor,
        direction=direction,
        drift=state.drift + _drift(system) * done.residual.sum(),
        recent=(*state.recent, done)[-_WINDOW:],
        correction=state.correction**_FADING,
        checked=False,
        limit=inf,
    )
    return _measured(system, rhs, moved)


def _recomputed(system: LinearSystem, rhs: RightHandSide, state: BlockCGState) -> BlockCGState:
    """Start again from the true residual; stuck if it has not fallen since it was last computed."""
    curvature = system.model.curvature_product(state.value, system.stride)
    residual = rhs.total.sub_(curvature).addcmul_(system.precision, state.value, value=-1)
    del curvature
    again = _started(system, rhs, state.value, residual, state.scale)
    if again.complaint:
        return replace(state, complaint=again.complaint)
    return replace(
        again, recent=state.recent[-1:], stuck=len(again.basis) == 0 or again.start > state.start / 4,
        correction=state.correction, checks=state.checks, check_products=state.check_products,
        hold=state.hold,
    )  # fmt: skip


def _measured(system: LinearSystem, rhs: RightHandSide, state: BlockCGState) -> BlockCGState:
    """With |z|_M^2 = z'(b - r - A z), and the bound H^-1 M H^-1 <= A^-1 / 4."""
    value, basis, precision = state.value, state.basis, system.precision
    along_data, along_prior, inside, shared, spread = on_host(
        dots(value, rhs.data_part), dots(value, rhs.prior_part), dots(value, value, precision), gram(basis, value),
        gram(basis, basis, precision.reciprocal()),
    )  # fmt: skip
    size = along_data + along_prior - (state.factor * shared).sum(0) - inside
    bound = (state.factor * (spread @ state.factor)).sum(0) / 4
    bound = bound + state.drift / max(len(bound), 1) / (4 * max(state.weakest, _TINY))
    return replace(state, size=size.clamp_min(0), bound=torch.nan_to_num(bound, nan=torch.inf))


def _missing(state: BlockCGState) -> Tensor:
    """(K,) estimate of |z - z*|_M^2 (class docstring), rates and step lengths being those of the whole block."""
    if not state.recent:
        return state.bound
    last, first = state.recent[-1], state.recent[0]
    left = state.factor.square().sum(0) + state.drift / len(state.size)
    rate = float(left.sum() / first.residual.sum().clamp_min(_TINY)) ** (1 / len(state.recent))
    reach = last.curvature.sum() / last.residual.sum().clamp_min(_TINY)
    later = left * reach / (1 - min(rate, _SLOWEST))
    most = torch.minimum(last.curvature + later, state.bound)
    return most if len(state.recent) < 2 else later.clamp(most / _TRUST**2, most)


def _like(small: Tensor, block: Tensor) -> Tensor:
    """Where the block is and in its dtype; an accelerator need not have come to it before the CPU goes on."""
    return small.to(block, non_blocking=True)


def _size_of(factor: Tensor) -> Tensor:
    return factor.square().sum()


def _drift(system: LinearSystem) -> float:
    """The square by which products leave the recurred residual uncertain, relative to what it is made of."""
    return float((_DRIFT * system.model.rounding) ** 2)
