"""sampla: Bayesian error bars for large linear models and trained networks, by exact posterior samples."""

from sampla.core.checks import ConvergenceWarning
from sampla.distributed import as_shard, as_whole, shard
from sampla.features import DesignMatrix, NetworkFeatures
from sampla.given_prior import Given
from sampla.inference.infer import infer
from sampla.inference.influence import Influence
from sampla.inference.leave_one_out import LeaveOneOut
from sampla.inference.settings import EM, CurvatureAt
from sampla.laplace.linearised import LinearisedLaplace
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
from sampla.linear import BayesianLinearRegression, BayesianLogisticRegression
from sampla.model import LinearModel
from sampla.posterior.predictive import Predictive
from sampla.priors import GPrior, Isotropic, Layerwise, Prior
from sampla.solvers import SGD, BlockCG, Dense, DualDescent, Minibatch, Solver

__version__ = "0.2.0"

__all__ = [
    "EM",
    "SGD",
    "BayesianLinearRegression",
    "BayesianLogisticRegression",
    "Bernoulli",
    "BlockCG",
    "Categorical",
    "ConvergenceWarning",
    "CurvatureAt",
    "Dense",
    "DesignMatrix",
    "DualDescent",
    "FixedNoiseGaussian",
    "GPrior",
    "Gaussian",
    "Given",
    "Heads",
    "HeteroscedasticGaussian",
    "Influence",
    "Isotropic",
    "Layerwise",
    "LeaveOneOut",
    "Likelihood",
    "LinearModel",
    "LinearisedLaplace",
    "Minibatch",
    "NegativeBinomial",
    "NetworkFeatures",
    "Ordinal",
    "Poisson",
    "Predictive",
    "Prior",
    "Solver",
    "StudentT",
    "as_shard",
    "as_whole",
    "infer",
    "shard",
]
