"""Bayesian logistic regression, binary and multi-class, as a scikit-learn estimator."""

from dataclasses import dataclass, replace
from math import log, pi
from time import perf_counter
from typing import Any

import numpy as np
import torch
from scipy.linalg import helmert
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sampla.core.allocator import freed_memory_kept
from sampla.core.checks import require, require_known
from sampla.core.interrupts import deferred_interrupts
from sampla.core.params import ParameterLayout
from sampla.core.progress import Progress
from sampla.inference.infer import infer
from sampla.inference.report import build_report
from sampla.inference.settings import EM
from sampla.likelihoods import Bernoulli, Categorical, Likelihood
from sampla.linear.columns import Columns, RowData, columns_of, measure
from sampla.linear.dask_parts import is_dask
from sampla.linear.dask_source import CodesOf, labels_of, predicted_by_part
from sampla.linear.inputs import (
    array_source,
    checked_rows,
    chunk_source,
    class_targets,
    dask_source,
    is_chunks,
    seed_of,
)
from sampla.linear.logits import expected_sigmoid, logit_deviations
from sampla.linear.newton import closed_laplace
from sampla.linear.settings import LinearReport, Settings, SolverChoice, in_users_units
from sampla.linear.sources import Source
from sampla.model import LinearModel
from sampla.posterior.predictive import Predictive
from sampla.priors import BoundPrior, Prior
from sampla.solvers import BlockCG

_EXACT_UP_TO = 1000
"""P at which solver="auto" changes from the closed form to block conjugate gradients."""
_AT_ONCE = 2**22
"""Entries of rows and of what is made of them that a prediction holds together."""
_INTERCEPT = 1e-6
"""Prior precision of the constants: next to none."""


@dataclass(frozen=True)
class _Targets:
    """(n, 1) labels as the likelihood wants them: (n, 1) zeros and ones, or (n,) class numbers."""

    codes: Tensor
    """(C,) the labels, sorted."""

    def __call__(self, values: Tensor) -> Tensor:
        codes = torch.searchsorted(self.codes.to(values), values.contiguous())
        return codes.to(values) if len(self.codes) == 2 else codes[:, 0]


class WithIntercept(Prior):
    """A = alpha I on the coefficients (one alpha for each group of columns), next to nothing on the intercept.

    Args:
        group: (D,) int64, numbered from 0.
        precision: alpha, kept; None: learnt.
        constants: how many parameters at the end are constants of the outputs.
        columns: as of ``ColumnGroups``.
    """

    def __init__(self, group: Tensor, precision: float | None, constants: int, columns: Columns) -> None:
        super().__init__(precision, learn=precision is None)
        self.group, self.constants, self.columns = group, constants, columns

    def bind(self, layout: ParameterLayout, curvature_diagonal: Tensor) -> BoundPrior:
        outputs = layout.shapes[0][1]
        count = int(self.group.max()) + 1
        group, names = self.group.repeat_interleave(outputs), [f"group {g}" for g in range(count)]
        if self.constants:
            group = torch.cat([group, torch.full((self.constants,), count)])
            names.append("intercept")
        diagonal = self.columns.informed(curvature_diagonal, outputs)
        bound = self.starting(diagonal, torch.ones_like(diagonal), group, tuple(names))
        precision = bound.precision.clone()
        if not self.learn:
            precision[:count] *= self.columns.precision_unit.to(precision)
        if not self.constants:
            return bound if self.learn else bound.with_precision(precision)
        precision[count], fixed = _INTERCEPT, (*bound.fixed, "intercept")
        learn = bound.learn and len(fixed) < len(names)
        return BoundPrior(precision, bound.scale, bound.group, bound.names, learn, fixed=fixed)


