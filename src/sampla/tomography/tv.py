"""Total variation: the reference that needs no network (Chambolle and Pock 2011, Sidky, Jorgensen and Pan 2012).

    minimise TV(x)   subject to   |T x - y| <= e = sqrt(m) sigma,

the same problem as the deep image prior's (``dip.py``) with free pixels instead of a network. With D the differences of
neighbours it is the saddle point of <T x - y, q> - e |q| + <D x, p> over x, q and |p_i| <= 1. It is found by the
primal-dual method with restarts from averages and a learnt balance of the two step sizes (Applegate et al. 2021), in
units in which T has norm one and the image is of about unit size: the steps mean nothing in others. For any q and p,

    TV(x*) >= <x*, r> - <y, q> - e |q|,    r = T' q + D' p,

so that they prove how near TV(x) is to the least there is, up to <x*, r>, which vanishes as r does.
"""

from dataclasses import dataclass
from math import exp, log

import torch
from torch import Tensor

from sampla.core.checks import complain, require
from sampla.core.noise import PROBE, standard_normal
from sampla.core.progress import Progress
from sampla.tomography.operators import Operator

_POWER_STEPS = 20
_SAFETY = 1.05
"""The power iteration approaches the norm from below."""
_CHECKED = 40
"""Steps between two looks at gap and residual, which cost one more product of each kind."""
_ENOUGH, _SOME, _LONG = 0.2, 0.8, 0.36
"""A restart when the merit has fallen to a fifth; or to .8 and rises again; or after .36 of all steps so far."""
_DIFFERENCES = 8.0
"""|D|^2 is at most this."""


@dataclass(frozen=True)
class TotalVariation:
    """An image of least total variation, and how well that is known."""

    image: Tensor
    """(H, W)."""
    misfit: float
    """|T x - y| / (sqrt(m) sigma): one, where the noise binds."""
    gap: float
    """What TV(x) may exceed the least by, as a part of it, misfit beyond the noise counted at its price."""
    steps: int
    converged: bool
    price: float
    """By how much the least total variation rises where |T x - y| may be smaller by one: |q|."""

    @property
    def status(self) -> str:
        """A sentence for tables and messages."""
        if self.converged:
            return f"converged in {self.steps} steps (gap {self.gap:.1e}, misfit {self.misfit:.4f} of the noise)"
        return (
            f"did not converge in {self.steps} steps: gap {self.gap:.1e}, misfit {self.misfit:.3g} times the noise; "
            "either more steps are needed, or no image meets measurements so exactly and the noise is larger"
        )


def tv_reconstruction(
    operator: Operator, measurements: Tensor, noise_std: float, steps: int = 5000, tolerance: float = 1e-3
) -> Tensor:
    """(H, W) image of least total variation that misses the measurements by no more than their noise.

    Args: as for ``solve_tv``, which also tells how far it came; a ConvergenceWarning says if that is not far enough.
    """
    found = solve_tv(operator, measurements, noise_std, steps, tolerance)
    if not found.converged:
        complain("total variation", found.gap, f"The total variation image {found.status}.")
    return found.image


def solve_tv(
    operator: Operator,
    measurements: Tensor,
    noise_std: float,
    steps: int = 5000,
    tolerance: float = 1e-3,
    progress: Progress | None = None,
) -> TotalVariation:
    """The image of least total variation, until its own duality gap and residual are within the tolerance.

    Args:
        operator: T.
        measurements: (m,) y.
        noise_std: sigma.
        steps: of the method at most.
        tolerance: relative, of the total variation and of the misfit.
        progress: where to show it.

    Raises:
        ValueError: if the measurements do not fit the operator, or a setting is out of range.
    """
    count = operator.num_measurements
    fits, got = tuple(measurements.shape) == (count,), f"shape {tuple(measurements.shape)}"
    require(fits, f"{count} measurements in one row", got, "Flatten the sinogram.")
    require(0 < noise_std < float("inf"), "a positive noise_std", f"{noise_std}", "See noise_seen.")
    require(steps >= 1, "at least one step", f"{steps}", "The default is 5000.")
    y = measurements.to(operator.like)
    unit = abs(constant_image(operator, y)) or float(y.abs().max()) or 1.0
    scale = operator_norm(operator) * _SAFETY
    problem = _Problem(operator, scale, y / (unit * scale), count**0.5 * noise_std / (unit * scale))
    found, taken, converged = _solved(problem, steps, tolerance, progress or Progress(False))
    price = float(found.q.norm()) / scale
    return TotalVariation(found.x[0] * unit, found.misfit, found.gap, taken, converged, price)


def constant_image(operator: Operator, measurements: Tensor) -> float:
    """Value of the constant image that explains (m,) measurements best, <T 1, y> / <T 1, T 1>: the image's unit.

    Raises:
        ValueError: if the operator does not see a constant image.
    """
    ones = operator.forward(torch.ones(1, *operator.image_shape).to(operator.like))[0]
    size = float(ones @ ones)
    require(size > 0, "an operator that sees a constant image", "zero measurements of it", "Check the geometry.")
    return float(ones @ measurements) / size


