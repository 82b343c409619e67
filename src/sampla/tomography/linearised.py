"""Error bars for every pixel of a reconstruction: the deep image prior, linearised (Antoran et al. 2022).

y = T f(w) + noise has features T J and P >> m: parameters by far outnumber measurements (docs/method.md, section 11).
All is done over the m measurements in float64, because the noise is so far below what a scan sees that float32 would
hide much of what the data determine. Up to 2,000 of them their m x m matrix is formed, by m products, and EM, evidence
and samples are exact (``DenseDual``, ``EM(method="outputs")``); with more, Krylov spaces of it (``KrylovDual``).
"""

from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sampla.core.allocator import freed_memory_kept
from sampla.core.checks import require
from sampla.core.interrupts import deferred_interrupts
from sampla.core.journal import Journal
from sampla.core.params import ParameterLayout
from sampla.core.progress import Progress
from sampla.features import NetworkFeatures, check_adjoint, select_parameters
from sampla.inference.checkpointing import held, restore_state, save_state, saved_noise
from sampla.inference.infer import infer
from sampla.inference.report import FitReport, build_report
from sampla.inference.settings import EM
from sampla.inference.state import Inference
from sampla.likelihoods import Gaussian
from sampla.model import LinearModel
from sampla.priors import BoundPrior, GPrior
from sampla.solvers import DenseDual, KrylovDual, Solver
from sampla.tomography.dip import Recipe, Training, train, untrained
from sampla.tomography.image import ImagePredictive
from sampla.tomography.keeping import fingerprint, kept_diagonal, kept_training, operator_fingerprint
from sampla.tomography.operators import Operator, check_operator
from sampla.tomography.plan import Plan, plan
from sampla.tomography.prepared import Prepared, pixel_share, prepare
from sampla.tomography.projected import ProjectedFeatures, check_image
from sampla.tomography.saving import Saved, read, write
from sampla.tomography.tv import TotalVariation, solve_tv
from sampla.tomography.unet import fixed_input, unet_for

_DENSE_UP_TO = 2_000
"""m up to which the matrix of the measurements is formed, by m products."""
_OVER_MEASUREMENTS = (DenseDual, KrylovDual)
_SINGLE = ("mps",)
"""Devices without float64."""


class MeasuredGPrior(GPrior):
    """The g-prior with scales from a diagonal of M that was measured beforehand: the noise pass sees one datum only."""

    def __init__(self, diagonal: Tensor) -> None:
        """Args: diagonal: (P,) of M."""
        super().__init__()
        self._diagonal = diagonal

    def bind(self, layout: ParameterLayout, curvature_diagonal: Tensor) -> BoundPrior:
        measured = self._diagonal.to(curvature_diagonal)
        return super().bind(layout, measured.where(curvature_diagonal != 0, 0))  # zero there: rounding only


@dataclass(frozen=True)
class ImagePosterior:
    """The posterior of a fit, ready to predict."""

    features: ProjectedFeatures
    samples: Tensor
    """(K, P) zero-mean samples of the weights."""
    scale: float
    """Image units in one unit of the network's output."""
    pixel_noise: float
    """What the measurement noise would leave in one pixel if all others were known, in image units."""
    like: Tensor
    """An empty tensor of the type and on the device of images."""

    @property
    def mean(self) -> Tensor:
        """(H, W) the network's image."""
        return (self.features.image.outputs[0, 0] * self.scale).to(self.like)

    def predict_image(self) -> ImagePredictive:
        """Mean f(w) and K joint samples J z of the whole image, by K jvps."""
        deviations = (self.features.image_jvp(self.samples) * self.scale).to(self.like)
        return ImagePredictive.stabilised(self.mean, deviations)

    def predict_noise_only(self) -> ImagePredictive:
        """The same image with ``pixel_noise`` in every pixel: what a model without network uncertainty says."""
        return ImagePredictive.uniform(self.mean, self.pixel_noise)


