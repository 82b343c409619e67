"""What LinearisedLaplace knows by name, and which values its settings may have."""

from math import inf
from numbers import Real
from typing import Any, Literal, TypeAlias

import torch

from sampla.core.arguments import check_chunks, named
from sampla.core.checks import require, require_count, require_fraction, require_known
from sampla.features import NetworkCall
from sampla.likelihoods import Bernoulli, Categorical, Gaussian, HeteroscedasticGaussian, Likelihood, Poisson
from sampla.likelihoods.checks import check_settings
from sampla.priors import GPrior, Isotropic, Layerwise, Prior
from sampla.solvers import SGD, BlockCG, Dense, DualDescent, Minibatch, Solver

_LIKELIHOODS = {
    "categorical": Categorical,
    "gaussian": Gaussian,
    "bernoulli": Bernoulli,
    "poisson": Poisson,
    "heteroscedastic-gaussian": HeteroscedasticGaussian,
}
_PRIORS = {"g-prior": GPrior, "isotropic": Isotropic, "layerwise": Layerwise}
_SOLVERS = {"block-cg": BlockCG, "dense": Dense, "minibatch": Minibatch, "dual": DualDescent, "sgd": SGD}
_DENSE_UP_TO = 500
"""P at which solver="auto" changes from dense to block conjugate gradients."""


Precision: TypeAlias = Literal["full", "auto", "bfloat16"]
"""In which type products with M are taken until the last passes."""


def chosen_likelihood(likelihood: str | Likelihood) -> Likelihood:
    """The likelihood of that name, or the one given, if a fit can learn what it asks for.

    Raises:
        ValueError: for an unknown name, or noise to be learnt by a likelihood that does not say how.
        TypeError: for anything else.
    """
    chosen: Likelihood = named(likelihood, _LIKELIHOODS, Likelihood)
    check_settings(chosen)
    return chosen


def chosen_prior(prior: str | Prior) -> Prior:
    """The prior of that name, or the one given."""
    chosen: Prior = named(prior, _PRIORS, Prior)
    return chosen


def chosen_solver(solver: str | Solver[Any], size: int, vectors_on: torch.device | None) -> Solver[Any]:
    """The solver of that name, or the one given; "auto" by the number of parameters.

    Args:
        solver: name or Solver.
        size: P.
        vectors_on: where vectors of P are to live, if not with the network.

    Raises:
        ValueError: for an unknown name, or vectors elsewhere with another solver than block conjugate gradients.
    """
    if solver == "auto":
        solver = "dense" if size <= _DENSE_UP_TO and vectors_on is None else "block-cg"
    chosen: Solver[Any] = named(solver, _SOLVERS, Solver)
    require(
        vectors_on is None or isinstance(chosen, BlockCG), "solver='block-cg' with vectors_on", f"{chosen!r}",
        "The other solvers take products of a few data at a time, where the vectors are.",
    )  # fmt: skip
    return chosen


def check_numbers(num_samples: int, seed: int, max_passes: int, tolerance: float) -> None:
    """Refuse numbers out of range.

    Raises:
        ValueError: naming the setting.
    """
    require_count(num_samples, "num_samples", 2, "16 to 64 are usual.")
    fix = "The default is 0; the same seed gives the same samples."
    require_count(seed, "seed", 0, fix)
    require(seed < 2**64, "seed as an integer below 2**64", f"{seed}", fix)
    require_count(max_passes, "max_passes", 1, "The default is 200.")
    require_fraction(tolerance, "tolerance", "The default is 0.02.")


def check_options(
    curvature_at: str,
    linear_model: str,
    log_evidence: bool | None,
    precision: str,
    chunks: tuple[int, int] | None,
    width: str | float,
) -> None:
    """Refuse what is none of the values that an option has.

    Raises:
        ValueError: naming the option.
    """
    known = log_evidence in (None, True, False)
    require(known, "log_evidence True, False or None", f"{log_evidence!r}", "None chooses.")
    require_known(curvature_at, ("network", "linear-mode"), "curvature_at")
    require_known(linear_model, ("surrogate", "tangent"), "linear_model")
    require_known(precision, ("full", "auto", "bfloat16"), "precision")
    require(
        not (log_evidence and precision == "bfloat16"),
        'precision="full" or "auto" for log_evidence=True',
        'precision="bfloat16", whose products do not tell log det H well enough',
        "Leave log_evidence out, or fit in full precision.",
    )
    check_chunks(chunks)
    number = isinstance(width, Real) and not isinstance(width, bool) and 0 <= width < inf
    fix = "'loo' finds it from the training data, 'em' and 1 are the posterior itself, 0 is the network alone."
    require(number or width in ("loo", "em"), "width as 'loo', 'em' or a number of at least 0", f"{width!r}", fix)


def checked_call(call: NetworkCall | None) -> NetworkCall | None:
    """How the network is called, as it was given.

    Raises:
        TypeError: if that is no function.
    """
    if call is None or callable(call):
        return call
    raise TypeError(
        f"expected call as a function of the network and a batch's inputs, got {type(call).__name__}. Give "
        "lambda net, data: net(...), or leave it out."
    )


def call_name(call: NetworkCall) -> str:
    """What two calls of the network that are the same have in common from one process to the next."""
    named_like = call if hasattr(call, "__qualname__") else type(call)
    return f"{named_like.__module__}.{named_like.__qualname__}"
