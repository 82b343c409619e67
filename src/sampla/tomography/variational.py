"""Error bars for every pixel without a network: total variation as a prior, by variational Bayes at its mode.

    p(x) ~ exp(-lambda sum_i |D_i x|),   y = T x + noise,   noise ~ N(0, sigma^2 I).

The image is the posterior's mode x, as few views leave it: its edges stay sharp, where the mean blurs them. For any
w_i > 0, |d| <= d^2 / (2 w_i) + w_i / 2, so that the prior is bounded by a Gaussian one with precisions lambda / w_i of
the differences (``differences.py``), under which the posterior is that of a linear model with a covariance C. Among the
Gaussians q = N(x, C) around the mode, that of the tightest bound has

    w_i^2 = E_q (D_i x)^2 = (D_i x)^2 + (D C D')_ii,    and    sigma^2 = E_q |T x - y|^2 / m

is the noise; by MacKay's |T x - y|^2 / (m - gamma), which ends there in far fewer steps. An edge loosens the prior
where it lies, and so does what the scan leaves open: error bars are wide there. Babacan, Molina and Katsaggelos 2008,
who move the mean of q too; samples by perturbation, Papandreou and Yuille 2010. E_q comes from K samples with new noise
at every step; their variances are averaged over the last ones. The mode is that of sum_i sqrt(d_i^2 + epsilon
(D C D')_ii), by the same bound (iterated reweighted least squares): rounded off far below a difference's deviation.

lambda is the one that predicts measurements best that were left out: every measurement in its turn has the density
N(r_i / (1 - h_i), sigma^2 / (1 - h_i)) with r = T x - y and the leverages h_i, which sum to gamma. With their mean,
h = gamma / m, that is generalised cross-validation (Golub, Heath and Wahba 1979) with a learnt noise:

    minimise   |r|^2 / (m sigma^2 (1 - h)) + log sigma^2 - log (1 - h).

The ladder of strengths starts at lambda = N / sum_i w_i for N pixels, the maximum of the bound itself, and rises as
long as this falls: a real image has far fewer edges than that prior, and its own maximum leaves error bars too wide.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf, log
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sampla.core.checks import complain, one_of_each, require
from sampla.core.interrupts import deferred_interrupts
from sampla.core.progress import Progress
from sampla.features import check_adjoint
from sampla.inference.infer import infer
from sampla.inference.report import FitReport, build_report
from sampla.inference.settings import EM
from sampla.inference.state import Inference
from sampla.likelihoods import Gaussian
from sampla.model import LinearModel
from sampla.priors import Isotropic
from sampla.solvers import KrylovDual, Solver, Status
from sampla.tomography.differences import DifferenceFeatures, DifferencePrior
from sampla.tomography.image import ImagePredictive
from sampla.tomography.mode import RoundedTV, towards_mode
from sampla.tomography.operators import Operator, check_operator
from sampla.tomography.prepared import Prepared, pixel_share, prepare
from sampla.tomography.tv import gradient

_ANCHOR = 1e-4
"""delta, in a scan's own units: a pixel alone has a standard deviation of a hundred times the image."""
_DRAWS, _ROUGH = 16, 0.1
"""Samples of a step, and their error, while the weights are still looked for."""
_SMOOTHING = 0.01
"""epsilon: a tenth of the deviation."""
_FIRST_MODE_STEPS, _MODE_STEPS, _LAST_MODE_STEPS = 12, 2, 100
"""Towards the mode, at the first step of the weights, at each other and, at most, after the last one."""
_FLAT = 0.1
"""Deviation of the differences, at first, for an image of about one."""
_RESTING = 0.1
"""Relative change of lambda at which the ladder begins."""
_RUNG, _STEPS = 2**0.5, 3
"""Between two strengths, and steps at each."""
_WORSE = 2
"""Rungs above the best before the ladder ends."""
_FRESH, _LAST, _KEPT = 8, 16, 0.75
"""Steps at the chosen strength with nothing but their own variances, steps in all there, at least, and the share of the
variances so far in the average of the others."""
_SETTLED = 0.01
"""Relative change of sigma over a step at which the weights have settled."""


