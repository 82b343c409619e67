"""An exact Gaussian process by GPyTorch: Cholesky factors throughout, no approximation of the kernel."""

from copy import deepcopy
from time import perf_counter

import gpytorch
import numpy as np
import torch
from linear_operator.utils.errors import NanError, NotPSDError

from experiments.regression import sets
from experiments.regression.sets import Fitted, Split

_EXACTLY = gpytorch.settings.fast_computations(False, False, False)  # every solve and determinant by Cholesky


class Process(gpytorch.models.ExactGP):
    """Constant mean, Gaussian kernel with a length scale for each input, Gaussian noise."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, length: float, least_noise: float) -> None:
        bound = gpytorch.constraints.GreaterThan(least_noise)
        likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=bound)
        super().__init__(x, y, likelihood)
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=x.shape[1]))
        self.double()
        likelihood.noise = 0.1
        self.covar_module.outputscale = 1.0
        self.covar_module.base_kernel.lengthscale = length

    def forward(self, x: torch.Tensor) -> gpytorch.distributions.MultivariateNormal:
        """The prior at x."""
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def fits(rows: int) -> bool:
    """Whether a kernel matrix of so many rows is small enough."""
    return 8 * rows**2 <= sets.LARGEST_KERNEL


def fit_process(split: Split) -> Fitted:
    """Hyperparameters by L-BFGS from the median distance (on part of the rows of a large set), then all rows.

    Where the targets have next to no noise (naval), the kernel matrix of all rows may have no Cholesky factor with what
    part of the rows has taught: everything is then done again with a larger least noise.
    """
    start = perf_counter()
    try:
        mean, std, facts = _fit_and_predict(split, sets.LEAST_NOISE[0])
    except NotPSDError:
        mean, std, facts = _fit_and_predict(split, sets.LEAST_NOISE[1])
    return mean, std, facts | {"seconds": perf_counter() - start}


def _fit_and_predict(split: Split, least_noise: float) -> Fitted:
    """Mean and deviation at the test rows, and how the hyperparameters were found."""
    x, y, test = (torch.from_numpy(array) for array in (split.x, split.y, split.test_x))
    rows = len(x) if len(x) <= sets.LEARNT_ON_ALL else sets.SUBSET
    chosen = torch.from_numpy(np.random.default_rng(split.number).permutation(len(x))[:rows])
    model = Process(x[chosen], y[chosen], sets.median_distance(split.x, split.number), least_noise)
    with _EXACTLY, gpytorch.settings.max_cholesky_size(10**9):
        steps, broke_off = _learn(model)
        model.set_train_data(x, y, strict=False)
        model.eval()
        with torch.no_grad():
            found = model.likelihood(model(test))
            mean, std = found.mean.numpy(), found.variance.sqrt().numpy()
    return mean, std, {"learnt on rows": rows, "steps": steps, "broke off": broke_off, "least noise": least_noise}


def _learn(model: Process) -> tuple[int, bool]:
    """Maximise the log marginal likelihood; the number of evaluations, and whether the line search broke off.

    L-BFGS may try a point at which the kernel matrix has no Cholesky factor; the best point so far is kept then.
    """
    model.train()
    objective = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    steps, evaluations, best, kept = sets.STEPS, 0, float("inf"), deepcopy(model.state_dict())
    optimiser = torch.optim.LBFGS(model.parameters(), max_iter=steps, max_eval=2 * steps, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        nonlocal evaluations, best, kept
        evaluations += 1
        optimiser.zero_grad()
        loss: torch.Tensor = -objective(model(*model.train_inputs), model.train_targets)
        if float(loss) < best:
            best, kept = float(loss), deepcopy(model.state_dict())
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    broke_off = False
    try:
        optimiser.step(closure)
    except (NotPSDError, NanError):
        broke_off = True
    model.load_state_dict(kept)
    return evaluations, broke_off
