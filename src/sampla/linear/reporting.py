"""What a fit of a linear model did, cost and reached, in numbers and in words."""

from dataclasses import dataclass, replace
from math import isnan
from typing import Any

import torch

from sampla.fitreport import FitReport
from sampla.linear.mackay import ExactFit
from sampla.linear.rows import Columns
from sampla.linear.settings import Way


@dataclass(frozen=True)
class LinearReport:
    """Everything ``report_`` knows; ``print`` it for the words."""

    passes: float
    """Readings of all rows (exact), or products with M for each sample (matrix-free)."""
    settled: bool
    """Whether the hyperparameters settled, and the solve reached its tolerance."""
    em_steps: int
    effective_dimension: float
    log_evidence: float
    fit: FitReport | None = None
    """The certificate of the matrix-free way; None where everything is exact."""
    num_rows: int = 0
    num_columns: int = 0
    num_outputs: int = 0
    solver: str = ""
    """"exact" or "krylov"."""
    world: str = ""
    """"primal" or "dual"."""
    why: str = ""
    """Why this way was chosen."""
    seconds: float = 0.0

    @classmethod
    def of_exact(cls, fit: ExactFit, passes: int, evidence: float) -> "LinearReport":
        """From a closed-form fit, and log p(y)."""
        return cls(passes, fit.settled, len(fit.trace), float(fit.effective_dimension.sum()), evidence)

    @classmethod
    def of_iterative(cls, fit: FitReport, evidence: float) -> "LinearReport":
        """From the matrix-free way's certificate."""
        settled = fit.settled and fit.solve_error <= fit.tolerance
        fit = replace(fit, log_evidence=None if isnan(evidence) else evidence)
        return cls(fit.passes, settled, len(fit.trace), sum(fit.effective_dimension), evidence, fit)

    def finished(self, rows: int, columns: int, outputs: int, way: Way, seconds: float) -> "LinearReport":
        """With sizes, the way and the time."""
        return replace(
            self, num_rows=rows, num_columns=columns, num_outputs=outputs,
            solver="exact" if way.exact else "krylov", world=way.world, why=way.why, seconds=seconds,
        )  # fmt: skip

    def __str__(self) -> str:
        size = f"{self.num_columns:,} columns" + (f" x {self.num_outputs:,} outputs" if self.num_outputs > 1 else "")
        lines = [
            f"linear model {size} from {self.num_rows:,} rows, {self.seconds:.1f} s",
            f"solver       {self.solver}, {self.world}: {self.why}",
        ]
        if self.fit is not None:
            return "\n".join([*lines, *str(self.fit).splitlines()[1:]])
        word = "settled" if self.settled else "NOT settled: raise max_iter"
        return "\n".join(
            [
                *lines,
                f"cost         {self.passes:.0f} readings of the rows",
                "exact        mean, variances and hyperparameters are in closed form; draws are exact",
                f"prior, noise EM {word} in {self.em_steps} steps",
                f"data         determine {self.effective_dimension:.1f} of "
                f"{self.num_columns * self.num_outputs:,} coefficients",
                f"evidence     log p(y) = {self.log_evidence:,.1f} nats",
            ]
        )


def in_users_units(report: FitReport, columns: Columns) -> FitReport:
    """The certificate with precisions in the units of X and y instead of the model's."""
    alpha, noise = columns.precision_unit.cpu(), columns.target_unit**-2

    def restored(values: list[float]) -> list[float]:
        known: list[float] = (torch.tensor(values[: len(alpha)], dtype=torch.float64) / alpha).tolist()
        return known + values[len(alpha) :]

    def noisy(values: Any) -> Any:
        return None if values is None else (torch.tensor(values, dtype=torch.float64) * noise).tolist()

    trace = [
        {
            **row,
            "precision": restored(row["precision"]),
            "updated_precision": restored(row["updated_precision"]),
            "noise_precision": noisy(row["noise_precision"]),
        }
        for row in report.trace
    ]
    return replace(
        report, trace=trace, prior_precision=restored(report.prior_precision),
        noise_precision=noisy(report.noise_precision),
    )  # fmt: skip
