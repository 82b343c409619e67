"""The Jacobian of a network as a feature map: phi(x) = d f(w, x) / d w at the trained weights w."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import replace
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sampla.core.checks import require
from sampla.core.inputs import detached
from sampla.core.memory import is_of_the_machine
from sampla.core.rounding import nudged
from sampla.core.typing import Inputs
from sampla.features._arguments import NetworkCall, answered
from sampla.features._base import Features, Linearisation, Origin
from sampla.features._differences import check_differences
from sampla.features._explained import explained
from sampla.features._finite import where_not_finite
from sampla.features._folding import Fold, folds
from sampla.features._forward import ForwardAt
from sampla.features._graph import pushed_by_reverse, pushed_forward
from sampla.features._kernels import Attention, OnceOnly, constant_padding, differentiable
from sampla.features._lock import NETWORK_LOCK, LockedLinearisation, locked
from sampla.features._modules import Alone, Call, Inside, describe_module, watched
from sampla.features._names import castable, changed_tensors, functional_state, is_compiled, slots
from sampla.features._outputs import OutputName, pick_output
from sampla.features._products import DOUBLE_REVERSE, FORWARD, Products, short_reason
from sampla.features._reduced import LaidNetwork, ReducedNetwork
from sampla.features._reverse import ReverseAt
from sampla.features._trial import agree, deviation, failure_of, refuse_hopeless, shares_forward
from sampla.features._types import Types, coarse_results, lift, quantised, widened

Result = TypeVar("Result")

_COARSEST = 0.1
"""How far a product in reduced precision may be off to be chosen: EM's gamma and alpha are then as good as before."""
_CUT = (
    "The network takes gradients by torch.autograd.grad without create_graph=True, so that they are constants: pass "
    "create_graph=True in evaluation mode too (often it is create_graph=self.training)."
)
_WRITE = (
    "Write that operation with ordinary torch operations, or detach what it returns and choose parameters that come "
    "after it."
)
_INSTEAD = {
    "(EmbeddingBag)": "Put nn.Embedding with the same weight in the place of nn.EmbeddingBag, and .mean(1) or .sum(1) "
    "after it.",
    "through the graph a second time": _CUT,
    "parse": "Leave sparse=True out: the weights and the outputs are the same.",
}
"""What the reasons contain -> what to do where neither way works."""