class LinearisedDIP:
    """Reconstruct an image from few measurements, with joint samples of what else it might be.

    A U-Net is trained on the sinogram alone, from the image of least total variation (``dip.py``), linearised and given
    a g-prior whose precision EM finds together with the noise; then K posterior samples are drawn. Nothing is tuned for
    an image.

    Args:
        operator: T; ``ray_transform(geometry)``, ``MatrixOperator`` or ``FunctionOperator``.
        noise_std: standard deviation of the measurements, a number or one for each; None: seen in the sinogram for
            the training, and learnt by EM for the posterior.
        learn_noise: whether EM finds a common factor of ``noise_std``; by default only when that is None.
        num_samples: K, at least 2.
        seed: of the network and all noise.
        network: instead of the U-Net for the image's size; (1, 8, H, W) -> (1, 1, H, W).
        recipe: of the training.
        solver: for the samples; None: over the measurements in float64, ``DenseDual`` up to 2,000 of them, else
            ``KrylovDual``.
        em: when the loop over hyperparameters stops; None: over the measurements, ``EM(method="outputs")``.
        tolerance: error of the samples in the norm of the measurements. Smaller than for other models, because what
            the scan hardly sees counts for little there and for all in the image: the error of an image is larger,
            15 times where it was measured.
        max_passes: of the solve.
        progress: show bars.

    Raises:
        ValueError: for settings out of range, an operator whose products are not adjoint, or an image that the U-Net
            cannot halve.
    """

    def __init__(
        self,
        operator: Operator,
        noise_std: float | Tensor | None = None,
        learn_noise: bool | None = None,
        num_samples: int = 16,
        seed: int = 0,
        *,
        network: nn.Module | None = None,
        recipe: Recipe | None = None,
        solver: Solver[Any] | None = None,
        em: EM | None = None,
        tolerance: float = 0.002,
        max_passes: int = 200,
        progress: bool = True,
    ) -> None:
        require(num_samples >= 2, "num_samples of at least 2", f"{num_samples}", "16 to 64 are usual.")
        require(0 < tolerance < 1, "a tolerance in (0, 1)", f"{tolerance}", "The default is 0.002.")
        check_operator(operator)
        self.operator = operator
        self.noise_std = None if noise_std is None else torch.as_tensor(noise_std, dtype=torch.float64)
        self.learn_noise = noise_std is None if learn_noise is None else learn_noise
        self.network = (network or unet_for(operator.image_shape, seed)).to(operator.like)
        self.num_samples, self.seed, self.tolerance, self.max_passes = num_samples, seed, tolerance, max_passes
        few = operator.num_measurements <= _DENSE_UP_TO
        self.recipe, self.solver, self.em = recipe or Recipe(), solver or (DenseDual() if few else KrylovDual()), em
        self._progress = Progress(progress)

    training_: Training
    input_: Tensor
    """(1, 8, H, W) what the network makes its image from."""
    prior_: BoundPrior
    posterior_: ImagePosterior
    report_: FitReport
    plan_: Plan
    noise_std_: float
    """sigma: of every measurement, or the factor of ``noise_std`` where that is given for each."""

    def fit(
        self,
        sinogram: Tensor | np.ndarray,
        trained_on: Tensor | None = None,
        checkpoint: str | Path | None = None,
    ) -> "LinearisedDIP":
        """Train the network and find the posterior.

        Args:
            sinogram: (A, D), or any shape with m entries whose last axis runs along the detector; a real tensor or
                array of numbers.
            trained_on: the fixed input (1, 8, H, W) of a network that has been trained already, to images in units of
                ``prepare(sinogram).scale``: it is then left as it is. None: it is trained here.
            checkpoint: a folder for the trained network, the noise and the state after every EM step; a fit that finds
                them goes on there.

        Returns:
            self.

        Raises:
            ValueError: for a sinogram that does not fit the operator, is not finite or sees nothing, or a checkpoint
                of another fit.
        """
        begun = perf_counter()
        prepared = self.prepare(sinogram)
        tried = fixed_input(prepared.operator.image_shape, self.seed) if trained_on is None else trained_on
        with torch.no_grad():
            check_image(self.network(tried.to(prepared.operator.like)), prepared.operator)
        with deferred_interrupts(), freed_memory_kept(), held(checkpoint):
            given, training = self._trained(prepared, trained_on, checkpoint)
            self.input_ = given
            operator, network, measurements = prepared.operator, self.network, prepared.measurements
            if isinstance(self.solver, _OVER_MEASUREMENTS) and operator.like.device.type not in _SINGLE:
                operator, network = operator.widened(), deepcopy(network).double()
                given, measurements = given.double(), measurements.double()
            names, excluded = select_parameters(network, None)
            features = ProjectedFeatures(NetworkFeatures(network, names), operator, given, self._progress)
            adjoint = check_adjoint(features.linearise(given), features.layout.total, features.rounding)
            inference, self.plan_ = self._inferred(prepared, features, measurements, given, checkpoint)
            report = build_report(
                inference, inference.model.data, excluded, adjoint, perf_counter() - begun, self.tolerance
            )
            sigma = float(report.noise_precision) ** -0.5 * prepared.scale
            pixel = sigma * pixel_share(operator)
            self.training_, self.report_, self.prior_, self.noise_std_ = training, report, inference.prior, sigma
            self.posterior_ = ImagePosterior(features, inference.samples, prepared.scale, pixel, self.operator.like)
        return self

    def _trained(
        self, prepared: Prepared, trained_on: Tensor | None, checkpoint: str | Path | None
    ) -> tuple[Tensor, Training]:
        """The network's input and the record of its training, which is made here, found in the folder or left out."""
        operator, measurements, noise = prepared.operator, prepared.measurements, prepared.noise_std
        if trained_on is not None:
            given = trained_on.to(operator.like)
            return given, untrained(self.network, given, operator, measurements, noise)

        def make() -> tuple[Tensor, Training]:
            start = self._start(prepared)
            shown = None if start is None else start.image
            given = fixed_input(operator.image_shape, self.seed, shown).to(operator.like)
            return given, train(self.network, given, operator, measurements, noise, self.recipe, self._progress, start)

        asked = {
            "scan": fingerprint(measurements), "operator": operator_fingerprint(operator),
            "image": operator.image_shape, "noise": noise, "seed": self.seed, "recipe": asdict(self.recipe),
        }  # fmt: skip
        given, training = kept_training(checkpoint, self.network, asked, make)
        return given.to(operator.like), training

    def _inferred(
        self, prepared: Prepared, features: ProjectedFeatures, measurements: Tensor, given: Tensor,
        checkpoint: str | Path | None,
    ) -> tuple[Inference, Plan]:  # fmt: skip
        """The linear model's posterior."""
        residual = float((features.measured[0] - measurements).square().mean().sqrt())
        first = max(prepared.noise_std, residual) if self.learn_noise else prepared.noise_std
        self._progress.enter("diagonal of M")
        asked = {"network": fingerprint(features.image.outputs), "scan": fingerprint(measurements), "seed": self.seed}
        diagonal = kept_diagonal(checkpoint, asked, lambda: features.diagonal(self.seed))
        prior = MeasuredGPrior(diagonal.to(features.like.device) / first**2)
        over = isinstance(self.solver, _OVER_MEASUREMENTS)
        matrix = isinstance(self.solver, DenseDual)
        planned = plan(features.layout.total, prepared.operator, self.num_samples, self.em, over, matrix)
        identity = asked | {
            "solver": repr(self.solver), "type": [str(features.like.dtype), features.device.type],
            "em": planned.em.kind, "em_tolerance": planned.em.tolerance, "num_samples": self.num_samples,
            "noise": [first, self.learn_noise],
        }  # fmt: skip
        journal = Journal(checkpoint, lambda: identity)
        data = [(given, measurements.unsqueeze(0))]
        model = LinearModel(features, Gaussian(first**-2, learn=self.learn_noise), data, journal=journal)
        with journal.saved_on_failure():
            inference = infer(
                model, prior, self.solver, num_samples=self.num_samples, seed=self.seed, em=planned.em,
                tolerance=self.tolerance, max_passes=self.max_passes, say=self._progress.enter,
                noise=lambda draw: saved_noise(checkpoint, draw, identity, model),
                restore=lambda state: restore_state(checkpoint, state, identity),
                keep=lambda state: save_state(checkpoint, state, identity),
            )  # fmt: skip
        journal.end()
        return inference, planned

    def save(self, folder: str | Path) -> None:
        """Write the fit to one file in a folder (no pickle): network, samples, report and records; not the operator.

        Raises:
            ValueError: before a fit.
            OSError: if it cannot be written; an older file is as it was.
        """
        require("posterior_" in vars(self), "a fitted LinearisedDIP to save", "none", "Call fit first.")
        posterior, names = self.posterior_, ("learn_noise", "seed", "tolerance", "max_passes")
        facts = {
            "settings": {name: getattr(self, name) for name in names}, "recipe": asdict(self.recipe),
            "scale": posterior.scale, "pixel_noise": posterior.pixel_noise, "sigma": self.noise_std_,
            "training": asdict(self.training_), "report": self.report_.to_dict(),
        }  # fmt: skip
        saved = Saved(self.network, self.input_, posterior.features, posterior.samples, self.noise_std, facts)
        write(folder, saved, self.operator)

    @classmethod
    def load(cls, folder: str | Path, operator: Operator, network: nn.Module | None = None) -> "LinearisedDIP":
        """A fitted LinearisedDIP, without ``plan_`` and ``prior_``, which serve the fit alone.

        Args:
            folder: that ``save`` has written to.
            operator: the one of the fit; what is loaded goes to its device.
            network: of the architecture that was fitted, where that was not the U-Net; a copy of it gets the weights.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged, foreign or of a newer version, or belongs to another operator or network.
        """
        saved = read(folder, operator, network)
        facts = saved.facts
        dip = cls(
            operator, saved.noise_std, num_samples=len(saved.samples), network=saved.network,
            recipe=Recipe(**facts["recipe"]), **facts["settings"],
        )  # fmt: skip
        dip.training_, dip.report_ = Training(**facts["training"]), FitReport.from_dict(facts["report"])
        dip.input_, dip.noise_std_ = saved.given, facts["sigma"]
        dip.posterior_ = ImagePosterior(
            saved.features, saved.samples, facts["scale"], facts["pixel_noise"], operator.like
        )
        return dip

    def _start(self, prepared: Prepared) -> TotalVariation | None:
        """What the training starts from, in the network's units."""
        if self.recipe.start_steps == 0:
            return None
        return solve_tv(prepared.operator, prepared.measurements, prepared.noise_std, progress=self._progress)

    @property
    def start_(self) -> TotalVariation | None:
        """The image of least total variation that the training started from, in the network's units; None without."""
        known = self.training_.start
        return None if known is None else TotalVariation(self.input_[0, 0], **known)

    @property
    def reconstruction_(self) -> Tensor:
        """(H, W) the trained network's image."""
        return self.posterior_.mean

    def prepare(self, sinogram: Tensor | np.ndarray) -> Prepared:
        """What the network is trained on; ``prepare`` of this operator and noise.

        Raises:
            ValueError: for a sinogram that does not fit the operator, is not finite or sees nothing.
        """
        return prepare(self.operator, sinogram, self.noise_std, self.learn_noise)
