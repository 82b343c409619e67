"""What a fitted LinearisedLaplace tells of itself."""

from pathlib import Path

import torch
from torch import Tensor

from sampla.core.interrupts import deferred_interrupts
from sampla.distributed import Ranks
from sampla.inference.infer import Inference
from sampla.inference.report import FitReport
from sampla.posterior.posterior import Posterior


class Fitted:
    """Results of a fit, or of a file."""

    def __init__(self) -> None:
        self._posterior: Posterior | None = None
        self._inference: Inference | None = None
        self._report: FitReport | None = None

    @property
    def _ranks(self) -> Ranks | None:
        """The processes over which the training data are spread."""
        return None if self._inference is None else self._inference.model.data.ranks

    @property
    def prior_precision_(self) -> Tensor:
        """(G,) alpha of each prior group (G = 1 for isotropic and g-prior)."""
        return torch.tensor(self._fitted().facts["prior_precision"], dtype=torch.float64)

    @property
    def noise_precision_(self) -> Tensor | None:
        """Noise precision of a likelihood that has one: () or, for a Gaussian, (C,) or (C, C); None for others."""
        return self._fitted().likelihood.noise_precision

    @property
    def effective_dimension_(self) -> Tensor:
        """(G,) gamma: how many parameters the data determine, for each prior group."""
        return torch.tensor(self._fitted().facts["effective_dimension"], dtype=torch.float64)

    @property
    def log_evidence_(self) -> float:
        """log p(y) of the linear model in nats, to compare networks and priors; its errors are in ``report_``.

        log p(y | mode) - |mode|_A^2 / 2 - log det(I + A^-1 M) / 2 of ``linear_model`` (docs/method.md, section 8), with
        Gaussian noise log N(y; 0, J A^-1 J' + B^-1), or for the tangent the same density of y - f + J w; not of the
        network itself. The determinant by stochastic Lanczos quadrature (exact with solver="dense").

        Raises:
            RuntimeError: if the fit was not asked for it.
        """
        value = self._fitted().facts["log_evidence"]
        if value is None:
            raise RuntimeError(
                "the log evidence was not estimated, because nothing was learnt or the solver does not tell it: "
                "fit with log_evidence=True"
            )
        return float(value)

    @property
    def samples_(self) -> dict[str, Tensor]:
        """Parameter name -> (K, *shape): zero-mean posterior samples, to be added to the trained weights."""
        return self._fitted().layout.named(self._fitted().samples)

    @property
    def linear_mean_(self) -> dict[str, Tensor] | None:
        """Parameter name -> shape: the mode of ``linear_model`` itself, which the hyperparameter update uses."""
        inference = self._inference
        if inference is None or inference.mean is None:
            return None
        return {name: value[0] for name, value in self._fitted().layout.named(inference.mean[None]).items()}

    @property
    def report_(self) -> FitReport:
        """What the fit did, cost and reached. ``print(la.report_)``."""
        if self._report is None:
            self._report = FitReport.from_dict(self._fitted().facts)
        return self._report

    def save(self, path: str | Path) -> None:
        """Write the posterior to one safetensors file.

        Raises:
            RuntimeError: before fit.
            OSError: if it cannot be written; an older file at ``path`` stays.
        """
        with deferred_interrupts():
            self._fitted().save(path)

    def _fitted(self) -> Posterior:
        if self._posterior is None:
            raise RuntimeError("this LinearisedLaplace is not fitted yet: call fit(loader) first")
        return self._posterior
