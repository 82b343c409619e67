"""What the benchmark of linear models runs, its limits and its targets."""

from dataclasses import dataclass

PEERS = {"BayesianRidge": 8000, "ARDRegression": 2000}
"""Columns up to which a peer is tried; beyond, its cost, which grows with the cube, is far above the limit."""
DOUBLE = 8000  # columns up to which the design is float64: 20,000 with N = 4 P would be 6.4 GB in float32 already
EXACT = 2500  # columns up to which sampla's default is exact, and the matrix-free way is measured beside it
AHEAD_FROM = 2000  # columns from which sampla is to be faster than BayesianRidge
SLOPE = 1.15  # exponent of P in the time of a pass and row, at most: near linear
SPARSE_GIB, MEMMAP_GIB = 8.0, 3.0  # peaks of memory allowed


@dataclass(frozen=True)
class Sizes:
    """All sizes of a run; of ``sparse`` rows, columns, entries a row; of ``outputs`` rows, columns, outputs."""

    columns: tuple[int, ...] = (500, 2000, 8000, 20_000)
    sparse: tuple[int, int, int] = (1_000_000, 100_000, 100)
    file_gib: float = 12.0
    file_columns: int = 3000
    outputs: tuple[int, int, int] = (20_000, 2000, 1000)
    peer_seconds: float = 2400.0  # after which a peer is stopped
    seconds: float = 3000.0  # after which a case of sampla's is given up

    def rows(self, columns: int) -> int:
        """N of a design with so many columns: 4 P in float64, 2 P in float32."""
        return (4 if columns <= DOUBLE else 2) * columns

    @classmethod
    def of(cls, quick: bool) -> "Sizes":
        """The whole ones, or small ones to see that everything works."""
        return cls((100, 400), (20_000, 2000, 20), 0.05, 300, (500, 50, 40), 30.0, 300.0) if quick else cls()
