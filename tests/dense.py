"""A naive float64 reference for everything sampla computes: explicit matrices, loops over data, no shared code.

Slow and memory-hungry on purpose; nothing here imports sampla. Notation of the method: J (N, C, P) holds the features,
B (N, C, C) the curvature of the loss in the outputs, M = sum_n J_n' B_n J_n, H = M + A.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor, nn
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]


def jacobian(model: nn.Module, names: Sequence[str], inputs: Any) -> Tensor:
    """(N, C, P) with all inner axes of the outputs in C: one backward pass for each output of each datum."""
    chosen = [dict(model.named_parameters())[name] for name in names]
    outputs = call(model, inputs)
    outputs = outputs.reshape(len(outputs), -1)
    rows = []
    for value in outputs.flatten():
        gradients = torch.autograd.grad(value, chosen, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(rows).view(*outputs.shape, -1)


def fast_jacobian(model: nn.Module, names: Sequence[str], inputs: Tensor) -> Tensor:
    """The same of a network that torch can take all backward passes of at once; test_features.py compares them."""
    chosen = [dict(model.named_parameters())[name] for name in names]
    outputs = model(inputs)
    each = torch.eye(outputs.numel(), dtype=outputs.dtype).view(-1, *outputs.shape)
    gradients = torch.autograd.grad(outputs, chosen, each, is_grads_batched=True, materialize_grads=True)
    return torch.cat([g.flatten(1) for g in gradients], 1).view(*outputs.shape[:1], -1, sum(p.numel() for p in chosen))


def call(model: nn.Module, inputs: Any) -> Tensor:
    """The network on a tensor, a tuple or a dict of tensors."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def categorical_loss(outputs: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, target)


