"""A naive float64 reference for linear models: every matrix formed, nothing shared with src.

theta is (D, C) flattened output by output; the intercept is a column of ones whose prior precision is exactly zero.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, logsumexp, softmax


@dataclass
class Reference:
    """The posterior of a linear model with its hyperparameters at EM's fixed point."""

    alpha: np.ndarray
    noise: np.ndarray
    """(C, C) covariance."""
    gamma: np.ndarray
    mean: np.ndarray
    """(C, D) or, with an intercept, (C, D + 1)."""
    covariance: np.ndarray
    """Of all parameters, flattened output by output."""
    evidence: float

    def predictive(self, rows, intercept):
        """(n, C) mean and (n, C, C) covariance of new targets."""
        outputs, x = len(self.mean), np.hstack([rows, np.ones((len(rows), 1))]) if intercept else rows
        design = np.stack([np.kron(np.eye(outputs), row) for row in x])  # (n, C, C D)
        return x @ self.mean.T, design @ self.covariance @ design.transpose(0, 2, 1) + self.noise


def linear_reference(x, y, *, noise="shared", groups=None, intercept=True, weights=None, steps=20_000, fixed=None):
    """EM by MacKay's updates, each from the full posterior covariance.

    Args:
        fixed: (alpha, noise covariance) to keep instead.
    """
    weights = np.ones(len(x)) if weights is None else weights
    groups = np.zeros(x.shape[1], dtype=int) if groups is None else groups
    design = np.hstack([x, np.ones((len(x), 1))]) if intercept else x
    size, outputs, total = design.shape[1], y.shape[1], weights.sum()
    gram, cross = design.T @ (weights[:, None] * design), design.T @ (weights[:, None] * y)
    labels = np.concatenate([groups, [-1]]) if intercept else groups
    alpha, covariance = np.ones(groups.max() + 1), np.cov(y.T).reshape(outputs, outputs)
    if noise != "full":
        covariance = np.diag(np.diag(covariance))
    if fixed is not None:
        alpha, covariance = np.broadcast_to(fixed[0], alpha.shape).astype(float), np.asarray(fixed[1], dtype=float)
    for _ in range(steps):
        prior = np.where(labels >= 0, alpha[labels], 0.0)
        precision = np.linalg.inv(covariance)
        data = np.kron(precision, gram)
        posterior = np.linalg.inv(data + np.diag(np.tile(prior, outputs)))
        mean = (posterior @ (cross @ precision).T.ravel()).reshape(outputs, size)
        determined = np.diag(posterior @ data).reshape(outputs, size)
        gamma = np.array([determined[:, labels == g].sum() for g in range(len(alpha))])
        if fixed is not None:
            break
        size_of = np.array([(mean[:, labels == g] ** 2).sum() for g in range(len(alpha))])
        missed = y - design @ mean.T
        moment = missed.T @ (weights[:, None] * missed)
        old = alpha.copy(), covariance.copy()
        alpha = gamma / size_of
        if noise == "full":
            blocks = posterior.reshape(outputs, size, outputs, size)
            covariance = (moment + np.einsum("ij,cjdi->cd", gram, blocks)) / total
        elif noise == "diagonal":
            covariance = np.diag(np.diag(moment) / (total - determined.sum(1)))
        else:
            covariance = np.trace(moment) / (total * outputs - determined.sum()) * np.eye(outputs)
        if max(np.abs(np.log(alpha / old[0])).max(), np.abs(np.diag(covariance) / np.diag(old[1]) - 1).max()) < 1e-12:
            break
    prior = np.where(labels >= 0, alpha[labels], 0.0)
    return Reference(alpha, covariance, gamma, mean, posterior, _evidence(y, design, weights, prior, covariance, mean))


def _evidence(y, design, weights, prior, covariance, mean):
    """log integral of likelihood times prior, the flat intercept's density being one."""
    total, outputs = weights.sum(), y.shape[1]
    missed, precision = y - design @ mean.T, np.linalg.inv(covariance)
    loss = 0.5 * np.einsum("n,nc,cd,nd->", weights, missed, precision, missed) + 0.5 * (prior * mean**2).sum()
    constant = 0.5 * total * (outputs * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1])
    gram = design.T @ (weights[:, None] * design)
    hessian = np.kron(precision, gram) + np.diag(np.tile(prior, outputs))
    flat = (prior == 0).sum() * outputs
    volume = outputs * np.log(prior[prior > 0]).sum() - np.linalg.slogdet(hessian)[1] + flat * np.log(2 * np.pi)
    return -loss - constant + 0.5 * volume


def logistic_reference(x, labels, alpha, *, weights=None):
    """Mode, Laplace covariance and effective dimension at a fixed alpha, without an intercept.

    Returns:
        (D, C) mode (C = 1 for two classes), (D C, D C) covariance of the flattened mode, gamma, log evidence.
    """
    weights = np.ones(len(x)) if weights is None else weights
    classes = labels.max() + 1
    outputs = 1 if classes == 2 else classes

    def loss(theta):
        logits = x @ theta.reshape(-1, outputs)
        if outputs == 1:
            each = np.logaddexp(0, logits[:, 0]) - labels * logits[:, 0]
        else:
            each = logsumexp(logits, axis=1) - logits[np.arange(len(x)), labels]
        return weights @ each + 0.5 * alpha * theta @ theta

    def slope(theta):
        logits = x @ theta.reshape(-1, outputs)
        delta = expit(logits) - labels[:, None] if outputs == 1 else softmax(logits, axis=1) - np.eye(classes)[labels]
        return (x.T @ (weights[:, None] * delta)).ravel() + alpha * theta

    start = np.zeros(x.shape[1] * outputs)
    mode = minimize(loss, start, jac=slope, method="BFGS", options={"gtol": 1e-10, "maxiter": 5000}).x
    logits = x @ mode.reshape(-1, outputs)
    data = np.zeros((len(mode), len(mode)))
    for row, logit, weight in zip(x, logits, weights, strict=True):
        p = expit(logit) if outputs == 1 else np.exp(log_softmax(logit))
        output_curvature = np.diag(p * (1 - p)) if outputs == 1 else np.diag(p) - np.outer(p, p)
        data += weight * np.kron(np.outer(row, row), output_curvature)
    covariance = np.linalg.inv(data + alpha * np.eye(len(mode)))
    evidence = -loss(mode) + 0.5 * (len(mode) * np.log(alpha) + np.linalg.slogdet(covariance)[1])
    return mode.reshape(-1, outputs), covariance, np.trace(covariance @ data), evidence
