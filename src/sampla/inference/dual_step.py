"""EM exactly, from the matrix of all outputs: where N C is far below P, as for a reconstruction from few measurements.

With B_n = S_n S_n' and G = S' phi phi' S, (N C, N C), in the coordinates of the prior's scale, M and G have the same
eigenvalues but zero. One eigendecomposition G = U diag(l) U' tells for every alpha, without probes,

    gamma = sum_i l_i / (l_i + alpha),    log det(I + M / alpha) = sum_i log(1 + l_i / alpha),

and with c = U' S' y what MacKay's updates need of the mean. G takes N C products once, which the final solve over the
outputs (``DenseDual``) uses again. A Krylov space of M would need vectors of P for each of those gamma directions.
"""

from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from sampla.core.stack import Stack
from sampla.inference.e_step import FinalProblem
from sampla.inference.krylov import KrylovSpace
from sampla.inference.krylov_step import KrylovEStep
from sampla.inference.quadrature import estimated, gamma
from sampla.inference.state import EMState, Task
from sampla.model import LinearModel
from sampla.solvers import OutputKernel, Start, output_kernel


class DualEStep(KrylovEStep):
    """The fixed point in one step, from the spectrum of G."""

    def __init__(self, task: Task, model: LinearModel) -> None:
        """Args: task: what stays the same over the steps. model: with the first noise precision."""
        super().__init__(task, model)
        self._kernel: OutputKernel | None = None

    def start(self, state: EMState) -> EMState:
        """With a space that holds the whole range of M, known by its spectrum alone: no vector of P is in it."""
        task = self.task
        self._kernel = output_kernel(state.model, lambda text: task.say(f"all measurements: {text}"))
        task.say("all measurements: eigenvalues")
        values, vectors = torch.linalg.eigh(self._kernel.matrix.cpu())
        values, seen = values.clamp_min(0), vectors.mT @ whitened_targets(state.model)
        return replace(state, space=spectral_space(values, seen, task.em_samples))

    def finish(self, state: EMState) -> FinalProblem:
        """The solve is given the matrix at the first noise and alpha = 1, which it scales."""
        problem, space = super().finish(replace(state, space=None)), state.space
        assert space is not None
        ratio = float(state.prior.precision[0]) / state.noise_factor
        nothing = torch.zeros_like(problem.rhs.data_part)
        return replace(
            problem, state=replace(problem.state, space=space), start=Start(nothing, nothing, reusable=self._kernel),
            gamma=estimated(space, self.task.em_samples, gamma, ratio).value,
        )  # fmt: skip


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
