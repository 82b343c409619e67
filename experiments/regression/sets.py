"""The UCI sets with their standard splits, standardised on the training rows."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.distance import pdist
from sklearn.kernel_approximation import RBFSampler
from sklearn.preprocessing import StandardScaler, scale

SETS = ("boston", "concrete", "energy", "kin8nm", "naval", "power-plant", "protein", "wine-red", "yacht")
SPLITS = {name: 5 if name == "protein" else 20 for name in SETS}
RAW, RANDOM = "raw features", "random Fourier features"
SAMPLA, RIDGE, PROCESS = "sampla", "BayesianRidge", "exact GP"
FEATURES = 2000  # random Fourier features
DISTANCES = 1000  # training rows whose median distance is the length scale
LEARNT_ON_ALL = 2000  # training rows up to which the Gaussian process's hyperparameters are learnt on all of them
SUBSET = 1000  # beyond: rows that they are learnt on; the process is conditioned on all rows nevertheless
LARGEST_KERNEL = 2 * 2**30  # bytes of a float64 kernel matrix, at most: all in all several times as much is needed
LEAST_NOISE = (1e-6, 1e-4)  # least variance of the noise; the second (GPyTorch's default) where the first fails
STEPS = 60  # of L-BFGS on the marginal likelihood, at most
Fitted = tuple[np.ndarray, np.ndarray, dict[str, Any]]
"""Mean and standard deviation at the test rows, in standardised targets, and what is worth telling of the fit."""


@dataclass(frozen=True)
class Split:
    """Inputs and targets of one split, both standardised on its training rows."""

    x: np.ndarray  # (N, D) training inputs
    y: np.ndarray  # (N,)
    test_x: np.ndarray
    test_y: np.ndarray
    unit: float  # standard deviation of the training targets: what 1 here is in their own units
    number: int


class DataSet:
    """One npz file: ``x``, ``y``, ``n_splits``, ``split_00_train``, ...

    Args:
        root: folder of the npz files.
        name: of the set.
    """

    def __init__(self, root: Path, name: str) -> None:
        self._file = np.load(root / f"{name}.npz")
        self.name = name
        self.x, self.y = self._file["x"].astype(np.float64), self._file["y"].astype(np.float64)
        self.num_splits = int(self._file["n_splits"])

    def split(self, number: int) -> Split:
        """The given split, standardised."""
        train, test = (self._file[f"split_{number:02d}_{part}"].astype(np.int64) for part in ("train", "test"))
        level, unit = self.y[train].mean(), float(self.y[train].std())
        inputs, targets = StandardScaler().fit(self.x[train]).transform(self.x), (self.y - level) / unit
        return Split(inputs[train], targets[train], inputs[test], targets[test], unit, number)

    def standardised(self) -> tuple[np.ndarray, np.ndarray]:
        """All rows, columns and targets centred and of unit variance."""
        return scale(self.x), scale(self.y)


def median_distance(x: np.ndarray, seed: int) -> float:
    """The median distance between training rows, of at most ``DISTANCES`` of them: the length scale."""
    chosen = np.random.default_rng(seed).permutation(len(x))[:DISTANCES]
    return float(np.median(pdist(x[chosen])))


def random_features(split: Split) -> Split:
    """The same split with random Fourier features of a Gaussian kernel, its length scale the median distance."""
    length = median_distance(split.x, split.number)
    sampler = RBFSampler(gamma=0.5 / length**2, n_components=FEATURES, random_state=split.number).fit(split.x)
    return replace(split, x=sampler.transform(split.x), test_x=sampler.transform(split.test_x))
