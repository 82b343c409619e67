"""What a run compares: sets, splits, features, methods, and which of them are too dear on which set."""

SETS = ("boston", "concrete", "energy", "kin8nm", "naval", "power-plant", "protein", "wine-red", "yacht")
SPLITS = {name: 5 if name == "protein" else 20 for name in SETS}
"""Standard splits of each set."""
RAW, RANDOM = "raw features", "random Fourier features"
SAMPLA, RIDGE, PROCESS = "sampla", "BayesianRidge", "exact GP"
FEATURES = 2000
"""Random Fourier features."""
DISTANCES = 1000
"""Training rows whose median distance is the length scale."""

LEARNT_ON_ALL = 2000
"""Training rows up to which the Gaussian process learns its hyperparameters on all of them."""
SUBSET = 1000
"""Beyond: rows that it learns them on; it is conditioned on all rows nevertheless."""
LARGEST_KERNEL = 2 * 2**30
"""Bytes of a float64 kernel matrix, at most: a Cholesky factor, a copy and the rest take several times as much."""
LEAST_NOISE = (1e-6, 1e-4)
"""Variance of the noise at least, in standardised targets; the second (GPyTorch's default) where the first fails."""
PROCESS_STEPS = 60
"""L-BFGS steps on the marginal likelihood, at most."""

ORACLE_SAMPLES = 64
"""K of the matrix-free way when it is held against BayesianRidge."""
ORACLE_SEEDS = 10
"""Fits of that kind on each set, with the seeds 0, 1, ..."""
RANDOM_ORACLE = ("boston", "concrete", "energy", "yacht", "wine-red")
"""Sets on which that is done with random features too."""
