"""Bayesian optimisation by Thompson sampling: try where a function drawn from the posterior is best.

Every round draws one function of the posterior, maximises that over all candidates, and asks for the value there.
Prints how close the best value found comes to the true maximum, beside random search with as many questions.
"""

import numpy as np
from sklearn.kernel_approximation import RBFSampler

import sampla

ROUNDS, BATCH, START = 12, 4, 8


def objective(x: np.ndarray) -> np.ndarray:
    """A bumpy surface on the unit square with its maximum near one corner."""
    bumps = np.sin(9 * x[:, 0]) * np.cos(7 * x[:, 1])
    return bumps + np.exp(-20 * ((x[:, 0] - 0.8) ** 2 + (x[:, 1] - 0.55) ** 2)) + 0.5 * x[:, 1]


rng = np.random.default_rng(0)
candidates = rng.uniform(size=(4000, 2))
truth = objective(candidates)
features = RBFSampler(gamma=15.0, n_components=400, random_state=0)
phi = features.fit_transform(candidates)

asked = list(rng.choice(len(candidates), START, replace=False))
for turn in range(ROUNDS):
    values = truth[asked] + 0.05 * rng.standard_normal(len(asked))
    regression = sampla.BayesianLinearRegression(progress=False).fit(phi[asked], values)
    coefficients, intercepts = regression.sample_coef(BATCH, random_state=turn)
    drawn = phi @ coefficients.T + intercepts  # (4000, BATCH): whole functions
    asked += [int(best) for best in drawn.argmax(0)]

count = len(asked)
random_best = np.mean([truth[rng.choice(len(truth), count, replace=False)].max() for _ in range(200)])
print(f"maximum {truth.max():.3f}; after {count} questions: Thompson sampling {truth[asked].max():.3f}, ", end="")
print(f"random search {random_best:.3f} on average")
assert truth[asked].max() > random_best
