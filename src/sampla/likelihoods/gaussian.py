"""Regression with Gaussian noise: scalar, per-output or full precision, fixed or learnt."""

from copy import copy
from math import log, pi
from typing import Any, Literal, Self

import torch
from torch import Tensor

from sampla.core.checks import require, require_finite, require_known
from sampla.inference.mackay import degrees_left, updated_noise, updated_variance
from sampla.likelihoods._base import Likelihood, require_plain

Structure = Literal["scalar", "diagonal", "full"]

_SILENT = 1e-30
"""Variance of the residuals of a network that meets its targets exactly: what learning the noise begins at."""
_SINGULAR = 1e-12
"""Ratio of the eigenvalues of a noise correlation below which it cannot be inverted in float64."""


class Gaussian(Likelihood):
    """y ~ N(f, B^-1), outputs (n, ..., C) or, for scalar noise, of any shape; targets of the same shape.

    Args:
        noise_precision: B as a number, a vector (C,) or a matrix (C, C), in units of 1 / target^2. None: learnt by
            EM, starting from the precision of the residuals.
        structure: "scalar", shared by all outputs, or "diagonal" or "full" over the last axis of (n, C) or
            (n, length, C); images (n, C, H, W) take "scalar" only. Read from the shape when noise_precision is given.
        learn: whether EM updates B; by default only when noise_precision is None.
        ignore_nan: whether targets that are NaN are left out (outputs that nobody measured); else they are refused.
            For scalar noise, and for noise by output that is given.

    Raises:
        ValueError: if the precision is not positive (definite), or its shape does not fit the outputs.
    """

    is_quadratic = True
    ignore_nan = False

    def __init__(
        self,
        noise_precision: float | Tensor | None = None,
        structure: Structure = "scalar",
        learn: bool | None = None,
        *,
        ignore_nan: bool = False,
    ) -> None:
        require_known(structure, ("scalar", "diagonal", "full"), "noise structure")
        self.learns_noise = noise_precision is None if learn is None else learn
        self.structure: Structure = structure
        if noise_precision is not None:
            self._take(noise_precision)
        self.ignore_nan = bool(ignore_nan)
        given = self.structure == "diagonal" and not self.learns_noise
        require(
            not ignore_nan or self.structure == "scalar" or given,
            "scalar noise, or a given precision of each output, with ignore_nan=True",
            f"{self.structure} noise{' to be learnt' if self.learns_noise else ''}",
            "Give noise_precision=torch.tensor([...]), one for each output, or one for all.",
        )

    @property
    def scalar_noise(self) -> bool:
        return self.structure == "scalar"

    @property
    def noise_is_known(self) -> bool:
        return self.noise_precision is not None

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        each = self.log_precisions(outputs, targets)
        if each is not None:
            weights = self.curvature_weights(targets)
            assert weights is not None
            left = self.residuals(outputs, targets)
            squared = weights * left * self.curvature_product(outputs, left[None])[0]
            density = -0.5 * (squared - each + (weights > 0) * log(2 * pi))
            return density.reshape(len(density), -1).sum(1)
        residual = (targets - outputs).unsqueeze(0)
        squared = (residual * self.curvature_product(outputs, residual)).squeeze(0)
        per_datum = squared.reshape(squared.shape[0], -1)
        constant = per_datum.shape[1] * log(2 * pi) - self.log_determinant(outputs)
        return -0.5 * (per_datum.sum(1) + constant)

    def counted(self, targets: Tensor) -> Tensor | None:
        return ~targets.isnan() if self.ignore_nan else None

    def log_precisions(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        weights = self.curvature_weights(targets)
        if weights is None:
            return None
        own = weights.to(outputs).clamp_min(torch.finfo(outputs.dtype).tiny)
        return (own.log() + self._precision().to(outputs).log()).where(weights > 0, 0)

    def log_determinant(self, outputs: Tensor) -> float:
        """log det B of one datum of the given outputs, all inner axes together."""
        precision = self._precision()
        entries = outputs[0].numel()
        if precision.ndim == 0:
            return entries * float(precision.log())
        rows = entries // precision.shape[0]
        diagonal = self._root.diagonal() ** 2 if precision.ndim == 2 else precision
        return rows * float(diagonal.log().sum())

    def curvature_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        precision = self._near("precision", self._precision(), vectors)
        return vectors @ precision if precision.ndim == 2 else vectors * precision

    def curvature_root_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        root = self._near("root", self._root, vectors)
        return vectors @ root.mT if root.ndim == 2 else vectors * root

    def check_targets(self, outputs: Tensor, targets: Tensor) -> None:
        require_plain(targets, "targets that are real numbers")
        fix_bool = "Convert them with .float(), or use likelihood='bernoulli' for labels."
        require(targets.dtype != torch.bool, "targets that are real numbers", "booleans", fix_bool)
        require(
            targets.shape == outputs.shape,
            f"targets of shape {tuple(outputs.shape)}, like the outputs",
            f"{tuple(targets.shape)}",
            "Reshape one of them: broadcasting would pair every target with every output.",
        )
        known = self.counted(targets)
        fix_nan = "Remove or impute them, or leave them out by ignore_nan=True."
        require_finite(targets if known is None else targets[known], "targets", fix_nan)
        if self.structure == "scalar":
            return
        shape, fix = tuple(outputs.shape), "Give a number, a vector (C,) or a matrix (C, C)."
        image = "Use scalar noise, one precision for all pixels: the last axis of an image is no list of outputs."
        require(len(shape) < 4, f"outputs (n, C) or (n, length, C) for {self.structure} noise", f"{shape}", image)
        require(len(shape) > 1, f"outputs (n, ..., C) for {self.structure} noise", f"outputs of shape {shape}", fix)
        if self.noise_precision is not None:
            size = self.noise_precision.shape[-1]
            require(size == shape[-1], f"a noise precision for {shape[-1]} outputs", f"one for {size}", fix)

    def noise_covariance(self, outputs: Tensor) -> Tensor:
        precision = self._precision()
        covariance = torch.cholesky_inverse(self._root) if precision.ndim == 2 else precision.reciprocal()
        return covariance.to(outputs)

    def residuals(self, outputs: Tensor, targets: Tensor) -> Tensor:
        known = Gaussian.counted(self, targets)
        return targets - outputs if known is None else (targets - outputs).where(known, 0)

    def with_noise(self, noise_precision: Tensor) -> Self:
        other = copy(self)
        other._take(noise_precision)
        return other

    def second_moment(self, residuals: Tensor) -> Tensor:
        """Sum over the stack of r r', reduced to the noise's structure: (), (C,) or (C, C), in float64."""
        flat = residuals.reshape(-1, residuals.shape[-1]).double()
        if self.structure == "full":
            return flat.mT @ flat
        squared = flat.square()
        return squared.sum(0) if self.structure == "diagonal" else squared.sum()

    def weighted(self, moment: Tensor) -> float:
        precision = self._precision().to(moment)
        if self.structure == "scalar":
            return float(precision * moment.sum())
        return float((precision * moment).sum())

    def updated(
        self, residual: Tensor, function: Tensor, effective_dimension: float, entries: float, exact: bool = False
    ) -> Self:
        """The M-step of the noise (docs/method.md, section 3; MacKay 1992 for scalar noise).

        Args:
            residual: second moment of y - phi mean, summed over all data.
            function: posterior second moment of phi z, summed over all data.
            effective_dimension: gamma.
            entries: N C, the number of observed numbers (less those that the features have absorbed).
            exact: whether ``function`` is free of sampling error. MacKay's way then serves every structure: it has the
                fixed point of EM's update, and reaches it where most of the data are used up by parameters.

        Raises:
            ValueError: if the covariance is singular.
        """
        if self.structure == "scalar":
            precision = updated_noise(entries, effective_dimension, residual)
            return self.with_noise(precision.cpu())
        rows = entries / residual.shape[-1]
        covariance = self._mackay(residual / rows, function / rows) if exact else (residual + function) / rows
        return self.with_noise(_inverse(covariance.cpu()))

    def used_up(self, function: Tensor, entries: float) -> float:
        share = function / (entries / function.shape[-1]) if self.structure != "scalar" else function / entries
        precision = self._precision().to(share)
        if share.ndim < 2:
            return float((share * precision).max())
        root = self._root.to(share)
        return float(torch.linalg.eigvalsh(root.mT @ share @ root)[-1])

    def _mackay(self, residual: Tensor, function: Tensor) -> Tensor:
        """The covariance S of S = residual + function, where function keeps its share of S (means over the data).

        With the present precision B = L L' and L' function L = U diag(g) U', the share is g in the coordinates U' L',
        where S_ij (1 - (g_i + g_j) / 2) = residual_ij.
        """
        precision = self._precision().to(residual)
        if residual.ndim < 2:
            return updated_variance(1.0, function * precision, residual)
        root = self._root.to(residual)
        share, turn = torch.linalg.eigh(root.mT @ function @ root)
        left = degrees_left(1.0, share)
        inside = (root @ turn).mT @ residual @ (root @ turn)
        back = torch.linalg.solve_triangular(root.mT, turn, upper=True)
        covariance: Tensor = back @ (inside / ((left + left[:, None]) / 2)) @ back.mT
        return (covariance + covariance.mT) / 2

    def started(self, residual: Tensor, entries: float) -> Self:
        """With a first noise precision, if it has none: the inverse of the residuals' second moment."""
        if self.noise_is_known:
            return self
        mean_square = residual / (entries if self.structure == "scalar" else entries / residual.shape[-1])
        if mean_square.ndim == 2:
            matrix = mean_square.cpu()
            matrix = matrix + 1e-6 * matrix.diagonal().mean() * torch.eye(len(matrix))
            return self.with_noise(_inverse(matrix))
        return self.with_noise(mean_square.clamp_min(_SILENT).reciprocal().cpu())

    def config(self) -> dict[str, Any]:
        precision = None if self.noise_precision is None else self.noise_precision.tolist()
        told = {"noise_precision": precision, "learn": self.learns_noise, "structure": self.structure}
        return {**super().config(), **told, **({"ignore_nan": True} if self.ignore_nan else {})}

    def _take(self, noise_precision: float | Tensor) -> None:
        """Take over a precision; its shape says which structure it has."""
        self.noise_precision = torch.as_tensor(noise_precision, dtype=torch.float64, device="cpu")
        self.structure = ("scalar", "diagonal", "full")[min(self.noise_precision.ndim, 2)]
        self._root = _root(self.noise_precision)
        self._copies: dict[tuple[Any, ...], Tensor] = {}

    def _near(self, name: str, values: Tensor, vectors: Tensor) -> Tensor:
        """The values in the type of the vectors and, unless they are one number, where these are: copied once."""
        if values.ndim == 0:  # a number on the CPU goes with every device, and a copy would wait for it
            return values.to(vectors.dtype)
        key = name, vectors.device, vectors.dtype
        if key not in self._copies:
            self._copies[key] = values.to(vectors)
        return self._copies[key]

    def _precision(self) -> Tensor:
        if self.noise_precision is None:
            raise RuntimeError("the noise precision is not known before fit: call fit, or give noise_precision=...")
        return self.noise_precision


def _inverse(covariance: Tensor) -> Tensor:
    """The precision of a covariance, (C,) or (C, C), as symmetric as its inverse is."""
    scale = covariance.sqrt() if covariance.ndim < 2 else covariance.diagonal().clamp_min(0).sqrt()
    low, fix = float(scale.min()), "Subtract the targets' mean, give noise_precision=..., or take structure='scalar'."
    require(low > 0, "residuals that tell the noise of every output", "zeros for at least one of them", fix)
    if covariance.ndim < 2:
        return covariance.reciprocal()
    values, vectors = torch.linalg.eigh(covariance / scale / scale[:, None])
    require(
        float(values[0]) > _SINGULAR * float(values[-1]), "outputs whose residuals are not multiples of each other",
        f"a noise correlation with eigenvalues from {float(values[0]):.1e} to {float(values[-1]):.1e}", fix,
    )  # fmt: skip
    half = vectors / values.sqrt() / scale[:, None]
    precision: Tensor = half @ half.mT
    return precision


def _root(precision: Tensor) -> Tensor:
    fix = "Give 1 / variance, a vector of them, or the inverse of the noise covariance."
    require_finite(precision, "noise precision", fix)
    if precision.ndim < 2:
        low = float(precision.min())
        require(low > 0, "a positive noise precision", f"{low:g}", fix)
        return precision.sqrt()
    square = precision.ndim == 2 and precision.shape[0] == precision.shape[1]
    require(square, "a square noise precision matrix", f"{tuple(precision.shape)}", fix)
    symmetric = torch.allclose(precision, precision.mT, rtol=1e-6)
    root: Tensor
    root, info = torch.linalg.cholesky_ex(precision)
    require(symmetric and int(info) == 0, "a symmetric positive definite noise precision", "one that is not", fix)
    return root
