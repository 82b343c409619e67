"""What a fit says of its own errors, against the truth of the same problem in dense float64.

Random small networks of all kinds (likelihood, prior, dtype, size, how long they were trained, learnt or fixed, traces
exact or sampled). Judged are gamma and the log evidence by z, (stated - true) / standard error, and the errors of
samples and mean by stated over true.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import dense
import sampla
from sampla.core.noise import PRIOR, standard_normal

SAMPLES = 8
ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-10}
"""Errors below are not judged: the network's own rounding, which is large in p (1 - p) where outputs are saturated."""
_LOSSES: dict[str, Any] = {
    "gaussian": functional.mse_loss,
    "categorical": functional.cross_entropy,
    "bernoulli": functional.binary_cross_entropy_with_logits,
}
_OUTPUTS = {"gaussian": (1, 3), "categorical": (3, 5), "bernoulli": (1, 2)}
_PRIORS: dict[str, Any] = {"isotropic": sampla.Isotropic, "g-prior": sampla.GPrior, "layerwise": sampla.Layerwise}


@dataclass(frozen=True)
class Problem:
    """A trained network with its data, and how it is to be fitted."""

    kind: str
    network: nn.Module
    inputs: Tensor
    targets: Tensor
    likelihood: sampla.Likelihood
    prior: sampla.Prior
    solver: str
    exact_up_to: int
    seed: int
    precision: Any = "full"

    def fitted(self) -> sampla.LinearisedLaplace:
        la = sampla.LinearisedLaplace(
            self.network, likelihood=self.likelihood, prior=self.prior, num_samples=SAMPLES, seed=self.seed,
            solver=self.solver, log_evidence=True if self.precision == "full" else None, progress=False,
            em=sampla.EM(exact_up_to=self.exact_up_to),
            precision=self.precision,
        )  # fmt: skip
        return la.fit([(self.inputs, self.targets)])


def problem(seed: int) -> Problem:
    """The problem with this number."""
    draw = torch.Generator().manual_seed(seed)

    def one_of(*options: Any) -> Any:
        return options[int(torch.randint(len(options), (), generator=draw))]

    kind = one_of("gaussian", "categorical", "categorical", "bernoulli")
    count, width, hidden, outputs = one_of(25, 40, 80, 150), one_of(2, 5, 8), one_of(6, 12), one_of(*_OUTPUTS[kind])
    noise, learn, dtype = one_of(0.05, 0.3, 1.0), one_of(True, True, False), one_of(torch.float32, torch.float64)
    inputs = torch.randn(count, width, generator=draw, dtype=torch.float64)
    inputs[:, 0] *= one_of(1.0, 1.0, 10.0)
    clean = inputs @ torch.randn(width, outputs, generator=draw, dtype=torch.float64) / width**0.5
    noisy = clean.sin() + noise * torch.randn(count, outputs, generator=draw, dtype=torch.float64)
    targets = {"gaussian": noisy, "categorical": noisy.argmax(1), "bernoulli": (noisy > 0).double()}[kind]
    depth, steps = one_of(0, 1), one_of(30, 200, 600)
    network = _trained(seed, [width, hidden, *depth * [hidden], outputs], inputs, targets, _LOSSES[kind], steps)
    given = sampla.Gaussian(noise_precision=noise**-2)
    likelihood = {
        "gaussian": one_of(sampla.Gaussian(), given) if learn else given,
        "categorical": sampla.Categorical(), "bernoulli": sampla.Bernoulli(),
    }[kind]  # fmt: skip
    prior = one_of(*_PRIORS.values())
    return Problem(
        kind, network.to(dtype), inputs.to(dtype), targets if kind == "categorical" else targets.to(dtype), likelihood,
        prior() if learn else prior(precision=one_of(0.01, 1.0, 100.0), learn=False),
        one_of("block-cg", "block-cg", "block-cg", "dense", "auto"), one_of(0, 0, 256), seed,
    )  # fmt: skip


def judged(problem: Problem, la: sampla.LinearisedLaplace) -> dict[str, float]:
    """z of gamma and evidence where they are sampled, and stated over true errors where they are judged."""
    report, true = la.report_, _truth(problem, la)
    found = {"least gamma": min(report.effective_dimension)}
    spread, open_end = report.log_evidence_error or (0.0, 0.0)
    sampled = sum(error**2 for error in report.effective_dimension_error) ** 0.5
    if sampled:
        found["z of gamma"] = (sum(report.effective_dimension) - true["gamma"]) / sampled
    if spread and report.log_evidence is not None:
        found["z of evidence"] = (report.log_evidence - true["evidence"]) / math.hypot(spread, open_end)
    stated = {"samples": report.solve_error, "mean": report.mean_error}
    for name, error in stated.items():
        if error is not None and name in true and true[name] > ROUNDING[problem.inputs.dtype]:
            found[name] = error / true[name]
    return found


def reduced_problem(seed: int) -> Problem:
    """The same in float32, with products in bfloat16 wherever a fit takes them."""
    given = problem(seed)
    targets = given.targets if given.kind == "categorical" else given.targets.float()
    return replace(
        given, network=given.network.float(), inputs=given.inputs.float(), targets=targets, solver="block-cg",
        exact_up_to=0, precision="bfloat16",
    )  # fmt: skip


