"""The table of solvers: one line each.

A factory takes a Problem and returns a Contestant: solver, system, K. What it spends through ``problem.model`` is
counted as passes already spent; ``spent=`` states it otherwise. None: the solver does not apply to this problem.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.solvers.measure import Contestant, Entry
from benchmarks.solvers.problem import SEED, Problem
from sampla.inference.krylov import KrylovSpace, krylov_space
from sampla.inference.quadrature import estimated, gamma
from sampla.solvers import SGD, BlockCG, DualDescent, Minibatch, Solver, growing_guess
from sampla.solvers._base import Iterate, LinearSystem, RightHandSide, Start
from sampla.solvers._preconditioners import SubsetInverse, nystrom

GRID = (1 / 27, 1 / 9, 1 / 3, 1.0, 3.0)  # step sizes of SGD, in units of the one that its power iteration finds
SGD_COLUMNS = 4  # they know nothing of one another: a few show what all would; minibatches are then of 128 data
RANK = 64  # of the Nystrom sketch
_PROBES, _ROWS = 8, 256  # of EM's Krylov space: how many probes, and how many vectors at most
_SETTLED = 0.005  # relative truncation error of gamma at which EM, asked for one per cent, stops its growth
_DEFAULT = BlockCG()
_ALL, _LARGE, _SMALL = ("spectra", "mnist", "resnet"), ("spectra", "mnist"), ("resnet",)


State = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Value, residual b - H z and direction, all (K, P); r' D^-1 r now and at the start, both (K,)."""


@dataclass(frozen=True)
class SeparateCG(Solver[State]):
    """Jacobi-preconditioned conjugate gradients (Hestenes and Stiefel 1952), each column in a Krylov space of its own.

    The columns share the pass over the data and nothing else. The error stated is the relative residual in the norm of
    the preconditioner, which is what ordinary implementations stop on.
    """

    def init(self, system: LinearSystem, rhs: RightHandSide, guess: Start | None) -> State:
        assert guess is None
        preconditioned = rhs.total / (system.diagonal + system.precision)
        size = (rhs.total * preconditioned).sum(1)
        return torch.zeros_like(rhs.total), rhs.total, preconditioned, size, size

    def step(self, system: LinearSystem, rhs: RightHandSide, state: State) -> State:  # noqa: ARG002
        value, residual, direction, size, first = state
        pushed = system.product(direction)
        length = _safe(size, (direction * pushed).sum(1))
        residual = residual - length * pushed
        preconditioned = residual / (system.diagonal + system.precision)
        following = (residual * preconditioned).sum(1)
        after = preconditioned + _safe(following, size) * direction
        return value + length * direction, residual, after, following, first

    def error(self, state: State) -> float:
        return float((state[3] / state[4]).mean().sqrt())

    def solution(self, system: LinearSystem, rhs: RightHandSide, state: State) -> Iterate:
        value, residual = state[:2]
        return Iterate(value, rhs.total - residual - system.precision * value)


def _safe(top: Tensor, bottom: Tensor) -> Tensor:
    """(K, 1) top / bottom, and zero for a column that has converged to the last bit."""
    return torch.where(bottom > 0, top / bottom.clamp_min(torch.finfo(bottom.dtype).tiny), 0.0)[:, None]


def paper_sgd(problem: Problem) -> list[Contestant]:
    """Nesterov 0.9, regulariser objective, geometric averaging: the product that its error bound takes is not counted.

    The solver states a rigorous bound, often several times the true error.
    """
    columns, system = SGD_COLUMNS, problem.system
    automatic = problem.measured_free(lambda: SGD().init(system, problem.rhs(columns), None).step_size)
    return [
        Contestant(SGD(step_size=automatic * factor), system, columns, free=1.0, spent=0.0, reference=True)
        for factor in GRID
    ]


def separate_cg(problem: Problem) -> Contestant:
    """One right-hand side at a time."""
    return Contestant(SeparateCG(), problem.system, SGD_COLUMNS, reference=True)


def plain(problem: Problem, columns: int, solver: Solver[Any] = _DEFAULT) -> Contestant:
    """A solver of the library on the system as it is."""
    return Contestant(solver, problem.system, columns)