class BayesianLogisticRegression(ClassifierMixin, BaseEstimator):
    """Logistic regression with a Gaussian prior whose precision is learnt, and a Laplace posterior in samples.

    p(y | x) = softmax(x theta + b), or the logistic function for two classes; theta ~ N(0, 1 / alpha), b next to free.
    The posterior is Laplace's, N(mode, (M + A)^-1) with the curvature M at the mode; EM (MacKay 1992) finds alpha;
    K samples solve linear systems with products alone (Antoran et al. 2023). Inputs as for BayesianLinearRegression.

    Args:
        prior: "isotropic", or "g-prior": the same for standardised columns.
        groups: (D,) labels of the columns' groups, each with its own alpha; None: one group.
        prior_precision: alpha, kept; None: learnt.
        fit_intercept: an intercept with next to no prior.
        standardize: divide columns by their standard deviation, without touching X ("g-prior" implies it).
        solver: "exact", H formed and all in closed form; "block-cg", products alone; "auto": exact up to P = 1,000.
        predictive: how probabilities are averaged over the posterior: "monte-carlo" (an integral without draws for two
            classes) or "probit".
        num_samples: K posterior samples, at least 2.
        tol: relative change at which EM has settled; a tenth of it is the error allowed for mode and samples.
        max_iter: EM steps at most.
        random_state: of the samples.
        progress: show a bar on anything over two seconds.

    Attributes:
        classes_: (C,).
        coef_: (1, D) or (C, D) posterior mode.
        intercept_: (1,) or (C,).
        prior_precision_, effective_dimension_: float, or (G,) for groups.
        log_marginal_likelihood_: Laplace's log p(y) in nats.
        n_iter_: EM steps.
        report_: what was done, what it cost and how exact it is; ``print`` it.

    Example:
        >>> import sampla
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = sampla.BayesianLogisticRegression().fit(X, y)
        >>> clf.predict_proba(X[:4]).shape
        (4, 3)
    """

    def __init__(
        self,
        prior: str = "isotropic",
        *,
        groups: Any = None,
        prior_precision: float | None = None,
        fit_intercept: bool = True,
        standardize: bool = False,
        solver: str = "auto",
        predictive: str = "monte-carlo",
        num_samples: int = 64,
        tol: float = 1e-2,
        max_iter: int = 100,
        random_state: Any = None,
        progress: bool = True,
    ) -> None:
        self.prior = prior
        self.groups = groups
        self.prior_precision = prior_precision
        self.fit_intercept = fit_intercept
        self.standardize = standardize
        self.solver = solver
        self.predictive = predictive
        self.num_samples = num_samples
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state
        self.progress = progress

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "BayesianLogisticRegression":
        """Find the prior precision, the mode and the posterior samples.

        Args:
            X: (N, D) array, SciPy sparse matrix, torch tensor or np.memmap; or, without y, a re-iterable of (X, y)
                chunks with numbers as labels.
            y: (N,) labels of at least two classes.
            sample_weight: (N,) how often each row counts.

        Returns:
            self.

        Raises:
            ValueError: for shapes that do not fit, NaN or infinity, one class, or unknown names.
        """
        start = perf_counter()
        require_known(self.predictive, ("monte-carlo", "probit"), "predictive")
        settings = Settings.checked(self)
        progress = Progress(self.progress)
        source = self._opened(X, y, sample_weight)
        require(
            len(self.classes_) > 1,
            "at least two classes in y",
            f"one class: {self.classes_[:1].tolist()}",
            "Check the labels.",
        )
        outputs = 1 if len(self.classes_) == 2 else len(self.classes_)
        with deferred_interrupts(), freed_memory_kept():
            progress.enter("moments")
            moments = measure(source)
            settings.check_sizes(source.num_columns, outputs, moments.total)
            standardize = self.standardize or self.prior == "g-prior"
            group = settings.group(source.num_columns).to(source.device)
            columns = replace(columns_of(moments, self.fit_intercept, standardize, group), target_unit=1.0)
            data = RowData(source, _Targets(self._codes), progress)
            constants = _constants(outputs) if self.fit_intercept else None
            self._columns, self._design = columns, columns.design(source, outputs, constants)
            self._likelihood: Likelihood = Bernoulli() if outputs == 1 else Categorical()
            size = self._design.layout.total
            exact = settings.solver == "exact" or (settings.solver == "auto" and size <= _EXACT_UP_TO)
            run = self._exactly if exact else self._iteratively
            report = run(data, settings)
        limit = "at most" if exact else "above"
        choice = SolverChoice(
            exact, "primal", f"P = {size:,} is {limit} {_EXACT_UP_TO:,}" if settings.solver == "auto" else "asked for"
        )
        self.report_ = report.finished(moments.num_rows, source.num_columns, outputs, choice, perf_counter() - start)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """(n, C) class probabilities, averaged over the posterior."""
        check_is_fitted(self)
        if is_dask(X):
            whole: np.ndarray = predicted_by_part(self, "predict_proba", X)
            return whole
        probabilities = np.concatenate([self._averaged(p).double().cpu().numpy() for p in self._predictives(X)])
        return np.hstack([1 - probabilities, probabilities]) if len(self.classes_) == 2 else probabilities

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """(n, C) logarithms of ``predict_proba``."""
        logs: np.ndarray = np.log(self.predict_proba(X).clip(np.finfo(float).tiny))
        return logs

    def decision_function(self, X: Any) -> np.ndarray:
        """(n,) logits, or (n, C) logarithms, of the averaged probabilities: what ``predict`` decides by."""
        logs = self.predict_log_proba(X)
        decided: np.ndarray = logs[:, 1] - logs[:, 0] if len(self.classes_) == 2 else logs
        return decided

    def predict(self, X: Any) -> np.ndarray:
        """(n,) the most probable class of each row."""
        check_is_fitted(self)
        labels: np.ndarray
        if is_dask(X):
            labels = predicted_by_part(self, "predict", X)
            return labels
        labels = self.classes_[self.predict_proba(X).argmax(1)]
        return labels

    def sample_coef(self, n_samples: int = 1, random_state: Any = 0) -> tuple[np.ndarray, np.ndarray]:
        """Posterior draws of coefficients and intercepts: (S, C, D) and (S, C), C = 1 for two classes.

        Raises:
            ValueError: for more than ``num_samples``.
        """
        check_is_fitted(self)
        count = len(self._samples)
        fix = "Fit with a larger num_samples."
        require(n_samples <= count, f"at most num_samples = {count} draws", f"{n_samples}", fix)
        chosen = np.random.default_rng(seed_of(random_state)).permutation(count)[:n_samples]
        return self._in_users_units(self._mean + self._samples[chosen])

    def _opened(self, X: Any, y: Any, sample_weight: Any) -> Source:
        if is_chunks(X, y):
            chunks = chunk_source(self, X, sample_weight)
            found: set[float] = set()
            for _, targets, _ in chunks.chunks():
                assert targets is not None
                require(targets.shape[1] == 1, "labels (n,)", f"(n, {targets.shape[1]})", "Give class numbers.")
                found |= set(targets.unique().tolist())
            labels = np.array(sorted(found))
            self.classes_ = labels.astype(int) if (labels == labels.astype(int)).all() else labels
            self._codes = torch.tensor(labels)
            return chunks
        if is_dask(X):
            self.classes_ = labels_of(y) if is_dask(y) else np.unique(class_targets(self, y))
            self._codes = torch.arange(len(self.classes_), dtype=torch.float64)
            return dask_source(self, X, y, sample_weight, CodesOf(self.classes_))
        rows = checked_rows(self, X, reset=True)
        self.classes_, codes = np.unique(class_targets(self, y), return_inverse=True)
        self._codes = torch.arange(len(self.classes_), dtype=torch.float64)
        return array_source(rows, torch.from_numpy(codes.reshape(-1, 1)), sample_weight)

    def _exactly(self, data: RowData, settings: Settings) -> LinearReport:
        outputs = self._design.shape[1]
        # EM starts where the prior weighs as much as the data; ``Prior.starting`` leaves room for solvers that iterate.
        share = 1 / (2 * max(2, outputs)) * self._columns.total / 30
        level = torch.full((self._design.layout.total,), share, dtype=torch.float64, device=self._design.like.device)
        level[: self._columns.power.numel() * outputs] *= self._columns.power.repeat_interleave(outputs)
        prior = self._prior(settings).bind(self._design.layout, level)
        found = closed_laplace(
            data, self._columns, prior, self._likelihood, outputs, self._directions, settings.tol, settings.max_iter
        )
        samples = found.samples(settings.num_samples, seed_of(self.random_state))
        self._set_fitted(found.prior.precision, found.effective_dimension, found.mode, samples, found.steps)
        self._root = found.covariance_root().to(self._design.like)
        self._set_evidence(found.log_evidence)
        dimension = float(found.effective_dimension.sum())
        return LinearReport(found.passes, found.settled, found.steps, dimension, found.log_evidence)

    def _iteratively(self, data: RowData, settings: Settings) -> LinearReport:
        start = perf_counter()
        found = infer(
            LinearModel(self._design, self._likelihood, data), self._prior(settings), BlockCG(),
            num_samples=settings.num_samples, seed=seed_of(self.random_state), curvature_at="linear-mode",
            em=EM(
                tolerance=settings.tol, max_steps=settings.max_iter, mode_tolerance=settings.tol / 10,
                num_samples=min(32, settings.num_samples),
            ),
            tolerance=settings.tol / 10, log_evidence=True, say=data.progress.enter,
        )  # fmt: skip
        assert found.mean is not None
        self._set_fitted(found.prior.precision, found.effective_dimension, found.mean, found.samples, len(found.trace))
        self._set_evidence(float("nan") if found.log_evidence is None else found.log_evidence.value)
        certificate = build_report(found, data, {}, None, perf_counter() - start, settings.tol / 10)
        return LinearReport.of_iterative(in_users_units(certificate, self._columns), self.log_marginal_likelihood_)

    def _prior(self, settings: Settings) -> WithIntercept:
        group = settings.group(self._design.shape[0])
        return WithIntercept(group, settings.precision, len(self._directions), self._columns)

    def _set_fitted(self, precision: Tensor, gamma: Tensor, mode: Tensor, samples: Tensor, steps: int) -> None:
        """What both ways find: alpha and gamma (G,), mode (P,), samples (K, P); the intercept's group goes."""
        groups = len(precision) - self.fit_intercept
        alpha = (precision[:groups].cpu() / self._columns.precision_unit.cpu()).numpy()
        determined = gamma[:groups].cpu().numpy()
        self.prior_precision_ = float(alpha[0]) if groups == 1 else alpha
        self.effective_dimension_ = float(determined[0]) if groups == 1 else determined
        self._mean, self._samples = mode.to(self._design.like), samples.to(self._design.like)
        self._root = self._samples / len(samples) ** 0.5
        coefficients, intercepts = self._in_users_units(self._mean[None])
        self.coef_, self.intercept_ = coefficients[0], intercepts[0]
        self.n_iter_ = max(1, steps)

    def _set_evidence(self, evidence: float) -> None:
        """The constants' prior is only there to be proper: models are compared with a flat density of one instead."""
        self.log_marginal_likelihood_ = evidence - len(self._directions) * 0.5 * log(_INTERCEPT / (2 * pi))

    @property
    def _directions(self) -> Tensor:
        """(J, C) directions of the outputs along which there are constants; none without an intercept."""
        constants = self._design.constants
        return torch.zeros(0, self._design.shape[1]) if constants is None else constants.double()

    def _in_users_units(self, whole: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """(S, P) of standardised columns as (S, C, D) coefficients and (S, C) intercepts of X's own."""
        features, outputs = self._design.shape
        whole, columns = whole.double().cpu(), self._columns
        coefficients = whole[:, : features * outputs].view(-1, features, outputs).mT
        if columns.scale is not None:
            coefficients = coefficients / columns.scale.cpu()
        intercepts = whole[:, features * outputs :] @ self._directions.double().cpu()
        if columns.centre is not None:
            intercepts = intercepts - coefficients @ columns.centre.cpu()
        return coefficients.numpy(), intercepts.numpy()

    def _predictives(self, X: Any) -> list[Predictive]:
        check_is_fitted(self)
        source = array_source(checked_rows(self, X, reset=False), device=self._columns.power.device)
        both, outputs = torch.cat([self._mean[None], self._root]), self._design.shape[1]
        found = []
        for rows, _, _ in source.chunks(max(1, _AT_ONCE // (self._design.shape[0] + len(both) * outputs))):
            pushed = self._design.linearise((rows,)).jvp(both)
            found.append(Predictive(pushed[0], logit_deviations(pushed[1:]), self._likelihood, self.predictive))
        return found

    def _averaged(self, predictive: Predictive) -> Tensor:
        """(n, C) class probabilities, averaged over the Gaussian of the functions' values.

        Two classes ask for an integral in one dimension, which needs no draws; for more, draws come in pairs that lie
        opposite each other at the mode: their own mean would otherwise outweigh a mode that is small beside them.
        """
        if self.predictive == "probit":
            return predictive.probs
        if len(self.classes_) == 2:
            return expected_sigmoid(predictive.mean.double(), predictive.std.double())
        pairs = replace(predictive, num_draws=predictive.num_draws // 2)
        return (pairs.probs + replace(pairs, deviations=-pairs.deviations).probs) / 2

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _constants(outputs: int) -> Tensor:
    """(J, C): the one logit's own, or orthonormal contrasts, which is all that a softmax sees of C constants."""
    return torch.ones(1, 1) if outputs == 1 else torch.from_numpy(helmert(outputs))
