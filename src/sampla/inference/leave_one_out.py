"""Every training observation as the posterior predicts it without it: scores, leverages, labels that look wrong."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sampla.core.checks import require, require_count
from sampla.core.data import CheckedLoader
from sampla.inference.mode import mode_of
from sampla.inference.state import Inference
from sampla.model import LinearModel
from sampla.posterior.leave_one_out import linear_batches, mixing
from sampla.posterior.posterior import Posterior
from sampla.posterior.width import NEAR_ONE, outputs_scale

_SHOWN = 5
"""Data that the words name."""


@dataclass(frozen=True)
class LeaveOneOut:
    """Leave-one-out of the linear model over n data in the order of their loader, on the CPU."""

    log_prob: Tensor
    """(n, ...) log density of each observation under the posterior without it, in nats; zero where none counts.

    The inner axes are the outputs' less those that one observation is about: none for class labels (n,), the pixels of
    an image, the outputs of a regression or of several yes and no."""
    leverage: Tensor
    """(n, ...) h: by which part of itself each observation determines what is said of it, 0 to 1 but for the error of
    K samples, sqrt(2 / K) of itself."""
    counted: Tensor
    """(n, ...) False for what the likelihood leaves out (padding, pixels without a label)."""
    width: float
    """Factor on the posterior's deviations at which the densities are taken: that of single labels."""

    @property
    def num_observations(self) -> int:
        """How many observations were left out in turn."""
        return int(self.counted.sum())

    @property
    def by_datum(self) -> Tensor:
        """(n,) sums of the log densities over the observations of each datum, in float64."""
        return self.log_prob.double().reshape(len(self.log_prob), -1).sum(1)

    @property
    def score(self) -> float:
        """Sum of all log densities in nats: the higher, the better the model predicts data of its own kind."""
        return float(self.by_datum.sum())

    @property
    def score_error(self) -> float:
        """Its standard error, from the spread over the data; other data of the same number would differ by as much.

        What another seed of the K samples would change is not in it."""
        return _error_of_sum(self.by_datum)

    def minus(self, other: "LeaveOneOut") -> tuple[float, float]:
        """By how much the score exceeds that of another model on the same data in the same order, and its error.

        Paired by data: for two models that find the same data hard that error is much smaller than those of the scores.
        It is that of the data alone. K samples move all data together: two seeds of one model may differ by twice that
        error and more, so differences are to be seen with several seeds, or a larger K.

        Raises:
            ValueError: for another number of data.
        """
        sizes = [len(each.log_prob) for each in (self, other)]
        require(sizes[0] == sizes[1], f"a score of the same {sizes[0]} data", f"{sizes[1]}", "Give both one loader.")
        apart = self.by_datum - other.by_datum
        return float(apart.sum()), _error_of_sum(apart)

    def least_likely(self, count: int) -> Tensor:
        """(count,) places in the loader of the data whose labels the posterior finds least likely without them.

        The least likely first; a datum with several observations has the place of its least likely one. All of them
        if there are fewer.

        Raises:
            ValueError: for less than one.
        """
        require_count(count, "count", 1, "It is how many data are to be looked at.")
        known = self.log_prob.double().where(self.counted, torch.inf).reshape(len(self.log_prob), -1).amin(1)
        order = known.argsort(stable=True)
        return order[known[order] < torch.inf][:count]

    def __str__(self) -> str:
        number = self.num_observations
        near = int((self.counted & (self.leverage > NEAR_ONE)).sum())
        unlikely = self.least_likely(_SHOWN).tolist()
        lowest = self.log_prob.where(self.counted, torch.inf).reshape(len(self.log_prob), -1).amin(1)
        return (
            f"Leave-one-out of {number:,} observations, at {self.width:.3g} of the posterior's deviations\n"
            f"  log score     {self.score:.1f} +- {self.score_error:.1f} nats, "
            f"{self.score / number:.3f} an observation\n"
            f"  leverage      near 1: {near:,} of {number:,}\n"
            "  least likely  " + ", ".join(f"datum {n} ({float(lowest[n]):.2f} nats)" for n in unlikely)
        )


def leave_one_out(
    inference: Inference | None,
    posterior: Posterior,
    data: CheckedLoader,
    mode: Tensor | None,
    *,
    at_mode: bool,
    seed: int,
    tolerance: float,
    say: Callable[[str], None],
) -> LeaveOneOut:
    """Leave each observation of the training data out of what the posterior says of it, by a pass of K + 1 jvps.

    Args:
        inference: what the fit has left behind; None, of a posterior from a file, is refused.
        posterior: of the same fit.
        data: those of the fit, in an order that stays.
        mode: (P,) the linear model's, if the fit has looked for it.
        at_mode: whether H has B at the linear mode's outputs, not at the network's.
        seed: of the draws over which a likelihood is averaged.
        tolerance: relative error of a mode that has still to be found.
        say: called with one line before each step of that.

    Raises:
        ValueError: for a posterior from a file, for other data, or an order that changes.
    """
    fix = "A file holds neither the linear mode nor what the data were: fit once more."
    require(
        inference is not None, "a posterior that was fitted in this process", "one from a file, or moved by to()", fix
    )
    assert inference is not None
    for _ in data:  # the first pass tells which data they are and in which order
        pass
    fitted = inference.model.data
    assert isinstance(fitted, CheckedLoader)
    same = (data.num_data, data.fingerprint) == (fitted.num_data, fitted.fingerprint)
    other = "as many, but not the same ones" if data.num_data == fitted.num_data else f"{data.num_data} data"
    require(
        same, f"the {fitted.num_data} data of the fit, inputs and targets", other,
        "Only what the posterior has learnt from can be left out; la.predict(x).log_prob(y) scores new data.",
    )  # fmt: skip
    model = LinearModel(posterior.features, posterior.likelihood, data, chunks=inference.model.chunks)
    samples, width = posterior.samples, posterior.width
    mean = mode_of(inference, tolerance, say)[0] if mode is None else mode
    scale = width.scale if width.rule == "loo" or not at_mode else outputs_scale(model, mean)
    mix = mixing(seed, len(samples), torch.empty(0, dtype=torch.float32, device=model.features.device))
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for each in linear_batches(model, samples, mean, at_mode):
        left = each.left_out(mix, scale)
        counted = each.counted(left.leverage) > 0
        density = left.log_prob([width.marginal], (1.0,))[0, 0]
        found = density.where(counted, 0), left.leverage.where(counted, 0), counted
        parts.append((found[0].cpu(), found[1].cpu(), found[2].cpu()))
    require(
        data.fixed_order, "a loader that gives its data in the same order every time", "another order the second time",
        "Answers are told by the place of a datum in its loader: give one that does not shuffle.",
    )  # fmt: skip
    nothing = torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.bool)
    columns = [torch.cat(each) for each in zip(*(parts or [nothing]), strict=True)]
    if data.ranks is not None:
        columns = [data.ranks.joined("left out", each) for each in columns]
    log_prob, leverage, counted = columns
    return LeaveOneOut(log_prob, leverage, counted, width.marginal)


def _error_of_sum(values: Tensor) -> float:
    """Standard error of the sum of independent values."""
    return float(values.std() * len(values) ** 0.5) if len(values) > 1 else float("nan")