def bernoulli_loss(outputs: Tensor, target: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(outputs, target, reduction="sum")


def gaussian_loss(precision: Tensor) -> Loss:
    """1/2 (y - f)' B (y - f) with a (C, C) matrix B."""
    return lambda outputs, target: 0.5 * (target - outputs) @ precision @ (target - outputs)


def hessians(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """B by definition, (N, C, C): the second derivative of the loss, datum by datum."""
    each = [
        torch.autograd.functional.hessian(lambda f, y=y: loss(f, y), f) for f, y in zip(outputs, targets, strict=True)
    ]
    return torch.stack(each)


def curvature(features: Tensor, weights: Tensor) -> Tensor:
    """M = sum_n J_n' B_n J_n, (P, P), as one product: N matrices (P, P) would take ten times as long."""
    return features.flatten(0, 1).mT @ (weights @ features).flatten(0, 1)


def predictive_covariance(features: Tensor, inverse: Tensor) -> Tensor:
    """J H^-1 J' over all outputs of all data, (N C, N C)."""
    rows = features.flatten(0, 1)
    return rows @ inverse @ rows.mT


class NoReferenceError(AssertionError):
    """A reference that float64 cannot tell."""


def mode(features: Tensor, targets: Tensor, loss: Loss, precision: Tensor, start: Tensor | None = None) -> Tensor:
    """argmin sum_n loss(J_n theta, y_n) + 1/2 theta' A theta by damped Newton to rounding, (P,)."""

    def objective(at: Tensor) -> Tensor:
        return fast_losses(loss, features @ at, targets).sum() + 0.5 * (precision * at.square()).sum()

    theta = torch.zeros(features.shape[-1], dtype=torch.float64) if start is None else start
    for _ in range(100):
        point = theta.clone().requires_grad_()
        here = objective(point)
        (gradient,) = torch.autograd.grad(here, point)
        hessian = curvature(features, fast_hessians(loss, features @ theta, targets)) + precision.diag()
        step = torch.linalg.solve(hessian, -gradient)
        length, value = 1.0, float(here.detach())
        while float(objective(theta + length * step)) > value + 1e-9 * abs(value) and length > 1e-6:
            length /= 2
        theta = theta + length * step
        if float((step * (hessian @ step)).sum()) < 1e-22 * float((precision * theta.square()).sum()):
            return theta
    raise NoReferenceError("the reference's own Newton iteration did not converge")


def fast_losses(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """(N,) of all data in one call, for Newton's inner loop only; test_likelihoods.py checks them."""
    if loss is categorical_loss:
        return functional.cross_entropy(outputs, targets, reduction="none")
    if loss is bernoulli_loss:
        return functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none").sum(-1)
    return torch.vmap(loss)(outputs, targets)


def fast_hessians(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Explicit formulas, for Newton's inner loop only; test_likelihoods.py checks them against ``hessians``."""
    if loss is categorical_loss:
        p = outputs.softmax(-1)
        return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    if loss is bernoulli_loss:
        p = outputs.sigmoid()
        return torch.diag_embed(p * (1 - p))
    return hessians(loss, outputs[:1], targets[:1]).expand(len(outputs), -1, -1)


@dataclass(frozen=True)
class Hyper:
    """What EM learns: log alpha of each group, and the noise covariance (C, C) of a Gaussian."""

    log_precision: Tensor
    noise: Tensor | None = None


@dataclass(frozen=True)
class Evidence:
    """A linear model whose hyperparameters MacKay's updates are to find, everything exact.

    ``features`` are already multiplied by the prior's scale, so A is exp(log_precision) of each parameter's group.
    ``weights`` is B at the trained network for a classification loss; None takes B at the linear mode, wherever that
    is at the present alpha. Gaussian noise has no loss here but a structure, "scalar", "diagonal" or "full".
    """

    features: Tensor
    targets: Tensor
    group: Tensor
    loss: Loss | None = None
    weights: Tensor | None = None
    structure: str = "fixed"
    learn_prior: bool = True

    def diagonal(self, hyper: Hyper) -> Tensor:
        """(P,) diagonal of A."""
        return hyper.log_precision.exp()[self.group]

    def curvature(self, hyper: Hyper, found: Tensor | None = None) -> Tensor:
        """M, with the mode ``found`` if it is known already."""
        weights = self.weights
        if weights is None and self.loss is not None:
            found = self.mode(hyper) if found is None else found
            weights = fast_hessians(self.loss, self.features @ found, self.targets)
        elif weights is None:
            assert hyper.noise is not None
            weights = torch.linalg.inv(hyper.noise).expand(len(self.features), -1, -1)
        return curvature(self.features, weights)

    def mode(self, hyper: Hyper, start: Tensor | None = None) -> Tensor:
        """The linear model's own optimum."""
        if self.loss is not None:
            return mode(self.features, self.targets, self.loss, self.diagonal(hyper), start)
        assert hyper.noise is not None
        pulled = torch.einsum("ncp,cd,nd->p", self.features, torch.linalg.inv(hyper.noise), self.targets)
        return torch.linalg.solve(self.curvature(hyper) + self.diagonal(hyper).diag(), pulled)

    def gamma(self, hyper: Hyper, found: Tensor | None = None) -> Tensor:
        """(G,) tr(H^-1 M) split by group, with the mode ``found`` if it is known already."""
        data = self.curvature(hyper, found)
        product = torch.linalg.solve(data + self.diagonal(hyper).diag(), data).diagonal()
        return torch.zeros(len(hyper.log_precision), dtype=torch.float64).index_add(0, self.group, product)

    def step(self, hyper: Hyper, found: Tensor | None = None) -> Hyper:
        """One E-step and M-step, with the mode ``found`` if it is known already."""
        found = self.mode(hyper) if found is None else found
        gamma = self.gamma(hyper, found)
        size = torch.zeros_like(gamma).index_add(0, self.group, found.square())
        log_precision = (gamma / size).log() if self.learn_prior else hyper.log_precision
        return Hyper(log_precision, self._noise(hyper, found, float(gamma.sum())))

    def _noise(self, hyper: Hyper, found: Tensor, gamma: float) -> Tensor | None:
        if self.structure == "fixed":
            return hyper.noise
        residual = self.targets - self.features @ found
        if self.structure == "scalar":
            variance = residual.square().sum() / (residual.numel() - gamma)
            return variance * torch.eye(residual.shape[1], dtype=torch.float64)
        inverse = torch.linalg.inv(self.curvature(hyper) + self.diagonal(hyper).diag())
        spread = (self.features @ inverse @ self.features.mT).mean(0)
        covariance = residual.mT @ residual / len(residual) + spread
        return covariance.diagonal().diag() if self.structure == "diagonal" else covariance

    def run(self, start: Hyper, tolerance: float = 1e-9, max_steps: int = 3000) -> Hyper:
        """The fixed point."""
        found = None
        for _ in range(max_steps):
            found = self.mode(start, found)
            following = self.step(start, found)
            change = (self.vector(following) - self.vector(start)).abs().max()
            start = following
            if change < tolerance:
                return start
        raise AssertionError(f"the reference's own EM did not settle (change {change:.1e})")

    def vector(self, hyper: Hyper) -> Tensor:
        """The free hyperparameters in one vector: log alpha, then log variance or the free covariance entries."""
        parts = [hyper.log_precision] if self.learn_prior else []
        if self.structure == "scalar":
            parts.append(hyper.noise[0, :1].log())
        elif self.structure == "diagonal":
            parts.append(hyper.noise.diagonal())
        elif self.structure == "full":
            rows, columns = torch.triu_indices(*hyper.noise.shape)
            parts.append(hyper.noise[rows, columns])
        return torch.cat(parts)

    def hyper(self, vector: Tensor, like: Hyper) -> Hyper:
        """The inverse of ``vector``."""
        count = len(like.log_precision) if self.learn_prior else 0
        known = replace(like, log_precision=vector[:count]) if self.learn_prior else like
        rest = vector[count:]
        if self.structure == "fixed":
            return known
        size = len(like.noise)
        if self.structure == "scalar":
            noise = rest.exp() * torch.eye(size, dtype=torch.float64)
        elif self.structure == "diagonal":
            noise = rest.diag()
        else:
            rows, columns = torch.triu_indices(size, size)
            upper = torch.zeros(size, size, dtype=torch.float64).index_put((rows, columns), rest)
            noise = upper + upper.triu(1).mT
        return replace(known, noise=noise)

    def standard_errors(self, settled: Hyper, num_samples: int, exact_gamma: bool = False) -> Tensor:
        """Standard error of each entry of ``vector`` when EM sees H^-1 only through K posterior samples.

        An M-step h -> F(h) that uses samples is F(h) + e, where e_a = tr(Q_a E) is linear in the error E of the
        samples' second moment, and cov(e_a, e_b) = 2 tr(Q_a S Q_b S) / K with S = H^-1 (Gaussian fourth moments).
        The noise draws stay the same over the steps, so the fixed point moves by (I - F')^-1 e.
        """
        forms = self._forms(settled, exact_gamma)
        inverse = torch.linalg.inv(self.curvature(settled) + self.diagonal(settled).diag())
        halves = [form @ inverse for form in forms]
        errors = torch.tensor([[2 * (a * b.mT).sum() / num_samples for b in halves] for a in halves])
        here, width = self.vector(settled), 1e-4
        columns = []
        for axis in torch.eye(len(here), dtype=torch.float64) * width:
            ahead, behind = (self.vector(self.step(self.hyper(here + d, settled))) for d in (axis, -axis))
            columns.append((ahead - behind) / (2 * width))
        response = torch.linalg.inv(torch.eye(len(here)).double() - torch.stack(columns, 1))
        return (response @ errors.double() @ response.mT).diagonal().sqrt()

    def _forms(self, settled: Hyper, exact_gamma: bool) -> list[Tensor]:
        """Q_a: how each update depends on the second moment of the samples."""
        data, gamma = self.curvature(settled), self.gamma(settled)
        forms = []
        for g in range(len(gamma) if self.learn_prior else 0):
            part = torch.where(self.group == g, 1.0, 0.0).double()[:, None] * data / gamma[g]
            forms.append((part + part.mT) / 2 * (0 if exact_gamma else 1))
        if self.structure == "scalar":
            entries = self.targets.numel() - float(gamma.sum())
            forms.append(data / entries * (0 if exact_gamma else 1))
        if self.structure in ("diagonal", "full"):
            size = self.targets.shape[1]
            pairs = [(c, c) for c in range(size)] if self.structure == "diagonal" else _upper(size)
            for c, d in pairs:
                part = self.features[:, c].mT @ self.features[:, d] / len(self.features)
                forms.append((part + part.mT) / 2)
        return forms


def _upper(size: int) -> list[tuple[int, int]]:
    return [(int(c), int(d)) for c, d in zip(*torch.triu_indices(size, size), strict=True)]


def assert_covariance(draws: Tensor, covariance: Tensor, level: float = 1e-4) -> None:
    """K zero-mean Gaussian draws (K, D) against the covariance they should have, (D, D): three tests of fixed size.

    The sample covariance of K draws has variance (C_ii C_jj + C_ij^2) / K in entry ij, and 2 tr(C^2) / K in the trace.
    The largest |z| is bounded by Bonferroni at ``level``; of all |z|, 4.6 % should exceed 2 (entries are
    correlated, hence the generous interval); the trace has a test of its own, the sharpest for a common factor.

    Raises:
        AssertionError: if any of the three fails.
    """
    count = len(draws)
    error = draws.mT @ draws / count - covariance
    variances = covariance.diagonal()
    spread = ((variances[:, None] * variances + covariance.square()) / count).sqrt()
    z = (error / spread)[tuple(torch.triu_indices(*covariance.shape))].abs()
    bound = norm.isf(level / 2 / len(z))
    assert float(z.max()) < bound, f"largest |z| {z.max():.2f} over {len(z)} entries, expected below {bound:.2f}"
    beyond = float((z > 2).double().mean())
    assert beyond < 0.15, f"{beyond:.1%} of |z| beyond 2, expected about 4.6 %"
    assert beyond > 0.005 or len(z) < 500, f"only {beyond:.2%} of |z| beyond 2: too good to be draws"
    trace = float(error.trace()) / sqrt(2 * float(covariance.square().sum()) / count)
    assert abs(trace) < norm.isf(level / 2), f"z = {trace:.2f} on the trace"


def prescribed(eigenvalues: Sequence[float], rows: int, seed: int = 0) -> Tensor:
    """(rows, P) design matrix X with the given eigenvalues of X' X."""
    generator = np.random.default_rng(seed)
    size = len(eigenvalues)
    left = np.linalg.qr(generator.standard_normal((rows, size)))[0]
    right = np.linalg.qr(generator.standard_normal((size, size)))[0]
    return torch.from_numpy(left * np.sqrt(np.asarray(eigenvalues)) @ right.T)


def quadratic_forms(matrix: Tensor, function: Callable[[Tensor], Tensor], vectors: Tensor) -> Tensor:
    """(K,) x' f(M) x for each row x; f gets the eigenvalues of M, at least zero."""
    values, rotation = torch.linalg.eigh(matrix)
    return (vectors @ rotation).square() @ function(values.clamp_min(0))


def galerkin(matrix: Tensor, precision: Tensor, span: Tensor, right: Tensor) -> Tensor:
    """(K, P) the z in the span of the rows, (m, P), that solves (M + A) z = b as seen from the span."""
    basis = torch.linalg.qr(span.mT).Q
    inner = basis.mT @ (matrix + precision.diag()) @ basis
    return (basis @ torch.linalg.solve(inner, basis.mT @ right.mT)).mT


def log_determinant(matrix: Tensor, precision: Tensor) -> float:
    """log det(I + A^-1 M), A = diag(precision)."""
    return float(torch.linalg.slogdet(torch.eye(len(matrix)).to(matrix) + matrix / precision[:, None]).logabsdet)


def gaussian_log_evidence(features: Tensor, targets: Tensor, weights: Tensor, precision: Tensor) -> float:
    """log N(y; 0, J A^-1 J' + B^-1), the density of all targets (N, C) at once; B (N, C, C)."""
    rows = features.flatten(0, 1)
    noise = torch.block_diag(*torch.linalg.inv(weights))
    covariance = (rows / precision) @ rows.mT + noise
    if bool(torch.linalg.cholesky_ex(covariance).info):
        raise NoReferenceError("the covariance of the targets is singular up to rounding")
    return float(
        torch.distributions.MultivariateNormal(torch.zeros(len(rows)).double(), covariance).log_prob(targets.flatten())
    )


def laplace_log_evidence(
    features: Tensor, targets: Tensor, loss: Loss, weights: Tensor, precision: Tensor, start: Tensor | None = None
) -> float:
    """log p(y | J theta*) - |theta*|_A^2 / 2 - log det(I + A^-1 M) / 2, for a loss that is -log p(y | f)."""
    found = mode(features, targets, loss, precision, start)
    fit = torch.vmap(loss)(features @ found, targets).sum() + 0.5 * (precision * found.square()).sum()
    return -float(fit) - log_determinant(curvature(features, weights), precision) / 2


@dataclass(frozen=True)
class ProbedEM:
    """MacKay's EM for a Gaussian model f M, where gamma is what given probes see: mean_k d_k' (M + a)^-1 d_k.

    M and t = J' B y belong to the first noise precision, which f multiplies; H = f M + alpha I, mean = H^-1 f t.
    """

    matrix: Tensor
    probes: Tensor
    target: Tensor
    target_size: float
    """y' B y."""
    entries: int

    def step(self, alpha: float, factor: float, learn_prior: bool, learn_noise: bool) -> tuple[float, float]:
        """alpha <- gamma / |mean|^2, f <- (N C - gamma) / |y - J mean|_B^2."""
        identity = torch.eye(len(self.matrix)).to(self.matrix)
        gamma = self.gamma(alpha / factor)
        mean = torch.linalg.solve(factor * self.matrix + alpha * identity, factor * self.target)
        residual = self.target_size - 2 * float(mean @ self.target) + float(mean @ self.matrix @ mean)
        following = (self.entries - gamma) / residual if learn_noise else factor
        return gamma / float(mean @ mean) if learn_prior else alpha, following

    def gamma(self, ratio: float) -> float:
        """What the probes see of tr M (M + a)^-1."""
        shifted = self.matrix + ratio * torch.eye(len(self.matrix)).to(self.matrix)
        return float((self.probes * torch.linalg.solve(shifted, self.probes.mT).mT).sum(1).mean())

    def run(self, alpha: float, learn_prior: bool, learn_noise: bool) -> tuple[float, float]:
        """The fixed point."""
        factor = 1.0
        for _ in range(20_000):
            before = alpha, factor
            alpha, factor = self.step(alpha, factor, learn_prior, learn_noise)
            if max(abs(alpha / before[0] - 1), abs(factor / before[1] - 1)) < 1e-11:
                return alpha, factor
        raise AssertionError("the reference's own EM did not settle")


def probed_log_determinant(matrix: Tensor, precision: Tensor, probes: Tensor) -> float:
    """log det(I + A^-1 M) as probes d ~ N(0, M) see it: mean of w' log(I + W) W^-1 w, W = A^-1/2 M A^-1/2, w alike."""
    root = precision.rsqrt()
    white = matrix * root[:, None] * root
    forms = quadratic_forms(white, lambda x: torch.where(x > 1e-12, x.log1p() / x.clamp_min(1e-12), 1.0), probes * root)
    return float(forms.mean())
