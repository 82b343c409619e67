"""What a fit costs on more machines than there are: a projection, from what was measured and from stated assumptions.

    python -m benchmarks.projection

Writes docs/scaling.md in a second. Nothing is run: measured rates are those of engine.json, linear_models.json and
scale.json, and all else is stated here and on the page. All ranks compute a pass, then its sums of K x P numbers go
round a ring, and slices of as many.
"""

import json
from dataclasses import dataclass
from math import ceil, log
from pathlib import Path
from statistics import median
from typing import Any

from experiments.common.facts import GIB
from experiments.common.page import BENCHMARKS, ROOT, table, write_page

from benchmarks.scale import told

RESNET18 = 1.11e9
"""Operations of one forward of engine.json's ResNet-18 on a 32 x 32 image, two for each multiply-add."""
BLOCKS = 34
"""Blocks of K vectors that a fit holds at its peak: 11.3 GiB over 0.33 GiB in benchmarks/eleven_million.md."""
SPACE = 64
"""Vectors of them that are EM's Krylov space as a rule (24 to 64), of which each rank holds a slice."""
PASSES = 10
"""Of a fit with learnt precision: 8 to 12 on CIFAR-10, 11 to 14 on MNIST, 11 to 17 with 11 million parameters."""
KEPT = 0.7
"""Part of the one-core rate that each core of a full machine keeps."""
TASK = 1e-3
"""Seconds of Dask's scheduler for each task."""
FAN = 8
"""Answers that one of its tasks joins."""


@dataclass(frozen=True)
class Cluster:
    """Ranks, their rate, memory and network."""

    name: str
    ranks: int
    rate: float
    """Operations a second that each reaches."""
    memory: float
    """Bytes of each."""
    bandwidth: float
    """Bytes a second that each sends, reached."""
    latency: float
    """Seconds of a message."""
    cores: int = 1

    def on(self, ranks: int) -> "Cluster":
        """The same with another number of ranks."""
        return Cluster(self.name, ranks, self.rate, self.memory, self.bandwidth, self.latency, self.cores)

    def ring(self, size: float) -> float:
        """Seconds of an all-reduce of so many bytes round a ring: each rank sends 2 (R - 1) / R of them."""
        steps = 2 * (self.ranks - 1)
        return steps / self.ranks * size / self.bandwidth + steps * self.latency

    def exchange(self, size: float) -> float:
        """Seconds of a pass's all-reduce and of an all-gather of as much, which sends half of that."""
        return 1.5 * self.ring(size)


@dataclass(frozen=True)
class Network:
    """A network, what is sampled of it, and its data."""

    name: str
    parameters: float
    """P, of those that are sampled."""
    weights: float
    """All parameters, which every rank holds."""
    forward: float
    """Operations of one forward of one datum, two for each multiply-add."""
    data: float
    outputs: float
    """C, of one datum."""
    samples: int = 16

    def operations(self, ratio: float) -> float:
        """Of a pass: each product costs ``ratio`` forwards and backwards, a backward two forwards."""
        return self.data * self.samples * ratio * 3 * self.forward

    @property
    def block(self) -> float:
        """Bytes of K vectors, float32."""
        return 4 * self.samples * self.parameters

    def held(self, ranks: int, samples: float) -> float:
        """Bytes that each of so many ranks holds with so many samples: blocks, its slice of the space, the weights."""
        vectors = BLOCKS * samples - SPACE * (1 - 1 / ranks)
        return 4 * self.parameters * vectors + 4 * self.weights


@dataclass(frozen=True)
class Measured:
    """What other pages have measured."""

    ratio: float
    """Product with M for one sample over a forward and backward: ResNet-18, K = 32, the faster way."""
    core: float
    """Operations a second of one core in that forward and backward."""
    entry: float
    """Seconds of one core for one entry of a design and one pass with K = 16: the memmap of linear_models.md."""
    ranks: dict[str, float]
    """Of two processes on a ResNet-20, medians of scale.json: how many times as fast as one, by the clock and by CPU
    seconds, and what two fits that share nothing allowed."""

    @classmethod
    def read(cls, folder: Path = BENCHMARKS) -> "Measured":
        """From the stores of the pages."""
        engine, linear, scale = (_rows(folder / f"{name}.json") for name in ("engine", "linear_models", "scale"))
        row, file = engine["time/ResNet-18/32"], linear["file"]
        entries = file["data"] / 4
        return cls(
            min(row["sampla"], row["jvps, then vjps"]), 3 * RESNET18 * row["data"] / row["forward + backward"],
            file["seconds"] / (file["passes"] * entries),
            {name: median(each) for name, each in told(scale["ranks"]).items()},
        )  # fmt: skip


def _rows(path: Path) -> dict[str, Any]:
    return {key: row["values"] for key, row in json.loads(path.read_text(encoding="utf-8"))["rows"].items()}


RESNET50 = Network("ResNet-50 on ImageNet", 25.6e6, 25.6e6, 8.2e9, 1.2e6, 1000)
LORA = Network("a network of 1e9 parameters with LoRA, by token", 2.9e6, 1e9, 2e9, 5.12e6, 32_000)
RANKS = (8, 64, 512, 4096, 32768)


def clusters(measured: Measured) -> list[Cluster]:
    """The two that the page is about."""
    return [
        Cluster("8 x H100, NVLink", 8, 0.2 * 495e12, 80 * GIB, 0.8 * 450e9, 10e-6),
        Cluster("64 CPU machines, 10 Gbit/s", 64, 32 * KEPT * measured.core, 128 * GIB, 0.9 * 1.25e9, 50e-6, 32),
    ]


