"""Random linear systems of known spectrum, large enough to be hard and cheap to apply: M = V' diag(eigenvalues) V.

V is two rounds of random signs and a cosine transform. Right-hand sides are drawn as a fit draws them.
"""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import scipy.fft
import torch
from torch import Tensor

from sampla.core.blocks import gram, orthonormal
from sampla.core.stack import Stack
from sampla.model import LinearModel
from sampla.solvers import LinearSystem, RightHandSide, Start
from sampla.solvers._preconditioners import Preconditioner, Sketch

SPECTRA = ("power-law", "clustered", "flat")


def spectrum(kind: str, size: int, decades: float, random: np.random.Generator) -> np.ndarray:
    """Falling eigenvalues from 1 down to 10^-decades."""
    if kind == "power-law":
        return np.arange(1.0, size + 1) ** (-decades / np.log10(size))
    if kind == "flat":
        return np.linspace(1, 10.0**-decades, size)
    centres = np.logspace(0, -decades, random.integers(3, 8))
    chosen = np.sort(random.choice(len(centres), size, p=random.dirichlet(np.ones(len(centres)))))
    return np.sort(centres[chosen] * np.exp(0.1 * random.standard_normal(size)))[::-1].copy()


class RandomSystem:
    """Everything about one random case, from its seed; ``u``: the prior's precision is lambda_max 10^-u."""

    def __init__(self, seed: int, u: tuple[float, float]) -> None:
        draw = self.random = np.random.default_rng(seed)
        self.kind = SPECTRA[seed % 3]
        self.size = size = int(10 ** draw.uniform(np.log10(200), np.log10(2000)))
        self.columns = columns = int(draw.choice([1, 1, 2, 4, 8, 16, 32, 64]))
        self.tolerance = float(draw.choice([0.1, 0.02, 1e-3]))
        self.dtype = torch.float32 if draw.random() < 0.4 else torch.float64
        self.eigenvalues = spectrum(self.kind, size, draw.uniform(2, 8), draw) * 10 ** draw.uniform(0, 4)
        if draw.random() < 0.3:  # fewer data than parameters
            self.eigenvalues[int(size * draw.uniform(0.3, 0.9)) :] = 0
        self.signs = [draw.choice([-1.0, 1.0], size) for _ in range(2)]
        self.alpha = float(torch.tensor(self.eigenvalues[0] * 10 ** -draw.uniform(*u), dtype=self.dtype))
        rounding = torch.finfo(self.dtype).eps
        model = SimpleNamespace(curvature_product=self.product, num_parameters=size, rounding=rounding)
        self.model = cast(LinearModel, model)
        self.diagonal = self.tensor(np.square(self._data_part(64)).mean(0))
        self.system = self._at(1.0, 32 if draw.random() < 0.4 else 0)
        self.rhs = self._right_hand_side(columns, target=draw.random() < 0.5)
        self.exact = self._solved(self.rhs.total, self.alpha)
        self.guess = self._guess() if draw.random() < 0.4 else None

    def tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.dtype)

    def rotate(self, vectors: np.ndarray) -> np.ndarray:
        """V v for each row."""
        for signs in self.signs:
            vectors = scipy.fft.dct(vectors * signs.astype(vectors.dtype), norm="ortho")
        return vectors

    def rotate_back(self, vectors: np.ndarray) -> np.ndarray:
        """V' v for each row."""
        for signs in self.signs[::-1]:
            vectors = scipy.fft.idct(vectors, norm="ortho") * signs.astype(vectors.dtype)
        return vectors

    def product(self, vectors: Tensor, stride: int = 1) -> Tensor:
        """M v."""
        assert stride == 1
        array = vectors.numpy()
        return self.tensor(self.rotate_back(self.rotate(array) * self.eigenvalues.astype(array.dtype)))

    def errors(self, value: Tensor) -> np.ndarray:
        """(K,) the true |z - z*|_M."""
        return self._norms(value.double().numpy() - self.exact)

    def relative(self, value: Tensor) -> float:
        """The true error as Solution states it: root mean squares over the columns."""
        return float((np.square(self.errors(value)).mean() / np.square(self._norms(self.exact)).mean()) ** 0.5)

    def _norms(self, vectors: np.ndarray) -> np.ndarray:
        return np.sqrt((np.square(self.rotate(vectors)) * self.eigenvalues).sum(1))

    def _solved(self, total: Tensor, alpha: float) -> np.ndarray:
        return self.rotate_back(self.rotate(total.double().numpy()) / (self.eigenvalues + alpha))

    def _data_part(self, count: int) -> np.ndarray:
        return self.rotate_back(np.sqrt(self.eigenvalues) * self.random.standard_normal((count, self.size)))

    def _right_hand_side(self, columns: int, target: bool) -> RightHandSide:
        data = self._data_part(columns)
        prior = np.sqrt(self.alpha) * self.random.standard_normal(data.shape)
        if target:  # X'y, y made by a draw from the prior
            truth = self.random.standard_normal((1, self.size)) / np.sqrt(self.alpha)
            data[-1:] += self.rotate_back(self.eigenvalues * self.rotate(truth))
            prior[-1:] = 0
        return RightHandSide(self.tensor(data), self.tensor(prior), columns - target, 0)

    def _at(self, factor: float, rank: int) -> LinearSystem:
        precision = torch.full((self.size,), self.alpha * factor, dtype=self.dtype)
        return LinearSystem(self.model, precision, self.diagonal, self._sketch(precision, rank) if rank else None)

    def _sketch(self, precision: Tensor, rank: int) -> Preconditioner:
        start = self.tensor(self.random.standard_normal((rank, self.size)))
        basis, _ = orthonormal(self.product(start))
        core = gram(basis, self.product(basis))
        tail = max(0.0, (self.eigenvalues.sum() - float(core.trace())) / (self.size - len(basis)))
        return Sketch(Stack([basis]), (core + core.mT) / 2, tail).at(precision)

    def _guess(self) -> Start:
        """The exact solution for another prior, as after a step of EM."""
        factor: Any = 10 ** self.random.uniform(-0.5, 0.5)
        total = self.rhs.data_part + self.rhs.prior_part * factor**0.5
        value = self.tensor(self._solved(total, self.alpha * factor))
        return Start(value, self.product(value))