@dataclass(frozen=True)
class ReweightingStep:
    """One step of the weights."""

    strength: float
    """lambda, in a scan's own units."""
    noise_std: float
    """sigma, in a scan's own units."""
    change: float
    """Of the mean image, relative."""
    score: float
    """What the ladder minimises."""
    solved: bool
    """Whether the samples it was made from were as accurate as they should be."""
    seconds: float


@dataclass(frozen=True)
class _State:
    """What the next Gaussian prior is made of."""

    variance: Tensor
    """(2, H, W) of the differences, under q."""
    image: Tensor
    """(H, W) the mode."""
    strength: float
    noise_std: float
    score: float = inf
    solved: bool = True

    @property
    def widths(self) -> Tensor:
        """(2, H, W) w."""
        return (gradient(self.image).square() + self.variance).sqrt()


@dataclass(frozen=True)
class PixelPosterior:
    """The posterior of a fit, ready to predict: a Gaussian around the mode."""

    mean: Tensor
    """(H, W) the mode, around which the Gaussian lies."""
    deviations: Tensor
    """(K, H, W) zero-mean joint samples."""
    pixel_noise: float
    """What the measurement noise would leave in one pixel if all others were known, in image units."""

    def predict_image(self) -> ImagePredictive:
        """Mean and samples with their scores."""
        return ImagePredictive.stabilised(self.mean, self.deviations)

    def predict_noise_only(self) -> ImagePredictive:
        """The same image with ``pixel_noise`` in every pixel: what a model without other uncertainty says."""
        return ImagePredictive.uniform(self.mean, self.pixel_noise)


