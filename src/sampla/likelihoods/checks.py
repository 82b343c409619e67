"""What a likelihood says of itself, tried on the data before anything is built on it."""

from collections.abc import Callable

import torch
from torch import Tensor

from sampla.core.checkpoint import plain
from sampla.core.checks import require
from sampla.core.noise import ADJOINT, standard_normal
from sampla.likelihoods import Gaussian, Likelihood

_DATA = 32
"""Data of the first batch on which the curvature is tried."""
_LARGEST = 2.0
"""Outputs are shrunk to this for that: where probabilities have reached 0 and 1 all curvature is rounding."""
_TO_LEARN = ("residuals", "with_noise")
"""Methods without which no noise precision can be learnt."""
_FACTOR = 4.0
"""By which a noise precision is multiplied to see that B and log_prob follow it."""


def check_settings(likelihood: Likelihood) -> None:
    """Refuse a likelihood whose noise EM would have to learn and cannot, or which no file could hold.

    Raises:
        ValueError: for learns_noise on a likelihood without the methods that EM learns a noise precision by.
        TypeError: for a ``config`` of more than numbers, text, lists and mappings.
    """
    plain(likelihood.config(), f"{type(likelihood).__name__}.config()")
    missing = [name for name in _TO_LEARN if getattr(type(likelihood), name) is getattr(Likelihood, name)]
    require(
        not likelihood.learns_noise or not missing,
        f"{' and '.join(_TO_LEARN)} of a likelihood with learns_noise=True",
        f"{type(likelihood).__name__} without {' and '.join(missing)}",
        "EM learns noise_precision, a factor of B, from the residuals (docs/extending.md): write them, or leave "
        "learns_noise out.",
    )


def check_counted(likelihood: Likelihood, outputs: Tensor, targets: Tensor) -> None:
    """Refuse a ``counted`` that is more than a choice of outputs.

    Raises:
        ValueError: for anything but ones and zeros of a shape that fits, and for outputs that are left out where
            residuals are measured.
    """
    counted = likelihood.counted(targets)
    if counted is None:
        return
    name = type(likelihood).__name__
    inner = outputs.shape[outputs.ndim - counted.ndim :]
    fits = counted.ndim <= outputs.ndim and all(c in (1, o) for c, o in zip(counted.shape, inner, strict=True))
    require(
        fits,
        f"{name}.counted of a shape that broadcasts to the outputs' {tuple(outputs.shape)}",
        f"{tuple(counted.shape)}",
        "Give one entry for each output.",
    )
    other = counted[(counted != 0) & (counted != 1)]
    require(
        other.numel() == 0,
        f"ones and zeros from {name}.counted",
        f"{float(other.flatten()[0]) if other.numel() else 0:g}",
        "It says which outputs count, not how much: weights of classes or data go into curvature_weights and "
        "observation_loss, those of classes into sampla.Categorical(weight=...).",
    )
    left = likelihood.residuals(outputs, targets)
    require(
        left is None or not bool((left.where(counted.expand_as(left) == 0, 0) != 0).any()),
        "targets for all outputs of a likelihood with residuals",
        f"{name}.counted that leaves some out",
        "Its residuals must be zero there, or the noise would be learnt from all of them: "
        "sampla.Gaussian(ignore_nan=True) leaves out targets that are NaN.",
    )


