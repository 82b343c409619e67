"""The linear mode of a finished fit, which is looked for where the fit itself had no need of it."""

from collections.abc import Callable

from torch import Tensor

from sampla.inference.state import Inference
from sampla.solvers import Jacobi, linear_mode


def mode_of(inference: Inference, tolerance: float, say: Callable[[str], None]) -> tuple[Tensor, float]:
    """(P,) the mode of the linear model at the fit's hyperparameters, less the prior's mean, and its relative error.

    Args:
        inference: what the fit has left behind.
        tolerance: relative error of a mode that has still to be found.
        say: called with one line before each step of that.
    """
    known = inference.mean_from_prior
    if known is not None:
        return known, inference.mean_error
    precision = inference.prior.diagonal
    near = Jacobi(inference.posed.diagonal + precision)
    found = linear_mode(inference.model, precision, near, tolerance=tolerance, check=True, say=say)
    return found.value[0] * inference.prior.scale, found.error
