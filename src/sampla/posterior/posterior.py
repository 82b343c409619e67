"""The posterior over a network's parameters: its samples, what they predict, and their file."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sampla.core import checkpoint
from sampla.core.checks import require, require_finite
from sampla.core.chunks import Chunks
from sampla.core.inputs import as_inputs, input_tensors, moved, num_inputs, pick
from sampla.core.operations import operations_of
from sampla.core.params import ParameterLayout
from sampla.core.typing import Inputs
from sampla.features import (
    Chunked,
    NetworkCall,
    NetworkFeatures,
    Products,
    has_fingerprint,
    network_dtypes,
    plain_names,
    plain_parameters,
)
from sampla.likelihoods import (
    Bernoulli,
    Categorical,
    FixedNoiseGaussian,
    Gaussian,
    Heads,
    HeteroscedasticGaussian,
    Likelihood,
    NegativeBinomial,
    Ordinal,
    Poisson,
    StudentT,
)
from sampla.posterior.outputs import check_average
from sampla.posterior.predictive import Predictive, relative_size
from sampla.posterior.width import Width

_KINDS = (
    Categorical,
    Bernoulli,
    Poisson,
    NegativeBinomial,
    HeteroscedasticGaussian,
    StudentT,
    Ordinal,
    FixedNoiseGaussian,
)
_BUILT_IN: dict[str, Callable[..., Likelihood]] = {kind.__name__: kind for kind in _KINDS}
_PIECE, _LARGEST = 512, 8_192
"""Data times samples in flight when predicting, and of a small network."""
_WORK, _INPUTS = 3.5e8, 2**22
"""Operations of so many forwards, and entries of so many inputs, that a larger piece than the first does not exceed."""


@dataclass(frozen=True)
class Posterior:
    """N(w, H^-1) over the named parameters, held as K zero-mean samples."""

    features: NetworkFeatures
    likelihood: Likelihood
    samples: Tensor
    """(K, P)."""
    facts: dict[str, Any]
    """What else is known of the fit: JSON only."""
    network: str
    """Fingerprint of the network's weights when it was fitted."""
    dtypes: dict[str, str]
    """Type of each of its floating-point weights and buffers then."""
    width: Width = field(default_factory=Width)
    """By which factors predictions take the samples' deviations."""

    @property
    def layout(self) -> ParameterLayout:
        """Names and shapes of the P parameters."""
        return self.features.layout

    def predict(
        self,
        x: Any,
        method: str = "monte-carlo",
        num_draws: int = 512,
        error: Tensor | None = None,
        traced: bool = False,
    ) -> Predictive:
        """The predictive at the given inputs, by K jvps.

        Args:
            x: inputs as the network takes them: a tensor, tuple or dict of tensors with first axis n, a list with one
                object for each datum, or one object for all.
            method: "monte-carlo" or "probit", how class probabilities are averaged.
            num_draws: draws of a Monte Carlo average.
            error: (k, P), as large as what is wrong with a sample, for ``Predictive.solve_error``.
            traced: whether the graph of inputs that require gradients is kept.

        Raises:
            ValueError: for NaN in the inputs or outputs, or an unknown method.
        """
        check_average(method, num_draws)
        count = len(self.samples)
        mean, functions = self.push(x, self.samples if error is None else torch.cat([self.samples, error]), traced)
        left = None if error is None else relative_size(functions[count:], functions[:count])
        return Predictive(
            mean, functions[:count], self.likelihood, method, num_draws, solve_error=left,
            width=self.width.marginal, joint_width=self.width.joint,
        )  # fmt: skip

    def push(self, x: Any, vectors: Tensor, traced: bool = False) -> tuple[Tensor, Tensor]:
        """(n, *out) outputs of the network and (k, n, *out) J(x) v for vectors (k, P) wherever they are.

        Args: as for ``predict``.

        Raises:
            ValueError: for NaN in the inputs or outputs.
        """
        inputs = moved(as_inputs(x, "predict"), self.features.device)
        for tensor in input_tensors(inputs):
            require_finite(tensor, "inputs", "Remove or impute them.")
        traced = traced and any(tensor.requires_grad for tensor in input_tensors(inputs))
        mean, functions = self._pushed(inputs, vectors.to(self.features.device), traced)
        if not bool(mean.isfinite().all()):
            origin = self.features.where_not_finite(inputs, 0)
            require_finite(mean, "network outputs", f"{origin}Check the scaling of the inputs.")
        return mean, functions.to(mean.dtype)

    def _pushed(self, inputs: Inputs, vectors: Tensor, traced: bool) -> tuple[Tensor, Tensor]:
        """The same, in parts, or with the graph of inputs that have one.

        Parts become smaller where memory runs out, and larger than the first where that shows a small network.
        """
        rows, size, chunks = max(1, _PIECE // len(vectors)), num_inputs(inputs), Chunks()
        means: list[Tensor] = []
        deviations: list[Tensor] = []
        done = 0
        while not means or done < (size or 0):
            part = inputs if size is None else pick(inputs, slice(done, done + rows))
            first, count = not means, num_inputs(part) or 1
            done += count
            if traced:
                mean, pushed = self.features.traced(part, vectors)
            else:
                pushed = Chunked(self.features, part, chunks).jvp(vectors)
                most = chunks.possible(count, len(vectors))[0]
                few = [part] if most == count else [pick(part, slice(a, a + most)) for a in range(0, count, most)]
                mean = torch.cat([self.features.own_outputs(each) for each in few])
            if size is not None:
                _require_one_each(mean, count)
            means.append(mean)
            deviations.append(pushed)
            if first and done < (size or 0):
                one = pick(part, slice(0, 1))
                suited = _suited(one, operations_of(partial(self.features.own_outputs, one)))
                rows = max(rows, suited // len(vectors))
        return torch.cat(means), torch.cat(deviations, dim=1)

    def to(self, device: torch.device, vectors_on: torch.device | None = None) -> "Posterior":
        """The same on another device: copies of the network's tensors, and the samples unless they live elsewhere."""
        features = self.features.on(device, vectors_on)
        return replace(self, features=features, samples=self.samples.to(features.like.device))

    def save(self, path: str | Path) -> None:
        """Write samples, likelihood and facts to one safetensors file (no pickle)."""
        tensors = {"samples": self.samples}
        facts = {
            "names": self.layout.names,
            "shapes": self.layout.shapes,
            "complex": sorted(self.layout.complex),
            "likelihood": self.likelihood.config(),
            "network": self.network,
            "dtypes": self.dtypes,
            "output": self.features.output,
            "products": asdict(self.features.products),
            "fit": self.facts,
        }
        checkpoint.save(path, tensors, facts)


def load_posterior(
    path: str | Path,
    network: nn.Module,
    likelihood: Likelihood | None = None,
    vectors_on: torch.device | None = None,
    call: NetworkCall | None = None,
) -> Posterior:
    """Read a posterior and put it on the network it was fitted to.

    Args:
        path: a file written by ``Posterior.save``.
        network: the same network with the same weights.
        likelihood: needed only for a likelihood of your own; noise that was learnt is the file's.
        vectors_on: device of the samples; None: where the network is.
        call: how the network is called, as in the fit.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, foreign, or belongs to another network.
    """
    tensors, facts = checkpoint.load(path)
    require("names" in facts, f"a posterior in {path}", "another file of sampla's", "Give a file written by save().")
    written, shapes = facts["names"], tuple(tuple(s) for s in facts["shapes"])
    plain = plain_names(network)  # a file of an earlier version may have the names of a wrapped network
    names = tuple(plain.get(name, name.replace("_orig_mod.", "")) for name in written)
    own = {name: (*p.shape, 2) if p.is_complex() else tuple(p.shape) for name, p in plain_parameters(network).items()}
    wrong = [name for name, shape in zip(names, shapes, strict=True) if own.get(name) != shape]
    require(
        not wrong,
        f"the network that {path} was fitted to",
        f"another one: {wrong[0]!r} is {own.get(wrong[0], 'missing')} here" if wrong else "",
        "Build the same architecture before loading.",
    )
    dtypes = facts.get("dtypes") or dict.fromkeys(network_dtypes(network), str(tensors["samples"].dtype))
    _require_weights(path, network, facts["network"], dtypes)
    products = Products(**facts.get("products", {}))
    features = NetworkFeatures(network, names, facts.get("output"), products, vectors_on=vectors_on, call=call)
    samples = tensors["samples"].to(features.like)
    if likelihood is not None:
        _require_kind(likelihood, facts["likelihood"].get("name"))
    noise = facts["fit"].get("noise_precision")
    if likelihood is not None and likelihood.learns_noise and noise is not None:
        likelihood = likelihood.with_noise(torch.tensor(noise, dtype=torch.float64))
    return Posterior(
        features, likelihood or _rebuilt(facts["likelihood"], path), samples, facts["fit"], facts["network"], dtypes,
        Width.from_dict(facts["fit"].get("width")),
    )  # fmt: skip


def _require_weights(path: str | Path, network: nn.Module, expected: str, dtypes: dict[str, str]) -> None:
    """Refuse a network with other weights than the file's; compared in the file's types, so that a copy.double() does.

    Raises:
        ValueError: naming the types where they differ.
    """
    here = network_dtypes(network)
    kinds = [sorted({kind.removeprefix("torch.") for kind in each.values()}) for each in (here, dtypes)]
    other = f" in {' and '.join(kinds[0])}, where the file's are in {' and '.join(kinds[1])}" if here != dtypes else ""
    require(
        has_fingerprint(network, expected, dtypes),
        f"the weights that {path} was fitted to",
        f"the same architecture with other weights{other}",
        "Load the network's own state_dict first: a posterior is about one set of trained weights"
        + (", and a type with fewer digits rounds them." if other else "."),
    )


def _require_kind(likelihood: Likelihood, name: str | None) -> None:
    """Refuse another likelihood than a built-in one that the file names; one of its subclasses will do."""
    kinds = {kind.__name__ for kind in type(likelihood).__mro__}
    known = name in (*_BUILT_IN, "Gaussian", "Heads")
    fix = "Leave likelihood out: the file has it, unless it is of a class of your own."
    require(not known or name in kinds, f"likelihood {name}, that of the fit", type(likelihood).__name__, fix)


def _rebuilt(config: dict[str, Any], path: str | Path) -> Likelihood:
    if config["name"] == "Heads":
        return Heads({name: (_rebuilt(own, path), size) for name, own, size in config["heads"]})
    if config["name"] == "Gaussian":
        precision = torch.tensor(config["noise_precision"], dtype=torch.float64)
        return Gaussian(precision, learn=config["learn"], ignore_nan=config.get("ignore_nan", False))
    if config["name"] not in _BUILT_IN:
        raise ValueError(
            f"{path} was fitted with your own likelihood {config['name']}: pass load(..., likelihood=...)."
        )
    return _BUILT_IN[config["name"]](**{k: v for k, v in config.items() if k != "name"})


def _require_one_each(outputs: Tensor, count: int) -> None:
    require(
        len(outputs) == count, f"outputs with first axis {count}, one row per datum", f"{tuple(outputs.shape)}",
        "Inputs have the data on their first axis: of one datum x[None].",
    )  # fmt: skip


def _suited(one: Inputs, operations: int) -> int:
    """Data times samples at once: many where a network is so small that calls cost more than arithmetic.

    Args:
        one: a single input.
        operations: of its forward; 0 if they are not known.
    """
    entries = max(1, sum(tensor.numel() for tensor in input_tensors(one)))
    return int(min(_LARGEST, _WORK / operations, _INPUTS / entries)) if operations else 0
