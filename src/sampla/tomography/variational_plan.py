"""Memory that a fit of VariationalTV will need, computed before it starts."""

from dataclasses import dataclass
from math import log2

from sampla.inference.memory_plan import SOLVER_BLOCKS
from sampla.tomography.operators import MatrixOperator, Operator

_FACTOR_BYTES = 120
"""For each of N log2 N: the sparse factor has 1.1 to 1.8 entries of them, in two copies, and more on the way."""
_SPACES = 5
"""Matrices of (m, m) at most: vectors of the measurements, their products, and what Galerkin's equations take."""


@dataclass(frozen=True)
class VariationalPlan:
    """Memory in bytes, by what holds it."""

    num_pixels: int
    """N."""
    num_measurements: int
    """m."""
    num_samples: int
    """K."""
    image_bytes: int
    """Blocks of K images, in float64, while the samples are solved for."""
    space_bytes: int
    """The Krylov space over the measurements, if it grows to all of them."""
    factor_bytes: int
    """The sparse factor of the prior's precision."""
    operator_bytes: int
    """T, and T in float64, if it is a matrix."""

    @property
    def total_bytes(self) -> int:
        """All of these at once."""
        return self.image_bytes + self.space_bytes + self.factor_bytes + self.operator_bytes

    def __str__(self) -> str:
        gib = 2.0**30
        return (
            f"memory: {self.total_bytes / gib:.2f} GiB at most: {self.num_samples} samples of {self.num_pixels:,} "
            f"pixels {self.image_bytes / gib:.2f}, a space over {self.num_measurements:,} measurements "
            f"{self.space_bytes / gib:.2f}, the prior's factor {self.factor_bytes / gib:.2f}, the operator "
            f"{self.operator_bytes / gib:.2f}"
        )


def variational_plan(operator: Operator, num_samples: int) -> VariationalPlan:
    """What a fit will hold at most.

    Args:
        operator: T.
        num_samples: K.
    """
    pixels, measurements = operator.image_shape[0] * operator.image_shape[1], operator.num_measurements
    blocks = SOLVER_BLOCKS * (num_samples + 1) * pixels * 8
    return VariationalPlan(
        pixels, measurements, num_samples, blocks, _SPACES * 8 * measurements**2,
        int(_FACTOR_BYTES * pixels * log2(pixels)), _held(operator) if isinstance(operator, MatrixOperator) else 0,
    )  # fmt: skip


def _held(operator: MatrixOperator) -> int:
    own = operator.like.element_size()
    return operator.bytes + (operator.bytes * (8 + 8) // (own + 8) if own < 8 else 0)
