"""What a fitted LinearisedLaplace says of its training data: each without itself, and what each has changed."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from sampla.core.allocator import freed_memory_kept
from sampla.core.checks import complain, require
from sampla.core.data import CheckedLoader
from sampla.core.interrupts import deferred_interrupts
from sampla.core.items import asked_about
from sampla.core.memory import machine_explained
from sampla.core.progress import Progress
from sampla.core.typing import Loader
from sampla.core.unpacking import Unpack, unpacking
from sampla.distributed import Ranks, ranks_of, together
from sampla.inference.influence import At, Influence, Measure, influence
from sampla.inference.leave_one_out import LeaveOneOut, leave_one_out
from sampla.inference.mode import mode_of
from sampla.inference.settings import EM, CurvatureAt
from sampla.inference.state import Inference
from sampla.laplace.fitted import Fitted
from sampla.laplace.guards import apart, check_evaluation_mode, check_weights
from sampla.likelihoods import Likelihood
from sampla.model import LinearModel
from sampla.posterior.width import Width, leave_one_out_width
from sampla.solvers import Solver

REMEDY = (
    "The products have been made as small as that helps; what is left are blocks of num_samples vectors of all "
    "parameters: take a smaller num_samples or EM(max_rows=...), fewer parameters=[...], or on a GPU vectors_on='cpu'. "
    "la.plan(loader) counts them. Where the first batch did not go through the network: a loader with smaller batches."
)
"""What helps against too little memory."""
TOO_MANY_SAMPLES = (
    "Inputs have gone through the network in parts as small as that helps; what is left are the K samples, and K "
    "outputs for each input: predict fewer inputs at a time, or fit with a smaller num_samples."
)
"""The same in predicting."""
_KNOWN = 10.0
"""Relative error of the linear mode above which nothing is made of it; of a mode of nearly nothing it is a few."""
SAVED = "The posterior is lost with it, unless la.save(path) has written it: LinearisedLaplace.load(path, model)."
"""What there is to go on from where a fit is over."""


def kept_in(folder: str | Path | None) -> str:
    """What there is to go on from where a fit ends in the middle."""
    if folder is None:
        return "fit(loader, checkpoint='a folder') would have kept what was done, to go on from."
    return f"What the fit has kept in {str(folder)!r} is whole: the same fit with that checkpoint= goes on from there."


@dataclass(frozen=True)
class Asked:
    """Settings of a fit that answers about it need: those that it was made with, whatever has been assigned since."""

    model: nn.Module
    em: EM
    curvature_at: CurvatureAt
    tolerance: float
    max_passes: int
    seed: int
    solver: Solver[Any]
    width: Literal["loo", "em"] | float
    log_evidence: bool | None

    def at_mode(self, likelihood: Likelihood) -> bool:
        """Whether B was taken at the linear mode's outputs."""
        return self.curvature_at == "linear-mode" and not likelihood.is_quadratic


def found_width(
    asked: Asked, model: LinearModel, inference: Inference, say: Callable[[str], None]
) -> tuple[Width, Tensor | None]:
    """The width that is asked for, and the linear mode where it was needed for it.

    Args:
        asked: of the fit.
        model: of the network's own parameters, with the likelihood found.
        inference: what the fit has left behind.
        say: called with one line at every stage.
    """
    if not isinstance(asked.width, str):
        return Width(float(asked.width), float(asked.width), "given"), None
    if asked.width == "em":
        return Width(), None
    say("leave-one-out")
    mode, error = mode_of(inference, asked.em.mode_tolerance, say)
    if not (error <= _KNOWN or model.likelihood.is_quadratic):  # there a mean of nearly nothing has any relative error
        complain(
            "width", 0.0 if isnan(error) else error,
            "width='loo' was asked for, and leave-one-out needs the linear model's mode, which was not found: "
            "error bars are as wide as the posterior itself, width 1.",
        )  # fmt: skip
        return Width(), mode
    return leave_one_out_width(model, inference.samples, mode, asked.at_mode(model.likelihood), asked.seed), mode