class NetworkFeatures(Features):
    """J(x) = d f(w, x) / d w for the named parameters, by jvp and vjp; the network itself is never changed.

    Args:
        model: any torch.nn.Module in evaluation mode.
        names: the parameters that form theta, as ``select_parameters`` gives them.
        output: which entry of the network's output the likelihood is about, by name or index; None: the only
            floating-point tensor, or the entry "logits".
        call: a function of the network and a batch's inputs that returns its outputs; None: it is called on them.
        products: how the products are taken; ``choose_products`` finds out.
        precision: "bfloat16" takes the products of ``cheaper`` in it; "auto" where ``reduction`` is adopted.
        vectors_on: device on which vectors of P live; None: where the network is.

    Raises:
        TypeError: if the network does not return a floating-point tensor, or several without a choice.
        RuntimeError: if the network cannot be called on the inputs, or has no derivatives of the kind chosen.
    """

    @locked
    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        output: OutputName = None,
        products: Products | None = None,
        precision: str = "full",
        vectors_on: torch.device | None = None,
        tangent: bool = False,
        call: NetworkCall | None = None,
    ) -> None:
        self.precision, self.reduced = precision, precision == "bfloat16"
        self.folds: Sequence[Fold] = ()
        self._traces, self._call = False, call
        self._kept_laid: tuple[Products, LaidNetwork] | None = None
        self._inside = Inside(model)
        self._slots = slots(model)
        self._padding = [
            (m, m.weight[m.padding_idx].detach().clone())
            for m in model.modules()
            if isinstance(m, nn.Embedding) and m.padding_idx is not None
        ]
        self._compiled, self._castable = is_compiled(model), castable(model)
        state = functional_state(model)
        self._types = Types(state, names)
        self.output, self.products = output, products or Products()
        if self._types.low_points:
            self.products = replace(self.products, lifted=True)
        self._point = self._types.point({name: state.pop(name) for name in names})
        self._rest = {name: widened(t) for name, t in state.items()} if self.products.lifted else state
        self.layout = self._types.layout(self._point)
        self.like = self._on_device.to(vectors_on or self.device)
        if tangent:
            point = self.layout.flatten({name: p[None] for name, p in self._point.items()})[0].to(self.like)
            self.origin = Origin(point, tangent=True)
        self._native_rnn = self.device.type == "cuda" and any(isinstance(m, nn.RNNBase) for m in model.modules())

    @property
    def _on_device(self) -> Tensor:
        """An empty tensor where the network is."""
        return next(iter(self._point.values())).new_empty(0)

    @property
    def device(self) -> torch.device:
        return self._on_device.device

    def on(self, device: torch.device, vectors_on: torch.device | None = None) -> Self:
        """The same features computed on another device, with copies of the network's tensors there."""
        other = copy(self)
        other._point = {name: t.to(device) for name, t in self._point.items()}
        other._rest = {name: t.to(device) for name, t in self._rest.items()}
        other._padding = [(module, row.to(device)) for module, row in self._padding]
        other._kept_laid, other.like = None, self.like.to(vectors_on or device)
        other.origin = None if self.origin is None else self.origin.moved(self.origin.point.to(other.like))
        other._native_rnn = device.type == "cuda" and any(
            isinstance(m, nn.RNNBase) for m in self._inside.model.modules()
        )
        return other

    @property
    def changed(self) -> list[str]:
        """Names of the parameters and persistent buffers of the user's network that are no longer what they were."""
        return changed_tensors(self._inside.model, self._types.restored({**self._rest, **self._point}, lifted=False))

    @property
    def types(self) -> Types:
        """What the network's numbers are held in."""
        return self._types

    def lift(self) -> None:
        """Linearise the network with its coarse types made float32 from now on."""
        self.products = replace(self.products, lifted=True)
        self._rest = {name: widened(t) for name, t in self._rest.items()}

    def set_limit(self, words: str) -> None:
        """Keep what is to be said about the network's own type."""
        self.products = replace(self.products, limit=words)

    def coarse_results(self, inputs: Inputs) -> tuple[str, str]:
        """As ``coarse_results`` of these inputs."""
        return coarse_results(self._inside.model, self.device, lambda: self.evaluate(inputs))

    @property
    def quantised(self) -> list[str]:
        """Modules of the network that compute in integers, in words."""
        return quantised(self._inside.model)

    def linearise(self, inputs: Inputs) -> Linearisation:
        if self.products.mode != FORWARD:
            return LockedLinearisation(ReverseAt(self, inputs, self.products.stacked))
        return LockedLinearisation(self._laid.linearise(inputs) if self.products.laid else ForwardAt(self, inputs))

    @property
    def _laid(self) -> LaidNetwork:
        if self._kept_laid is None or self._kept_laid[0] is not self.products:
            self._kept_laid = self.products, LaidNetwork(self, self.like.dtype)
        return self._kept_laid[1]

    def call(self, point: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
        """f(point, inputs) in the type of the vectors, leaving the user's module as it is."""
        return self._called(point, lift(inputs) if self.products.lifted else inputs).to(self.like.dtype)

    def own_outputs(self, inputs: Inputs) -> Tensor:
        """The outputs as the network itself computes them, in its own type, or in the vectors' if wider."""
        return self._own_outputs(inputs).detach()

    def _own_outputs(self, inputs: Inputs) -> Tensor:
        own = copy(self)
        own.products = replace(self.products, lifted=False)
        outputs = own._called(self.point, inputs)
        return outputs.to(torch.promote_types(outputs.dtype, self.like.dtype))

    @locked
    def traced(self, inputs: Inputs, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """(n, *out) ``own_outputs`` and (K, n, *out) phi v, with torch's graph of the inputs kept."""
        kept = copy(self)
        kept._traces = True
        push = pushed_forward if self.products.mode == FORWARD else pushed_by_reverse
        return kept._own_outputs(inputs), push(kept, inputs, vectors)

    def _called(self, point: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
        return self._called_with(lambda work: self.within(point, work), inputs)

    def _called_with(self, within: Callable[[Callable[[], Any]], Any], inputs: Inputs) -> Tensor:
        given = inputs if self._traces else detached(inputs)  # by which it may ask for gradients
        with explained(self._inside.model, inputs, self._call):
            outputs = within(lambda: answered(self._inside.model, given, self._call))
        return pick_output(outputs, self.output)

    def evaluate(self, inputs: Inputs) -> Tensor:
        """The outputs at the trained weights, without a graph."""
        return self.call(self.point, inputs).detach()

    def within(self, point: Mapping[str, Tensor], work: Callable[[], Result]) -> Result:
        """The result of work done while the network has these parameters and only operations with derivatives."""
        return self._within(self._types.restored({**self._rest, **point}, self.products.lifted), work)

    def _within(
        self, values: Mapping[str, Tensor], work: Callable[[], Result], mode: AbstractContextManager[Any] | None = None
    ) -> Result:
        state = {f"model.{slot}": values[name] for slot, name in self._slots.items()}
        gradients = torch.enable_grad()  # which the network may take by its inputs, as of an energy
        with (
            NETWORK_LOCK,
            gradients,
            differentiable(self._native_rnn, self._compiled, self.products.mode == FORWARD),
            constant_padding(self._padding),
            mode or nullcontext(),
        ):
            result: Result = functional_call(self._inside, state, (work,), tie_weights=False)
        return result

    def check_eager_call(self, inputs: Inputs) -> None:
        """Refuse, before anything long is compiled, what one call in eager mode shows; what else fails is for others.

        Raises:
            ValueError: if the outputs are gradients that the network takes and torch does not record.
            RuntimeError: for flex attention of what depends on the chosen parameters.
        """
        leaves = {name: value.detach().requires_grad_() for name, value in self.point.items()}
        try:
            with OnceOnly() as seen, torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
                outputs = self.call(leaves, inputs)
        except (RuntimeError, TypeError) as error:
            if is_of_the_machine(error) or "FlexAttention" in str(error):
                raise
            return
        require(outputs.requires_grad or not seen.cut, "outputs in torch's graph of the parameters", "none", _CUT)

    def choose_products(self, inputs: Inputs) -> Products:
        """Try once, on a few inputs, how the products can be taken, and keep it: forward mode if it works.

        Raises:
            RuntimeError: if neither forward nor double reverse mode works, naming the module that stands in the way.
            ValueError: if the derivative of double reverse mode is not that of the outputs.
        """
        with Attention() as attention:
            self.evaluate(inputs)
        self.products = first = Products(lifted=self.products.lifted, limit=self.products.limit)
        failure = failure_of(self, inputs)
        if failure is not None:
            self.products = self._reverse_products(inputs, failure)
            check_differences(self, inputs)
        else:
            works = shares_forward(self, inputs)
            self.products = replace(first, shared=works, both=works)
        self.products = replace(self.products, math_attention=attention.seen)
        return self.products

    def rounded_otherwise(self) -> Features:
        other = copy(self)
        other._point, other._kept_laid = self._types.changed(self._point, nudged), None
        return other

    @property
    def rounding(self) -> float:
        return float(torch.finfo(torch.float32 if self._types.mixed else self.like.dtype).eps)

    def cheaper(self) -> Features:
        return ReducedNetwork(self, torch.bfloat16) if self.reduced else self

    @property
    def constants(self) -> dict[str, Tensor]:
        """All other parameters and buffers."""
        return self._rest

    @property
    def weights(self) -> frozenset[str]:
        """Names of the constants that are parameters, but for those of normalisation by running statistics."""
        return frozenset(name for name in self._rest if name in self._castable)

    def outputs_with(self, state: Mapping[str, Tensor], inputs: Inputs, mode: AbstractContextManager[Any]) -> Tensor:
        """The outputs with these parameters and buffers, each in the type it has, under a mode."""
        return self._called_with(lambda work: self._within(state, work, mode), inputs)

    def require_reduced(self, inputs: Inputs) -> None:
        """Refuse reduced precision for a network whose products cannot be taken in it.

        Raises:
            ValueError: with the reason.
        """
        reason = self._why_not_reduced(inputs)
        fix = 'Use precision="full", or "auto", which takes bfloat16 only where it works and is faster.'
        require(not reason, 'a network whose products can be taken in bfloat16 (precision="bfloat16")', reason, fix)

    def _why_not_reduced(self, inputs: Inputs) -> str:
        """Why products cannot be taken in bfloat16, in words; empty if they can."""
        if self.products.mode != FORWARD:
            return "one that has no forward mode"
        if self.products.lifted or self._types.mixed or self._types.vectors != torch.float32 or self.layout.complex:
            return "one that is not float32 throughout"
        failure = failure_of(ReducedNetwork(self, torch.bfloat16), inputs)
        return "" if failure is None else short_reason(failure)

    def reduction(self, inputs: Inputs) -> Self | None:
        if self.precision != "auto" or self._why_not_reduced(inputs) or self.coarseness(inputs) > _COARSEST:
            return None
        other = copy(self)
        other.reduced = True
        return other

    def coarseness(self, inputs: Inputs) -> float:
        """|phi v - phi_reduced v| / |phi v| on a few data."""
        return deviation(self, ReducedNetwork(self, torch.bfloat16), inputs)

    def find_folds(self, inputs: Inputs) -> None:
        """Find the normalisation that can be taken into convolutions, and leave it where that changes the outputs."""
        constant = frozenset(self._rest)
        self.folds = folds(self._inside.model, self._slots, constant, lambda: self.evaluate(inputs))
        if self.folds and not self._can_be_laid(inputs):
            self.folds = ()

    def _can_be_laid(self, inputs: Inputs) -> bool:
        """Whether the network laid otherwise has the same outputs and products, up to rounding."""
        if self.products.mode != FORWARD or self.products.lifted or self.layout.complex:
            return False
        laid = copy(self)
        laid.products, laid._kept_laid = replace(self.products, laid=True), None
        return failure_of(laid, inputs) is None and agree(self, laid, inputs)

    def alternatives(self, inputs: Inputs) -> list[Self]:
        """In forward mode: one forward for both products, or one for each; laid otherwise, where that may be chosen."""
        ways = [replace(self.products, shared=not self.products.shared)] if self.products.both else []
        if self.precision != "full" and self._can_be_laid(inputs):
            ways += [replace(way, laid=True) for way in (self.products, *ways)]
        others = [copy(self) for _ in ways]
        for other, way in zip(others, ways, strict=True):
            other.products = way
        return others

    @property
    def way(self) -> str:
        forwards = "one forward" if self.products.shared else "two forwards"
        laid = ", channels last" if self.products.laid else ""
        return forwards + laid + (", bfloat16" if self.reduced else "")

    def adopt(self, alternative: Self) -> None:
        self.products, self.reduced = alternative.products, alternative.reduced

    def _reverse_products(self, inputs: Inputs, failure: Exception) -> Products:
        """Double reverse mode, because of what forward mode failed with; vectors together where that works."""
        where = self._where(inputs, self.products)
        refuse_hopeless(failure, where)
        reason = f"{short_reason(failure)} in {where}"
        for stacked in (True, False):
            products = replace(self.products, mode=DOUBLE_REVERSE, reason=reason, stacked=stacked)
            trial = copy(self)
            trial.products = products
            second = failure_of(trial, inputs)
            if second is None:
                return products
        assert second is not None
        instead = next((fix for clue, fix in _INSTEAD.items() if clue in f"{reason} {second}"), _WRITE)
        raise RuntimeError(
            f"neither way to take the network's derivatives works. Forward mode: {reason}. Double reverse mode: "
            f"{short_reason(second)} in {self._where(inputs, products)}. "
            f"{instead}"
        ) from second

    def where_not_finite(self, inputs: Inputs, position: int) -> str:
        return where_not_finite(self._inside.model, self.evaluate, inputs, position)

    def _where(self, inputs: Inputs, products: Products) -> str:
        """The innermost module that has no products of this kind, in words."""
        calls: list[Call] = []
        with watched(self._inside.model, calls.append):
            self.evaluate(inputs)
        for call in calls:
            alone = Alone(call)
            names = [name for name, p in alone.named_parameters() if p.is_floating_point()]
            if failure_of(NetworkFeatures(alone, names, products=products), alone.shift.detach()) is not None:
                return describe_module(call.name, call.module)
        return describe_module("", self._inside.model)

    @property
    def point(self) -> dict[str, Tensor]:
        """The trained values of the chosen parameters."""
        return self._point
