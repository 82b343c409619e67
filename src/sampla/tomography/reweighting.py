"""The Gaussian that bounds total variation most tightly around its mode, found by reweighting, and its strength.

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
h = gamma / m, that is generalised cross-validation (Golub, Heath and Wahba 1979) with a learnt noise. Errors that
neighbouring bins share pass there for something that can be predicted, and the image gets too rough. Kim and Gu (2004)
count the leverages c = 1.2 to 1.4 times therefore; so that h may come near one, it is their logarithm here, c = 1.2:

    minimise   |r|^2 / (m sigma^2 (1 - h)^c) + log sigma^2 - c log (1 - h).

What is tried is kappa = lambda sigma^2, the weight of the prior against the measurements, on which alone the mode
depends. At a given lambda a noise that grows smooths the image, which leaves more to be noise, and so on to a flat one;
at a given kappa it is what the mode leaves. Weights far apart are tried from strong to weak, since a smooth image is
found soonest and the next begins with it, until the score rises; then a ladder of others near the best, and the least
of a parabola through their scores. What predicts bins says little of pixels that are smaller by far: around that mode
the covariance has the lambda = N / sum_i w_i, for N pixels, at which the bound is largest, where that is the larger
one. (With the mode free this holds at almost every lambda, and chooses none.)
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import inf, log
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sampla.core.progress import Progress
from sampla.inference.infer import infer
from sampla.inference.settings import EM
from sampla.inference.state import Inference
from sampla.likelihoods import Gaussian
from sampla.model import LinearModel
from sampla.priors import Isotropic
from sampla.solvers import Solver, Status
from sampla.tomography.differences import DifferenceFeatures, DifferencePrior
from sampla.tomography.keeping import Kept, Made
from sampla.tomography.mode import RoundedTV, towards_mode
from sampla.tomography.operators import Operator
from sampla.tomography.tv import gradient

_ANCHOR = 1e-4
"""delta, in a scan's own units: a pixel alone has a standard deviation of a hundred times the image."""
_DRAWS, _ROUGH = 16, 0.1
"""Samples of a step, and their error, while the weights are still looked for."""
_SMOOTHING = 0.01
"""epsilon: a tenth of the deviation."""
_FAR_MODE_STEPS, _MODE_STEPS, _LAST_MODE_STEPS = 12, 2, 100
"""Towards the mode, at most, at a step after a change by so much, at each other and after the last one."""
_TIGHT = 0.1
"""Deviation of the differences, at first, for an image of about one."""
_FAR = 4.0
"""Between two weights far apart."""
_RUNG, _STEPS = 2**0.5, 3
"""Between two weights, or strengths of the covariance, and steps at each."""
_COUNTED = 1.2
"""c: how many times leverages count."""
_WORSE = 2
"""Rungs beyond the best before the ladder ends, and from which its parabola is."""
_FRESH = 8
"""Steps at the chosen weight, at least, until the noise has settled."""
_AVERAGED, _KEPT = 8, 0.75
"""Last steps, at the mode, and the share of the variances so far in the average with their own."""
_SETTLED = 0.01
"""Relative change of sigma over a step at which the weights have settled."""


@dataclass(frozen=True)
class ReweightingStep:
    """One step of the weights."""

    strength: float
    """lambda of the mode, in a scan's own units."""
    spread_strength: float
    """lambda of the covariance."""
    noise_std: float
    """sigma, in a scan's own units."""
    change: float
    """Of the mode, relative."""
    score: float
    """What is least at the chosen weight."""
    solved: bool
    """Whether the samples it was made from were as accurate as they should be."""
    seconds: float


@dataclass(frozen=True)
class State:
    """What the next Gaussian prior is made of."""

    variance: Tensor
    """(2, H, W) of the differences, under q."""
    image: Tensor
    """(H, W) the mode."""
    strength: float
    """lambda of the mode."""
    spread_strength: float
    """lambda of the covariance."""
    noise_std: float
    score: float = inf
    solved: bool = True

    @property
    def widths(self) -> Tensor:
        """(2, H, W) w."""
        return (gradient(self.image).square() + self.variance).sqrt()

    @property
    def weight(self) -> float:
        """kappa = lambda sigma^2."""
        return self.strength * self.noise_std**2

    def weighing(self, weight: float) -> "State":
        """The same with a prior of that kappa."""
        return self.at(weight / self.noise_std**2)

    @property
    def likeliest(self) -> float:
        """The lambda at which the bound is largest."""
        return self.image.numel() / float(self.widths.sum())

    def at(self, strength: float) -> "State":
        """The same at another strength of both."""
        return replace(self.spread_at(strength), strength=strength)

    def spread_at(self, strength: float) -> "State":
        """The same at another strength of the covariance: where no bin sees, deviations are as 1 / lambda."""
        share = (self.spread_strength / strength) ** 2
        return replace(self, spread_strength=strength, variance=self.variance * share)


