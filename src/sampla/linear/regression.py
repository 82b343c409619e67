"""Bayesian linear regression for large designs, as a scikit-learn estimator."""

from dataclasses import replace
from math import log, pi
from time import perf_counter
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sampla.core.allocator import freed_memory_kept
from sampla.core.interrupts import deferred_interrupts
from sampla.core.progress import Progress
from sampla.inference.settings import EM
from sampla.likelihoods import Gaussian
from sampla.likelihoods.gaussian import Structure
from sampla.linear.closed_form import Learn, Noise, dual_spectrum, exact_em, primal_spectrum
from sampla.linear.coefficients import ClosedForm, CoefficientPosterior, Sampled
from sampla.linear.columns import Columns, columns_of, measure
from sampla.linear.dask_parts import is_dask
from sampla.linear.dask_source import predicted_by_part
from sampla.linear.inputs import (
    array_source,
    checked_rows,
    chunk_source,
    dask_source,
    is_chunks,
    numeric_targets,
    seed_of,
)
from sampla.linear.iterative import ColumnGroups, iterative_fit
from sampla.linear.settings import LinearReport, Settings, SolverChoice, choose_solver, in_users_units
from sampla.linear.sources import Source, as_matrix

_STRUCTURES: dict[Noise, Structure] = {"shared": "scalar", "diagonal": "diagonal", "full": "full"}
"""What the estimator calls the structure of the noise -> what the likelihood calls it."""


