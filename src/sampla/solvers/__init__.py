"""Solvers of H z = b for many right-hand sides, behind one interface and one loop."""

from sampla.solvers._base import Iterate, LinearSystem, RightHandSide, Solution, Solver, Start, Status, solve
from sampla.solvers._mode import AtZero, Memory, Mode
from sampla.solvers._mode_search import ModeSearch
from sampla.solvers._outputs import OutputProducts
from sampla.solvers._preconditioners import Jacobi, LowRank, Preconditioner, Sketch, nystrom
from sampla.solvers._seen import Seen
from sampla.solvers.balanced import solve_balanced
from sampla.solvers.block_cg import BlockCG
from sampla.solvers.dense import Dense
from sampla.solvers.dense_dual import DenseDual, OutputKernel, output_kernel
from sampla.solvers.dual import DualDescent
from sampla.solvers.growing import growing_guess
from sampla.solvers.krylov_dual import KrylovDual, OutputBasis
from sampla.solvers.linear_mode import linear_mode
from sampla.solvers.minibatch import Minibatch
from sampla.solvers.sgd import SGD

__all__ = [
    "SGD",
    "AtZero",
    "BlockCG",
    "Dense",
    "DenseDual",
    "DualDescent",
    "Iterate",
    "Jacobi",
    "KrylovDual",
    "LinearSystem",
    "LowRank",
    "Memory",
    "Minibatch",
    "Mode",
    "ModeSearch",
    "OutputBasis",
    "OutputKernel",
    "OutputProducts",
    "Preconditioner",
    "RightHandSide",
    "Seen",
    "Sketch",
    "Solution",
    "Solver",
    "Start",
    "Status",
    "growing_guess",
    "linear_mode",
    "nystrom",
    "output_kernel",
    "solve",
    "solve_balanced",
]
