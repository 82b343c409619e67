"""Likelihoods: log p(y | f), its curvature B in the outputs, and a root of B."""

from sampla.likelihoods._base import Likelihood
from sampla.likelihoods.bernoulli import Bernoulli
from sampla.likelihoods.categorical import Categorical
from sampla.likelihoods.fixed_noise_gaussian import FixedNoiseGaussian
from sampla.likelihoods.gaussian import Gaussian
from sampla.likelihoods.heads import Heads
from sampla.likelihoods.heteroscedastic_gaussian import HeteroscedasticGaussian
from sampla.likelihoods.negative_binomial import NegativeBinomial
from sampla.likelihoods.ordinal import Ordinal
from sampla.likelihoods.poisson import Poisson
from sampla.likelihoods.student_t import StudentT

__all__ = [
    "Bernoulli",
    "Categorical",
    "FixedNoiseGaussian",
    "Gaussian",
    "Heads",
    "HeteroscedasticGaussian",
    "Likelihood",
    "NegativeBinomial",
    "Ordinal",
    "Poisson",
    "StudentT",
]