class VariationalTV:
    """Reconstruct an image from few measurements, with joint samples of what else it might be, by total variation.

    Args:
        operator: T; ``ray_transform(geometry)``, ``MatrixOperator`` or ``FunctionOperator``.
        noise_std: standard deviation of the measurements, a number or one for each; None: learnt.
        learn_noise: whether a common factor of ``noise_std`` is learnt; by default only when that is None.
        num_samples: K, at least 2; the map of deviations is right to 1 / sqrt(2 K), and more cost little.
        seed: of all noise.
        solver: for the samples; None: ``KrylovDual``, whose space grows to all measurements where it must.
        tolerance: error of the samples in the norm of the measurements.
        max_steps: of the weights, at most.
        max_passes: of each solve.
        progress: show bars.

    Raises:
        ValueError: for settings out of range, or an operator whose products are not adjoint.
    """

    def __init__(
        self,
        operator: Operator,
        noise_std: float | Tensor | None = None,
        learn_noise: bool | None = None,
        num_samples: int = 128,
        seed: int = 0,
        *,
        solver: Solver[Any] | None = None,
        tolerance: float = 0.01,
        max_steps: int = 80,
        max_passes: int = 1000,
        progress: bool = True,
    ) -> None:
        require(num_samples >= 2, "num_samples of at least 2", f"{num_samples}", "64 to 256 are usual.")
        require(0 < tolerance < 1, "a tolerance in (0, 1)", f"{tolerance}", "The default is 0.01.")
        require(max_steps >= 1, "at least one step", f"{max_steps}", "The default is 80.")
        check_operator(operator)
        self.operator = operator
        self.noise_std = None if noise_std is None else torch.as_tensor(noise_std, dtype=torch.float64)
        self.learn_noise = noise_std is None if learn_noise is None else learn_noise
        self.num_samples, self.seed, self.tolerance = num_samples, seed, tolerance
        self.max_steps, self.max_passes = max_steps, max_passes
        self.solver = solver or KrylovDual()
        self._progress = Progress(progress)

    posterior_: PixelPosterior
    report_: FitReport
    steps_: list[ReweightingStep]
    """What every step of the weights found."""
    settled_: bool
    """Whether the weights had settled before the steps were used up."""
    noise_std_: float
    """sigma: of every measurement, or the factor of ``noise_std`` where that is given for each."""
    strength_: float
    """lambda, per image unit."""
    misfit_: float
    """|T x - y| / (sqrt(m) sigma) of the image, sigma as given or as seen in the sinogram."""

    def fit(self, sinogram: Tensor | np.ndarray) -> "VariationalTV":
        """Find the weights, and samples of the posterior that they make.

        Args:
            sinogram: (A, D), or any shape with m entries whose last axis runs along the detector.

        Returns:
            self. A ConvergenceWarning says if the weights have not settled, or a solve stopped short.

        Raises:
            ValueError: for a sinogram that does not fit the operator, is not finite or sees nothing.
        """
        begun = perf_counter()
        prepared = prepare(self.operator, sinogram, self.noise_std, self.learn_noise)
        scan = _Scan(prepared.operator.widened(), prepared.measurements.double())
        with deferred_interrupts(), one_of_each(stacklevel=4):
            state, steps, settled = self._learnt(scan, _first(prepared, scan))
            state = self._towards_mode(scan, state, _LAST_MODE_STEPS)
            features, inference = self._solved(scan, state, self.seed, self.num_samples, self.tolerance)
        if not (settled and state.solved):
            fix = "Give max_steps more." if state.solved else "The image is not at its mode yet: give max_passes more."
            fix = fix if steps[-1].solved else "Samples were inaccurate: is the noise far too small?"
            text = f"The weights of total variation have not settled in {len(steps)} steps. {fix}"
            complain("variational total variation", steps[-1].change, text)
        adjoint = check_adjoint(features.linearise(scan.datum), features.layout.total, features.rounding)
        seconds = perf_counter() - begun
        report = build_report(inference, inference.model.data, {}, adjoint, seconds, self.tolerance)
        deviations = features.prior.root_product(inference.samples)
        scale, like = prepared.scale, self.operator.like
        missed = scan.operator.forward(state.image[None].to(scan.operator.like))[0] - scan.measurements
        self.misfit_ = float(missed.square().mean().sqrt()) / prepared.noise_std
        self.noise_std_, self.strength_ = state.noise_std * scale, state.strength / scale
        # the noise in the sinogram's units; the Gaussian's own mean is not the image
        self.report_ = replace(report, noise_precision=self.noise_std_**-2, mean_error=None)
        pixel_noise = self.noise_std_ * pixel_share(prepared.operator)
        self.posterior_ = PixelPosterior((state.image * scale).to(like), (deviations * scale).to(like), pixel_noise)
        self.steps_, self.settled_ = steps, settled
        return self

    @property
    def reconstruction_(self) -> Tensor:
        """(H, W) the posterior mode."""
        return self.posterior_.mean

    def _learnt(self, scan: "_Scan", state: _State) -> tuple[_State, list[ReweightingStep], bool]:
        """The last state, the record of every step, and whether the weights have settled."""
        self._progress.enter("weights of total variation")
        steps: list[ReweightingStep] = []
        bar = self._progress.sweep(range(self.max_steps), self.max_steps)

        def step(before: _State, strength: float | None, kept: float = 0.0) -> _State:
            begun, _ = perf_counter(), next(bar)
            after = self._reweighted(scan, before, strength, kept, self.seed + len(steps) + 1)
            moved = float((after.image - before.image).norm() / after.image.norm())
            steps.append(
                ReweightingStep(
                    after.strength, after.noise_std, moved, after.score, after.solved, perf_counter() - begun
                )
            )
            return after

        before, state = state, step(state, None)
        while _change(state.strength, before.strength) > _RESTING and len(steps) < self.max_steps:
            before, state = state, step(state, None)
        state = self._ladder(state, step, steps)
        averaged = 0
        while len(steps) < self.max_steps and (averaged < _LAST or _moves(state, before)):
            kept = _KEPT if averaged >= _FRESH else 0.0
            before, state, averaged = state, step(state, state.strength, kept), averaged + 1
        return state, steps, averaged >= _LAST and not _moves(state, before) and state.solved

    def _ladder(self, state: _State, step: Callable[..., _State], steps: list[ReweightingStep]) -> _State:
        """The state on the best rung, its strength moved to the least of a parabola through it and its neighbours."""
        rungs = [state]
        while len(steps) < self.max_steps:
            best = min(range(len(rungs)), key=lambda n: rungs[n].score)
            if len(rungs) - 1 - best >= _WORSE:
                break
            strength = rungs[-1].strength * _RUNG
            for _ in range(min(_STEPS, self.max_steps - len(steps))):
                state = step(state, strength)
            rungs.append(state)
        best = min(range(len(rungs)), key=lambda n: rungs[n].score)
        found = rungs[best]
        if 0 < best < len(rungs) - 1:
            below, at, above = (rungs[n].score for n in (best - 1, best, best + 1))
            found = replace(found, strength=found.strength * _RUNG ** ((below - above) / (below - 2 * at + above) / 2))
        return found

    def _reweighted(self, scan: "_Scan", state: _State, strength: float | None, kept: float, seed: int) -> _State:
        """Weights and noise from samples at those of the state; without a strength that from which the ladder rises."""
        at = state if strength is None else replace(state, strength=strength)
        at = self._towards_mode(scan, at, _FIRST_MODE_STEPS if state.score == inf else _MODE_STEPS)
        features, inference = self._solved(scan, at, seed, _DRAWS, _ROUGH)
        image, deviations = at.image, features.prior.root_product(inference.samples)
        fresh = torch.stack([gradient(one).square() for one in deviations]).mean(0)
        variance = kept * state.variance + (1 - kept) * fresh
        like, count = scan.operator.like, len(scan.measurements)
        missed = float((scan.operator.forward(image[None].to(like))[0] - scan.measurements).square().sum())
        spread = float(scan.operator.forward(deviations.to(like)).square().sum(1).mean())
        free = max(1 - spread / at.noise_std**2 / count, 1 / count)
        score = missed / count / at.noise_std**2 / free + 2 * log(at.noise_std) - log(free)
        noise = (missed / count / free) ** 0.5 if self.learn_noise else at.noise_std
        solved = inference.solution.status is Status.CONVERGED
        after = _State(variance, image, at.strength, noise, score, solved)
        return after if strength is not None else replace(after, strength=image.numel() / float(after.widths.sum()))

    def _towards_mode(self, scan: "_Scan", state: _State, steps: int) -> _State:
        """The mode at the state's strength, noise and variances, or nearer to it; unsolved if it is not reached."""
        density = RoundedTV(
            scan.operator, scan.measurements, state.noise_std, state.strength, _SMOOTHING * state.variance, _ANCHOR
        )
        image, reached = towards_mode(density, state.image, steps, self.tolerance, self.max_passes)
        return replace(state, image=image, solved=reached)

    def _solved(
        self, scan: "_Scan", state: _State, seed: int, num_samples: int, tolerance: float
    ) -> tuple[DifferenceFeatures, Inference]:
        """Posterior samples under the Gaussian prior of the present weights."""
        features = DifferenceFeatures(scan.operator, _prior(state, state.widths))
        data = [(scan.datum, scan.measurements.to(features.like.device)[None])]
        model = LinearModel(features, Gaussian(state.noise_std**-2, learn=False), data)
        inference = infer(
            model, Isotropic(1.0, learn=False), self.solver, num_samples=num_samples, seed=seed, em=EM(),
            tolerance=tolerance, max_passes=self.max_passes, log_evidence=False,
        )  # fmt: skip
        return features, inference


@dataclass(frozen=True)
class _Scan:
    operator: Operator
    """T, on vectors of float64."""
    measurements: Tensor
    """(m,)."""

    @property
    def datum(self) -> Tensor:
        """The only one: what stands for the inputs of the linear model."""
        return torch.zeros(1, 1, dtype=torch.float64)


def _first(prepared: Prepared, scan: _Scan) -> _State:
    """A flat image of one, whose differences have about a tenth of it as their deviation, and the strength of that."""
    variance = torch.full((2, *scan.operator.image_shape), _FLAT**2, dtype=torch.float64)
    image = torch.ones(scan.operator.image_shape, dtype=torch.float64)
    return _State(variance, image, 1 / (2 * _FLAT), prepared.noise_std)


def _prior(state: _State, widths: Tensor) -> DifferencePrior:
    return DifferencePrior(state.strength / widths.clamp_min(torch.finfo(torch.float64).tiny), _ANCHOR)


def _change(now: float, before: float) -> float:
    return abs(now / before - 1)


def _moves(now: _State, before: _State) -> bool:
    """Whether the noise still changes from step to step."""
    return _change(now.noise_std, before.noise_std) > _SETTLED
