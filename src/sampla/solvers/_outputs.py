"""Products between the N C outputs of all data and the P parameters, and G = S' phi phi' S as an operator."""

from dataclasses import dataclass

from torch import Tensor

from sampla.model import LinearModel
from sampla.solvers._base import LinearSystem


@dataclass(frozen=True)
class OutputProducts:
    """G at A = 1 on vectors of N C, for a product of the model with each."""

    model: LinearModel

    def curvature_product(self, vectors: Tensor) -> Tensor:
        """S' phi phi' S u: (K, N C) -> (K, N C)."""
        return self.model.once("G u", vectors, lambda: [self._product(vectors)])[0]

    def _product(self, vectors: Tensor) -> Tensor:
        return pushed(self.model, pulled(self.model, vectors), vectors.shape[1])


def pushed(model: LinearModel, vectors: Tensor, entries: int) -> Tensor:
    """S' phi z: (K, P) -> (K, N C)."""
    functions = vectors.new_zeros(len(vectors), entries)
    for batch in model.batches(len(vectors)):
        outputs = batch.features.outputs
        part = slice(batch.first_output, batch.first_output + outputs.numel())
        pushed = batch.likelihood.curvature_root_transpose_product(
            outputs, batch.weighted(batch.features.jvp(vectors), 0.5)
        )
        functions[:, part] = pushed.flatten(1)
    model.ledger.products += len(vectors) / 2
    return functions


def pulled(model: LinearModel, functions: Tensor) -> Tensor:
    """phi' S w: (K, N C) -> (K, P)."""
    total = functions.new_zeros(len(functions), model.num_parameters)
    for batch in model.batches(len(functions)):
        outputs = batch.features.outputs
        part = functions[:, batch.first_output : batch.first_output + outputs.numel()]
        rooted = batch.likelihood.curvature_root_product(outputs, part.reshape(len(part), *outputs.shape))
        total += batch.features.vjp(batch.weighted(rooted, 0.5))
    model.ledger.products += len(functions) / 2
    return total


def times_of(model: LinearModel, system: LinearSystem) -> float | None:
    """What G of a model at A = 1 is to be multiplied by for G of a system with the same features and data.

    None where the one is no multiple of the other.
    """
    alpha = system.precision.unique()
    before, now = model.likelihood.noise_precision, system.model.likelihood.noise_precision
    same = model.features is system.model.features and model.data is system.model.data
    if not same or len(alpha) > 1 or before is None or now is None or before.ndim + now.ndim > 0:
        return None
    return float(now / before) / float(alpha)
