"""sampla, and what needs nothing but the network: itself, a temperature, an ensemble, SWAG.

A method is a function Task -> Fitted.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import exp
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sampla
from experiments.classification.experiment import Task
from experiments.classification.kept import Earlier, kept
from experiments.common.devices import device_of
from experiments.common.images import Images
from experiments.common.metrics import Prediction
from experiments.common.training import swag_samples
from sampla.features import NetworkFeatures
from sampla.inference.infer import CurvatureAt
from sampla.laplace.choices import Precision
from sampla.likelihoods import Categorical

MAIN, PROBIT, EM_WIDTH = "", "probit", "EM's width"
"""Ways of averaging probabilities: over functions, which have a joint distribution, or MacKay's formula; at the default
width of sampla's error bars, which leave-one-out on the training images finds, or as wide as EM leaves them."""
_ROWS = 500
"""Images that are pushed through a network at once."""
_IN_FLIGHT = 512
"""Images times samples of a linearised network."""


@dataclass(frozen=True)
class Fitted:
    """A method after its fit."""

    predict: Callable[[Tensor], dict[str, Prediction]]  # (n, channels, side, side) -> way of averaging -> what it says
    facts: dict[str, Any] = field(default_factory=dict)  # what is worth writing down: JSON only
    own: Callable[[Tensor], dict[str, Tensor]] | None = None  # a library's own predictions (n, C), for the clean images
    earlier: Earlier = field(default_factory=Earlier)  # what of it another process has done


def network_alone(task: Task) -> Fitted:
    """Its softmax."""
    return voting([task.network])


def temperature(task: Task) -> Fitted:
    """Logits divided by the number that is best on held-out images (Guo et al. 2017)."""
    outputs = logits(task.network, task.data.held_out.images).double()
    labels = task.data.held_out.labels.to(outputs.device)
    found = exp(minimize_scalar(lambda log_t: float(cross_entropy(outputs / exp(log_t), labels))).x)
    return Fitted(lambda x: {MAIN: of_logits(logits(task.network, x)[None] / found)}, {"temperature": found})


def ensemble(task: Task) -> Fitted:
    """Networks that were trained from other initial weights (Lakshminarayanan et al. 2017), the network one of them."""
    return replace(voting(task.members), facts={"members": len(task.members)})


def swag(task: Task) -> Fitted:
    """Weights drawn from a Gaussian fitted to a run of SGD (Maddox et al. 2019), BatchNorm's averages found anew."""
    settings = task.settings
    return voting(swag_samples(task.network, task.data.train, settings.swag, settings.samples, settings.seed))


def voting(networks: Sequence[nn.Module]) -> Fitted:
    """Their probabilities, averaged."""
    return Fitted(lambda x: {MAIN: of_logits(torch.stack([logits(network, x) for network in networks]))})