def trials(count: int, seed: int, folder: Path, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:  # noqa: ARG001
    """As ``_trials``, with products in full precision."""
    return _trials(problem, count, seed, say)


def reduced_trials(
    count: int,
    seed: int,
    folder: Path,  # noqa: ARG001
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """As ``_trials``, with products in bfloat16 until the last passes."""
    return _trials(reduced_problem, count, seed, say)


def _trials(problem: Callable[[int], Problem], count: int, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """So many problems; "right" where no error that a finished solve states is below half of the true one.

    A solve that says it has not reached or not proved its tolerance counts as "refused".
    """
    found: dict[str, Any] = {"tried": 0, "right": 0, "refused": 0, "wrong": 0, "without a reference": 0}
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sampla.ConvergenceWarning)
        for number in range(count):
            case = problem(1000 * seed + number)
            found["tried"] += 1
            try:
                la = case.fitted()
            except ValueError as error:
                if "residuals of zero" not in str(error):
                    raise
                found["refused"] += 1  # float32 meets targets that float64 does not
                continue
            if not (la.report_.status.startswith("reached") and la.report_.settled):
                found["refused"] += 1
                continue
            try:
                row = judged(case, la)
            except dense.NoReferenceError:  # classes that a plane separates, or no noise, under next to no prior
                found["without a reference"] += 1
                continue
            low = {name: row[name] for name in ("samples", "mean") if row.get(name, 1.0) < 0.5}
            wrong = bool(low) or row["least gamma"] < 0
            found["wrong" if wrong else "right"] += 1
            rows.append(row)
            if wrong:
                say(f"case {number}, {case.kind}: {low or row}")
    return found | _summary(rows)


def _summary(rows: list[dict[str, float]]) -> dict[str, Any]:
    """How often each was judged; the root mean square of z; the least ratio of stated to true, and the median."""
    each = {
        name: torch.tensor([row[name] for row in rows if name in row], dtype=torch.float64)
        for name in ("z of gamma", "z of evidence", "samples", "mean")
        if any(name in row for row in rows)
    }
    spreads = {f"rms {name}": float(z.square().mean().sqrt()) for name, z in each.items() if name.startswith("z")}
    ratios = {
        f"{which} {name}": float(reduce(values))
        for name, values in each.items()
        for which, reduce in (("least", torch.min), ("median", torch.median))
        if not name.startswith("z")
    }
    return spreads | ratios | {f"number of {name}": len(values) for name, values in each.items()}


def _trained(
    seed: int, widths: list[int], inputs: Tensor, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor], steps: int
) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [
            layer
            for before, after in pairwise(widths)
            for layer in (nn.Linear(before, after, dtype=torch.float64), nn.Tanh())
        ]
    network = nn.Sequential(*layers[:-1])
    optimiser = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(network(inputs), targets).backward()
        optimiser.step()
    return network.eval()


def _truth(problem: Problem, la: sampla.LinearisedLaplace) -> dict[str, float]:
    """gamma and log evidence at the hyperparameters found; errors of samples and mean in the fit's own norms."""
    inference = la._inference
    assert inference is not None
    prior, network, inputs = inference.prior, problem.network.double(), problem.inputs.double()
    scale, diagonal = prior.scale.double(), prior.precision[prior.group].double()
    features = dense.jacobian(network, list(la.samples_), inputs) * scale
    outputs = network(inputs).detach()
    near = None if inference.mean is None else inference.mean.double() / scale  # where Newton's iteration starts
    targets = problem.targets if problem.kind == "categorical" else problem.targets.double()
    if problem.kind == "gaussian":
        weight = torch.eye(outputs.shape[1], dtype=torch.float64) * float(la.noise_precision_)
        loss, weights = dense.gaussian_loss(weight), weight.expand(len(inputs), -1, -1)
        evidence = dense.gaussian_log_evidence(features, targets, weights, diagonal)
    else:
        loss = dense.categorical_loss if problem.kind == "categorical" else dense.bernoulli_loss
        weights = dense.hessians(loss, outputs, targets)
        evidence = dense.laplace_log_evidence(features, targets, loss, weights, diagonal, near)
    matrix = dense.curvature(features, weights)
    whole = matrix + diagonal.diag()
    unit = torch.zeros(len(diagonal), dtype=la._inference.model.features.like.dtype)
    noise = standard_normal(problem.seed, PRIOR, range(SAMPLES), 0, (len(diagonal),), unit).double()
    data_part = inference.model.draw_noise(problem.seed, SAMPLES).data_part.double()
    exact = torch.linalg.solve(whole, (data_part + diagonal.sqrt() * noise).mT).mT
    missing = inference.samples.double() / scale - exact
    found = {
        "gamma": float(torch.linalg.solve(whole, matrix).trace()), "evidence": evidence,
        "samples": _size(missing, matrix) / _size(exact, matrix),
    }  # fmt: skip
    if near is not None:
        mode, quadratic = dense.mode(features, targets, loss, diagonal, near), problem.kind == "gaussian"
        missing = (near - mode)[None]
        at_mode = dense.curvature(features, dense.fast_hessians(loss, features @ mode, targets)) + diagonal.diag()
        size = _size(mode[None], matrix if quadratic else diagonal.diag())
        found["mean"] = _size(missing, matrix if quadratic else at_mode) / size
    return found


def _size(block: Tensor, matrix: Tensor) -> float:
    return float((block @ matrix * block).sum()) ** 0.5
