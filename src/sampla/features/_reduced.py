"""Products of a network in reduced precision, cheaper than its own and as good as the type allows.

Vectors are cast once for a pass (``entering``), and laid so that kernels of convolutions have their channels last. The
outputs at which the curvature B is taken are the network's own, in its own type: they cost a forward pass for each
minibatch, and softmax's p (1 - p) near one would not survive the rounding.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import jvp, vmap

from sampla.core.params import Lying, ParameterLayout, side_by_side
from sampla.core.typing import Inputs
from sampla.features._base import Features, Linearisation, Origin, OutputCurvature
from sampla.features._coarse import Coarse
from sampla.features._folding import Fold
from sampla.features._forward import ForwardAt, from_the_start, leaves_of, pulled, recorded
from sampla.features._lock import LockedLinearisation
from sampla.features._products import Products
from sampla.features._scaled import Scaled

_MANY = 4
"""From so many vectors on the patches of an image are worth making."""


class Network(Protocol):
    """What is needed of a network."""

    layout: ParameterLayout
    like: Tensor
    origin: Origin | None
    products: Products
    folds: Sequence[Fold]

    @property
    def device(self) -> torch.device:
        """Where products are computed."""

    @property
    def point(self) -> Mapping[str, Tensor]:
        """The trained values of the chosen parameters."""

    @property
    def constants(self) -> Mapping[str, Tensor]:
        """All other parameters and buffers."""

    @property
    def weights(self) -> frozenset[str]:
        """Names of the constants that are parameters, but for those of normalisation by running statistics."""

    def call(self, point: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
        """f(point, inputs)."""

    def evaluate(self, inputs: Inputs) -> Tensor:
        """The outputs at the trained weights."""

    def outputs_with(self, state: Mapping[str, Tensor], inputs: Inputs, mode: AbstractContextManager[Any]) -> Tensor:
        """The outputs with these parameters and buffers, under a mode."""


class LaidNetwork:
    """A network whose convolutions have their channels last and have taken in the normalisation that follows them.

    Args:
        network: the network.
        dtype: of its parameters and products.
        lying: where the parameters lie side by side; None: each on its own, row by row.
    """

    def __init__(self, network: Network, dtype: torch.dtype, lying: Lying | None = None) -> None:
        self.layout, self.products, self.dtype = network.layout, network.products, dtype
        self._network = network
        state = {**network.constants, **network.point}
        factors = {name: fold.factor(state) for fold in network.folds for name in fold.scaled}
        self.scale = _scale(network, factors)
        self._folded = frozenset(id(network.constants[fold.variance]) for fold in network.folds)

        def taken(name: str, tensor: Tensor) -> Tensor:
            if name in factors:
                tensor = tensor * factors[name].view(-1, *[1] * (tensor.ndim - 1))
            return tensor.to(dtype)

        point = {name: taken(name, p).contiguous() for name, p in network.point.items()}
        self.point = point if lying is None else side_by_side(lying, point)
        cast = network.weights
        self._rest = {name: _last(taken(name, t)) if name in cast else t for name, t in network.constants.items()}

    def call(self, point: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
        """f(point, inputs), with a point as ``point`` is."""
        return self._network.outputs_with({**self._rest, **point}, inputs, Coarse(self.dtype, self._folded))

    def linearise(self, inputs: Inputs) -> Linearisation:
        """phi of these inputs, for vectors as the network has them; in a type as fine as the network's."""
        here = ForwardAt(self, inputs)
        return ByCount(ForwardAt(self._network, inputs), here if self.scale is None else Scaled(here, self.scale))


class ByCount(Linearisation):
    """The same phi in two ways: one for few vectors, one for many."""

    def __init__(self, few: Linearisation, many: Linearisation) -> None:
        self._few, self._many = few, many

    def _for(self, vectors: Tensor) -> Linearisation:
        return self._few if len(vectors) < _MANY else self._many

    @property
    def outputs(self) -> Tensor:
        return self._few.outputs

    def jvp(self, vectors: Tensor) -> Tensor:
        return self._for(vectors).jvp(vectors)

    def vjp(self, cotangents: Tensor) -> Tensor:
        return self._for(cotangents).vjp(cotangents)

    def product(self, vectors: Tensor, output_curvature: OutputCurvature) -> Tensor:
        return self._for(vectors).product(vectors, output_curvature)


