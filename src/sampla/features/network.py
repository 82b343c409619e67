"""The Jacobian of a network as a feature map: phi(x) = d f(w, x) / d w at the trained weights w."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from sampla._batches import describe_inputs
from sampla._checks import require_known
from sampla._memory import is_out_of_memory
from sampla._params import ParameterLayout
from sampla._typing import Inputs
from sampla.features._base import Bend, Features, Linearisation

Selection: TypeAlias = str | Sequence[str] | Callable[[str, nn.Parameter], bool] | None

_NORMALISATION = (
    nn.modules.batchnorm._NormBase,  # BatchNorm and InstanceNorm, every dimension
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


_CALL_IT = "Call model(x) on one batch of the loader: shapes, dtypes and devices must fit."
_NO_FORWARD_MODE = (
    "The network works, but one of its operations has no derivative that torch.func can take in forward and reverse "
    "mode: write it with ordinary torch operations, or give the autograd.Function setup_context, jvp and "
    "generate_vmap_rule = True."
)
_REMEDIES = {
    "must have the same dtype": "Convert the inputs to the dtype of the network, x.to(next(model.parameters()).dtype).",
    "setup_context": _NO_FORWARD_MODE,
    "the jvp function": _NO_FORWARD_MODE,
    "forward AD": _NO_FORWARD_MODE,
    "generate_vmap_rule": _NO_FORWARD_MODE,
    "mutate a captured Tensor": "The network changes one of its buffers in place in evaluation mode: leave that out.",
    "called random operation": "The network must be deterministic in evaluation mode: take the random operation out.",
}
"""What torch's message contains -> what to do."""


def select_parameters(model: nn.Module, selection: Selection = None) -> tuple[list[str], dict[str, str]]:
    """Which parameters form theta.

    Args:
        model: the network.
        selection: None for all that require grad except those of normalisation layers; names or shell patterns
            ("head.*"); or a predicate (name, parameter) -> bool. A selection made by the user is taken as it is.

    Returns:
        The chosen names in the model's order, and for every parameter left out the reason.

    Raises:
        ValueError: if a name or pattern matches nothing, or nothing is left.
    """
    every = dict(model.named_parameters())
    if selection is None:
        normalisation = {
            id(p) for m in model.modules() if isinstance(m, _NORMALISATION) for p in m.parameters(recurse=False)
        }
        excluded = {
            name: "normalisation layer" if id(p) in normalisation else "does not require grad"
            for name, p in every.items()
            if id(p) in normalisation or not p.requires_grad
        }
    else:
        chosen = _matching(every, selection)
        excluded = {name: "not selected" for name in every if name not in chosen}
    names = [name for name in every if name not in excluded]
    if not names:
        reasons = ", ".join(sorted(set(excluded.values()))) or "the model has none"
        raise ValueError(
            f"expected at least one parameter to be uncertain about, got none of {len(every)} ({reasons}). "
            "Set requires_grad=True on some, or pass parameters=[...] with names or patterns."
        )
    return names, excluded


def _matching(every: Mapping[str, nn.Parameter], selection: Selection) -> set[str]:
    if callable(selection):
        return {name for name, parameter in every.items() if selection(name, parameter)}
    assert selection is not None
    chosen: set[str] = set()
    for pattern in [selection] if isinstance(selection, str) else selection:
        found = {name for name in every if fnmatchcase(name, pattern)}
        if not found:
            require_known(pattern, every, "parameter")
        chosen |= found
    return chosen


def functional_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers: a posterior stays about them, even if the network is trained on."""
    return {name: t.detach().clone() for name, t in [*model.named_parameters(), *model.named_buffers()]}


class NetworkFeatures(Features):
    """J(x) = d f(w, x) / d w for the named parameters, by jvp and vjp; the network itself is never changed.

    Args:
        model: any torch.nn.Module in evaluation mode.
        names: the parameters that form theta, as ``select_parameters`` gives them.

    Raises:
        TypeError: if the network does not return one floating-point tensor.
        RuntimeError: if the network cannot be called on the inputs, or has no forward-mode derivative.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._model = model
        state = functional_state(model)
        self._point = {name: state.pop(name) for name in names}
        self._rest = state
        self.layout = ParameterLayout(tuple(names), tuple(tuple(p.shape) for p in self._point.values()))
        self.like = next(iter(self._point.values())).new_empty(0)

    def linearise(self, inputs: Inputs) -> Linearisation:
        return _NetworkAt(self, inputs)

    def call(self, point: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
        """f(point, inputs), leaving the user's module as it is."""
        args, kwargs = _call_arguments(inputs)
        with _math_attention(), _explained(inputs):
            outputs = functional_call(self._model, {**self._rest, **point}, args, kwargs)
        if not (isinstance(outputs, Tensor) and outputs.is_floating_point()):
            raise TypeError(
                f"expected the network to return one floating-point tensor, got {type(outputs).__name__}. "
                "Wrap it in a module that returns the tensor the likelihood is about."
            )
        return outputs

    @property
    def point(self) -> dict[str, Tensor]:
        """The trained values of the chosen parameters."""
        return self._point


class _NetworkAt(Linearisation):
    def __init__(self, features: NetworkFeatures, inputs: Inputs) -> None:
        self._features, self._inputs = features, inputs
        self._pulled: tuple[Tensor, Callable[..., Any]] | None = None

    def _forward(self, point: Mapping[str, Tensor]) -> Tensor:
        return self._features.call(point, self._inputs)

    def _pullback(self) -> tuple[Tensor, Callable[..., Any]]:
        if self._pulled is None:
            outputs, pull, *_ = vjp(self._forward, self._features.point)
            self._pulled = outputs.detach(), pull
        return self._pulled

    @property
    def outputs(self) -> Tensor:
        return self._pullback()[0]

    def jvp(self, vectors: Tensor) -> Tensor:
        tangents = self._features.layout.views(vectors)
        push = vmap(lambda tangent: jvp(self._forward, (self._features.point,), (tangent,))[1])
        pushed: Tensor = push(tangents)
        return pushed.detach()

    def product(self, vectors: Tensor, bend: Bend) -> Tensor:
        """Reverse mode through the jvps, which are linear in v: one forward serves both products."""
        point, features = self._features.point, self._features

        def pushed(tangents: dict[str, Tensor]) -> Any:
            dims: Any = (0, None)  # the outputs are the same for all K
            return vmap(lambda tangent: jvp(self._forward, (point,), (tangent,))[::-1], out_dims=dims)(tangents)

        found: Any = vjp(pushed, features.layout.views(vectors), has_aux=True)
        outer, pull, outputs = found
        (pulled,) = pull(bend(outputs.detach(), outer.detach()))
        return features.layout.flatten(pulled).detach()

    def vjp(self, cotangents: Tensor) -> Tensor:
        (pulled,) = vmap(self._pullback()[1])(cotangents)
        return self._features.layout.flatten(pulled).detach()


def _call_arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs), {}


@contextmanager
def _math_attention() -> Iterator[None]:
    """Flash attention has no forward-mode derivative; the mathematical form has."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def _explained(inputs: Inputs) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, TypeError, IndexError, ValueError, NotImplementedError) as error:
        if is_out_of_memory(error):  # smaller chunks may do
            raise
        remedy = next((fix for clue, fix in _REMEDIES.items() if clue in str(error)), _CALL_IT)
        raise RuntimeError(
            f"the network could not be called on inputs of shape and dtype {describe_inputs(inputs)}: {error}\n{remedy}"
        ) from error