def nystrom_cg(problem: Problem, columns: int, stride: int = 1) -> Contestant:
    """Block CG with a Nystrom sketch of all data, or of every stride-th piece; the sketch counts."""
    sketch = nystrom(problem.model, RANK, SEED, stride).at(problem.precision)
    return Contestant(BlockCG(), replace(problem.system, preconditioner=sketch), columns)


def subset_cg(problem: Problem, columns: int) -> Contestant:
    """Block CG preconditioned by the inverse on a third of the data, whose inner products count."""
    inverse = SubsetInverse(problem.model, problem.precision, problem.draw.diagonal, stride=3)
    return Contestant(BlockCG(), replace(problem.system, preconditioner=inverse), columns)


def recycled_cg(problem: Problem, columns: int) -> Contestant:
    """Block CG on the Krylov space of M that EM would have built for gamma: its start and its preconditioner."""
    space, products = _krylov(problem)
    rhs = problem.rhs(columns)
    value, curvature_value = space.galerkin(rhs.total, problem.precision)
    guess = Start(value, curvature_value)
    system = replace(problem.system, preconditioner=space.sketch().at(problem.precision))
    return Contestant(BlockCG(), system, columns, guess=guess, spent=0.0, elsewhere=products / columns)


def growing_cg(problem: Problem, columns: int) -> Contestant:
    """Block CG from the solutions on an eighth, a quarter, half of the data, all counted."""
    before = problem.products
    guess = growing_guess(BlockCG(), problem.system, problem.rhs(columns))
    guess = replace(guess, curvature_value=problem.model.curvature_product(guess.value), curvature_exact=True)
    spent = (problem.products - before) / columns
    return Contestant(BlockCG(), problem.system, columns, guess=guess, spent=spent)


def _krylov(problem: Problem) -> tuple[KrylovSpace, float]:
    """The space as EM builds it, from eight columns of noise until gamma has settled; built once for each problem."""
    if "krylov" not in problem.reusable:
        before = problem.products
        space = krylov_space(problem.draw.data_part[:_PROBES])
        while not space.complete and len(space.basis) < _ROWS:
            space = space.grown(problem.model)
            found = estimated(space, _PROBES, gamma, problem.alpha)
            if space.iterations > 2 and found.truncation <= _SETTLED * found.value:
                break
        problem.reusable["krylov"] = space, problem.products - before
    return problem.reusable["krylov"]


def _at(columns: int, name: str, factory: Any, parts: tuple[str, ...], max_steps: int = 60, **options: Any) -> Entry:
    """A line with K columns; the solver does not apply where the problem has fewer."""

    def build(problem: Problem) -> Contestant | None:
        known = len(problem.draw.data_part)
        return factory(problem, columns=columns, **options) if columns <= known else None

    return Entry(f"{name}, K = {columns}", build, parts, max_steps)


_SPECTRA = ("spectra",)
_NYSTROM, _KRYLOV = f"block CG + Nyström {RANK}", "block CG + EM's Krylov space"
_MINIBATCH = "minibatch steps between exact residuals"
TABLE: list[Entry] = [
    Entry("SGD (the paper's)", paper_sgd, _ALL, max_steps=12, reference=True),
    Entry("CG, one column at a time", separate_cg, _ALL, max_steps=40, reference=True),
    _at(8, "block CG", plain, _SMALL),
    _at(16, "block CG", plain, _ALL),
    _at(64, "block CG", plain, _LARGE),
    _at(8, _NYSTROM, nystrom_cg, _SMALL),
    _at(16, _NYSTROM, nystrom_cg, _LARGE),
    _at(64, _NYSTROM, nystrom_cg, _SPECTRA),
    _at(16, f"{_NYSTROM} (10 % of the data)", nystrom_cg, _SPECTRA, stride=10),
    _at(16, "block CG + inverse on a third of the data", subset_cg, _SPECTRA, 12),
    _at(8, _KRYLOV, recycled_cg, _SMALL),
    _at(16, _KRYLOV, recycled_cg, _ALL),
    _at(64, _KRYLOV, recycled_cg, _LARGE),
    _at(16, "block CG from growing subsets", growing_cg, _SPECTRA, 20),
    _at(8, "stochastic dual descent", plain, _SMALL, 12, solver=DualDescent()),
    _at(8, _MINIBATCH, plain, _SMALL, 12, solver=Minibatch()),
    _at(16, _MINIBATCH, plain, _SPECTRA, 12, solver=Minibatch()),
]
