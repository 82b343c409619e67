"""A linear system in coordinates in which A is the identity, and what a solve with more samples starts from."""

from dataclasses import replace

import torch
from torch import Tensor

from sampla.features import ScaledFeatures
from sampla.inference.krylov import KrylovSpace
from sampla.solvers import LinearSystem, RightHandSide, Start


def extended(start: Start | None, rhs: RightHandSide) -> Start | None:
    """EM's few samples as the start of K: zero for the samples that EM did not have."""
    if start is None:
        return None
    means = len(rhs.data_part) - rhs.num_samples
    known = len(start.value) - means

    def placed(rows: Tensor) -> Tensor:
        block = torch.zeros_like(rhs.data_part)
        block[:known] = rows[:known]
        block[rhs.num_samples :] = rows[known:]
        return block

    return replace(start, value=placed(start.value), curvature_value=placed(start.curvature_value))


def whitened(system: LinearSystem, scale: Tensor) -> LinearSystem:
    """The same in the coordinates theta / scale, in which A is the identity."""
    model = system.model.replaced(features=ScaledFeatures(system.model.features, scale))
    return LinearSystem(model, torch.ones_like(scale), system.diagonal * scale.square())


def whitened_start(space: KrylovSpace, rhs: RightHandSide, known: Start | None, scale: Tensor) -> Start:
    """The best start in the space, and EM's own samples where it had them."""
    value, image = space.galerkin(rhs.total, torch.ones_like(scale))
    if known is not None:
        rows = known.value.any(dim=1)
        value[rows], image[rows] = known.value[rows] / scale, known.curvature_value[rows] * scale
    return Start(value, image)
