"""The mode of the linear model, theta* = argmin -sum log p(y_n | phi_n theta) + 1/2 |theta|_A^2.

Truncated Newton: each step solved by preconditioned conjugate gradients, with a line search on the objective. The
gradient and the objective come from all data, the curvature of a step from a part of them where there are plenty (Byrd
et al. 2011): the mode is the same, and the many products of a step cost a fraction of a pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from warnings import warn

import torch
from torch import Tensor

from sampla._checks import ConvergenceWarning
from sampla.model import LinearModel

_HALVINGS = 12
_FORCING = 0.3
"""Relative residual of a Newton step that is far from the mode, or whose curvature is from part of the data."""


@dataclass(frozen=True)
class Mode:
    """theta*, and how close: ``error`` estimates |theta - theta*|_H / |theta*|_A before the last step was taken."""

    value: Tensor
    """(1, P)."""
    objective: float
    error: float
    newton_steps: int
    converged: bool


def linear_mode(
    model: LinearModel,
    precision: Tensor,
    preconditioner: Tensor,
    *,
    guess: Tensor | None = None,
    tolerance: float = 0.005,
    max_steps: int = 50,
    max_inner: int = 50,
    say: Callable[[str], None] = lambda _: None,
) -> Mode:
    """Minimise the penalised loss of the linear model.

    Args:
        model: the linear model, in the coordinates of the prior's scale.
        precision: (P,) the diagonal of A.
        preconditioner: (P,) an estimate of the diagonal of the loss's Hessian.
        guess: (1, P) to start from; zero when None.
        tolerance: relative error asked for; |theta*|_A^2 is then known to twice that.
        max_steps: Newton steps at most.
        max_inner: products for one Newton step at most.
        say: called with one line before each Newton step.

    Returns:
        The Mode; if it is not converged a ConvergenceWarning says so.
    """
    theta = torch.zeros(1, model.num_parameters).to(precision) if guess is None else guess
    objective, gradient = _penalised(model, precision, theta)
    error, steps, stride = float("inf"), 0, model.hessian_stride
    for steps in range(1, max_steps + 1):
        say(f"linear mode, step {steps}" + (f", error {error:.1%}" if steps > 1 else ""))
        aim = _FORCING if stride > 1 else max(min(_FORCING, error), 1e-8)
        step = _newton_step(model, precision, preconditioner, theta, gradient, aim, max_inner, stride)
        decrement = float(-(gradient * step).sum().clamp(max=0)) ** 0.5
        found = _line_search(model, precision, theta, step, objective, decrement)
        if found is None:  # no decrease that the dtype can resolve
            break
        theta, objective, gradient = found
        before, error = error, decrement / max(float((precision * theta.square()).sum()) ** 0.5, 1e-30)
        if error > before / 2:  # the part of the data is not plenty after all
            stride = max(1, stride // 2)
        if error <= tolerance:
            break
    converged = error <= tolerance or (found is None and decrement <= 1e-3 * max(1.0, abs(objective)) ** 0.5)
    if not converged:
        warn(
            f"the mode of the linear model was asked for a relative error of {tolerance:.1e}, reached an estimated "
            f"{error:.1e} after {steps} Newton steps: raise the prior precision it starts from, or use float64.",
            ConvergenceWarning,
            stacklevel=2,
        )
    return Mode(theta, objective, error, steps, converged)


def _penalised(model: LinearModel, precision: Tensor, theta: Tensor) -> tuple[float, Tensor]:
    loss, gradient = model.loss_gradient(theta)
    return loss + 0.5 * float((precision * theta.square()).sum()), gradient + precision * theta


def _newton_step(
    model: LinearModel,
    precision: Tensor,
    diagonal: Tensor,
    theta: Tensor,
    gradient: Tensor,
    aim: float,
    max_inner: int,
    stride: int,
) -> Tensor:
    """Solve (Hessian + A) step = -gradient to the relative residual ``aim``."""
    inverse = (diagonal + precision).reciprocal()
    step, residual = torch.zeros_like(theta), -gradient
    preconditioned = inverse * residual
    direction, size = preconditioned, float((residual * preconditioned).sum())
    first = size
    for _ in range(max_inner):
        if size <= aim**2 * first or size <= 0:
            break
        pushed = model.newton_product(theta, direction, stride) + precision * direction
        bend = float((direction * pushed).sum())
        if not bend > 0:
            break
        step = step + (size / bend) * direction
        residual = residual - (size / bend) * pushed
        preconditioned = inverse * residual
        following = float((residual * preconditioned).sum())
        direction, size = preconditioned + (following / size) * direction, following
    return step


def _line_search(
    model: LinearModel, precision: Tensor, theta: Tensor, step: Tensor, objective: float, decrement: float
) -> tuple[Tensor, float, Tensor] | None:
    """Halve the step until the objective decreases enough (Armijo); None if it never does."""
    length = 1.0
    for _ in range(_HALVINGS):
        value, gradient = _penalised(model, precision, theta + length * step)
        if value <= objective - 1e-4 * length * decrement**2 and value == value:
            return theta + length * step, value, gradient
        length /= 2
    return None
