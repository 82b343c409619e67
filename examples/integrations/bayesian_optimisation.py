"""Bayesian optimisation with BoTorch: a network's posterior beside a Gaussian process and random search, on Branin.

pip install sampla botorch

Every round fits all that has been asked, maximises the expected improvement, and asks there. Four rounds show how; with
``--seeds 5 --rounds 24`` the three are compared, one after the other on each start.
"""

import argparse
import warnings

import torch
from botorch.acquisition import LogExpectedImprovement
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.model import Model
from botorch.optim import optimize_acqf
from botorch.test_functions import Branin
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

import sampla
from sampla.integrations.botorch import LaplaceModel

NOISE = 1e-4  # variance of the noise, beside values of variance 1
PRIOR = 0.5  # precision with which the network is trained; the posterior's is learnt


def centred(net: torch.nn.Module, x: Tensor) -> Tensor:
    """The network's values at points of the unit square."""
    return net(2 * x - 1)


def laplace(x: Tensor, y: Tensor) -> Model:
    """A network trained on the data, and its posterior."""
    net = torch.nn.Sequential(
        torch.nn.Linear(2, 20), torch.nn.Tanh(), torch.nn.Linear(20, 20), torch.nn.Tanh(), torch.nn.Linear(20, 1)
    ).double()
    optimiser = torch.optim.LBFGS(net.parameters(), max_iter=400, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        size = sum(p.square().sum() for p in net.parameters())
        value = (centred(net, x) - y).square().sum() / NOISE + PRIOR * size
        value.backward()
        return value

    optimiser.step(loss)
    la = sampla.LinearisedLaplace(
        net.eval(), sampla.Gaussian(1 / NOISE), "isotropic", num_samples=32, width="em", call=centred, progress=False
    )
    return LaplaceModel(la.fit([(x, y)]))


def process(x: Tensor, y: Tensor) -> Model:
    """BoTorch's Gaussian process, with its defaults."""
    model = SingleTaskGP(x, y)
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model


def regrets(method: str, seed: int, rounds: int) -> list[float]:
    """How far the best value is from the optimum, after each round; the first six points are those of all methods."""
    function, cube = Branin(negate=True).double(), torch.tensor([[0.0, 0.0], [1.0, 1.0]]).double()
    low, high = function.bounds
    torch.manual_seed(seed)
    x = torch.rand(6, 2, dtype=torch.float64)
    found = []
    for _ in range(rounds):
        y = function(low + (high - low) * x)[:, None]
        if method == "random":
            new = torch.rand(1, 2, dtype=torch.float64)
        else:
            scaled = (y - y.mean()) / y.std()
            model = (laplace if method == "sampla" else process)(x, scaled)
            improvement = LogExpectedImprovement(model, best_f=scaled.max())
            new, _ = optimize_acqf(improvement, cube, q=1, num_restarts=4, raw_samples=64, options={"maxiter": 30})
        x = torch.cat([x, new])
        found.append(float(function.optimal_value - function(low + (high - low) * x).max()))
    return found


parser = argparse.ArgumentParser()
parser.add_argument("--seeds", type=int, default=1)
parser.add_argument("--rounds", type=int, default=4)
asked = parser.parse_args()
warnings.simplefilter("ignore")  # of line searches, and of EM with six points

METHODS = "sampla", "gaussian process", "random"
ends: dict[str, list[float]] = {method: [] for method in METHODS}
for seed in range(asked.seeds):
    for method in METHODS:
        ends[method].append(regrets(method, seed, asked.rounds)[-1])
    print(f"seed {seed}: " + ", ".join(f"{method} {ends[method][-1]:.4f}" for method in METHODS), flush=True)
for method in METHODS:
    each = torch.tensor(ends[method])
    print(f"{method}: regret {each.median():.4f} (median), {each.mean():.4f} (mean)")
assert asked.rounds < 16 or sum(ends["sampla"]) < sum(ends["random"])
