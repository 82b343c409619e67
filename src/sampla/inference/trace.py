"""What each EM step found: the trace of a fit."""

from dataclasses import asdict, dataclass, field
from math import hypot
from typing import Any


@dataclass(frozen=True)
class EMStep:
    """One row of the trace."""

    precision: list[float]
    """alpha of each prior group that the E-step used."""
    updated_precision: list[float]
    """What MacKay's update made of it; the next step starts from a secant through these, and through those of noise."""
    noise_precision: Any
    """The noise precision that the E-step used; None if the likelihood has none."""
    effective_dimension: list[float]
    effective_dimension_error: list[float]
    """Standard error of the estimate; zero when exact."""
    mode_norm: float
    """|mode|_A at the alpha used."""
    change: float
    """Largest |log ratio| of updated to used precisions, over groups in which the data determine anything, or whose
    alpha falls."""
    passes: int
    """Products per right-hand side: of the solve, or of the growing Krylov space."""
    mode_error: float
    """Estimated relative error of the mode; zero where it is as exact as the Krylov space."""
    solve_error: float | None = None
    """Estimated function-space error of the samples; None where none are solved for."""
    solve_history: list[float] = field(default_factory=list)
    """Error estimate after each pass of the samples' solve."""
    truncation: float | None = None
    """How far alpha and the noise may still move if the Krylov space grows; None where there is none."""
    rounds: int | None = None
    """How often B had moved to the linear mode, this step included; None where it does not, or does in every step."""
    moving: float | None = None
    """By how much another move of B would change log alpha; None where B does not move by such rounds."""
    effective_dimension_sum_error: float | None = None
    """Standard error of the sum over the groups, whose own errors are not independent; None for a single group."""
    updated_noise_precision: Any = None
    """What the update made of the noise precision where that is learnt from samples; None elsewhere."""
    ahead: float | None = None
    """How far the hyperparameters still are from where they are going, relatively; None where ``truncation`` tells."""
    seconds: float = 0.0
    products: float = 0.0
    """All products with M and gradients of this step."""

    @property
    def error_of_sum(self) -> float:
        """Standard error of the whole gamma; errors of groups are taken for independent where nothing else is known."""
        found = self.effective_dimension_sum_error
        return hypot(*self.effective_dimension_error) if found is None else found


def trace_rows(trace: list[EMStep]) -> list[dict[str, Any]]:
    """The trace as plain dicts, for JSON."""
    return [asdict(step) for step in trace]