def sampled(
    prior: str, curvature_at: CurvatureAt = "network", reference: bool = False, scaled: bool = False,
    parameters: str | None = None, samples: int | None = None, precision: Precision = "full",
) -> Callable[[Task], Fitted]:  # fmt: skip
    """sampla with this prior; as a reference with more samples and a small tolerance; scaled on held-out images.

    ``parameters`` are those of ``LinearisedLaplace``: "last-layer", or None for all; ``samples`` K, if not the run's;
    ``precision`` is that of EM's products.
    """

    def fit(task: Task) -> Fitted:
        settings = task.settings
        options: dict[str, Any] = {"num_samples": samples or settings.samples}
        if reference:
            options = {"num_samples": settings.reference_samples, "tolerance": settings.reference_tolerance}
        options |= {"prior": prior, "parameters": parameters, "seed": settings.seed, "curvature_at": curvature_at}
        options |= {} if precision == "full" else {"precision": precision}  # names of folders that are there stay so

        def fresh(checkpoint: Path | None) -> sampla.LinearisedLaplace:
            la = sampla.LinearisedLaplace(task.network, "categorical", **options, progress=False)
            return la.fit(_part(task.data.train), checkpoint=checkpoint)

        folder = task.fits and task.fits / "-".join(str(value) for value in options.values())
        la, earlier = kept(folder, task.network, fresh)
        report = la.report_
        facts: dict[str, Any] = {
            "alpha": report.prior_precision, "gamma": sum(report.effective_dimension),
            "gamma_error": sum(e**2 for e in report.effective_dimension_error) ** 0.5,
            "passes": report.passes, "solve_error": report.solve_error, "status": report.status,
            "width": report.width, "settled": report.settled, "em": report.method, "samples": report.num_samples,
            "parameters": report.num_parameters, "trace": report.trace, "certificate": str(report),
            "continued": earlier.continued,
        }  # fmt: skip
        if scaled:
            few = task.data.held_out.rows(slice(500))  # as many as ELLA's prior is chosen on
            factor = la.predict(few.images, num_draws=settings.draws).best_scale(few.labels)
            facts["scale"] = factor

        def predict(x: Tensor) -> dict[str, Prediction]:
            said = la.predict(x, num_draws=settings.draws)
            if scaled:
                return of_predictive(said.scaled(factor))
            wide = of_predictive(said.scaled(1.0))
            return of_predictive(said) | {EM_WIDTH: wide[MAIN], f"{EM_WIDTH}, {PROBIT}": wide[PROBIT]}

        return Fitted(predict, facts, earlier=earlier)

    return fit


def _part(images: Images) -> Iterable[tuple[Tensor, Tensor]]:
    """The images of this process, where several share them (spread.py)."""
    if not dist.is_initialized():
        return images.batches(_ROWS)
    ends = [len(images) * rank // dist.get_world_size() for rank in (dist.get_rank(), dist.get_rank() + 1)]
    return sampla.as_shard(images.rows(slice(*ends)).batches(_ROWS))


def linearised(
    network: nn.Module, names: list[str], samples: Tensor, draws: int
) -> Callable[[Tensor], dict[str, Prediction]]:
    """Predictions of the linearised network with zero-mean weight samples (K, P), from whatever posterior."""
    features, likelihood = NetworkFeatures(network, names), Categorical()
    rows = max(1, _IN_FLIGHT // len(samples))

    def predict(x: Tensor) -> dict[str, Prediction]:
        x = x.to(samples.device)
        deviations = torch.cat([features.linearise(part).jvp(samples) for part in x.split(rows)], dim=1)
        return of_predictive(sampla.Predictive(logits(network, x), deviations, likelihood, num_draws=draws))

    return predict


@torch.no_grad()
def logits(network: nn.Module, x: Tensor) -> Tensor:
    """(n, C), where the network is."""
    device = device_of(network)
    return torch.cat([network(part.to(device)) for part in x.split(_ROWS)])


def of_logits(outputs: Tensor) -> Prediction:
    """The average of S functions (S, n, C)."""
    log_probs = outputs.log_softmax(-1)

    def label_log_prob(labels: Tensor) -> Tensor:
        labels = labels.to(log_probs.device)
        return log_probs.gather(-1, labels.expand(len(log_probs), -1)[..., None])[..., 0].cpu()

    return Prediction(log_probs.exp().mean(0).cpu(), label_log_prob)


def of_predictive(predictive: sampla.Predictive) -> dict[str, Prediction]:
    """Monte Carlo over functions, and probit; what they say is on the CPU."""

    def label_log_prob(labels: Tensor) -> Tensor:
        return predictive.sample_log_prob(labels.to(predictive.mean.device)).cpu()

    def single(labels: Tensor) -> Tensor:
        return predictive.log_prob(labels.to(predictive.mean.device)).cpu()

    two_widths = predictive.width != predictive.joint_width
    return {
        MAIN: Prediction(predictive.probs.cpu(), label_log_prob, single if two_widths else None),
        PROBIT: Prediction(replace(predictive, method=PROBIT).probs.cpu(), None),
    }