def fits(measured: Measured) -> str:
    """One row a network and cluster."""
    rows = []
    for network in (RESNET50, LORA):
        for cluster in clusters(measured):
            compute = network.operations(measured.ratio) / (cluster.rate * cluster.ranks)
            ring, held = cluster.exchange(network.block), network.held(cluster.ranks, network.samples)
            rows.append(
                {
                    "key": f"{network.name}, {cluster.name}", "pass": compute, "ring": ring, "share": ring / compute,
                    "fit": PASSES * (compute + ring) / 3600, "held": held / GIB, "memory": cluster.memory / GIB,
                    "ranks": _ranks(network, cluster, measured),
                }
            )  # fmt: skip
    return table(
        rows,
        {
            "fit, cluster": "{key}", "compute, s a pass": "{pass:,.0f}", "exchange, s": "{ring:.3g}",
            "share": "{share:.2%}", "fit, h": "{fit:.1f}", "held a rank, GiB": "{held:.1f}",
            "memory, GiB": "{memory:.0f}", "ranks at which the exchange takes as long": "{ranks:,.0f}",
        },
    )  # fmt: skip


def _ranks(network: Network, cluster: Cluster, measured: Measured) -> float:
    """At which a pass's exchange takes as long as its compute: found by doubling, then by halves."""

    def late(ranks: int) -> bool:
        here = cluster.on(ranks)
        return here.exchange(network.block) >= network.operations(measured.ratio) / (here.rate * ranks)

    low, high = 1, 2
    while not late(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if late(middle) else (middle, high)
    return high


def speedups(measured: Measured) -> str:
    """How many times as fast as one rank, by the number of ranks."""
    rows = []
    for network in (RESNET50, LORA):
        for cluster in clusters(measured):
            alone = network.operations(measured.ratio) / cluster.rate
            row = {"key": f"{network.name}, {cluster.name}"}
            row |= {f"on {r}": alone / (alone / r + cluster.on(r).exchange(network.block)) for r in RANKS}
            rows.append(row)
    return table(rows, {"fit, one kind of rank": "{key}"} | {f"{r:,}": f"{{on {r}:,.0f}}" for r in RANKS})


DESIGN = (3e8, 1e4)
"""Rows and columns."""
DISK, MEMORY = 2e9, 100e9
"""Bytes a second that a machine reads from its disks and from its memory."""


def designs(measured: Measured) -> str:
    """A design of 3e8 x 1e4 on the CPU machines, by the bytes of a part."""
    (rows, columns), cluster, samples = DESIGN, clusters(measured)[1], 16
    size = 4 * rows * columns
    cores = cluster.ranks * cluster.cores * KEPT
    found = []
    for part in (128 * 2**20, GIB):
        parts = ceil(size / part)
        tasks = parts * (2 + 1 / (FAN - 1))
        answer = 8 * samples * columns
        levels = ceil(log(parts, FAN))
        found.append(
            {
                "part": part / GIB, "parts": parts, "products": measured.entry * rows * columns / cores,
                "memory": size / cluster.ranks / MEMORY, "disk": size / cluster.ranks / DISK,
                "scheduler": tasks * TASK, "tree": levels * (FAN * answer / cluster.bandwidth + cluster.latency),
                "factor": 8 * columns**2 / GIB, "qr": (2 * rows + 10 / 3 * parts * columns) * columns**2,
                "rate": cluster.rate * cluster.ranks,
                "sent": parts * 8 * columns**2 / cluster.ranks / cluster.bandwidth,
            }
        )  # fmt: skip
    return table(
        found,
        {
            "a part, GiB": "{part:.3f}", "parts": "{parts:,}", "products, s a pass": "{products:.0f}",
            "read from memory, s": "{memory:.1f}", "or from disk, s": "{disk:.0f}", "scheduler, s": "{scheduler:.0f}",
            "tree, s": "{tree:.3f}", "R of a part, GiB": "{factor:.2f}",
            "exact way, s": lambda row: f"{row['qr'] / row['rate']:,.0f}", "sending all R, s": "{sent:,.0f}",
        },
        left=0,
    )  # fmt: skip


def page(measured: Measured) -> dict[str, Any]:
    """What the template is filled with."""
    gpus, machines = clusters(measured)
    size = 4 * DESIGN[0] * DESIGN[1]
    return {
        "measured": measured, "fits": fits(measured), "speedups": speedups(measured), "designs": designs(measured),
        "gpus": gpus, "machines": machines, "resnet": RESNET50, "lora": LORA, "blocks": BLOCKS, "passes": PASSES,
        "kept": KEPT, "task": TASK, "disk": DISK, "memory": MEMORY, "design": DESIGN, "terabytes": size / 1e12,
        "each": size / machines.ranks / GIB, "resnet18": RESNET18, "GIB": GIB,
        "largest": (gpus.memory - RESNET50.held(gpus.ranks, 0)) / (BLOCKS * 4 * RESNET50.parameters), "space": SPACE,
        "logits": 4 * LORA.outputs * LORA.samples * 512 / GIB,
    }  # fmt: skip


def main() -> None:
    """Write the page."""
    write_page(ROOT / "docs" / "scaling.md", "benchmarks/scaling.md.j2", **page(Measured.read()))


if __name__ == "__main__":
    main()
