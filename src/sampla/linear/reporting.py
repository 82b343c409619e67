"""What a fit of a linear model did, cost and reached, in numbers and in words."""

from dataclasses import dataclass, replace

from sampla.fitreport import FitReport
from sampla.linear.mackay import ExactFit
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
    def of_exact(cls, fit: ExactFit, passes: int) -> "LinearReport":
        """From a closed-form fit."""
        return cls(passes, fit.settled, len(fit.trace), float(fit.effective_dimension.sum()), fit.log_evidence)

    @classmethod
    def of_iterative(cls, fit: FitReport, evidence: float) -> "LinearReport":
        """From the matrix-free way's certificate."""
        settled = fit.settled and fit.solve_error <= fit.tolerance
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