class ReducedNetwork(Features):
    """J in a coarser type.

    Args:
        network: whose products are wanted.
        dtype: torch.bfloat16, or another coarse type that its device multiplies matrices in.
    """

    def __init__(self, network: Network, dtype: torch.dtype) -> None:
        self.layout, self.like, self.origin = network.layout, network.like, network.origin
        self._lying = LastChannels(network.layout)
        self._network, self._laid = network, LaidNetwork(network, dtype, self._lying)

    @property
    def device(self) -> torch.device:
        return self._network.device

    @property
    def rounding(self) -> float:
        return float(torch.finfo(self._laid.dtype).eps)

    def entering(self, vectors: Tensor) -> Tensor:
        scale = self._laid.scale
        return self._lying.entering(vectors if scale is None else vectors * scale, self._laid.dtype)

    def leaving(self, vectors: Tensor) -> Tensor:
        left, scale = self._lying.leaving(vectors), self._laid.scale
        return left if scale is None else left * scale

    def linearise(self, inputs: Inputs) -> Linearisation:
        return LockedLinearisation(_ReducedAt(self._laid, self._lying, self._network, inputs))


class LastChannels:
    """Vectors of P in which tensors of four axes lie with the second one last."""

    def __init__(self, layout: ParameterLayout) -> None:
        self._given = layout
        shapes = tuple((s[0], s[2], s[3], s[1]) if len(s) == 4 else s for s in layout.shapes)
        self._laid = ParameterLayout(layout.names, shapes)

    def entering(self, vectors: Tensor, dtype: torch.dtype) -> Tensor:
        """(K, P) as the layout has them to (K, P) as they lie here, in another type."""
        return self.flatten({name: each.to(dtype) for name, each in self._given.views(vectors).items()})

    def leaving(self, vectors: Tensor) -> Tensor:
        """And back, in the type they have."""
        return self._given.flatten(self.views(vectors))

    def views(self, vectors: Tensor) -> dict[str, Tensor]:
        """Named views in the network's own shapes."""
        return {n: v.permute(0, 1, 4, 2, 3) if v.ndim == 5 else v for n, v in self._laid.views(vectors).items()}

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The inverse of ``views``: one new (K, P) tensor."""
        return self._laid.flatten({n: t.permute(0, 1, 3, 4, 2) if t.ndim == 5 else t for n, t in tensors.items()})


class _ReducedAt(Linearisation):
    """Products in the coarse type, of vectors that have entered; outputs of the network itself."""

    def __init__(self, laid: LaidNetwork, lying: LastChannels, network: Network, inputs: Inputs) -> None:
        self._laid, self._lying, self._network, self._inputs = laid, lying, network, inputs
        self._outputs: Tensor | None = None

    @property
    def outputs(self) -> Tensor:
        if self._outputs is None:
            self._outputs = self._network.evaluate(self._inputs)
        return self._outputs

    def _forward(self, point: Mapping[str, Tensor]) -> Tensor:
        return self._laid.call(point, self._inputs)

    def jvp(self, vectors: Tensor) -> Tensor:
        point = self._laid.point
        push = vmap(lambda tangent: jvp(self._forward, (point,), (tangent,))[1])
        tangents: Tensor = push(self._lying.views(from_the_start(vectors)))
        return tangents.detach().to(self._network.like.dtype)

    def vjp(self, cotangents: Tensor) -> Tensor:
        leaves = leaves_of(self._laid.point)
        with recorded():
            outputs = self._forward(leaves)
        pull = vmap(lambda cotangent: pulled(outputs, leaves, cotangent, again=False))
        return self._lying.flatten(pull(cotangents.to(outputs.dtype))).detach()


def _scale(network: Network, factors: Mapping[str, Tensor]) -> Tensor | None:
    """(P,) with phi = phi_folded diag(scale); None for ones."""
    if not any(name in factors for name in network.layout.names):
        return None
    like = next(iter(network.point.values()))
    shapes = dict(zip(network.layout.names, network.layout.shapes, strict=True))
    ones = {name: like.new_ones(1, *shape) for name, shape in shapes.items()}
    whole = {n: one * factors[n].view(-1, *[1] * (one.ndim - 2)) if n in factors else one for n, one in ones.items()}
    return network.layout.flatten(whole)[0]


def _last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
