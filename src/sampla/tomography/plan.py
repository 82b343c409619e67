"""Memory that a fit will need, computed before it starts, and the largest Krylov space that it allows."""

from dataclasses import dataclass, replace

from sampla.inference.memory_plan import SOLVER_BLOCKS
from sampla.inference.settings import EM
from sampla.tomography.operators import MatrixOperator, Operator

_SPACE_BYTES = 3 * 2**29
"""Memory that EM's Krylov space of M may take."""
_FEWEST_ROWS = 64
_MORE_STEPS = 10
_MATRICES = 4
_COLUMNS = 64
"""Vectors of P that the matrix of the measurements is formed with at once."""


@dataclass(frozen=True)
class Plan:
    """Memory in bytes, and the EM that fits it."""

    em: EM
    num_parameters: int
    num_measurements: int
    weight_bytes: int
    """Vectors of P: EM's space at its largest and the solver's blocks of K + 1."""
    observation_bytes: int
    """The same vectors with m numbers each, and the K prior draws that would still have P."""
    operator_bytes: int
    over_measurements: bool = False
    """Whether all is done over the measurements, instead of a Krylov space of vectors of P."""
    forms_matrix: bool = True
    """Whether the (m, m) matrix is formed there, or a Krylov space of vectors of m."""

    def __str__(self) -> str:
        gib = 2.0**30
        if self.over_measurements:
            one = 8 * self.num_measurements
            held = (
                f"{_MATRICES} matrices of {one * self.num_measurements / gib:.2f} GiB at most"
                if self.forms_matrix
                else f"two Krylov spaces of vectors of {one / 2**20:.2g} MiB, as many as the data determine directions"
            )
            return (
                f"over the measurements: {self.num_parameters:,} parameters for {self.num_measurements:,} of them; "
                f"{held}, vectors {self.weight_bytes / gib:.2f} GiB, operator {self.operator_bytes / gib:.2f} GiB"
            )
        return (
            f"weight space: {self.num_parameters:,} parameters for {self.num_measurements:,} measurements; vectors "
            f"{self.weight_bytes / gib:.2f} GiB at most (over the measurements it would be "
            f"{self.observation_bytes / gib:.2f} GiB, with as many products), operator "
            f"{self.operator_bytes / gib:.2f} GiB, at most {self.em.max_rows} vectors in EM's Krylov space"
        )


def plan(
    num_parameters: int, operator: Operator, num_samples: int, em: EM | None = None, over_measurements: bool = False,
    forms_matrix: bool = True,
) -> Plan:  # fmt: skip
    """Memory of a fit, and an EM whose Krylov space may grow to the rank of M or as far as memory allows.

    Args:
        num_parameters: P.
        operator: T with m measurements, the rank of M at most.
        num_samples: K.
        em: instead of the rule's.
        over_measurements: whether the solver works with the measurements, which serves EM too.
        forms_matrix: whether it forms their matrix.
    """
    element, measurements = operator.like.element_size(), operator.num_measurements
    held = operator.bytes if isinstance(operator, MatrixOperator) else 0
    if over_measurements and (em is None or em.method == "outputs"):
        vectors = (SOLVER_BLOCKS + 1) * (num_samples + 1) + _COLUMNS
        return Plan(
            em or EM(method="outputs"), num_parameters, measurements, vectors * num_parameters * element,
            vectors * measurements * element, held, True, forms_matrix,
        )  # fmt: skip
    if em is not None:
        rows = em.rows_of(operator.like, num_parameters)
        em = replace(em, max_rows=rows)
    else:
        rule = EM()
        affordable = _SPACE_BYTES // (element * num_parameters)
        rows = max(_FEWEST_ROWS, min(affordable, measurements + rule.num_samples + 1))
        em = replace(rule, max_rows=rows, max_steps=rows // (min(rule.num_samples, num_samples) + 1) + _MORE_STEPS)
    vectors = rows + (SOLVER_BLOCKS + 1) * (num_samples + 1)
    return Plan(
        em, num_parameters, measurements, vectors * num_parameters * element,
        (vectors * measurements + num_samples * num_parameters) * element,
        held,
    )  # fmt: skip