def check_curvature(likelihood: Likelihood, outputs: Tensor, targets: Tensor) -> None:
    """Refuse a curvature, a root or a class axis that contradict each other on a few data.

    For a random vector u and each datum, u' B u >= 0 and, over all, |S' u|^2 = u' B u. Where the likelihood says that
    it is quadratic, the gradient of log p changes by -B u from f to f + u.

    Raises:
        ValueError: saying which of the methods is wrong.
    """
    name, few = type(likelihood).__name__, outputs.detach()[:_DATA]
    at = few * (_LARGEST / few.abs().amax().clamp_min(_LARGEST))
    u = standard_normal(0, ADJOINT, range(1), 0, tuple(at.shape), at)
    bent, turned = likelihood.curvature_product(at, u), likelihood.curvature_root_transpose_product(at, u)
    shaped = bent.shape == u.shape
    require(shaped, f"{name}.curvature_product of shape {tuple(u.shape)}", f"{tuple(bent.shape)}", "B u, like u.")
    of_datum, bent_of_datum = (values.reshape(len(few), -1).double() for values in (u, bent))
    each, scale = (of_datum * bent_of_datum).sum(1), of_datum.norm(dim=1) * bent_of_datum.norm(dim=1)
    close = 0.1 if torch.finfo(at.dtype).bits < 32 else 1e-3
    require(
        bool((each >= -close * scale).all()),
        f"a positive semi-definite curvature from {name}.curvature_product",
        f"u' B u = {float(each.min()):.2g} for some u",
        "Take the Fisher matrix, the expected curvature, where the curvature itself can be negative.",
    )
    square = float(turned.double().square().sum())
    require(
        abs(square - float(each.sum())) <= close * max(square, float(each.sum())),
        f"S S' = B from {name}.curvature_root_product and {name}.curvature_product",
        f"|S' u|^2 = {square:.4g} and u' B u = {float(each.sum()):.4g}",
        "Samples would have another covariance than the posterior's.",
    )
    xi = standard_normal(0, ADJOINT, range(1), at.numel(), tuple(at.shape), at)
    rooted = likelihood.curvature_root_product(at, xi)
    there, back = float((rooted * u).double().sum()), float((xi * turned).double().sum())
    require(
        abs(there - back) <= close * float(rooted.norm() * u.norm() + xi.norm() * turned.norm()),
        f"S of {name}.curvature_root_product and S' of curvature_root_transpose_product to be each other's transpose",
        f"u' S xi = {there:.4g} and xi' S' u = {back:.4g}",
        "Leave the transpose out: it is then taken by autograd.",
    )
    known = likelihood.curvature_weights(targets[:_DATA])
    bent = bent if known is None else bent * known.to(bent)
    if likelihood.is_quadratic and type(likelihood) is not Gaussian:
        _check_quadratic(likelihood, at, targets[:_DATA], u[0], bent[0], close)
    if likelihood.learns_noise and type(likelihood) is not Gaussian:
        _check_noise(likelihood, at, targets[:_DATA], u, bent, close)
    _check_class_axis(likelihood, at)


def check_observations(likelihood: Likelihood, outputs: Tensor, targets: Tensor) -> None:
    """Refuse log densities of observations that do not add up to those of their data, on a few data.

    Raises:
        ValueError: for another shape, or another sum over the observations that count.
    """
    default = type(likelihood).observation_log_prob is Likelihood.observation_log_prob
    if default and likelihood.observation_axes is None:
        return
    name, few, targets = type(likelihood).__name__, outputs.detach()[:_DATA], targets[:_DATA]
    at = few * (_LARGEST / few.abs().amax().clamp_min(_LARGEST))
    each, whole = likelihood.observation_log_prob(at, targets), likelihood.log_prob(at, targets).double()
    axes = likelihood.observation_axes
    about = range(1, at.ndim) if axes is None else [at.ndim + axis for axis in axes]
    shape = tuple(size for axis, size in enumerate(at.shape) if axis not in about)
    require(
        tuple(each.shape) == shape, f"{name}.observation_log_prob of shape {shape}, one for each observation",
        f"{tuple(each.shape)}", "observation_axes are the axes of the outputs that one observation is about.",
    )  # fmt: skip
    counted = likelihood.counted(targets)
    if counted is not None:
        each = each * counted.expand_as(at).to(each).amax(tuple(about)) if about else each * counted
    summed = each.double().reshape(len(at), -1).sum(1)
    off = float((summed - whole).abs().max())
    close = 0.1 if torch.finfo(at.dtype).bits < 32 else 1e-3
    require(
        off <= close * max(float(whole.abs().max()), 1.0),
        f"{name}.observation_log_prob that sums to {name}.log_prob over the observations of a datum",
        f"sums that are off by up to {off:.2g}",
        "In a subclass of a built-in likelihood write observation_log_prob alone: its log_prob is the sum.",
    )  # fmt: skip


