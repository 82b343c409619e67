"""The cost of a product with M for a sample, over one ordinary forward and backward of the same network and batch.

    python benchmarks/engine.py [--quick] [--jax PYTHON] [--out benchmarks]

Run by hand; minutes on one core. Writes engine.md and engine.json. Everything that is compared runs in one process,
interleaved, on one thread, with freed memory kept; memory is the peak of a fresh process for each case. With --jax, the
Python of an environment with JAX, engine_jax.py runs there afterwards.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from engine_networks import NETWORKS
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from sampla import Categorical, NetworkFeatures
from sampla._allocator import freed_memory_kept
from sampla._chunks import Chunks
from sampla.features import select_parameters
from sampla.model import LinearModel

OUTPUTS = (10, 100, 1_000, 10_000)
SAMPLES = (1, 8, 32)
OTHERS = ("sampla", "jvps, then vjps", "published")
AT_ONCE = 8
"""Vectors that go through the network together, at most: more bring nothing on a CPU, and take memory."""


def main() -> None:
    """Time, then memory, then the words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one repeat, K up to 8, C up to 1,000")
    parser.add_argument("--jax", type=Path, help="python of an environment with JAX")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)  # of no use to any contestant: it has no derivatives
    if asked.memory is not None:
        print(json.dumps(memory_of(asked.memory)))
        return
    samples = SAMPLES[:2] if asked.quick else SAMPLES
    seconds = 5.0 if asked.quick else 20.0
    # First, while this process is small: Linux counts the peak of a child from that of its parent.
    memory = [in_fresh_process(count) for count in (OUTPUTS[:3] if asked.quick else OUTPUTS)]
    with freed_memory_kept(), sdpa_kernel(SDPBackend.MATH):  # flash attention has no forward derivative
        rows = [row for name in NETWORKS for row in timed(name, samples, seconds)]
    jax = [] if asked.jax is None else in_jax(asked.jax, samples, seconds)
    results = {"setting": setting(asked.quick), "time": rows, "memory": memory, "jax": jax}
    (asked.out / "engine.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (asked.out / "engine.md").write_text(words(results), encoding="utf-8")


def setting(quick: bool) -> dict[str, Any]:
    """What the figures depend on."""
    load = os.getloadavg()[0]
    return {
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "load": round(load, 1),
        "quick": quick,
    }


def timed(name: str, samples: tuple[int, ...], seconds: float) -> list[dict[str, Any]]:
    """One network: the contestants in turn, until the time for this row is over; medians."""
    network, inputs = NETWORKS[name]()
    names, _ = select_parameters(network)
    features = NetworkFeatures(network, names)
    rows = []
    for count in samples:
        vectors = torch.randn(count, features.layout.total, generator=torch.Generator().manual_seed(1))
        contestants: dict[str, Callable[[], Any]] = {
            "forward + backward": lambda: ordinary(network, inputs),
            "sampla": lambda v=vectors: product(features, inputs, v),
            "jvps, then vjps": lambda v=vectors: apart(features, inputs, v),
            "published": lambda v=vectors: published(features, network, inputs, v),
        }
        for run in (product, apart):  # what torch imports at its first products
            run(features, inputs[:1], vectors[:1])
        found = interleaved(contestants, seconds)
        base = found["forward + backward"]
        row = {"network": name, "parameters": features.layout.total, "data": len(inputs), "samples": count}
        row |= {"at once": min(count, AT_ONCE), "forward + backward": base}
        row |= {name: found[name] / count / base for name in OTHERS}
        print(row, flush=True)
        rows.append(row)
    return rows


def interleaved(contestants: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Median seconds of each, in turn; a first round that is short warms up and does not count."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    start, rounds = perf_counter(), 0
    while rounds < 2 or (perf_counter() - start < seconds and rounds < 50):
        for name, run in contestants.items():
            begun = perf_counter()
            run()
            times[name].append(perf_counter() - begun)
        rounds += 1
        if rounds == 1 and perf_counter() - start < seconds / 4:
            times = {name: [] for name in contestants}
    return {name: median(each) for name, each in times.items()}


def ordinary(network: nn.Module, inputs: Tensor) -> None:
    """What one step of training costs, without the optimiser."""
    network.zero_grad()
    network(inputs).square().sum().backward()


def product(features: NetworkFeatures, inputs: Tensor, vectors: Tensor) -> Tensor:
    """J'J v as a fit computes it (B is the identity for every contestant)."""
    here = features.linearise(inputs)
    return torch.cat([here.product(few, lambda _, pushed: pushed) for few in vectors.split(AT_ONCE)])


def apart(features: NetworkFeatures, inputs: Tensor, vectors: Tensor) -> Tensor:
    """The same by jvps and vjps that know nothing of each other: the forward is computed twice."""
    here = features.linearise(inputs)
    return torch.cat([here.vjp(here.jvp(few)) for few in vectors.split(AT_ONCE)])


def published(features: NetworkFeatures, network: nn.Module, inputs: Tensor, vectors: Tensor) -> Tensor:
    """The published formulation: the gradient of |J v|^2 / 2 in v, in reverse through a vmapped jvp.

    It is linear in v, so reverse mode through it is J' J v.
    """
    rest = {k: t.detach() for k, t in [*network.named_parameters(), *network.named_buffers()]}

    def call(point: dict[str, Tensor]) -> Any:
        return functional_call(network, {**rest, **point}, (inputs,))

    def pushed(tangents: dict[str, Tensor]) -> Tensor:
        one: Tensor = vmap(lambda tangent: jvp(call, (features.point,), (tangent,))[1])(tangents)
        return one

    parts = []
    for few in vectors.split(AT_ONCE):
        outputs, pull = vjp(pushed, features.layout.views(few))
        parts.append(features.layout.flatten(pull(outputs)[0]))
    return torch.cat(parts)


def in_jax(python: Path, samples: tuple[int, ...], seconds: float) -> list[dict[str, Any]]:
    """The same in JAX, in its own environment."""
    script = Path(__file__).with_name("engine_jax.py")
    command = [str(python), str(script), str(seconds), *map(str, samples)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def in_fresh_process(outputs: int) -> dict[str, Any]:
    """Peak memory of a process that does nothing else."""
    done = subprocess.run(
        [sys.executable, __file__, "--memory", str(outputs)], capture_output=True, text=True, check=True
    )
    row: dict[str, Any] = json.loads(done.stdout)
    print(row, flush=True)
    return row


def memory_of(outputs: int) -> dict[str, Any]:
    """A product with M for K = 8 in a network with so many outputs, and how far it raised this process's peak."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, outputs)).eval()
    inputs, targets = torch.randn(512, 64), torch.zeros(512, dtype=torch.long)
    features = NetworkFeatures(network, ["0.weight", "0.bias"])
    model = LinearModel(features, Categorical(), [(inputs, targets)], chunks=Chunks())
    model.survey()
    vectors = torch.randn(8, features.layout.total)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model.curvature_product(vectors)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"outputs": outputs, "MiB": peak / 1024, "added MiB": (peak - before) / 1024}


def words(results: dict[str, Any]) -> str:
    """engine.md."""
    how, rows = results["setting"], results["time"]
    over = [row for row in rows if min(row["sampla"], row["jvps, then vjps"]) > 1]
    lines = [
        "# The engine",
        "",
        f"Written by `python benchmarks/engine.py{' --quick' if how['quick'] else ''}`: torch {how['torch']}, "
        f"{how['machine']}, {how['threads']} thread, load average {how['load']} at the end. "
        + ("A load above 1 means that other work ran beside it. " if how["load"] > 1.5 else ""),
        "",
        "The cost of J'J v for one sample, over one forward and backward of the same network on the same batch "
        "(medians, interleaved in one process, freed memory kept). By operations alone, two for a jvp and two for a "
        "vjp against three, it would be 1.33, and 1.67 with one vector, which shares its forward with no other. "
        "'one forward' serves both products, 'two' are jvps and then vjps: a fit that is long enough measures both and "
        f"takes the faster. Of {len(rows)} rows {len(over)} are above the target of 1.0 either way.",
        "",
        "| network | P | data | K | at once | forward + backward, ms | one forward | two | published |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        lines.append(
            f"| {row['network']} | {row['parameters']:,} | {row['data']} | {row['samples']} | {row['at once']} | "
            f"{1e3 * row['forward + backward']:.1f} | {row['sampla']:.2f} | {row['jvps, then vjps']:.2f} | "
            f"{row['published']:.2f} |"
        )
    lines += [
        "",
        "The published formulation is reverse mode through a vmapped jvp. Both take the vectors in parts of at most "
        "as many as stand under *at once*.",
        "",
    ]
    lines += _jax_words(results["jax"], rows)
    lines += [
        "",
        "## Memory against the number of outputs",
        "",
        "Peak of a fresh process, one product with M for K = 8 over 512 data; parameters of the first layer only, so "
        "that P does not grow with C.",
        "",
        "| outputs C | peak, MiB | added by the product, MiB |",
        "| ---: | ---: | ---: |",
        *(f"| {r['outputs']:,} | {r['MiB']:.0f} | {r['added MiB']:.0f} |" for r in results["memory"]),
    ]
    return "\n".join(lines) + "\n"


def _jax_words(found: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[str]:
    """The published formulation in JAX, beside the same networks here."""
    if not found:
        return ["JAX has not been compared."]
    lines = [
        f"The published formulation in JAX {found[0]['jax']} (jit, its own environment, one thread, afterwards):",
        "",
        "| network | K | forward + backward, ms | published, over that | ms a sample | sampla, the faster way |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in found:
        here = next(r for r in rows if (r["network"], r["samples"]) == (one["network"], one["samples"]))
        own, ratio = 1e3 * one["forward + backward"], one["published"]
        ours = 1e3 * here["forward + backward"] * min(here["sampla"], here["jvps, then vjps"])
        lines.append(
            f"| {one['network']} | {one['samples']} | {own:.1f} | {ratio:.2f} | {own * ratio:.1f} | {ours:.1f} |"
        )
    return lines


if __name__ == "__main__":
    main()
