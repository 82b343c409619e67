"""EM over the outputs, where N C is far below P, as for a reconstruction from few measurements.

With B_n = S_n S_n' and G = S' phi phi' S, (N C, N C), in the coordinates of the prior's scale, M and G have the same
eigenvalues but zero. With ``DenseDual``: one eigendecomposition G = U diag(l) U' tells for every alpha, without probes,

    gamma = sum_i l_i / (l_i + alpha),    log det(I + M / alpha) = sum_i log(1 + l_i / alpha),

and with c = U' S' y what MacKay's updates need of the mean. G takes N C products once, which the final solve over the
outputs (``DenseDual``) uses again. With ``KrylovDual``, for more outputs: a Krylov space of G (output_space.py) tells
the same from probes, for fewer products than the data determine directions. A space of M would keep vectors of P.
"""

from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from sampla.core.noise import PROBE, standard_normal
from sampla.core.stack import Stack
from sampla.inference.e_step import FEWEST_ITERATIONS, FinalProblem
from sampla.inference.krylov import KrylovSpace
from sampla.inference.krylov_step import KrylovEStep
from sampla.inference.output_space import OutputSpace, as_output_space, output_space
from sampla.inference.quadrature import estimated, gamma, log_determinant
from sampla.inference.state import EMState, Task
from sampla.model import LinearModel
from sampla.solvers import KrylovDual, OutputBasis, OutputKernel, OutputProducts, Start, output_kernel

_SEED = 7_000_021
"""Added to a fit's: its probes are not those that the prior's scales come from."""
_SHARE = 0.5
"""Truncation error of what is read off the space at the end, in standard errors from its probes."""


class DualEStep(KrylovEStep):
    """The fixed point from the spectrum of G, in one step, or from a Krylov space of it, which grows step by step."""

    def __init__(self, task: Task, model: LinearModel) -> None:
        """Args: task: what stays the same over the steps. model: with the first noise precision."""
        super().__init__(task, model)
        self._products, self._kernel = OutputProducts(model), None

    _kernel: OutputKernel | None

    def start(self, state: EMState) -> EMState:
        """With a space that holds the whole range of M, known by its spectrum alone, or one with no product yet."""
        task = self.task
        if isinstance(task.solver, KrylovDual):
            if state.space is not None:
                return replace(state, space=as_output_space(state.space))
            targets = whitened_targets(state.model)
            probes = standard_normal(task.seed + _SEED, PROBE, range(task.em_samples), 0, (len(targets),), targets)
            return replace(state, space=output_space(torch.cat([probes, targets[None]]).to(state.model.features.like)))
        self._kernel = output_kernel(state.model, lambda text: task.say(f"all measurements: {text}"))
        task.say("all measurements: eigenvalues")
        values, vectors = torch.linalg.eigh(self._kernel.matrix.cpu())
        values, seen = values.clamp_min(0), vectors.mT @ whitened_targets(state.model)
        return replace(state, space=spectral_space(values, seen, task.em_samples))

    def grown(self, state: EMState, space: KrylovSpace) -> KrylovSpace:
        if space.complete:
            return space
        self.task.say(f"{state.label}Krylov space of {len(space.basis) + len(space.following)} vectors of outputs")
        return space.grown(self._products)

    def finish(self, state: EMState) -> FinalProblem:
        """The solve is given the matrix at the first noise and alpha = 1, which it scales."""
        problem, space = super().finish(replace(state, space=None)), state.space
        assert space is not None
        ratio = float(state.prior.precision[0]) / state.noise_factor
        known: OutputKernel | OutputBasis | None = self._kernel
        if isinstance(space, OutputSpace):
            space = as_output_space(self._enough(state, space, ratio))
            known = OutputBasis(self._products.model, space.basis, space.images)
        probes, nothing = self.task.em_samples, torch.zeros_like(problem.rhs.data_part)
        return replace(
            problem, state=replace(problem.state, space=space), start=Start(nothing, nothing, reusable=known),
            gamma=estimated(space, probes, gamma, ratio),
            determinant=estimated(space, probes, log_determinant, ratio) if self.task.route.log_evidence else None,
        )  # fmt: skip

    def _enough(self, state: EMState, space: KrylovSpace, ratio: float) -> KrylovSpace:
        """The space, grown until what it tells depends less on its iterations than on its probes."""
        form = log_determinant if self.task.route.log_evidence else gamma
        while not space.complete:
            found = estimated(space, self.task.em_samples, form, ratio)
            if space.iterations >= FEWEST_ITERATIONS and found.truncation <= _SHARE * found.standard_error:
                break
            space = self.grown(state, space)
        return space


def whitened_targets(model: LinearModel) -> Tensor:
    """(N C,) S' (y - what the linear model says at theta = 0), float64, on the CPU."""
    parts = []
    for batch in model.batches():
        zero = batch.features.outputs.new_zeros(1, model.num_parameters)
        at = batch.features.linear_outputs(zero, batch.origin)[0]
        left = model.likelihood.residuals(at, batch.targets)
        assert left is not None, "a likelihood with scalar noise has residuals"
        parts.append(batch.root_transpose_product(left[None]).flatten().double().cpu())
    return torch.cat(parts)


class _Diagonal(KrylovSpace):
    """In the coordinates of M's own eigenvectors."""

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        return self.gram.diagonal(), torch.eye(len(self.gram), dtype=self.gram.dtype)


def spectral_space(values: Tensor, targets: Tensor, probes: int) -> KrylovSpace:
    """The whole range of M as its eigenvalues (m,), with the coordinates (m,) of S' y, and without its vectors.

    Its start vectors are ``probes`` that stand for exact traces, and phi' S S' y, of which |.| = sqrt(l) |c|.
    """
    size = len(values)
    start = values.new_zeros(size, probes + 1)
    start[:, -1] = values.sqrt() * targets
    empty = values.new_empty(size, 0)
    space = _Diagonal(Stack([empty[:0], empty]), values.diag(), empty[:0], values.new_zeros(size, 0), start, (size,))
    return space.closed(probes)
