"""What an experiment is made of, and how large a run of it is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from experiments.common.images import Data, Images, Shift
from experiments.common.training import Swag


@dataclass(frozen=True)
class Settings:
    """The size of a run; written into results.json, and a run with other settings starts another file."""

    images: int
    """N, which every posterior is fitted to."""
    held_out: int
    test: int
    shifted: int
    """The first so many test images make up the rotated or corrupted sets."""
    foreign: int
    """Images of each foreign set."""
    samples: int
    """K of every method that samples."""
    swag: Swag
    draws: int = 512
    """Functions in a Monte Carlo average over a Gaussian with the covariance of K samples."""
    ensemble: int = 0
    """Members; 0: none."""
    reference_samples: int = 0
    """K of the exact-quality reference; 0: none."""
    reference_tolerance: float = 1e-3
    laplace_batch: int = 8
    """Images whose Jacobians laplace-torch forms at once: its cost per image grows with their number."""
    own_predictions: bool = True
    """Whether a library's own predictions are scored too: for laplace-torch that takes Jacobians of the test images."""
    ella_points: int = 500
    """Training images in ELLA's Nystrom basis."""
    ella_rank: int = 100
    seed: int = 0

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Settings":
        """The inverse of ``dataclasses.asdict``."""
        return cls(**values | {"swag": Swag(**values["swag"])})


@dataclass(frozen=True)
class Experiment:
    """What is compared on which images; its page is in experiments/results/NAME."""

    name: str
    """Of its module in this package."""
    title: str
    introduction: str
    """Markdown: what the network is, what is fitted to what. Without figures: those come from the run."""
    load: Callable[[Path, Settings], Data]
    """--root and the size -> images."""
    architecture: Callable[[], nn.Module]
    """The network with whatever weights."""
    trained: Callable[[Data, Settings, Path | None, int], tuple[nn.Module, dict[str, Any]]]
    """Images, size, --checkpoints, number of the ensemble's member -> trained network, what is to be said of it."""
    shifts: Callable[[Settings], tuple[Shift, ...]]
    methods: tuple[str, ...]
    """Keys of ``registry.METHODS``, in the order of the tables."""
    full: Settings
    quick: Settings
    checkpoint: str = ""
    """The file that --checkpoints holds; empty: the experiment trains its network."""
    classes: int = 10
    scale_to: int | None = None
    """Training images that a fit would have, for the note on scaling."""
    angles: bool = False
    """Whether the first shift is the rotation that is drawn."""


@dataclass(frozen=True)
class Task:
    """What a method is given."""

    network: nn.Module
    """Trained, in evaluation mode; a copy of the method's own."""
    members: tuple[nn.Module, ...]
    """Of the ensemble, the network itself first; empty where there is none."""
    data: Data
    settings: Settings

    @property
    def train(self) -> Images:
        """What posteriors are fitted to."""
        return self.data.train
