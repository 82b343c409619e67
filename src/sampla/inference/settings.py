"""What the loop over hyperparameters is asked: when it stops, how accurately and in which way it works."""

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from torch import Tensor

from sampla.core.checks import require, require_count, require_fraction
from sampla.inference.mackay import has_settled
from sampla.inference.trace import EMStep

CurvatureAt: TypeAlias = Literal["network", "linear-mode"]
"""Where the likelihood's curvature B is taken: at the network's outputs, or at the mode of the linear model."""
LinearModelKind: TypeAlias = Literal["surrogate", "tangent"]
Method: TypeAlias = Literal["krylov", "samples", "outputs"]


_FEWEST_ROWS, _MOST_ROWS, _SPACE_BYTES = 256, 1024, 2**28
"""Vectors in EM's Krylov space: so many at least may become necessary, and up to so many where they are small."""
_RANGE_ROWS = 64
"""Vectors in a space that holds the whole range of M, whatever they take."""
_WHERE_NEEDED = 8
"""Times EM.exact_up_to, up to which traces are exact where the noise could not be told otherwise."""


@dataclass(frozen=True)
class EM:
    """When the loop stops and how accurate it works.

    Args:
        tolerance: largest relative change of any prior or noise precision at which EM has settled.
        max_steps: EM steps at most.
        solve_tolerance: function-space error of the E-steps that use samples (gamma is off by about its square).
        mode_tolerance: relative error of the linear mode. With a Gaussian likelihood the mean is one of the columns of
            such an E-step, which is then solved to this tolerance if the prior's precision is learnt.
        num_samples: right-hand sides that EM works with; the final solve has K. gamma is then known to about
            sqrt(2 / (num_samples gamma)) of itself.
        max_rows: vectors of P that the Krylov space of M may hold; None: 256, or as many as 256 MiB hold, up to 1,024.
        exact_up_to: min(N C, P) up to which traces are exact, without probes: a Krylov space then holds the whole
            range of M. Up to eight times that they become exact where the noise could not be told otherwise. 0: never.
        method: "krylov" reads gamma for every alpha off one Krylov space of M, or one for each B at the linear mode;
            "samples" solves for posterior samples at every step, as the paper does; "outputs" takes exact traces from
            the matrix of all N C outputs, with solver=DenseDual() and one alpha; None: Krylov spaces wherever they
            serve, with one alpha and fixed or scalar noise.
    """

    tolerance: float = 0.02
    max_steps: int = 30
    solve_tolerance: float = 0.05
    mode_tolerance: float = 0.005
    num_samples: int = 8
    max_rows: int | None = None
    exact_up_to: int = 256
    method: Method | None = None

    def __post_init__(self) -> None:
        for name in ("tolerance", "solve_tolerance", "mode_tolerance"):
            require_fraction(getattr(self, name), f"EM {name}", "Try 0.02.")
        require_count(self.max_steps, "EM max_steps", 1, "Fix the prior with learn=False.")
        require_count(self.num_samples, "EM num_samples", 2, "The default is 8.")
        if self.max_rows is not None:
            require_count(self.max_rows, "EM max_rows", 16, "None takes 256 to 1,024, by their size.")
        require_count(self.exact_up_to, "EM exact_up_to", 0, "The default is 256; 0 means never.")
        known = self.method in (None, "krylov", "samples", "outputs")
        require(known, "EM method 'krylov', 'samples', 'outputs' or None", f"{self.method!r}", "None chooses.")

    def has_settled(self, trace: list[EMStep], ahead: float, error: float = 0.0) -> bool:  # noqa: ARG002  (for rules of one's own)
        """Whether the loop ends with this step, unless the E-step has been too coarse or cannot tell the noise.

        Args:
            trace: the EM steps so far, this one last.
            ahead: largest relative distance of a hyperparameter from its fixed point, as far as steps tell.
            error: relative error of that fixed point as the E-step's Krylov space knows it.
        """
        return has_settled(self.tolerance, ahead, error)

    @property
    def kind(self) -> str:
        """All but how far the loop goes: what must be the same for a loop that was stopped to go on."""
        return repr(replace(self, tolerance=0.5, max_steps=1))

    def rows_of(self, like: Tensor, size: int) -> int:
        """How many vectors of ``size`` numbers of the dtype of ``like`` the Krylov space may hold."""
        if self.max_rows is not None:
            return self.max_rows
        return min(max(_SPACE_BYTES // (size * like.element_size()), _FEWEST_ROWS), _MOST_ROWS)

    @staticmethod
    def rows_within(like: Tensor, size: int) -> int:
        """How many vectors of ``size`` numbers of the dtype of ``like`` may be kept beside others: 256 MiB of them."""
        return _SPACE_BYTES // (size * like.element_size())

    def holds(self, rows: int, like: Tensor, size: int) -> bool:
        """Whether so many vectors of ``size`` numbers of the dtype of ``like`` may be kept beside others."""
        return rows * size * like.element_size() <= _SPACE_BYTES

    def holds_range(self, rank: int, like: Tensor, size: int, *, needed: bool = False) -> bool:
        """Whether the Krylov space of an M of at most this rank is to hold its whole range, for exact traces.

        Args:
            rank: min(N C, P).
            like: of what dtype vectors are.
            size: P.
            needed: whether the noise could not be told otherwise.
        """
        affordable = max(_SPACE_BYTES // (size * like.element_size()), _RANGE_ROWS)
        rows = affordable if self.max_rows is None else self.max_rows
        return rank <= rows and rank <= self.exact_up_to * (_WHERE_NEEDED if needed else 1)
