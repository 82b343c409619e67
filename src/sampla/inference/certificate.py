"""How far the final solve is from exact at inputs that are not training data.

The error that a fit states is a mean over the training data. Elsewhere the error of a prediction may be several times
as large beside its standard deviation: in directions of which the data say little it is left to the end.
"""

import torch
from torch import Tensor

from sampla.core.blocks import dots
from sampla.core.checks import require
from sampla.inference.state import Inference
from sampla.model import LinearModel
from sampla.solvers import BlockCG, LinearSystem, RightHandSide, solve

_TOLERANCE, _MOST_PASSES = 0.05, 200
"""Tolerance and products of the solve for the error, which is wanted to about a third."""


def error_sample(inference: Inference | None, seed: int) -> Tensor:
    """Random combinations of the errors that the final solve has left in the K samples, (k, P) with k at most 4.

    With residuals r_k = b_k - H z_k and random signs s_k, e = H^-1 sum_k s_k r_k / K^(1/2) has E (phi e)^2 equal to the
    mean over k of (phi (z_k - z*_k))^2, for every phi: at any input, J e is as large as what is wrong with a sample's
    function there. A few of them, because all the error may lie in one direction. Costs a product with these few, and a
    solve for them.

    Args:
        inference: a fit whose data can still be read; None is refused.
        seed: that the fit was given.

    A ConvergenceWarning says if that solve has stopped short: the error may then be larger.

    Raises:
        ValueError: for no fit.
    """
    remedy = "A file holds no training data: call fit(loader), with checkpoint= to go on from what a fit has kept."
    require(
        inference is not None,
        "a fit of this process to measure its error",
        "a posterior from a file, or one moved by to()",
        remedy,
    )
    assert inference is not None
    model, precision, kept = inference.model, inference.prior.diagonal, inference.posed
    model = LinearModel(model.features, model.likelihood, model.data, model.ledger, model.chunks, exact=True)
    count = len(inference.samples)
    solved = kept.signs @ inference.solution.value[:count]
    combined = (kept.combined - model.curvature_product(solved) - precision * solved) / count**0.5
    size = dots(combined, combined).mean().sqrt().to(combined)
    if not bool(size > 0):
        return torch.zeros_like(combined)
    system = LinearSystem(model, precision, kept.diagonal)
    posed = RightHandSide(combined / size, torch.zeros_like(combined), len(combined), seed)
    with model.data.kept_meanwhile():
        found = solve(BlockCG(), system, posed, tolerance=_TOLERANCE, max_passes=_MOST_PASSES)
    return found.value * size * inference.prior.scale