@dataclass(frozen=True)
class Scan:
    operator: Operator
    """T, on vectors of float64."""
    measurements: Tensor
    """(m,)."""

    @property
    def datum(self) -> Tensor:
        """The only one: what stands for the inputs of the linear model."""
        return torch.zeros(1, 1, dtype=torch.float64)


@dataclass(frozen=True)
class Reweighting:
    """What the weights are looked for with."""

    scan: Scan
    solver: Solver[Any]
    learn_noise: bool
    seed: int
    tolerance: float
    max_steps: int
    max_passes: int
    progress: Progress
    kept: Callable[[int, Made], Kept]
    """The step of a number: as a fit that was stopped has kept it, or made."""

    def learnt(self, state: State) -> tuple[State, list[ReweightingStep], bool]:
        """The last state at its mode, the record of every step, and whether the weights have settled."""
        self.progress.enter("weights of total variation")
        steps: list[ReweightingStep] = []
        bar = self.progress.sweep(range(self.max_steps), self.max_steps)

        def step(before: State, kept: float = 0.0, towards: int = _MODE_STEPS) -> State:
            next(bar)

            def make() -> Kept:
                begun = perf_counter()
                after = self._reweighted(before, kept, towards, self.seed + len(steps) + 1)
                moved = float((after.image - before.image).norm() / after.image.norm())
                record = ReweightingStep(
                    after.strength, after.spread_strength, after.noise_std, moved, after.score, after.solved,
                    perf_counter() - begun,
                )  # fmt: skip
                return {"variance": after.variance, "image": after.image}, asdict(record)

            tensors, found = self.kept(len(steps), make)
            steps.append(ReweightingStep(**found))
            told = steps[-1]
            return State(
                tensors["variance"], tensors["image"], told.strength, told.spread_strength, told.noise_std, told.score,
                told.solved,
            )  # fmt: skip

        before = state = self._ladder(self._far(state, step, steps), step, steps)
        weight, fresh = state.weight, 0
        while len(steps) < self.max_steps and (fresh < _FRESH or _moves(state, before)):
            before, state, fresh = state, step(state.weighing(weight)), fresh + 1
        state = state.weighing(weight)
        at_mode = self._towards_mode(state, _LAST_MODE_STEPS)
        state, averaged = self._spread(at_mode, step, steps), 0
        while len(steps) < self.max_steps and averaged < _AVERAGED:
            state, averaged = step(state, _KEPT, 0), averaged + 1
        settled = averaged >= _AVERAGED and not _moves(at_mode, before) and state.solved
        return replace(state, solved=at_mode.solved), steps, settled

    def _far(self, state: State, step: Callable[..., State], steps: list[ReweightingStep]) -> State:
        """The state at the best of weights far apart, from strong to weak."""
        best, weight = state, state.weight
        while len(steps) < self.max_steps:
            for towards in (_FAR_MODE_STEPS, _MODE_STEPS)[: self.max_steps - len(steps)]:
                state = step(state.weighing(weight), towards=towards)
            if state.score >= best.score:
                break
            best, weight = state, weight / _FAR
        return best

    def _ladder(self, state: State, step: Callable[..., State], steps: list[ReweightingStep]) -> State:
        """The state on the best rung, its weight moved to the least of a parabola through it and those near it."""

        def settled(state: State, weight: float) -> State:
            for _ in range(min(_STEPS, self.max_steps - len(steps))):
                state = step(state.weighing(weight))
            return state.weighing(weight)

        middle, best = state.weight, 0
        rungs = {0: settled(state, middle)}
        for way in (1, -1):  # down only where nothing above is better
            state, rung = rungs[0], 0
            while way * (best - rung) > -_WORSE and way * best >= 0 and len(steps) < self.max_steps:
                rung += way
                state = rungs[rung] = settled(state, middle * _RUNG**rung)
                best = min(rungs, key=lambda n: rungs[n].score)
        near = {rung: state.score for rung, state in rungs.items() if abs(rung - best) <= _WORSE}
        return rungs[best].weighing(rungs[best].weight * _RUNG ** _lowest(near, best))

    def _spread(self, state: State, step: Callable[..., State], steps: list[ReweightingStep]) -> State:
        """The state with the larger lambda of its covariance: the mode's, or that of the largest bound."""
        above = log(state.likeliest / state.spread_strength)
        while above > 0 and len(steps) < self.max_steps:
            before, missing = state, above
            state = state.spread_at(state.spread_strength * _RUNG)
            for _ in range(min(_STEPS, self.max_steps - len(steps))):
                state = step(state, towards=0)
            above = log(state.likeliest / state.spread_strength)
            if above < 0:
                state = state.spread_at(before.spread_strength * _RUNG ** (missing / (missing - above)))
        return state

    def _reweighted(self, state: State, kept: float, towards: int, seed: int) -> State:
        """Weights from samples, and the noise where it took steps towards the mode first."""
        at = self._towards_mode(state, towards)
        features, inference = self.solved(at, seed, _DRAWS, _ROUGH)
        image, deviations = at.image, features.prior.root_product(inference.samples)
        fresh = torch.stack([gradient(one).square() for one in deviations]).mean(0)
        variance = kept * state.variance + (1 - kept) * fresh
        scan, count = self.scan, len(self.scan.measurements)
        like = scan.operator.like
        missed = float((scan.operator.forward(image[None].to(like))[0] - scan.measurements).square().sum())
        spread = float(scan.operator.forward(deviations.to(like)).square().sum(1).mean())
        free = max(1 - spread / at.noise_std**2 / count, 1 / count)
        score = missed / count / at.noise_std**2 / free**_COUNTED + 2 * log(at.noise_std) - _COUNTED * log(free)
        noise = (missed / count / free) ** 0.5 if self.learn_noise and towards else at.noise_std
        solved = inference.solution.status is Status.CONVERGED
        return replace(at, variance=variance, noise_std=noise, score=score, solved=solved)

    def _towards_mode(self, state: State, steps: int) -> State:
        """The mode at the state's strength, noise and variances, or nearer to it; unsolved if it is not reached."""
        scan, rounding = self.scan, _SMOOTHING * state.variance
        density = RoundedTV(scan.operator, scan.measurements, state.noise_std, state.strength, rounding, _ANCHOR)
        image, reached = towards_mode(density, state.image, steps, self.tolerance, self.max_passes)
        return replace(state, image=image, solved=reached)

    def solved(
        self, state: State, seed: int, num_samples: int, tolerance: float
    ) -> tuple[DifferenceFeatures, Inference]:
        """Posterior samples under the Gaussian prior of the present weights."""
        scan, features = self.scan, DifferenceFeatures(self.scan.operator, _prior(state, state.widths))
        data = [(scan.datum, scan.measurements.to(features.like.device)[None])]
        model = LinearModel(features, Gaussian(state.noise_std**-2, learn=False), data)
        inference = infer(
            model, Isotropic(1.0, learn=False), self.solver, num_samples=num_samples, seed=seed, em=EM(),
            tolerance=tolerance, max_passes=self.max_passes, log_evidence=False,
        )  # fmt: skip
        return features, inference


