"""What a fitted LinearisedLaplace says of new inputs."""

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from sampla.core.allocator import freed_memory_kept
from sampla.core.checks import device_here, require
from sampla.core.interrupts import deferred_interrupts
from sampla.core.memory import machine_explained
from sampla.core.unpacking import Unpack
from sampla.distributed import together
from sampla.inference.certificate import error_sample
from sampla.laplace.guards import apart, check_evaluation_mode, check_weights
from sampla.laplace.training_data import SAVED, TOO_MANY_SAMPLES, AboutTrainingData
from sampla.posterior.batches import batches, is_loader
from sampla.posterior.functions import Functions, drawn_functions
from sampla.posterior.predictive import Predictive

_CPU = torch.device("cpu")


class Predicts(AboutTrainingData):
    """Predictions of a fit, or of a posterior from a file."""

    vectors_on: torch.device | None

    def __init__(self) -> None:
        super().__init__()
        self._error: Tensor | None = None
        self._takes_lists = False

    def predict(
        self,
        x: Any,
        method: str = "monte-carlo",
        num_draws: int = 512,
        certificate: bool = False,
        *,
        labels: str | None = None,
        unpack: Unpack | None = None,
    ) -> Predictive:
        """The posterior predictive at new inputs; see ``Predictive`` for what it offers.

        Inputs that require gradients keep their graph: mean, std, samples and all that follows from them can be
        differentiated by x (not under torch.no_grad). A loader is read once, a batch at a time, and the predictive of
        all its data is on the CPU; K numbers for each output of each datum are kept (``predict_batches`` keeps none).

        Args:
            x: inputs as the network takes them and as ``fit`` does; or batches of them, with targets or without: a
                DataLoader, an iterator, or a list of pairs (inputs, targets).
            method: "monte-carlo" or "probit", how class probabilities are averaged.
            num_draws: draws of a Monte Carlo average.
            certificate: whether to measure what the solve has left undone at these inputs (``Predictive.solve_error``),
                by a solve for four vectors over the training data, once after a fit.
            labels: how batches of a loader are taken apart, as for ``fit``; None: as the fit was told.
            unpack: likewise.

        Raises:
            ValueError: for NaN in inputs or outputs, an unknown method, or a network that was changed since the fit.
        """
        if not is_loader(x, self._takes_lists):
            return self._predicted(x, method, num_draws, certificate)
        with freed_memory_kept():
            parts = list(self.predict_batches(x, method, num_draws, certificate, labels=labels, unpack=unpack))
            fix = "Check the data set; a generator can be read only once."
            require(len(parts) > 0, "a loader with at least one batch", "an empty one", fix)
            return Predictive.cat(parts)

    def predict_batches(
        self,
        loader: Iterable[Any],
        method: str = "monte-carlo",
        num_draws: int = 512,
        certificate: bool = False,
        *,
        labels: str | None = None,
        unpack: Unpack | None = None,
    ) -> Iterator[Predictive]:
        """The predictive of one batch after the other, on the CPU, for data whose deviations are too many to be kept.

        Args: as for ``predict``.

        Yields:
            A Predictive for each batch, with its targets where the loader has some.
        """
        self._fitted()
        labels, unpack = self._told(labels, unpack)
        self._progress.enter("predicting")
        shown = self._progress.sweep(loader, _length(loader))
        for inputs, targets in batches(shown, labels, unpack):
            found = self._predicted(inputs, method, num_draws, certificate).to(_CPU)
            yield replace(found, targets=targets)

    def functions(self, num_functions: int | None = None) -> Functions:
        """Functions drawn from the posterior, to be called at any inputs: f(x) + s J(x) z_k, s the joint width.

        They are the same functions at every call, those of ``Predictive.samples``, and can be differentiated by inputs
        that require gradients. Thompson sampling maximises one of them.

        Args:
            num_functions: how many; None: K. The first K are the posterior's samples, which are independent; any more
                are mixtures of them, draws from the Gaussian that the K define, as ``Predictive.sample`` has them.

        Raises:
            RuntimeError: before fit.
        """
        posterior = self._fitted()
        push = partial(self._pushed, posterior.push)
        return drawn_functions(push, posterior.samples, posterior.width.joint, num_functions)

    def to(self, device: torch.device | str) -> Self:
        """Predict on another device from now on, with copies of the network's tensors; returns self.

        The network itself stays where it is, and so do tensors that it keeps in plain attributes, which are no buffers.
        What is asked about training data (``leave_one_out``, ``influence``, certificates) needs the fit where it was
        made, and goes no further than ``to``.

        Args:
            device: where; samples with ``vectors_on`` stay there.

        Raises:
            RuntimeError: before fit.
            ValueError: if the device is not there.
        """
        place, posterior = device_here(device, "device"), self._fitted()
        if place != posterior.features.device:
            self._posterior = posterior.to(place, self.vectors_on)
            self._inference = self._error = self._mode = None
        return self

    def _predicted(self, x: Any, method: str, num_draws: int, certificate: bool) -> Predictive:
        posterior, asked = self._fitted(), self._asked
        with self._asking() as traced:
            if certificate and self._error is None:
                with together(self._ranks, "certificate"):
                    self._error = error_sample(self._inference, asked.seed)
            error = self._error if certificate else None
            return posterior.predict(x, method, num_draws, error, traced)

    def _pushed(self, push: Any, x: Any, vectors: Tensor) -> tuple[Tensor, Tensor]:
        with self._asking() as traced:
            found: tuple[Tensor, Tensor] = push(x, vectors, traced)
        return found

    @contextmanager
    def _asking(self) -> Iterator[bool]:
        """The network apart, checked to be what the fit was about; yields whether the caller wants derivatives."""
        posterior, model, traced = self._fitted(), self._asked.model, torch.is_grad_enabled()
        with deferred_interrupts(), apart(model), freed_memory_kept(), machine_explained(TOO_MANY_SAMPLES, SAVED):
            check_evaluation_mode(model)
            check_weights(posterior.features)
            yield traced


def _length(loader: Iterable[Any]) -> int | None:
    """How many batches there are, if it says so; that of an iterable data set may not."""
    try:
        return len(loader) if isinstance(loader, Sized) else None
    except TypeError:
        return None
