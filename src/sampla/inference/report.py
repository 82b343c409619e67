"""The certificate of a fit: what it did, what it cost, how accurate the answer is; as numbers and in plain words."""

from dataclasses import asdict, dataclass, field, fields, replace
from math import isfinite, nan
from typing import Any

from sampla.core.data import Data
from sampla.given_prior import GIVEN
from sampla.inference.evidence import LogEvidence, at_least_zero, dimension_by_layer
from sampla.inference.quadrature import LogError
from sampla.inference.state import Inference
from sampla.inference.trace import trace_rows
from sampla.posterior.width import Width
from sampla.solvers import Status

_SMALL_CHANGE = 0.1
"""Change of an EM step that is worth a word: the first step to a fixed point that is read off at once changes much."""
_LAYERS = 4
"""Layers that a report names."""
_NUMBERS = {
    "effective_dimension", "effective_dimension_error", "solve_history", "sample_errors", "precision_error",
    "noise_error", "log_evidence_error",
}  # fmt: skip
"""Lists of numbers, of which some may not be finite."""
_SEEN = 2.0
"""Standard errors by which a layer's share must exceed zero to be named."""


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
    """Products with M per sample over the whole fit, noise and hyperparameters included. A fit that goes on from its
    folder counts what earlier runs spent up to the state or the kept passes that it takes over, each once; what they
    spent on what it makes anew is not known to it."""
    sweeps: int
    """How often the data were read: from the loader, or from the device on which they were kept."""
    vector_bytes: int
    """Memory of K vectors of P."""
    seconds: float
    adjoint_error: float | None
    """How far J and J' were from being each other's transposes on random vectors; None where no check was made."""
    excluded_parameters: dict[str, str]
    """Parameter name -> why it is not in the posterior."""
    dead_parameters: list[str]
    """Tensors on which the data say nothing, taken out by the g-prior."""
    method: str = "fixed"
    """How the hyperparameters were found: "krylov", "samples" or "fixed"."""
    tolerance: float = 0.02
    """Function-space error asked for."""
    sample_errors: list[float] | None = None
    """The estimated error of every sample, where the solver tells."""
    mean_error: float | None = None
    """Estimated relative error of the linear model's mean or mode; None where it was not needed."""
    precision_error: list[float] | None = None
    """Relative errors of alpha: standard error from the probes, and what more iterations might change."""
    noise_error: list[float] | None = None
    """The same of the noise precision."""
    log_evidence: float | None = None
    """log p(y) of the linear model, in nats."""
    log_evidence_error: list[float] | None = None
    """Its standard error, and what more iterations might change."""
    linear_model: str = "surrogate"
    """Whose hyperparameters and evidence these are: of y around phi theta, or around a network's tangent."""
    products: str = "forward mode"
    """How the products with a network were taken; empty for other features."""
    effective_dimension_by_layer: dict[str, float] = field(default_factory=dict)
    """Module name -> its share of gamma, never negative; "" is the network itself. They add up to gamma."""
    effective_dimension_by_layer_error: dict[str, float] = field(default_factory=dict)
    """Standard errors of the same; zero when exact."""
    unsettled: str = ""
    """What keeps EM from having settled, and what helps; empty if it has."""
    curvature_rounds: int | None = None
    """How often B, the likelihood's curvature, was moved to the linear mode before EM had settled; None where it stays,
    or moves in every EM step."""
    curvature_moves: float | None = None
    """By how much moving it once more would change alpha, relatively."""
    chunks: dict[str, Any] | None = None
    """How much went through the features at once, how that was found, and how often memory ran out."""
    width: dict[str, Any] | None = None
    """By which factors predictions take the posterior's deviations, and where they come from (``posterior.width``)."""
    effective_dimension_sum_error: float | None = None
    """Standard error of the sum of gamma over the groups, whose own errors are not independent; zero when exact."""
    updates: list[dict[str, Any]] = field(default_factory=list)
    """One row for each ``update``: how many data it added, its passes and its seconds, which the whole ones include. A
    pass is then one over all data of that time."""
    kept_on: str = ""
    """The accelerator on which the data were kept after the second reading; empty: every one was of the loader."""

    @property
    def std_error(self) -> float:
        """Relative sampling error that K leaves on a predictive standard deviation, 1 / sqrt(2 K)."""
        return float((2 * self.num_samples) ** -0.5)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; None for a number that is not finite, of which ``status`` and ``unsettled`` say why."""
        values: dict[str, Any] = _finite(asdict(self))
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "FitReport":
        """The inverse of ``to_dict`` but for NaN in place of infinity; what an older file lacks takes its default."""
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        for name in known.keys() & _NUMBERS:
            if isinstance(known[name], list):
                known[name] = [nan if each is None else each for each in known[name]]
        for name in known.keys() & {"solve_error", "passes"}:
            known[name] = nan if known[name] is None else known[name]
        return cls(**known)

    def __str__(self) -> str:
        what = f"{self.num_samples} posterior samples of {self.num_parameters:,} parameters"
        return "\n".join([f"{what} from {self.num_data:,} data", *self.details()])

    def details(self) -> list[str]:
        """The lines below the first, which says what was fitted."""
        lines = [
            f"cost         {self.passes:.1f} passes ({self._describe_readings()}), {self.seconds:.1f} s",
            *(f"updates      {self._describe_update(row)}" for row in self.updates[-1:]),
            f"samples      {self._describe_sample()}; the solve {self.status}",
            f"sampling     a standard deviation is known to about {self.std_error:.0%} with K = {self.num_samples}",
            f"prior        {self._describe_prior()}",
            f"data         determine {self._describe_gamma()} of {self.num_parameters:,} parameters",
        ]
        if self.width is not None:
            width = Width.from_dict(self.width)
            lines += [f"width        {width}"] + [f"loo          {width.left_out}"] * bool(width.left_out)
        if self.curvature_rounds is not None:
            lines.append(f"curvature    {self._describe_rounds()}")
        if len(self.effective_dimension_by_layer) > 1:
            lines.append(f"layers       {self._describe_layer()}")
        if self.products:
            lines.append(f"products     {self.products}")
        if self.mean_error is not None:
            lines.append(f"mean         error {self.mean_error:.2%} of the linear model's mean (estimated)")
        if self.log_evidence is not None and self.log_evidence_error is not None:
            spread, open_end = self.log_evidence_error
            value = f"{self.log_evidence:,.1f} nats{self._describe_model()}"
            lines.append(
                f"evidence     log p(y) = {value}, "
                + (f"standard error {spread:.1f}" if spread else f"exact up to {open_end:.1g}")
                + (f", iterations may change {open_end:.1f}" if open_end > 0.1 * spread > 0 else "")
            )
        if self.noise_precision is not None and not isinstance(self.noise_precision, list):
            known = _known(self.noise_error)
            lines.append(
                f"noise        precision {self.noise_precision:.4g}{known} (std {self.noise_precision**-0.5:.3g})"
            )
        if self.chunks is not None and (self.chunks["source"] != "preset" or self.chunks["halvings"]):
            lines.append(f"in flight    {_describe_chunk(self.chunks)}")
        if self.excluded_parameters:
            reasons = sorted(set(self.excluded_parameters.values()))
            lines.append(f"left out     {len(self.excluded_parameters)} parameter tensors: {', '.join(reasons)}")
        if self.dead_parameters:
            lines.append(f"dead         {', '.join(self.dead_parameters)}: the data say nothing about them")
        return [*lines, f"to improve   {self.advice}"]

    @property
    def summary(self) -> str:
        """The certificate in one line."""
        return (
            f"{self.num_samples} samples in {self.passes:.1f} passes and {self.seconds:.0f} s: error "
            f"{self.solve_error:.1%} of a function draw, a standard deviation known to {self.std_error:.0%}, prior "
            + self._describe_prior()
        )

    @property
    def advice(self) -> str:
        """What to change first to make the error bars more accurate."""
        if self.solve_error > self.tolerance:
            return f"the samples missed the tolerance of {self.tolerance:.0%}: {self._short_solve()}"
        if self.status == Status.UNVERIFIED.value:
            return "the samples' error is an estimate that could not be verified: raise max_passes, or use float64"
        if not self.settled:
            return f"EM has not settled: {self.unsettled or 'raise EM(max_steps=...)'}"
        alpha = max(self.precision_error or [0.0])
        if alpha > self.std_error:
            return f"alpha is known to {alpha:.0%} only: raise EM(num_samples=...)"
        wanted = 4 * self.num_samples
        return (
            f"the number of samples limits the accuracy: num_samples={wanted} halves the {self.std_error:.0%} "
            "of a standard deviation"
        )

    def _short_solve(self) -> str:
        if "rounding" in self.status:
            return "use float64, or ask for less"
        return "raise max_passes, or ask for less"

    def _describe_readings(self) -> str:
        if not self.kept_on:
            return f"{self.sweeps} readings of the loader"
        return f"{self.sweeps} readings of the data, which were kept on {self.kept_on} after the second"

    def _describe_update(self, row: dict[str, Any]) -> str:
        count = len(self.updates)
        last = f"the last of {count}, by" if count > 1 else "one, by"
        return f"{last} {row['num_data']:,} data in {row['passes']:.1f} passes and {row['seconds']:.1f} s"

    def _describe_sample(self) -> str:
        words = f"error {self.solve_error:.1%} of a function draw (estimated)"
        return words + (f", {max(self.sample_errors):.1%} for the worst" if self.sample_errors else "")

    def _describe_prior(self) -> str:
        precision = ", ".join(f"{a:.3g}" for a in self.prior_precision[:8]) + (" ..." * (len(self.prior_precision) > 8))
        times = f" times {self.prior_groups[0]}" if self.prior_groups[0].startswith(GIVEN) else ""
        return f"precision {precision}{times}{_known(self.precision_error)}; {self._describe_em()}"

    def _describe_model(self) -> str:
        """Which linear model of a network it is that y is held against; nothing for other features."""
        if not self.products:
            return ""
        return " of y around " + ("f + J (theta - w)" if self.linear_model == "tangent" else "J theta")

    def _describe_gamma(self) -> str:
        gamma, error = sum(self.effective_dimension), self.effective_dimension_sum_error
        if error is None:  # a report of an earlier version
            error = sum(e**2 for e in self.effective_dimension_error) ** 0.5
        return f"{gamma:.1f}" + (f" (standard error {error:.1f})" if error else " (exact)")

    def _describe_layer(self) -> str:
        errors = self.effective_dimension_by_layer_error
        ranked = sorted(self.effective_dimension_by_layer.items(), key=lambda item: -item[1])
        seen = [(name, gamma) for name, gamma in ranked if gamma > _SEEN * errors.get(name, 0.0)]
        shown = [
            f"{name or 'the network itself'} {gamma:.1f}" + (f" +- {errors[name]:.1f}" if errors.get(name) else "")
            for name, gamma in seen[:_LAYERS]
        ]
        others = len(ranked) - len(shown)
        if others:
            rest = sum(gamma for _, gamma in ranked) - sum(gamma for _, gamma in seen[:_LAYERS])
            hidden = len(ranked) - len(seen)
            why = f" ({hidden} of them not resolved by K = {self.num_samples} samples)" if hidden else ""
            shown.append(f"{others} other{'s' * (others > 1)} {rest:.1f}{why}")
        return f"of these: {', '.join(shown)}"

    def _describe_rounds(self) -> str:
        rounds = f"{self.curvature_rounds} round" + "s" * (self.curvature_rounds != 1)
        moves = f", and one more would change alpha by {self.curvature_moves:.1%}" if self.curvature_rounds else ""
        return f"at the linear mode, found in {rounds}{moves}"

    def _describe_em(self) -> str:
        if not self.trace:
            return "fixed by the user"
        steps = f"{len(self.trace)} step" + "s" * (len(self.trace) > 1)
        if not self.settled:
            return f"EM has NOT settled in {steps}"
        change = self.trace[-1]["change"]
        return f"EM settled in {steps}" + (f" (last change {change:.1%})" if change < _SMALL_CHANGE else "")


def _finite(value: Any) -> Any:
    """The same, with None for every number that is not finite, which JSON does not know."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _describe_chunk(chunks: dict[str, Any]) -> str:
    how = {
        "preset": "preset",
        "measured": f"the fastest of those measured, in {chunks['seconds']:.1f} s",
        "given": "as asked",
        "restored": "as the checkpoint has it",
    }[chunks["source"]]
    words = f"{chunks['entries']} data x vectors, {chunks['columns']} vectors at most ({how})"
    return words + (f"; memory ran out {chunks['halvings']} times, each halved them" if chunks["halvings"] else "")