class AboutTrainingData(Fitted):
    """Questions about the data of a fit."""

    _asked: Asked
    _progress: Progress

    def __init__(self) -> None:
        super().__init__()
        self._mode: Tensor | None = None
        self._labels: str | None = None
        self._unpack: Unpack | None = None

    def _told(self, labels: str | None, unpack: Unpack | None) -> tuple[str | None, Unpack | None]:
        """How batches are taken apart: as here, or else as the fit was told."""
        return (self._labels, self._unpack) if labels is None and unpack is None else (labels, unpack)

    def _apart(self, labels: str | None, unpack: Unpack | None) -> Unpack | None:
        """The same as a function, which leaves pairs as they are where nothing is said here."""
        told, here = unpacking(*self._told(labels, unpack)), labels is not None or unpack is not None
        if told is None or here:
            return told

        def apart(batch: Any) -> tuple[Any, Any]:
            pair = isinstance(batch, (tuple, list)) and len(batch) == 2
            return (batch[0], batch[1]) if pair else told(batch)

        return apart

    def _ranks_with(self, loader: Loader) -> Ranks | None:
        """The processes of the fit, which answer together; the loader must be of this one's part, as the fit's was.

        Raises:
            ValueError: for all the data where the fit has had a part, or the other way round.
        """
        words = "all the data on this process", "this process's part of the data"
        given, had = (words[ranks is not None] for ranks in (ranks_of(loader), self._ranks))
        fix = "Give the loader of the fit, on every process that has fitted with it."
        require(self._inference is None or given == had, f"{had}, as in the fit", given, fix)
        return self._ranks

    def leave_one_out(self, loader: Loader, *, labels: str | None = None, unpack: Unpack | None = None) -> LeaveOneOut:
        """How the posterior predicts each training observation without it (docs/method.md, section 9).

        One pass of K + 1 jvps, no new fit. A score to compare models by, and a list of labels that may be wrong. As the
        features have learnt from all the data, those left out too, it is better than on new data, the more so the more
        the network has memorised.

        Of data spread over processes each gives its part, and gets the answer about all, process after process.

        Args:
            loader: the data of the fit, in an order that stays.
            labels: as for ``fit``; None: as the fit was told, and pairs as they are.
            unpack: as for ``fit``.

        Raises:
            RuntimeError: before fit.
            ValueError: for a posterior from a file, for other data, or for a shuffled loader.
        """
        posterior, unpacked, asked = self._fitted(), self._apart(labels, unpack), self._asked
        ranks = self._ranks_with(loader)
        with (
            deferred_interrupts(), together(ranks, "leave-one-out"), apart(asked.model, said=True), freed_memory_kept(),
            machine_explained(REMEDY, SAVED),
        ):  # fmt: skip
            check_evaluation_mode(asked.model)
            check_weights(posterior.features)
            likelihood, device = posterior.likelihood, posterior.features.device
            data = CheckedLoader(loader, device, self._progress, unpacked, likelihood.counted, ranks)
            return leave_one_out(
                self._inference, posterior, data, self._mode, at_mode=asked.at_mode(likelihood), seed=asked.seed,
                tolerance=asked.em.mode_tolerance, say=self._progress.enter,
            )  # fmt: skip

    def influence(
        self, train: Loader, test: Any, *, measure: Measure | None = None, at: At = "network",
        labels: str | None = None, unpack: Unpack | None = None,
    ) -> Influence:  # fmt: skip
        """By how much test losses, outputs or anything else would change without each of the training data.

        To first order: (dq / df)' J_test H^-1 J_n' g_n, g_n the gradient of datum n's loss, for each quantity q
        (``Influence``; docs/method.md, section 10). Of data spread over processes each gives its part and the same test
        data, and gets the answer about all, process after process.

        Args:
            train: data of the fit, all or some (on each process of its part), not shuffled.
            test: one batch of test data as the loader has them: (x, y), of whose losses -log p(y | f) the change is
                told, or (x, None), of whose outputs. Each number asked about costs about as much as one sample.
            measure: of outputs and targets, (n,) numbers to be told of in their place, such as margins.
            at: where gradients are taken: at the outputs of the "network", or of the linear model at its mode.
            labels: as for ``fit``, for both; None: as the fit was told, and pairs as they are.
            unpack: as for ``fit``, for both.

        Returns:
            The Influence: (n_test, n_train) changes, the error of the solve, and its words.

        Raises:
            RuntimeError: before fit.
            ValueError: for a posterior from a file, training data that the fit has not had or that are shuffled, test
                data that do not fit.
        """
        posterior, unpacked, asked = self._fitted(), self._apart(labels, unpack), self._asked
        ranks = self._ranks_with(train)
        with (
            deferred_interrupts(), together(ranks, "influence"), apart(asked.model, said=True), freed_memory_kept(),
            machine_explained(REMEDY, SAVED),
        ):  # fmt: skip
            check_evaluation_mode(asked.model)
            check_weights(posterior.features)
            features, device = posterior.features, posterior.features.device
            data = CheckedLoader(train, device, self._progress, unpacked, posterior.likelihood.counted, ranks)
            return influence(
                self._inference, features, data, asked_about(test, device, unpacked), measure=measure, at=at,
                tolerance=asked.tolerance, max_passes=asked.max_passes, seed=asked.seed, say=self._progress.enter,
            )  # fmt: skip