def _check_quadratic(
    likelihood: Likelihood, at: Tensor, targets: Tensor, u: Tensor, bent: Tensor, close: float
) -> None:
    def slope(outputs: Tensor) -> Tensor:
        return _slope(lambda f: likelihood.log_prob(f, targets).sum(), outputs)

    size = float(targets.nan_to_num().abs().max().clamp_min(1))  # next to which the steps are to be seen
    u, bent = size * u, size * bent
    steps = [slope(at) - slope(at + u), slope(at + u) - slope(at + 2 * u)]
    error = max(float((step - bent).norm()) for step in steps) / max(float(bent.norm()), 1e-30)
    require(
        error <= 10 * close,
        f"a log_prob that is quadratic in the outputs, since {type(likelihood).__name__}.is_quadratic is True",
        f"one whose gradient changes by something else than -B u (a relative difference of {error:.1g})",
        "Leave is_quadratic out, or correct curvature_product.",
    )


def _check_noise(likelihood: Likelihood, at: Tensor, targets: Tensor, u: Tensor, bent: Tensor, close: float) -> None:
    """Refuse a noise precision that B and log_prob do not follow, or residuals that are not those of log_prob."""
    name, precision, left = type(likelihood).__name__, likelihood.noise_precision, likelihood.residuals(at, targets)
    assert precision is not None
    shape = None if left is None else tuple(left.shape)
    require(
        shape == tuple(at.shape), f"{name}.residuals of shape {tuple(at.shape)}", f"{shape}", "One for each output."
    )
    other = likelihood.with_noise(precision * _FACTOR)
    known = other.noise_precision
    require(
        type(other) is type(likelihood) and other.learns_noise and known is not None
        and torch.equal(known.double().cpu(), (precision * _FACTOR).double().cpu()),
        f"a {name} with learns_noise=True and the noise_precision given from {name}.with_noise",
        f"a {type(other).__name__} with learns_noise={other.learns_noise} and noise_precision {known}",
        "EM goes on with what it returns.",
    )  # fmt: skip

    def slope(of: Likelihood) -> Tensor:
        return _slope(lambda f: of.log_prob(f, targets).sum(), at)

    def off(found: Tensor, expected: Tensor) -> float:
        return float((found - expected).double().norm()) / max(float(expected.double().norm()), 1e-30)

    require(
        max(off(other.curvature_product(at, u), _FACTOR * bent), off(slope(other), _FACTOR * slope(likelihood)))
        <= 10 * close,
        f"{name}.curvature_product and the gradient of {name}.log_prob proportional to noise_precision",
        f"others after with_noise({_FACTOR:g} noise_precision)",
        "Multiply both by noise_precision; log_prob may have other terms that do not depend on the outputs.",
    )
    if likelihood.is_quadratic:

        def misfit(outputs: Tensor) -> Tensor:
            values = likelihood.residuals(outputs, targets)
            assert values is not None
            scalar = likelihood.scalar_noise
            bent = values * precision if scalar else likelihood.curvature_product(outputs, values[None])[0]
            return -0.5 * (bent * values).sum()

        require(
            off(_slope(misfit, at), slope(likelihood)) <= 10 * close,
            f"a log_prob of -noise_precision |r|^2 / 2 with r from {name}.residuals, since {name}.is_quadratic is True",
            "one with another gradient",
            "Give y - f, times a root of what B has beside noise_precision.",
        )


def _slope(function: Callable[[Tensor], Tensor], outputs: Tensor) -> Tensor:
    """The gradient of a function of the outputs."""
    leaf = outputs.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(function(leaf), leaf)
    return gradient


def _check_class_axis(likelihood: Likelihood, at: Tensor) -> None:
    if likelihood.class_axis is None:
        return
    name, axis = type(likelihood).__name__, likelihood.class_axis
    inside = -at.ndim < axis < 0
    require(inside, f"{name}.class_axis counted from the end of the outputs", f"{axis}", "-1 is the last axis.")
    try:
        total = likelihood.probabilities(at).double().sum(axis)
    except TypeError:  # it is not about classes
        return
    off = float((total - 1).abs().max())
    fix = "class_axis is where the classes are; None for probabilities that add up to nothing."
    require(
        off <= 0.02, f"{name}.probabilities that add up to one along class_axis {axis}", f"a sum off by {off:.2g}", fix
    )
