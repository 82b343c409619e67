"""Tomography: operators, the deep image prior, and error bars for every pixel of a reconstruction."""

from sampla.tomography.diagnosis import Diagnosis, Reading, diagnose, estimated_centre
from sampla.tomography.dip import Recipe, Training, noise_seen, train
from sampla.tomography.fbp import filtered_back_projection
from sampla.tomography.geometry import Geometry
from sampla.tomography.image import PATCH_SIZES, ImagePredictive
from sampla.tomography.linearised import ImagePosterior, LinearisedDIP
from sampla.tomography.operators import FunctionOperator, MatrixOperator, Operator, Whitened
from sampla.tomography.prepared import Prepared
from sampla.tomography.projected import ProjectedFeatures
from sampla.tomography.rays import ray_transform
from sampla.tomography.reweighting import ReweightingStep
from sampla.tomography.scores import ImageScores, psnr_ssim, score
from sampla.tomography.tv import TotalVariation, solve_tv, tv_reconstruction
from sampla.tomography.unet import UNet, fixed_input, unet_for
from sampla.tomography.variational import PixelPosterior, VariationalTV
from sampla.tomography.variational_plan import VariationalPlan

__all__ = [
    "PATCH_SIZES",
    "Diagnosis",
    "FunctionOperator",
    "Geometry",
    "ImagePosterior",
    "ImagePredictive",
    "ImageScores",
    "LinearisedDIP",
    "MatrixOperator",
    "Operator",
    "PixelPosterior",
    "Prepared",
    "ProjectedFeatures",
    "Reading",
    "Recipe",
    "ReweightingStep",
    "TotalVariation",
    "Training",
    "UNet",
    "VariationalPlan",
    "VariationalTV",
    "Whitened",
    "diagnose",
    "estimated_centre",
    "filtered_back_projection",
    "fixed_input",
    "noise_seen",
    "psnr_ssim",
    "ray_transform",
    "score",
    "solve_tv",
    "train",
    "tv_reconstruction",
    "unet_for",
]
