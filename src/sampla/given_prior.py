"""The prior that is known: a Gaussian with a given mean and a given diagonal of precisions."""

from dataclasses import replace

import torch
from torch import Tensor

from sampla.core.by_parameter import ByParameter, checked_by_parameter, flat_by_parameter
from sampla.core.checks import require
from sampla.core.params import ParameterLayout
from sampla.priors import BoundPrior, Prior, dead_tensors

GIVEN = "the given diagonal"
"""How the only group's name begins."""
_POSITIVE = "Give 1 / prior variance of each parameter."
_FINITE = "Give a finite mean of each parameter, or None for zero."


class Given(Prior):
    """N(mu, A^-1) with A = alpha diag(precision), alpha = 1 unless it is learnt: what is known before the data.

    The mean is of theta in ``LinearisedLaplace(linear_model=...)``, like ``linear_mean_``: of the weights themselves
    for "tangent", whose outputs are f + J (theta - w), and of the weights of J theta for "surrogate". It moves the mode
    of the linear model, and with it alpha, the noise, the evidence and widths; the covariance of the posterior does not
    depend on it, and predictions have the network's outputs as their mean, as always.

    Inside, everything is about theta - mu in units of precision^(-1/2): A is alpha I there, and the diagonal is a
    preconditioner as the g-prior's scales are.

    Args:
        precision: 1 / prior variance: one number for all parameters, (P,) in their order, or a dict from their names
            to numbers or tensors of their shapes. Of a complex parameter it is that of both parts.
        mean: mu, in the same forms; None for zero.
        learn: whether EM learns alpha, one factor for the whole diagonal.

    Raises:
        ValueError: for a precision that is not positive, NaN or infinity; by the fit for names, shapes or lengths that
            are not those of its parameters.

    Example:
        >>> import torch, sampla
        >>> net = torch.nn.Linear(2, 1).eval()
        >>> prior = sampla.Given({"weight": torch.tensor([[4.0, 9.0]]), "bias": 1.0}, mean=0.5)
        >>> la = sampla.LinearisedLaplace(net, sampla.Gaussian(1.0), prior, progress=False)
        >>> la = la.fit([(torch.zeros(1, 2), torch.zeros(1, 1))])
        >>> la.linear_mean_["weight"]
        tensor([[0.5000, 0.5000]])
    """

    def __init__(self, precision: ByParameter, mean: ByParameter | None = None, learn: bool = False) -> None:
        super().__init__(1.0, learn)
        self.given = checked_by_parameter(precision, "prior precision", _POSITIVE, positive=True)
        self.mean = None if mean is None else checked_by_parameter(mean, "prior mean", _FINITE)

    def bind(self, layout: ParameterLayout, curvature_diagonal: Tensor) -> BoundPrior:
        precision = flat_by_parameter(self.given, layout, "prior precision", both=True)
        scale = precision.rsqrt().to(curvature_diagonal)
        kind = str(scale.dtype).removeprefix("torch.")
        fits = bool((scale.isfinite() & (scale > 0)).all())
        require(
            fits, f"prior precisions whose roots {kind} holds", f"{precision.min():g} to {precision.max():g}", _POSITIVE
        )
        words = GIVEN + ("" if self.mean is None else " around the given mean")
        bound = self.starting(curvature_diagonal, scale, torch.zeros(layout.total, dtype=torch.int64), (words,))
        return replace(bound, dead=dead_tensors(layout, curvature_diagonal))