class BayesianLinearRegression(RegressorMixin, MultiOutputMixin, BaseEstimator):
    """Linear regression with a Gaussian prior and Gaussian noise, both precisions learnt, for designs of any size.

    y = X theta + b + noise, theta ~ N(0, A^-1), b flat, noise ~ N(0, B^-1). MacKay's updates find A and B (MacKay
    1992, as in scikit-learn's BayesianRidge, whose answer this is where both apply). Small problems are solved exactly,
    from a singular value decomposition that is read off the rows chunk by chunk, in the primal (D, D) or the dual
    (N, N); large ones matrix-free, by block conjugate gradients, with K posterior samples (Antoran et al. 2023).
    Nothing is copied whole: X may be an array, a sparse matrix, a torch tensor, a np.memmap larger than memory, or
    chunks.

    Args:
        prior: "isotropic", A = alpha I; or "g-prior", the same for standardised columns, A = alpha diag(variance).
        groups: (D,) labels of the columns' groups, each with its own alpha; None: one group.
        noise: of several outputs: "shared", one precision; "diagonal", one for each; "full", a covariance.
        prior_precision: alpha, kept; None: learnt.
        noise_precision: a number, (C,) or (C, C), kept; None: learnt.
        fit_intercept: an intercept without prior; its uncertainty is part of every prediction, and it takes one degree
            of freedom from the noise. (BayesianRidge leaves both out: variances differ by about 1 / N of themselves.)
        standardize: divide columns by their standard deviation, without touching X ("g-prior" implies it).
        solver: "exact", "block-cg", or "auto": exact where that is cheap; ``report_`` says which and why.
        num_samples: K posterior samples of the matrix-free way, at least 2; the exact way draws any number later.
        tol: relative change at which EM has settled; and, matrix-free, a tenth of it is the function-space error
            allowed for mean and samples. The exact way goes on to a millionth of it while ``max_iter`` allows.
        max_iter: EM steps at most.
        random_state: of the samples.
        progress: show a bar on anything over two seconds.

    Attributes:
        coef_: (D,) or (C, D) posterior mean.
        intercept_: float or (C,).
        prior_precision_: float or (G,) alpha, of the standardised columns' coefficients where they are standardised.
        noise_precision_: float, (C,) or (C, C).
        effective_dimension_: float or (G,) gamma, how many coefficients the data determine.
        log_marginal_likelihood_: log p(y) in nats, b integrated over a flat density of one.
        n_iter_: EM steps.
        report_: what was done, what it cost and how exact it is; ``print`` it.

    Example:
        >>> import numpy as np, sampla
        >>> rng = np.random.default_rng(0)
        >>> X = rng.standard_normal((200, 5))
        >>> y = X @ np.arange(5.0) + 0.1 * rng.standard_normal(200)
        >>> reg = sampla.BayesianLinearRegression().fit(X, y)
        >>> mean, std = reg.predict(X[:3], return_std=True)
        >>> mean.shape, std.shape, reg.sample_y(X[:3], 4).shape
        ((3,), (3,), (3, 4))
    """

    def __init__(
        self,
        prior: str = "isotropic",
        *,
        groups: Any = None,
        noise: str = "shared",
        prior_precision: float | None = None,
        noise_precision: Any = None,
        fit_intercept: bool = True,
        standardize: bool = False,
        solver: str = "auto",
        num_samples: int = 64,
        tol: float = 1e-2,
        max_iter: int = 300,
        random_state: Any = None,
        progress: bool = True,
    ) -> None:
        self.prior = prior
        self.groups = groups
        self.noise = noise
        self.prior_precision = prior_precision
        self.noise_precision = noise_precision
        self.fit_intercept = fit_intercept
        self.standardize = standardize
        self.solver = solver
        self.num_samples = num_samples
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state
        self.progress = progress

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "BayesianLinearRegression":
        """Find the precisions, the mean and the posterior.

        Args:
            X: (N, D) array, SciPy sparse matrix, torch tensor or np.memmap; or, without y, a re-iterable of (X, Y) or
                (X, Y, weights) chunks (a list of tuples, or an object whose __iter__ starts anew).
            y: (N,) or (N, C).
            sample_weight: (N,) how often each row counts, at least zero.

        Returns:
            self.

        Raises:
            ValueError: for shapes that do not fit, NaN or infinity, unknown names, or chunks that change.
            TypeError: for chunks that can be read only once.
        """
        start = perf_counter()
        settings = Settings.checked(self, self.noise, self.noise_precision)
        progress = Progress(self.progress)
        source, single = self._opened(X, y, sample_weight)
        with deferred_interrupts(), freed_memory_kept():
            progress.enter("moments")
            moments = measure(source)
            assert moments.target_mean is not None
            outputs = len(moments.target_mean)
            settings.check_sizes(source.num_columns, outputs, moments.total, self.fit_intercept, learns_noise=True)
            standardize = self.standardize or self.prior == "g-prior"
            group = settings.group(source.num_columns).to(source.device)
            columns = columns_of(moments, self.fit_intercept, standardize, group)
            choice = choose_solver(settings, moments.num_rows, source.num_columns, outputs)
            power = moments.target_variance if self.fit_intercept else moments.target_square
            assert power is not None
            settings.check_varying(power, choice)
            if choice.exact:
                report = self._exactly(source, columns, settings, choice, progress)
            else:
                report = self._iteratively(source, columns, outputs, settings, progress)
        self._set_mean(columns, single)
        self.report_ = report.finished(
            moments.num_rows, source.num_columns, outputs, choice, perf_counter() - start,
        )  # fmt: skip
        return self

    def predict(self, X: Any, return_std: bool = False, return_cov: bool = False) -> Any:
        """Mean of the predictive distribution, and its spread.

        Args:
            X: (n, D) rows.
            return_std: also the standard deviation of a new target, noise included.
            return_cov: also the covariance of new targets, noise included on its diagonal: (n, n) or (n, n, C).

        Returns:
            (n,) or (n, C) mean, alone or with std of the same shape, or with the covariance; NumPy arrays.

        Raises:
            ValueError: if both are asked for, or X does not fit.
        """
        check_is_fitted(self)
        if return_std and return_cov:
            raise ValueError("expected return_std or return_cov, got both. At most one of them can be returned.")
        if is_dask(X) and not return_cov:
            return predicted_by_part(self, "predict", X, return_std=return_std)
        source = array_source(checked_rows(self, X, reset=False), device=self._columns.power.device)
        means, spreads, progress = [], [], Progress(self.progress)
        progress.enter("predictions")
        with deferred_interrupts():
            for rows, _, _ in progress.sweep(source.chunks(source.num_rows if return_cov else None), None):
                means.append(self._mean_of(rows))
                if return_std:
                    spreads.append((self._posterior.variance(rows).cpu().numpy() + self._own_variance).clip(0) ** 0.5)
                elif return_cov:
                    spreads.append(self._covariance_of(rows))
        mean = self._shaped(np.concatenate(means))
        if return_cov:
            return mean, spreads[0][:, :, 0] if self._single else spreads[0]
        return (mean, self._shaped(np.concatenate(spreads))) if return_std else mean

    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = 0) -> np.ndarray:
        """Draws of new targets: each is one function of the posterior at all rows, with noise.

        Args:
            X: (n, D) rows.
            n_samples: S draws; matrix-free fits hold ``num_samples`` at most.
            random_state: of the draws.

        Returns:
            (n, S) or (n, C, S).
        """
        coefficients, intercepts = self.sample_coef(n_samples, random_state)
        source = array_source(checked_rows(self, X, reset=False), device=self._columns.power.device)
        stacked = coefficients.reshape(n_samples, -1, source.num_columns)  # (S, C, D)
        wide = torch.from_numpy(stacked.reshape(-1, source.num_columns).T.copy())  # (D, S C)
        values = np.concatenate([_product(rows, wide) for rows, _, _ in source.chunks()])
        values = values.reshape(len(values), n_samples, -1) + intercepts.reshape(1, n_samples, -1)
        noise = np.random.default_rng(seed_of(random_state) + 1).standard_normal(values.shape)
        values = (values + noise @ self._noise_root.T).transpose(0, 2, 1)  # (n, C, S)
        drawn: np.ndarray = values[:, 0] if self._single else values
        return drawn

    def sample_coef(self, n_samples: int = 1, random_state: Any = 0) -> tuple[np.ndarray, np.ndarray]:
        """Posterior draws of coefficients and intercept: whole functions x -> x @ coef + intercept, to be kept.

        Returns:
            (S, D) or (S, C, D), and (S,) or (S, C).

        Raises:
            ValueError: if a matrix-free fit holds fewer samples.
        """
        check_is_fitted(self)
        seed = seed_of(random_state)
        draws = (self._posterior.draw(n_samples, seed).cpu() + self._mean).transpose(1, 2).numpy()  # (S, C, D)
        columns = self._columns
        coefficients = draws if columns.scale is None else draws / columns.scale.cpu().numpy()
        intercepts = np.zeros(draws.shape[:2])
        if columns.means is not None:
            own = np.random.default_rng(seed).standard_normal(draws.shape[:2]) @ self._noise_root.T
            centre, level = (mean.cpu().numpy() for mean in columns.means)
            intercepts = level + own / columns.total**0.5 - coefficients @ centre
        if self._single:
            return coefficients[:, 0], intercepts[:, 0]
        return coefficients, intercepts

    def _opened(self, X: Any, y: Any, sample_weight: Any) -> tuple[Source, bool]:
        """The source, and whether targets came as (N,)."""
        if is_chunks(X, y):
            chunks = chunk_source(self, X, sample_weight)
            return chunks, chunks.single
        if is_dask(X):
            return dask_source(self, X, y, sample_weight), np.ndim(y) == 1
        rows = checked_rows(self, X, reset=True)
        targets = numeric_targets(self, y)
        return array_source(rows, as_matrix(targets), sample_weight), targets.ndim == 1

    def _exactly(
        self, source: Source, columns: Columns, settings: Settings, choice: SolverChoice, progress: Progress
    ) -> LinearReport:
        full = settings.noise == "full" or (settings.covariance is not None and settings.covariance.ndim == 2)
        decompose = dual_spectrum if choice.world == "dual" else primal_spectrum
        spectrum = decompose(source, columns, full, progress)
        alpha, unit = columns.precision_unit, columns.target_unit
        learn = Learn(
            settings.noise, settings.group(source.num_columns).to(source.device),
            columns.total - (columns.centre is not None),
            None if settings.precision is None else settings.precision * alpha,
            None if settings.covariance is None else settings.covariance / unit**2, settings.tol, settings.max_iter,
        )  # fmt: skip
        fit = exact_em(spectrum, learn)
        self._posterior: CoefficientPosterior = ClosedForm(replace(fit, prior_scale=fit.prior_scale * unit), columns)
        covariance = fit.hyperparameters.covariance.cpu() * unit**2
        self._set_fitted(fit.hyperparameters.precision / alpha, covariance, fit.effective_dimension, fit.mean * unit)
        self.n_iter_ = max(1, len(fit.trace))
        self.log_marginal_likelihood_ = fit.log_evidence - self._volume(columns, fit.mean.shape[1])
        return LinearReport.of_exact(fit, spectrum.passes + 1, self.log_marginal_likelihood_)

    def _iteratively(
        self, source: Source, columns: Columns, outputs: int, settings: Settings, progress: Progress
    ) -> LinearReport:
        unit, given, alpha = columns.target_unit, settings.noise_precision, settings.precision
        noise = Gaussian(None if given is None else given * unit**2, _STRUCTURES[settings.noise])
        prior = ColumnGroups(settings.group(source.num_columns), alpha, columns)
        fit = iterative_fit(
            source, columns, outputs, prior, noise,
            num_samples=settings.num_samples, seed=seed_of(self.random_state), tolerance=settings.tol / 10,
            em=EM(  # |mean|^2 is about coefficients: a looser solve would leave out those that functions hardly show
                tolerance=settings.tol, solve_tolerance=settings.tol / 2, max_steps=settings.max_iter,
                num_samples=min(32, settings.num_samples),
            ),
            progress=progress,
        )  # fmt: skip
        self._posterior = Sampled(fit.samples * unit, columns.design(source, outputs))
        found = fit.inference
        precision = found.model.likelihood.noise_precision
        assert precision is not None, "a Gaussian likelihood has a noise precision after a fit"
        precision = precision.double().cpu()
        covariance = torch.linalg.inv(precision) if precision.ndim == 2 else precision.reciprocal().expand(outputs)
        learnt = found.prior.precision / columns.precision_unit.to(found.prior.precision)
        self._set_fitted(learnt, covariance * unit**2, found.effective_dimension, fit.mean * unit)
        self.n_iter_ = max(1, len(found.trace))
        evidence = float("nan")
        if found.log_evidence is not None:
            spread = torch.linalg.slogdet(covariance)[1] if covariance.ndim == 2 else covariance.log().sum()
            absorbed = 0.5 * float(outputs * log(2 * pi) + spread) if columns.centre is not None else 0.0
            evidence = found.log_evidence.value + absorbed - self._volume(columns, outputs)
        self.log_marginal_likelihood_ = evidence
        return LinearReport.of_iterative(in_users_units(fit.report, columns), evidence)

    def _volume(self, columns: Columns, outputs: int) -> float:
        """What the log density of the contrasts is less for: the targets' unit, and an intercept that is integrated.

        Each of N (with an intercept N - 1) numbers of an output has log unit, and a flat intercept leaves log N / 2.
        """
        centred = columns.centre is not None
        unit = (columns.total - centred) * log(columns.target_unit)
        return outputs * (unit + (0.5 * log(columns.total) if centred else 0.0))

    def _set_fitted(self, precision: Tensor, covariance: Tensor, gamma: Tensor, mean: Tensor) -> None:
        """What both ways find: alpha (G,), the noise covariance (C,) or (C, C), gamma (G,), the mean (D, C)."""
        several = len(precision) > 1
        self.prior_precision_ = precision.cpu().numpy() if several else float(precision[0])
        self.effective_dimension_ = gamma.cpu().numpy() if several else float(gamma.sum())
        self._mean = mean.cpu()
        if covariance.ndim == 2:
            self.noise_precision_ = torch.linalg.inv(covariance).numpy()
            self._noise_root, self._noise_variance = torch.linalg.cholesky(covariance).numpy(), covariance.diagonal()
        else:
            per_output = self.noise == "diagonal" or np.ndim(self.noise_precision) == 1
            self.noise_precision_ = covariance.reciprocal().numpy() if per_output else float(1 / covariance[0])
            self._noise_root, self._noise_variance = covariance.sqrt().diag().numpy(), covariance

    def _set_mean(self, columns: Columns, single: bool) -> None:
        """Coefficients and intercept in the units of X and y, and the variance that every prediction has."""
        mean = self._mean if columns.scale is None else self._mean / columns.scale.cpu()[:, None]
        intercept = torch.zeros(mean.shape[1], dtype=torch.float64)
        own = self._noise_variance.numpy().copy()
        if columns.means is not None:
            centre, level = (each.cpu() for each in columns.means)
            intercept = level - centre @ mean
            own = own + own / columns.total
        self._columns, self._single, self._own_variance = columns, single, own
        self.coef_ = mean[:, 0].numpy() if single else mean.mT.contiguous().numpy()
        self.intercept_ = float(intercept[0]) if single else intercept.numpy()

    def _mean_of(self, rows: Any) -> np.ndarray:
        weights = torch.from_numpy(np.atleast_2d(self.coef_)).mT
        values: np.ndarray = _product(rows, weights) + np.atleast_1d(self.intercept_)
        return values

    def _covariance_of(self, rows: Any) -> np.ndarray:
        """(n, n, C): function, intercept, and noise on the diagonal."""
        covariance = self._posterior.covariance(rows).cpu().numpy()
        noise = self._noise_variance.numpy()
        covariance += self._own_variance - noise  # the intercept is common to all rows
        covariance += np.eye(len(covariance))[:, :, None] * noise
        return covariance

    def _shaped(self, values: np.ndarray) -> np.ndarray:
        return values[:, 0] if self._single else values

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _product(rows: Any, weights: Tensor) -> np.ndarray:
    """Rows (n, D) times (D, S) in float64."""
    if isinstance(rows, Tensor):
        product: np.ndarray = (rows.double() @ weights.to(rows.device)).cpu().numpy()
        return product
    multiplied: np.ndarray = rows @ weights.numpy()
    return multiplied
