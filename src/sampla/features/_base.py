"""The interface of feature maps, and the check that their two products are adjoint."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Self, TypeAlias

import torch
from torch import Tensor

from sampla.core.noise import ADJOINT, standard_normal
from sampla.core.params import ParameterLayout, row_dot
from sampla.core.typing import Inputs

OutputCurvature: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(n, *out) outputs and (K, n, *out) phi v to K cotangents."""


class Linearisation(ABC):
    """The features phi of one batch of n data: a linear map from P parameters to (n, *out) outputs."""

    @property
    @abstractmethod
    def outputs(self) -> Tensor:
        """(n, *out): the outputs at which the likelihood's curvature B is taken."""

    @abstractmethod
    def jvp(self, vectors: Tensor) -> Tensor:
        """phi v for K vectors: (K, P) -> (K, n, *out)."""

    @abstractmethod
    def vjp(self, cotangents: Tensor) -> Tensor:
        """phi' u for K cotangents, summed over the batch: (K, n, *out) -> (K, P)."""

    def linear_outputs(self, theta: Tensor, origin: "Origin | None") -> Tensor:
        """Return the linear model's outputs at theta: (K, P) -> (K, n, *out); ``origin`` is that of the features."""
        return predicted(self.outputs, self.jvp(displaced(theta, origin)), origin)

    def product(self, vectors: Tensor, output_curvature: OutputCurvature) -> Tensor:
        """Return phi' B phi v for K vectors, (K, P) -> (K, P); jvp and vjp share work where they can.

        Args:
            vectors: v.
            output_curvature: (n, *out) outputs and (K, n, *out) phi v to K cotangents.
        """
        return self.vjp(output_curvature(self.outputs, self.jvp(vectors)))

    def rounded_otherwise(self) -> "Linearisation":
        """Return the same phi with different rounding errors, so that comparing products shows how large these are."""
        return self

    def squared_vjp(self, cotangents: Tensor) -> Tensor:
        """sum_n (phi_n' u_n)^2, entry by entry, the mean over K cotangents: (K, n, *out) -> (P,)."""
        raise NotImplementedError(f"{type(self).__name__} does not square the gradient of each datum")


@dataclass(frozen=True)
class Origin:
    """Where the linear model's parameters theta count from, if its outputs are not just phi theta.

    With u = theta - point they are phi u, or for a tangent f + phi u (docs/method.md, section 8). The point is w for a
    tangent, and -mu more where theta counts from the prior's mean mu.
    """

    point: Tensor
    """(P,)."""
    tangent: bool

    def moved(self, point: Tensor) -> "Origin":
        """The same kind of model with another point."""
        return Origin(point, self.tangent)


def displaced(theta: Tensor, origin: Origin | None) -> Tensor:
    """Return what the linear model pushes forward: theta, or theta - point."""
    return theta if origin is None else theta - origin.point.to(theta)


def predicted(outputs: Tensor, pushed: Tensor, origin: Origin | None) -> Tensor:
    """Return its outputs (K, n, *out), given that: phi theta, or for a tangent f + phi (theta - w)."""
    return outputs + pushed if origin is not None and origin.tangent else pushed


