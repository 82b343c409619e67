"""Block conjugate gradients over the outputs: for N C << P, where the matrix of all outputs is too much work.

With B_n = S_n S_n', G = S' phi A^-1 phi' S of (N C, N C) and w = S' phi z, the system H z = b reads

    (I + G) w = S' phi A^-1 b,    z = A^-1 (b - phi' S w)

(Woodbury; the representer weights of a Gaussian process). All vectors that are kept have N C numbers, so that they are
kept all: every iterate is Galerkin's on the whole space, which rounding does not spoil, and a Krylov space of G that EM
has left is part of it for nothing.

For any w, with r = S' phi A^-1 b - (I + G) w, z is off by e = A^-1 phi' S (I + G)^-1 r, and so

    |e|_M = |G (I + G)^-1 r| <= |r| :

the residual bounds the error in the functions. It is taken from its definition, as r = S' phi z - w, before it counts.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sampla.core.blocks import dots, gram, orthonormal
from sampla.core.checks import require
from sampla.core.stack import Stack
from sampla.model import LinearModel
from sampla.solvers._base import Iterate, LinearSystem, RightHandSide, Solver, Start, num_outputs
from sampla.solvers._outputs import OutputProducts, pulled, pushed, times_of

_STALLED = 0.5
"""The residual from its definition must fall by this factor between two looks at it."""


@dataclass(frozen=True)
class OutputBasis:
    """Orthonormal vectors of N C with G times each, at A = 1, and the model they belong to."""

    model: LinearModel
    basis: Stack
    """(m, N C) V."""
    images: Stack
    """(m, N C) V G."""


@dataclass(frozen=True)
class KrylovDualState:
    """w and what is left of it; Z itself only where its error has been measured."""

    weights: Tensor
    """(K, N C) w."""
    residual: Tensor
    """(K, N C) r."""
    basis: Stack
    """(m, N C) V, orthonormal."""
    images: Stack
    """(m, N C) V G."""
    inner: Tensor
    """(m, m) I + V G V', float64."""
    value: Tensor | None = None
    """(K, P) Z."""
    image: Tensor | None = None
    """(K, P) M Z."""
    measured: float = float("inf")
    """|r| when it was last taken from its definition."""
    stuck: bool = False


@dataclass(frozen=True)
class KrylovDual(Solver[KrylovDualState]):
    """Galerkin's solution on a space of vectors of N C that grows by the block of residuals at every pass.

    The error stated is a bound, |z - z*|_M <= |S' phi z - w|, with products in the model's own type.

    Raises:
        ValueError: in ``solve``, for a loader that shuffles.
    """

    krylov_e_step = True

    def init(self, system: LinearSystem, rhs: RightHandSide, guess: Start | None) -> KrylovDualState:
        require(
            system.model.data.fixed_order, "a loader with a fixed order", "a shuffled one", "Use solver='block-cg'."
        )
        entries = num_outputs(system.model)
        right = pushed(system.model, rhs.total / system.precision, entries)
        nothing = Stack([right.new_empty(0, entries)])
        state = KrylovDualState(
            torch.zeros_like(right), right, nothing, nothing, right.new_zeros(0, 0, dtype=torch.float64)
        )
        kept = guess.reusable if guess is not None and isinstance(guess.reusable, OutputBasis) else None
        factor = None if kept is None else times_of(kept.model, system)
        if kept is None or factor is None:
            return state
        images = Stack([part * factor for part in kept.images.parts])
        inner = gram(kept.basis, torch.cat(images.parts)) + torch.eye(len(kept.basis)).to(state.inner)
        return _corrected(replace(state, basis=kept.basis, images=images, inner=(inner + inner.mT) / 2))

    def step(self, system: LinearSystem, rhs: RightHandSide, state: KrylovDualState) -> KrylovDualState:
        rest, lengths = state.residual.clone(), dots(state.residual, state.residual).sqrt()
        for _ in range(2):
            state.basis.add_to(rest, -gram(state.basis, rest).mT)
        block, _ = orthonormal(rest, lengths)
        if len(block) == 0:
            return replace(state, stuck=True)
        state.basis.add_to(block, -gram(state.basis, block).mT)
        block, _ = orthonormal(block)
        image = _product(system, block)
        basis, images = state.basis.added(block), state.images.added(image)
        size, added = len(state.inner), gram(basis, image)
        inner = torch.nn.functional.pad(state.inner, (0, len(block), 0, len(block)))
        inner[:, size:], inner[size:, :] = added, added.mT
        inner[size:, size:] = (added[size:] + added[size:].mT) / 2 + torch.eye(len(block)).to(inner)
        return _corrected(replace(state, basis=basis, images=images, inner=inner, value=None, image=None))

    def error(self, state: KrylovDualState) -> float:
        return float(_errors(state).square().mean().sqrt())

    def certify(
        self, system: LinearSystem, rhs: RightHandSide, state: KrylovDualState, tolerance: float
    ) -> KrylovDualState:
        """With Z, and r from its definition."""
        if state.value is not None:
            return state
        value = (rhs.total - pulled(system.model, state.weights)) / system.precision
        functions = pushed(system.model, value, state.weights.shape[1])
        residual = functions - state.weights
        size = float(residual.norm())
        found = replace(
            state, value=value, image=pulled(system.model, functions), residual=residual, measured=size,
            stuck=not size < _STALLED * state.measured,
        )  # fmt: skip
        return found

    def stagnated(self, state: KrylovDualState) -> bool:
        return state.stuck

    def solution(self, system: LinearSystem, rhs: RightHandSide, state: KrylovDualState) -> Iterate:
        if state.value is None:
            state = self.certify(system, rhs, state, float("inf"))
        assert state.value is not None
        assert state.image is not None
        return Iterate(state.value, state.image, errors=_errors(state))


def _errors(state: KrylovDualState) -> Tensor:
    """(K,) |e| / |z*| at most, where |z*| is at least |z| - |e|: of each column, since a mean may be far longer."""
    wrong, sizes = state.residual.double().norm(dim=1), (state.weights + state.residual).double().norm(dim=1)
    known = torch.where(wrong < sizes, wrong / (sizes - wrong), torch.inf)
    return torch.where(wrong == 0, 0.0, known)


def _product(system: LinearSystem, block: Tensor) -> Tensor:
    """G u: (k, N C) -> (k, N C)."""
    precision = system.precision
    if len(precision.unique()) == 1:
        return OutputProducts(system.model).curvature_product(block) / precision[0]
    return pushed(system.model, pulled(system.model, block) / precision, block.shape[1])


def _corrected(state: KrylovDualState) -> KrylovDualState:
    """w with Galerkin's solution for r on the whole space."""
    right = gram(state.basis, state.residual)
    coordinates = torch.linalg.solve(state.inner, right).mT
    weights = state.basis.add_to(state.weights.clone(), coordinates)
    residual = state.basis.add_to(state.residual.clone(), -coordinates)
    return replace(state, weights=weights, residual=state.images.add_to(residual, -coordinates))
