"""How large a run of the benchmark is, and what its parts are given."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.common.store import Store


@dataclass(frozen=True)
class Sizes:
    """Of everything that a kept result depends on."""

    spectra: tuple[int, int] = (200, 250)
    """P, N."""
    estimates: int = 200
    """Random cases on which the error estimate is tried."""
    mnist: tuple[int, int] = (10_000, 64)
    """Training images of the LeNet; K of the largest block."""
    resnet: int = 64
    """Images that the ResNet's posterior is about."""
    paper: int = 400
    """Epochs after which the paper's schedule is given up."""

    @classmethod
    def quick(cls) -> "Sizes":
        """Small ones, to see that everything works."""
        return cls((160, 320), 40, (400, 64), 24, 160)

    def settings(self) -> dict[str, Any]:
        """For the store."""
        return asdict(self)


@dataclass(frozen=True)
class Run:
    """What every part is given."""

    store: Store
    sizes: Sizes
    root: Path | None = None
    checkpoints: Path | None = None

    @property
    def quick(self) -> bool:
        """Whether the sizes are the small ones."""
        return self.sizes == Sizes.quick()
