"""The mode of the linear model, theta* = argmin F(theta) = -sum log p(y_n | phi_n theta) + 1/2 |theta|_A^2.

Preconditioned L-BFGS (Nocedal 1980; Liu and Nocedal 1989): one product a step, the gradient. The first step, and any
that turns out too long, is a truncated Newton step whose conjugate directions fill the memory (Morales and Nocedal
2000). It costs 1.5 products however many directions it takes, because where data are plenty its curvature comes from
a part of them (Byrd et al. 2011). From zero that step is what keeps the first trial from landing where the loss is
flat: a preconditioner built at the network knows nothing of the curvature there.
"""

from collections.abc import Callable

from torch import Tensor

from sampla.model import LinearModel
from sampla.solvers._mode_search import Mode, ModeSearch
from sampla.solvers._preconditioners import Preconditioner


def linear_mode(
    model: LinearModel,
    precision: Tensor,
    preconditioner: Preconditioner | Tensor,
    *,
    guess: Tensor | Mode | None = None,
    tolerance: float = 0.005,
    max_steps: int = 500,
    check: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Mode:
    """Minimise the penalised loss of the linear model.

    Args:
        model: the linear model, in the coordinates of the prior's scale.
        precision: (P,) the diagonal of A.
        preconditioner: near the Hessian of F, up to a factor; or (P,), an estimate of the loss's part of its diagonal.
        guess: (1, P) to start from, or the mode at another A, which saves products; zero when None.
        tolerance: relative error asked for.
        max_steps: steps at most.
        check: whether to measure the error where the search would stop, with products, instead of trusting its
            estimate; what the measurement finds is taken off where it is more than the tolerance.
        say: called with one line before each step.

    Returns:
        The Mode; if it is not converged a ConvergenceWarning says so.

    Raises:
        ArithmeticError: if the loss or its gradient is not finite where it starts.
    """
    return ModeSearch(
        model, precision, preconditioner, guess=guess, tolerance=tolerance, max_steps=max_steps, check=check, say=say
    ).found()
