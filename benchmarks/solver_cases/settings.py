"""What a run of the benchmark is asked for, and the sizes that follow."""

from dataclasses import dataclass, field
from pathlib import Path

from solver_cases.problem import Say

PARTS = ("spectra", "estimates", "exact", "mnist", "resnet")


@dataclass(frozen=True)
class Settings:
    """Paths and sizes of a run."""

    out: Path
    root: Path | None = None
    checkpoints: Path | None = None
    quick: bool = False
    say: Say = field(default=print, compare=False)

    @property
    def cache(self) -> Path:
        """Where interrupted runs leave what they have."""
        return self.out / "solver_cache"

    @property
    def name(self) -> str:
        """Of the files written."""
        return "solvers-quick" if self.quick else "solvers"

    @property
    def spectra_size(self) -> tuple[int, int]:
        """P, N."""
        return (160, 320) if self.quick else (200, 250)

    @property
    def estimate_cases(self) -> int:
        """How many random cases the error estimate is tried on."""
        return 40 if self.quick else 200

    @property
    def mnist_images(self) -> int:
        """Training images of the LeNet."""
        return 400 if self.quick else 10_000

    @property
    def mnist_columns(self) -> int:
        """K of the largest block."""
        return 64

    @property
    def resnet_images(self) -> int:
        """Images that the ResNet's posterior is about."""
        return 24 if self.quick else 64

    @property
    def paper_cap(self) -> int:
        """Epochs after which the paper's schedule is given up."""
        return 160 if self.quick else 400

    def sizes(self) -> dict[str, object]:
        """What a kept result depends on."""
        return {
            "spectra": list(self.spectra_size),
            "estimates": self.estimate_cases,
            "mnist": [self.mnist_images, self.mnist_columns],
            "resnet": self.resnet_images,
            "paper": self.paper_cap,
        }
