"""Active learning: ask for the targets that the model is least certain about, and learn more from as many.

A surface with a wave where few points of the pool lie, in random Fourier features. Prints the test error when the next
targets are those with the widest error bars, beside that when they are chosen at random (mean over several starts).
"""

import numpy as np
from sklearn.kernel_approximation import RBFSampler

import sampla

START, ROUNDS, BATCH, REPEATS = 10, 12, 5, 5


def surface(x: np.ndarray) -> np.ndarray:
    """Flat almost everywhere, with a wave in one corner: most points of the pool say little."""
    return np.sin(6 * x[:, 0] + 3 * x[:, 1]) / (1 + np.exp(-12 * (x.sum(1) - 1)))


def learnt(choose_widest: bool, seed: int) -> float:
    """Root mean square error on test points after all rounds."""
    rng = np.random.default_rng(seed)
    pool = rng.beta(1.0, 3.0, size=(1500, 2))  # few points where something happens
    test = rng.uniform(size=(500, 2))
    features = RBFSampler(gamma=4.0, n_components=200, random_state=0).fit(pool)
    phi, phi_test = features.transform(pool), features.transform(test)
    targets = surface(pool) + 0.05 * rng.standard_normal(len(pool))
    asked = list(rng.choice(len(pool), START, replace=False))
    for _ in range(ROUNDS):
        rest = np.setdiff1d(np.arange(len(pool)), asked)
        if choose_widest:
            regression = sampla.BayesianLinearRegression(progress=False).fit(phi[asked], targets[asked])
            rest = rest[np.argsort(-regression.predict(phi[rest], return_std=True)[1])]
        else:
            rest = rng.permutation(rest)
        asked += rest[:BATCH].tolist()
    regression = sampla.BayesianLinearRegression(progress=False).fit(phi[asked], targets[asked])
    return float(np.sqrt(np.mean((regression.predict(phi_test) - surface(test)) ** 2)))


errors = {name: [learnt(name == "widest", seed) for seed in range(REPEATS)] for name in ("widest", "random")}
for name, values in errors.items():
    print(f"{name}: test error {np.mean(values):.3f}, standard error {np.std(values) / len(values) ** 0.5:.3f}")
assert np.mean(errors["widest"]) < np.mean(errors["random"])
