"""Likelihoods: log p(y | f), its curvature B in the outputs, and a root of B."""

from sampla.likelihoods._base import Likelihood
from sampla.likelihoods.bernoulli import Bernoulli
from sampla.likelihoods.categorical import Categorical
from sampla.likelihoods.gaussian import Gaussian

__all__ = ["Bernoulli", "Categorical", "Gaussian", "Likelihood"]