def _known(errors: list[float] | None) -> str:
    """ " (known to 3 %, ...)" from a standard error and a truncation error."""
    if errors is None:
        return ""
    spread, open_end = errors
    if spread == 0:
        return f" (exact up to {open_end:.1%})"
    return f" (known to {spread:.1%}" + (f", iterations may change {open_end:.1%})" if open_end > spread / 10 else ")")


def _pair(errors: LogError | LogEvidence | None) -> list[float] | None:
    return None if errors is None else [errors.standard_error, errors.truncation]


def build_report(
    inference: Inference,
    data: Data,
    excluded: dict[str, str],
    adjoint_error: float | None,
    seconds: float,
    tolerance: float,
    products: str = "",
    width: Width | None = None,
) -> FitReport:
    """Collect the report from what the fit left behind."""
    noise = inference.model.likelihood.noise_precision
    count, origin = len(inference.samples), inference.model.features.origin
    layers = at_least_zero(dimension_by_layer(inference.solution, count, inference.model.features.layout))
    return FitReport(
        num_data=data.num_data,
        num_parameters=inference.model.num_parameters,
        num_samples=count,
        prior_precision=inference.prior.precision.tolist(),
        prior_groups=list(inference.prior.names),
        noise_precision=None if noise is None else noise.tolist(),
        effective_dimension=inference.effective_dimension.tolist(),
        effective_dimension_error=inference.effective_dimension_error.tolist(),
        effective_dimension_sum_error=inference.effective_dimension_sum_error,
        trace=trace_rows(inference.trace),
        settled=inference.settled,
        unsettled=inference.unsettled,
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
        method=inference.method,
        tolerance=tolerance,
        sample_errors=None if inference.solution.errors is None else inference.solution.errors[:count].tolist(),
        mean_error=None if inference.mean is None else inference.mean_error,
        precision_error=_pair(inference.precision_error),
        noise_error=_pair(inference.noise_error),
        log_evidence=None if inference.log_evidence is None else inference.log_evidence.value,
        log_evidence_error=_pair(inference.log_evidence),
        linear_model="tangent" if origin is not None and origin.tangent else "surrogate",
        products=products,
        effective_dimension_by_layer={name: gamma for name, (gamma, _) in layers.items()},
        effective_dimension_by_layer_error={name: error for name, (_, error) in layers.items()},
        curvature_rounds=inference.trace[-1].rounds if inference.trace else None,
        curvature_moves=inference.trace[-1].moving if inference.trace else None,
        chunks=inference.model.chunks.facts(),
        width=None if width is None else width.to_dict(),
        kept_on=data.kept_on,
    )


def with_more_samples(report: FitReport, inference: Inference, seconds: float) -> FitReport:
    """The report of a fit that has been given more samples since, which took so many seconds."""
    count, solution = len(inference.samples), inference.solution
    layers = at_least_zero(dimension_by_layer(solution, count, inference.model.features.layout))
    return replace(
        report, num_samples=count, effective_dimension=inference.effective_dimension.tolist(),
        effective_dimension_error=inference.effective_dimension_error.tolist(),
        effective_dimension_sum_error=inference.effective_dimension_sum_error, status=solution.status.value,
        final_passes=solution.passes, solve_error=solution.error, solve_history=solution.history,
        passes=inference.model.ledger.products / count, sweeps=inference.model.data.sweeps,
        vector_bytes=inference.samples.nbytes, seconds=report.seconds + seconds,
        sample_errors=None if solution.errors is None else solution.errors[:count].tolist(),
        effective_dimension_by_layer={name: gamma for name, (gamma, _) in layers.items()},
        effective_dimension_by_layer_error={name: error for name, (_, error) in layers.items()},
        chunks=inference.model.chunks.facts(),
    )  # fmt: skip