class Features(ABC):
    """A feature map phi: x -> (C, P), never formed; only its products are used."""

    squares_data = False
    """Whether ``squared_vjp`` costs about as much as a product."""
    absorbed = 0
    """How many outputs' worth of data went into the features themselves: an intercept taken out takes one an output."""

    layout: ParameterLayout
    """Names and shapes of the P parameters."""
    origin: Origin | None = None
    """Of the linear model, where that is a tangent, or theta counts from the prior's mean. None: it is phi theta."""
    from_prior = False
    """Whether theta counts from the prior's mean."""
    like: Tensor
    """An empty tensor with the dtype of the products, on the device where vectors of P live."""

    @property
    def device(self) -> torch.device:
        """Where the products are computed: a pass brings its vectors there, and the result back to where they live."""
        return self.like.device

    @abstractmethod
    def linearise(self, inputs: Inputs) -> Linearisation:
        """The features of one batch."""

    def where_not_finite(self, inputs: Inputs, position: int) -> str:  # noqa: ARG002
        """A sentence on where NaN or infinity in outputs or products come from, if that can be known; else empty.

        Args:
            inputs: of the batch.
            position: number of its first datum.
        """
        return ""

    def rounded_otherwise(self) -> "Features":
        """The same phi, up to rounding errors that are others, where that can be had; the outputs may differ."""
        return self

    def unscaled(self) -> "tuple[Features, Tensor | None]":
        """phi0 and s (P,) with phi = phi0 diag(s), so that a pass need multiply by s only once; s None for ones."""
        return self, None

    def rescaled(self, theta: Tensor, scale: Tensor) -> Tensor:
        """theta s, (K, P), for parameters of phi diag(s); what s = 0 takes out of a tangent stays at its origin."""
        scaled = theta * scale
        return scaled if self.origin is None else torch.where(scale == 0, self.origin.point.to(scaled), scaled)

    def about(self, mean: Tensor | None) -> Self:
        """The same linear model in parameters theta - mu, mu (P,), the prior's mean; as it is where it is so already.

        Args:
            mean: mu; None: zero.
        """
        if mean is None or self.from_prior:
            return self
        other, mean = copy(self), mean.to(self.like)
        other.from_prior = True
        other.origin = Origin(-mean, False) if self.origin is None else self.origin.moved(self.origin.point - mean)
        return other

    @property
    def rounding(self) -> float:
        """Relative rounding error of the products."""
        return float(torch.finfo(self.like.dtype).eps)

    def cheaper(self) -> "Features":
        """The same features with products in reduced precision, where these were asked for; else themselves."""
        return self

    def entering(self, vectors: Tensor) -> Tensor:
        """(K, P) in the form in which ``product`` takes them, made once for a pass."""
        return vectors

    def leaving(self, vectors: Tensor) -> Tensor:
        """(K, P) sums of what ``product`` has returned, back in the form of all other vectors."""
        return vectors

    @property
    def way(self) -> str:
        """How these features compute their products, where there is more than one way."""
        return ""

    def alternatives(self, inputs: Inputs) -> list[Self]:  # noqa: ARG002
        """Return these features with products computed in other ways, which may be faster."""
        return []

    def reduction(self, inputs: Inputs) -> Self | None:  # noqa: ARG002
        """These features with ``cheaper`` products in reduced precision, where that may be chosen; None if not."""
        return None

    def adopt(self, alternative: Self) -> None:
        """Compute products from now on as these features do, which ``alternatives`` or ``reduction`` returned."""
        raise NotImplementedError(f"{type(self).__name__} knows one way only, got {type(alternative).__name__}")


def adjoint_error(linearisation: Linearisation, num_parameters: int, seed: int = 0) -> float:
    """Relative error of <phi v, u> = <v, phi' u> for one random pair (u, v).

    Returns:
        |<phi v, u> - <v, phi' u>| / (|phi v| |u|), about the rounding error of the dtype if all is well.
    """
    out = linearisation.outputs
    v = standard_normal(seed, ADJOINT, range(1), 0, (num_parameters,), out)
    u = standard_normal(seed, ADJOINT, range(1), num_parameters, tuple(out.shape), out)
    pushed, pulled = linearisation.jvp(v).double(), linearisation.vjp(u).double()
    u, v = u.double(), v.double()
    left, right = (pushed * u).sum(), row_dot(pulled, v).sum()
    size = pushed.norm() * u.norm() + pulled.norm() * v.norm()
    return float((left - right).abs() / size) if size > 0 else 0.0


def check_adjoint(linearisation: Linearisation, num_parameters: int, rounding: float | None = None) -> float:
    """Refuse a feature map whose two products are not adjoint to each other.

    Args:
        linearisation: the feature map on a few data.
        num_parameters: P.
        rounding: relative rounding error of its products; None: that of the type of its outputs.

    Returns:
        The relative error found.

    Raises:
        ValueError: if it is larger than rounding explains.
    """
    dtype = linearisation.outputs.dtype
    error = adjoint_error(linearisation, num_parameters)
    bound = 100 * (torch.finfo(dtype).eps if rounding is None else rounding)
    if not error <= bound:
        raise ValueError(
            f"expected <phi v, u> = <v, phi' u> up to rounding ({bound:.0e} relative in {dtype}), got a relative "
            f"difference of {error:.1e}. Some operation has a wrong derivative (a custom autograd function, "
            "a detach(), torch.no_grad or an in-place change); the posterior would be wrong."
        )
    return error