def first(scan: Scan, noise_std: float) -> State:
    """A flat image of one, whose differences have about as much as their deviation, and the strength of that."""
    variance = torch.full((2, *scan.operator.image_shape), _TIGHT**2, dtype=torch.float64)
    image = torch.ones(scan.operator.image_shape, dtype=torch.float64)
    strength = 1 / (2 * _TIGHT)
    return State(variance, image, strength, strength, noise_std)


def _lowest(scores: dict[int, float], best: int) -> float:
    """How far from the best rung the least score is expected, at most one: of the parabola nearest to all of them."""
    if not {best - 1, best, best + 1} <= scores.keys():
        return 0.0
    bent, slope, _ = np.polyfit([rung - best for rung in scores], list(scores.values()), 2)
    return float(min(max(-slope / (2 * bent), -1.0), 1.0)) if bent > 0 else 0.0


def _prior(state: State, widths: Tensor) -> DifferencePrior:
    return DifferencePrior(state.spread_strength / widths.clamp_min(torch.finfo(torch.float64).tiny), _ANCHOR)


def _change(now: float, before: float) -> float:
    return abs(now / before - 1)


def _moves(now: State, before: State) -> bool:
    """Whether the noise still changes from step to step."""
    return _change(now.noise_std, before.noise_std) > _SETTLED
