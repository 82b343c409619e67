"""The certificate of a fit: what it did, what it cost, how accurate the answer is; as numbers and in plain words."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from sampla._batches import CheckedLoader
from sampla.em import Inference, trace_rows
from sampla.likelihoods import Gaussian


@dataclass(frozen=True)
class FitReport:
    """Everything ``la.report_`` knows; ``print`` it for the words."""

    num_data: int
    num_parameters: int
    num_samples: int
    prior_precision: list[float]
    prior_groups: list[str]
    noise_precision: Any
    effective_dimension: list[float]
    effective_dimension_error: list[float]
    """Standard error of the sampled gamma; zero when exact."""
    trace: list[dict[str, Any]]
    """One row per EM step."""
    settled: bool
    """Whether EM reached its tolerance (true if nothing was to be learnt)."""
    status: str
    """Of the final solve."""
    final_passes: int
    solve_error: float
    """Estimated |phi(z - z*)|_B / |phi z*|_B of the samples."""
    solve_history: list[float]
    passes: float
    """Products with M per sample over the whole fit, noise and hyperparameters included."""
    sweeps: int
    """How often the loader was read."""
    vector_bytes: int
    """Memory of K vectors of P."""
    seconds: float
    adjoint_error: float
    excluded_parameters: dict[str, str]
    """Parameter name -> why it is not in the posterior."""
    dead_parameters: list[str]
    """Tensors on which the data say nothing, taken out by the g-prior."""

    @property
    def std_error(self) -> float:
        """Relative sampling error that K leaves on a predictive standard deviation, 1 / sqrt(2 K)."""
        return float((2 * self.num_samples) ** -0.5)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "FitReport":
        """The inverse of ``to_dict``."""
        return cls(**{f.name: values[f.name] for f in fields(cls)})

    def __str__(self) -> str:
        gamma, error = sum(self.effective_dimension), sum(e**2 for e in self.effective_dimension_error) ** 0.5
        precision = ", ".join(f"{a:.3g}" for a in self.prior_precision[:8]) + (" ..." * (len(self.prior_precision) > 8))
        lines = [
            f"{self.num_samples} posterior samples of {self.num_parameters:,} parameters from {self.num_data:,} data",
            f"cost         {self.passes:.1f} passes ({self.sweeps} readings of the loader), {self.seconds:.1f} s",
            f"samples      error {self.solve_error:.1%} of a function draw (estimated); the solve {self.status}",
            f"sampling     a standard deviation is known to about {self.std_error:.0%} with K = {self.num_samples}",
            f"prior        precision {precision}; {self._em_words()}",
            f"data         determine {gamma:.1f} of {self.num_parameters:,} parameters"
            + (f" (standard error {error:.1f})" if error else " (exact)"),
        ]
        if self.noise_precision is not None and not isinstance(self.noise_precision, list):
            lines.append(f"noise        precision {self.noise_precision:.4g} (std {self.noise_precision**-0.5:.3g})")
        if self.excluded_parameters:
            reasons = sorted(set(self.excluded_parameters.values()))
            lines.append(f"left out     {len(self.excluded_parameters)} parameter tensors: {', '.join(reasons)}")
        if self.dead_parameters:
            lines.append(f"dead         {', '.join(self.dead_parameters)}: the data say nothing about them")
        return "\n".join(lines)

    def _em_words(self) -> str:
        if not self.trace:
            return "fixed by the user"
        change = self.trace[-1]["change"]
        word = "settled" if self.settled else "NOT settled: raise EM(max_steps=...)"
        return f"EM {word} in {len(self.trace)} steps (last change {change:.1%})"


def build_report(
    inference: Inference, data: CheckedLoader, excluded: dict[str, str], adjoint_error: float, seconds: float
) -> FitReport:
    """Collect the report from what the fit left behind."""
    likelihood = inference.model.likelihood
    noise = likelihood.noise_precision if isinstance(likelihood, Gaussian) else None
    count = len(inference.samples)
    return FitReport(
        num_data=data.num_data,
        num_parameters=inference.model.num_parameters,
        num_samples=count,
        prior_precision=inference.prior.precision.tolist(),
        prior_groups=list(inference.prior.names),
        noise_precision=None if noise is None else noise.tolist(),
        effective_dimension=inference.effective_dimension.tolist(),
        effective_dimension_error=inference.effective_dimension_error.tolist(),
        trace=trace_rows(inference.trace),
        settled=inference.settled,
        status=inference.solution.status.value,
        final_passes=inference.solution.passes,
        solve_error=inference.solution.error,
        solve_history=inference.solution.history,
        passes=inference.model.ledger.products / count,
        sweeps=data.sweeps,
        vector_bytes=inference.samples.nbytes,
        seconds=seconds,
        adjoint_error=adjoint_error,
        excluded_parameters=dict(excluded),
        dead_parameters=list(inference.prior.dead),
    )