@dataclass(frozen=True)
class _Problem:
    """In the method's units: T / |T| and y, with D as it is."""

    operator: Operator
    scale: float
    y: Tensor
    radius: float
    """e."""

    def forward(self, x: Tensor) -> Tensor:
        return self.operator.forward(x)[0] / self.scale

    def adjoint(self, q: Tensor) -> Tensor:
        return self.operator.adjoint(q[None]) / self.scale

    def at(self, x: Tensor, q: Tensor, p: Tensor) -> "_Point":
        """A point with its merit."""
        residual, slack = float((self.forward(x) - self.y).double().norm()), self.adjoint(q) + gradient_adjoint(p)[None]
        value, price = float(gradient(x[0]).abs().sum()), float(q.norm())
        # <x*, r> is about <x, r>, and no further from it than x is long times |r|
        bound = float((x * slack).sum()) - float(x.norm() * slack.norm())
        bound += -float(self.y @ q) - self.radius * price
        excess = max(0.0, residual - self.radius)
        gap = abs(value + price * excess - bound) / max(value, torch.finfo(x.dtype).tiny)
        return _Point(x, q, p, residual / self.radius, gap)


@dataclass(frozen=True)
class _Point:
    x: Tensor
    """(1, H, W)."""
    q: Tensor
    """(m,) the multiplier of the measurements."""
    p: Tensor
    """(2, H, W) that of the differences."""
    misfit: float
    gap: float

    @property
    def merit(self) -> float:
        """What must come below the tolerance."""
        return max(self.gap, self.misfit - 1)

    def distance(self, other: "_Point") -> tuple[float, float]:
        """How far x, and (q, p), have moved."""
        dual = float((self.q - other.q).norm()) ** 2 + _DIFFERENCES * float((self.p - other.p).norm()) ** 2
        return float((self.x - other.x).norm()), dual**0.5


def _solved(problem: _Problem, steps: int, tolerance: float, progress: Progress) -> tuple[_Point, int, bool]:
    """The last point, the steps that were made, and whether the tolerance was reached."""
    start = torch.zeros(1, *problem.operator.image_shape).to(problem.y)
    begun = best = problem.at(start, torch.zeros_like(problem.y), torch.zeros(2, *start.shape[1:]).to(start))
    balance, since, last = 1.0, 0, float("inf")
    point, sums = begun, [torch.zeros_like(part) for part in (begun.x, begun.q, begun.p)]
    progress.enter("total variation")
    for taken in progress.sweep(range(1, steps + 1), steps):
        x, q, p = _step(problem, point.x, point.q, point.p, balance)
        point = _Point(x, q, p, 0.0, 0.0)
        since += 1
        for total, part in zip(sums, (x, q, p), strict=True):
            total += part
        if taken % _CHECKED and taken < steps:
            continue
        now, mean = problem.at(x, q, p), problem.at(sums[0] / since, sums[1] / since, sums[2] / since)
        better = min(now, mean, key=lambda one: one.merit)
        best = min(best, better, key=lambda one: one.merit)
        if best.merit <= tolerance:
            return best, taken, True
        fallen = better.merit / begun.merit
        if fallen <= _ENOUGH or (fallen <= _SOME and better.merit > last) or since >= _LONG * taken:
            moved, dual = better.distance(begun)
            if moved > 0 and dual > 0:
                balance = exp((log(dual / moved) + log(balance)) / 2)
            point, begun, since, last = better, better, 0, float("inf")
            sums = [torch.zeros_like(part) for part in sums]
        else:
            last = better.merit
    return best, steps, best.merit <= tolerance


def _step(problem: _Problem, x: Tensor, q: Tensor, p: Tensor, balance: float) -> tuple[Tensor, Tensor, Tensor]:
    """x downwards by 1 / (sqrt(2) balance), then the multipliers upwards from beyond it; D counts over sqrt(8)."""
    small = 2**-0.5
    after = x - small / balance * (problem.adjoint(q) + gradient_adjoint(p)[None])
    ahead = 2 * after - x
    q = q + small * balance * (problem.forward(ahead) - problem.y)
    size = float(q.norm())
    q = q * max(0.0, 1 - small * balance * problem.radius / size) if size > 0 else q
    p = (p + small * balance / _DIFFERENCES * gradient(ahead[0])).clamp(-1, 1)
    return after, q, p


def operator_norm(operator: Operator) -> float:
    """|T| by power iteration on T' T."""
    x = standard_normal(0, PROBE, range(1), 0, operator.image_shape, operator.like)
    size = 1.0
    for _ in range(_POWER_STEPS):
        x = operator.adjoint(operator.forward(x / x.norm()))
        size = float(x.norm())
    return float(size**0.5)


def gradient(image: Tensor) -> Tensor:
    """(2, H, W) differences to the neighbour below and to the right; zero at the last row and column."""
    slopes = torch.zeros(2, *image.shape).to(image)
    slopes[0, :-1] = image[1:] - image[:-1]
    slopes[1, :, :-1] = image[:, 1:] - image[:, :-1]
    return slopes


def gradient_adjoint(slopes: Tensor) -> Tensor:
    """The transpose of ``gradient``: minus a divergence."""
    image = torch.zeros_like(slopes[0])
    image[:-1] -= slopes[0, :-1]
    image[1:] += slopes[0, :-1]
    image[:, :-1] -= slopes[1, :, :-1]
    image[:, 1:] += slopes[1, :, :-1]
    return image
