"""Error bars for every pixel without a network: total variation as a prior, by variational Bayes at its mode.

The mathematics is in ``reweighting.py``; the fit is kept in one file, images only.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any
from warnings import warn

import numpy as np
import torch
from torch import Tensor

from sampla.core import checkpoint as files
from sampla.core.checks import complain, one_of_each, require
from sampla.core.interrupts import deferred_interrupts
from sampla.core.progress import Progress
from sampla.features import check_adjoint
from sampla.inference.report import FitReport, build_report
from sampla.solvers import KrylovDual, Solver
from sampla.tomography.image import ImagePredictive
from sampla.tomography.keeping import fingerprint, kept_step, operator_fingerprint
from sampla.tomography.operators import Operator, check_operator
from sampla.tomography.prepared import Prepared, pixel_share, prepare
from sampla.tomography.reweighting import Reweighting, ReweightingStep, Scan, first
from sampla.tomography.saving import require_equal, require_kind, require_operator
from sampla.tomography.variational_plan import VariationalPlan, variational_plan

MISSED = 3.0
"""Misfit, in units of the noise, from which the user is warned."""
_FILE, _KIND, _VERSION = "variational.safetensors", "fit of total variation", 1


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
    spread_strength_: float
    """lambda of the covariance, per image unit: the same, or more where that opens more than the image shows."""
    misfit_: float
    """|T x - y| / (sqrt(m) sigma) of the image, sigma as given or as seen in the sinogram."""

    def plan(self) -> VariationalPlan:
        """The memory that a fit will need at most."""
        return variational_plan(self.operator, self.num_samples)

    def fit(self, sinogram: Tensor | np.ndarray, checkpoint: str | Path | None = None) -> "VariationalTV":
        """Find the weights, and samples of the posterior that they make.

        Args:
            sinogram: (A, D), or any shape with m entries whose last axis runs along the detector.
            checkpoint: folder in which every step of the weights is kept, three float64 images each; a fit that was
                stopped goes on from there, to the same result. None: nothing is kept.

        Returns:
            self. A ConvergenceWarning says if the weights have not settled, or a solve stopped short; another warning
            if the image misses the measurements by far more than their noise.

        Raises:
            ValueError: for a sinogram that does not fit the operator, is not finite or sees nothing, or a folder with
                another fit.
        """
        begun = perf_counter()
        prepared = prepare(self.operator, sinogram, self.noise_std, self.learn_noise)
        scan = Scan(prepared.operator.widened(), prepared.measurements.double())
        weights = self._reweighting(prepared, scan, checkpoint)
        with deferred_interrupts(), one_of_each(stacklevel=4):
            state, steps, settled = weights.learnt(first(scan, prepared.noise_std))
            features, inference = weights.solved(state, self.seed, self.num_samples, self.tolerance)
        missed = scan.operator.forward(state.image[None].to(scan.operator.like))[0] - scan.measurements
        self.misfit_ = float(missed.square().mean().sqrt()) / prepared.noise_std
        if self.misfit_ > MISSED:
            warn(
                f"The image misses the measurements by {self.misfit_:.1f} times their noise, and its error bars do not "
                "know why. Look for a mistake in the geometry (diagnose), or give noise_std if it is larger.",
                stacklevel=2,
            )
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
        self.noise_std_, self.strength_ = state.noise_std * scale, state.strength / scale
        self.spread_strength_ = state.spread_strength / scale
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

    def _reweighting(self, prepared: Prepared, scan: Scan, checkpoint: str | Path | None) -> Reweighting:
        asked = {
            "scan": fingerprint(scan.measurements), "operator": operator_fingerprint(self.operator),
            "image": self.operator.image_shape, "noise": [prepared.noise_std, self.learn_noise], "seed": self.seed,
            "solver": repr(self.solver), "tolerance": self.tolerance, "max_passes": self.max_passes,
        }  # fmt: skip
        if checkpoint is not None:
            Path(checkpoint).mkdir(parents=True, exist_ok=True)
        return Reweighting(
            scan, self.solver, self.learn_noise, self.seed, self.tolerance, self.max_steps, self.max_passes,
            self._progress, lambda number, make: kept_step(checkpoint, number, asked, make),
        )  # fmt: skip

    def save(self, folder: str | Path) -> None:
        """Write the fit to one file in a folder (no pickle): image, samples, report and records; not the operator.

        Raises:
            ValueError: before a fit.
            OSError: if it cannot be written; an older file is as it was.
        """
        require("posterior_" in vars(self), "a fitted VariationalTV to save", "none", "Call fit first.")
        posterior, operator = self.posterior_, self.operator
        tensors = {
            "mean": posterior.mean, "deviations": posterior.deviations,
            "measured": operator.forward(posterior.mean[None])[0],
        }  # fmt: skip
        if self.noise_std is not None:
            tensors["noise_std"] = self.noise_std.clone()
        facts = {
            "kind": _KIND, "version": _VERSION, "image_shape": operator.image_shape,
            "measurements": operator.num_measurements, "dtype": str(operator.like.dtype),
            "settings": {name: getattr(self, name) for name in _SETTINGS}, "pixel_noise": posterior.pixel_noise,
            "found": {name: getattr(self, name) for name in _FOUND}, "steps": [asdict(step) for step in self.steps_],
            "report": self.report_.to_dict(),
        }  # fmt: skip
        Path(folder).mkdir(parents=True, exist_ok=True)
        files.save(Path(folder) / _FILE, tensors, facts)

    @classmethod
    def load(cls, folder: str | Path, operator: Operator) -> "VariationalTV":
        """A fitted VariationalTV, with the default solver.

        Args:
            folder: that ``save`` has written to.
            operator: the one of the fit; what is loaded goes to its device.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged, foreign or of a newer version, or belongs to another operator.
        """
        path = Path(folder) / _FILE
        tensors, facts = files.load(path)
        require_kind(path, facts, _KIND, _VERSION, "VariationalTV")
        require_operator(path, operator, facts)
        mean, deviations = (tensors[name].to(operator.like) for name in ("mean", "deviations"))
        require_equal(
            operator.forward(mean[None])[0], tensors["measured"], f"the operator that {path} was fitted with",
            "Give the geometry of that scan.",
        )  # fmt: skip
        found = cls(operator, tensors.get("noise_std"), num_samples=len(deviations), **facts["settings"])
        found.posterior_ = PixelPosterior(mean, deviations, facts["pixel_noise"])
        found.report_ = FitReport.from_dict(facts["report"])
        found.steps_ = [ReweightingStep(**step) for step in facts["steps"]]
        for name, value in facts["found"].items():
            setattr(found, name, value)
        return found


_SETTINGS = ("learn_noise", "seed", "tolerance", "max_steps", "max_passes")
_FOUND = ("settled_", "noise_std_", "strength_", "spread_strength_", "misfit_")
