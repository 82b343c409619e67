"""What an experiment is made of, and how large a run of it is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from experiments.common.images import Data, Shift
from experiments.common.training import Swag


@dataclass(frozen=True)
class Settings:
    """The size of a run; written into results.json, and a run with other settings starts another file."""

    images: int  # N, which every posterior is fitted to
    held_out: int
    test: int
    shifted: int  # the first so many test images make up the rotated or corrupted sets
    foreign: int  # images of each foreign set
    samples: int  # K of every method that samples
    swag: Swag
    draws: int = 512  # functions in a Monte Carlo average over a Gaussian with the covariance of K samples
    ensemble: int = 0  # members; 0: none
    reference_samples: int = 0  # K of the exact-quality reference; 0: none
    reference_tolerance: float = 1e-3
    laplace_batch: int = 8  # images whose Jacobians laplace-torch forms at once: its cost per image grows with them
    own_predictions: bool = True  # whether a library's own predictions are scored: Jacobians of the test images
    ella_points: int = 500  # training images in ELLA's Nystrom basis
    ella_rank: int = 100
    seed: int = 0

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Settings":
        """The inverse of ``dataclasses.asdict``."""
        return cls(**values | {"swag": Swag(**values["swag"])})


@dataclass(frozen=True)
class Experiment:
    """What is compared on which images; its page is in experiments/results/NAME."""

    name: str  # of its module in this package
    title: str
    introduction: str  # Markdown: what the network is, what is fitted to what; figures come from the run
    load: Callable[[Path, Settings], Data]
    architecture: Callable[[], nn.Module]
    """The network with whatever weights."""
    trained: Callable[[Data, Settings, Path | None, int], tuple[nn.Module, dict[str, Any]]]
    """Images, size, checkpoint, number of the ensemble's member -> trained network, what is to be said of it."""
    shifts: Callable[[Settings], tuple[Shift, ...]]
    methods: tuple[str, ...]  # keys of ``registry.METHODS``, in the order of the tables
    full: Settings
    quick: Settings
    checkpoint: str = ""  # the file that --checkpoints holds; empty: the experiment trains its network
    classes: int = 10
    scale_to: int | None = None  # training images that a fit would have, for the note on scaling
    angles: bool = False  # whether the first shift is the rotation that is drawn


@dataclass(frozen=True)
class Task:
    """What a method is given: a trained network in evaluation mode, and the ensemble whose first member it is."""

    network: nn.Module
    members: tuple[nn.Module, ...]
    data: Data
    settings: Settings
    fits: Path | None = None  # where fits of this state of sampla are kept, so that one that is cut off goes on
