"""The first look at the data: what every pass after it may rely on is checked, and what they tell is counted."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from sampla.core.batch import Batch
from sampla.core.checks import require_finite
from sampla.core.chunks import Chunks
from sampla.core.data import Data
from sampla.core.inputs import describe_inputs, input_tensors
from sampla.features import Chunked, Features, Linearisation
from sampla.likelihoods import Likelihood
from sampla.likelihoods.checks import check_counted, check_curvature, check_observations, check_settings
from sampla.likelihoods.watch import CopyWatch, OutputWatch


@dataclass(frozen=True)
class Survey:
    """What a first look at the data tells."""

    num_data: int
    outputs: float
    """N C: the number of outputs over all data, as often as their weights count them."""
    entries: float
    """The same less what the features have absorbed: the degrees of freedom that are left to noise and prior."""
    residual: Tensor | None
    """Second moment of the residuals of the network's outputs f, y - f for Gaussian noise; None if there are none."""
    target: Tensor | None = None
    """The same where the linear model says nothing, at theta = 0: y, or y - f + J w for a tangent; at the prior's mean
    where theta counts from that."""
    numbers: int = 0
    """N C, every datum counted once: at least the rank of M."""
    targets: float = inf
    """How many targets count (data, where the likelihood leaves none out); infinity where nobody has counted."""


class FirstLook:
    """Sees the minibatches of one pass, one after the other.

    Args:
        features: of the linear model.
        likelihood: of the same.
        chunks: learns of data with very many outputs.
        unchecked: whether inputs and targets may still hold NaN.

    Raises:
        ValueError: for settings of the likelihood that make no sense.
    """

    def __init__(self, features: Features, likelihood: Likelihood, chunks: Chunks, *, unchecked: bool) -> None:
        self._features, self._likelihood, self._chunks, self._unchecked = features, likelihood, chunks, unchecked
        self._outputs, self._numbers, self._targets = 0.0, 0, 0
        self._watch, self._copies = OutputWatch(likelihood), CopyWatch(likelihood)
        self._moments: list[Tensor] = []
        check_settings(likelihood)

    def see(self, batch: Batch) -> None:
        """Check the data of a minibatch, and count them.

        Raises:
            ValueError: for NaN in inputs, outputs or targets, or targets that do not fit the outputs.
        """
        if self._unchecked:
            _require_finite_data(batch, self._likelihood)
        likelihood, here = self._likelihood, Chunked(self._features, batch.inputs, self._chunks)
        outputs = here.outputs
        if not bool(outputs.isfinite().all()):
            where = f"network outputs on inputs {describe_inputs(batch.inputs)} (data from {batch.position})"
            origin = self._features.where_not_finite(batch.inputs, batch.position)
            require_finite(outputs, where, f"{origin}Check the scaling of the inputs and the trained weights.")
        self._chunks.allow_for(outputs[0].numel())
        likelihood.check_targets(outputs, batch.targets)
        check_counted(likelihood, outputs, batch.targets)
        if batch.position == 0:
            self._check_curvature(outputs, batch.targets)
        self._watch.see(outputs, batch.targets)
        self._copies.see(input_tensors(batch.inputs), batch.targets)
        counted = batch.size if batch.weights is None else float(batch.weights.double().sum())
        self._numbers += outputs.numel()
        left, known = likelihood.residuals(outputs, batch.targets), likelihood.counted(batch.targets)
        self._targets += batch.size if known is None else int(known.sum())
        if left is None or known is None:
            self._outputs += outputs[0].numel() * counted
        else:
            each = known.expand_as(outputs).reshape(len(outputs), -1).sum(1).double()
            self._outputs += float((each if batch.weights is None else each * batch.weights.to(each)).sum())
        if left is not None:
            at_zero = likelihood.residuals(self._prior_mean(here), batch.targets)
            assert at_zero is not None
            parts = [self._moment(batch, each) for each in (left, at_zero)]
            self._moments = [a + b for a, b in zip(self._moments, parts, strict=True)] if self._moments else parts

    def survey(self, data: Data, whole: bool = True) -> Survey:
        """What all of them have told; warns of outputs that look like something else.

        Args:
            data: whose minibatches these were.
            whole: whether these are all data; what the outputs of a few of them look like says nothing.
        """
        if whole:
            self._watch.warn()
            self._copies.warn()
        numbers = data.count_outputs(self._numbers)
        (sums,) = data.summed("outputs, weighted", torch.tensor([self._outputs, self._targets], dtype=torch.float64))
        self._outputs = float(sums[0])
        moments = self._all_moments(data)
        residual, target = data.summed("residuals", *moments) if moments else (None, None)
        entries = self._outputs - self._features.absorbed
        return Survey(data.num_data, self._outputs, entries, residual, target, numbers, float(sums[1]))

    def _all_moments(self, data: Data) -> Sequence[Tensor]:
        """Those of the data on this process, or something in their place where only others have data."""
        if data.ranks is None:
            return self._moments
        some = any(data.ranks.gathered("residuals", bool(self._moments)))
        nothing = torch.zeros((), device=self._features.device)
        return (self._moments or [nothing, nothing]) if some else []

    def _check_curvature(self, outputs: Tensor, targets: Tensor) -> None:
        """Once the likelihood has all it needs; a noise precision that is to be learnt has no value yet."""
        likelihood = self._likelihood
        if not likelihood.noise_is_known and likelihood.scalar_noise:  # any value will do to see that B follows it
            likelihood = likelihood.with_noise(torch.ones((), dtype=torch.float64))
        if likelihood.noise_is_known:
            check_curvature(likelihood, outputs, targets)
            check_observations(likelihood, outputs, targets)

    def _prior_mean(self, here: Linearisation) -> Tensor:
        """What the linear model says at theta = 0: zero, or f - J w for a tangent, and J mu more about a mean mu."""
        origin = self._features.origin
        if origin is None:
            return torch.zeros_like(here.outputs)
        return here.linear_outputs(torch.zeros_like(origin.point.to(self._features.device))[None], origin)[0]

    def _moment(self, batch: Batch, values: Tensor) -> Tensor:
        """Weighted second moment of (n, *out) values of a batch."""
        known = self._likelihood.curvature_weights(batch.targets)
        if known is not None:
            values = values * known.to(values).sqrt()
        if batch.weights is not None:
            values = values * batch.weights.to(values).sqrt().view(-1, *[1] * (values.ndim - 1))
        return self._likelihood.second_moment(values.unsqueeze(0))


def _require_finite_data(batch: Batch, likelihood: Likelihood) -> None:
    for tensor in input_tensors(batch.inputs):
        require_finite(tensor, f"inputs (data from {batch.position})", "Remove or impute them.")
    asked, counted = batch.targets, likelihood.counted(batch.targets)
    if counted is not None and asked.is_floating_point():  # those left out may be NaN: its own check knows of others
        asked = asked[~asked.isnan()]
    require_finite(asked, f"targets (data from {batch.position})", "Remove or impute them.")
