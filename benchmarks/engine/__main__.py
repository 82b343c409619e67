"""The cost of a product with M for a sample, over one ordinary forward and backward of the same network and batch.

    python -m benchmarks.engine [--quick] [--jax PYTHON] [--anew] [--out benchmarks]

Run by hand; minutes on one core. Writes engine.md and engine.json. Everything that is compared runs in one process,
interleaved, on one thread, with freed memory kept; memory is the peak of a fresh process for each case. With --jax, the
Python of an environment with JAX, in_jax.py runs there afterwards.
"""

import json
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from experiments.common.command import command, say
from experiments.common.page import BENCHMARKS, ROOT, table, write_page
from experiments.common.process import apart
from experiments.common.store import Store
from experiments.common.timing import interleaved
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.engine.networks import NETWORKS, memory_of
from sampla import NetworkFeatures
from sampla.core.allocator import freed_memory_kept
from sampla.features import select_parameters

OUTPUTS, SAMPLES = (10, 100, 1_000, 10_000), (1, 8, 32)
_BASE, _WAYS = "forward + backward", {"one forward": "sampla", "two": "jvps, then vjps", "published": "published"}
_LAID = {"channels last": "laid", "bfloat16": "reduced"}
"""Head of a column -> name of the contestant."""
AT_ONCE = 8
"""Vectors that go through the network together, at most: more bring nothing on a CPU, and take memory."""


def main() -> None:
    """Memory, then time, then the page."""
    quick = "five seconds a row, K up to 8, C up to 1,000"
    asked = command(__doc__, BENCHMARKS, quick=quick, anew=True, jax=(Path, "python of an environment with JAX"))
    torch.backends.mha.set_fastpath_enabled(False)  # of no use to any contestant: it has no derivatives
    store = Store(asked.out / "engine.json", {"quick": asked.quick}, asked.cache, asked.anew)
    samples, seconds = (SAMPLES[:2], 5.0) if asked.quick else (SAMPLES, 20.0)
    # First, while this process is small: Linux counts the peak of a child from that of its parent.
    for outputs in OUTPUTS[:3] if asked.quick else OUTPUTS:
        say(str(store.once(f"memory/{outputs}", partial(apart, memory_of, {"outputs": outputs}, 1))))
    with freed_memory_kept(), sdpa_kernel(SDPBackend.MATH):  # flash attention has no forward derivative
        for name in NETWORKS:
            for count in samples:
                say(str(store.once(f"time/{name}/{count}", partial(timed, name, count, seconds))))
    if asked.jax is not None:
        call = [str(asked.jax), "-m", "benchmarks.engine.in_jax", str(seconds), *map(str, samples)]
        for row in json.loads(subprocess.run(call, stdout=subprocess.PIPE, cwd=ROOT, check=True).stdout):
            store.put(f"jax/{row['network']}/{row['samples']}", row, ours=False)
    write_page(store.path.with_suffix(".md"), "benchmarks/engine/engine.md.j2", **page(store))


def timed(name: str, count: int, seconds: float) -> dict[str, Any]:
    """One network and K: the contestants in turn, until the time for this row is over; medians."""
    network, inputs = NETWORKS[name]()
    features = NetworkFeatures(network, select_parameters(network)[0], precision="bfloat16")
    features.choose_products(inputs[:1])
    features.find_folds(inputs[:1])
    laid = next(way for way in features.alternatives(inputs[:1]) if way.products.laid)
    reduced = features.cheaper()
    vectors = torch.randn(count, features.layout.total, generator=torch.Generator().manual_seed(1))
    for run in (product, in_two):  # what torch imports at its first products
        run(features, inputs[:1], vectors[:1])
    found = interleaved(
        {
            _BASE: partial(ordinary, network, inputs),
            "sampla": partial(product, features, inputs, vectors),
            "jvps, then vjps": partial(in_two, features, inputs, vectors),
            "published": partial(published, features, network, inputs, vectors),
            "laid": partial(product, laid, inputs, vectors),
            "reduced": partial(product, reduced, inputs, reduced.entering(vectors)),
        },
        seconds,
    )
    row = {"network": name, "parameters": features.layout.total, "data": len(inputs), "samples": count}
    row |= {"at once": min(count, AT_ONCE), _BASE: found[_BASE]}
    row["off by"] = features.coarseness(inputs)
    return row | {way: found[way] / count / found[_BASE] for way in (*_WAYS.values(), *_LAID.values())}


def ordinary(network: nn.Module, inputs: Tensor) -> None:
    """What one step of training costs, without the optimiser."""
    network.zero_grad()
    network(inputs).square().sum().backward()


def product(features: NetworkFeatures, inputs: Tensor, vectors: Tensor) -> Tensor:
    """J'J v as a fit computes it (B is the identity for every contestant)."""
    here = features.linearise(inputs)
    return torch.cat([here.product(few, lambda _, pushed: pushed) for few in vectors.split(AT_ONCE)])


def in_two(features: NetworkFeatures, inputs: Tensor, vectors: Tensor) -> Tensor:
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


def ms(name: str) -> Callable[[Any], str]:
    """A cell in milliseconds."""
    return lambda row: f"{1e3 * row[name]:.1f}"


def page(store: Store) -> dict[str, Any]:
    """What the template is filled with."""
    times, jax = store.under("time/"), store.under("jax/")
    columns = {
        "network": "{network}", "P": "{parameters:,}", "data": "{data}", "K": "{samples}", "at once": "{at once}",
        "forward + backward, ms": ms(_BASE), **{head: f"{{{way}:.2f}}" for head, way in (_WAYS | _LAID).items()},
        "off by": "{off by:.1%}",
    }  # fmt: skip
    beside = {
        "network": "{network}", "K": "{samples}", "forward + backward, ms": ms(_BASE),
        "published, over that": "{published:.2f}",
        "ms a sample": lambda row: f"{1e3 * row[_BASE] * row['published']:.1f}",
        "sampla, the faster way": lambda row: f"{1e3 * times[row['key']][_BASE] * _faster(times[row['key']]):.1f}",
    }  # fmt: skip
    memory = {"outputs C": "{outputs:,}", "peak, MiB": "{MiB:.0f}", "added by the product, MiB": "{added MiB:.0f}"}
    return {
        "facts": store.environment, "quick": store.settings["quick"], "times": table(times, columns),
        "count": len(times), "over": sum(_faster(row) > 1 for row in times.values()),
        "jax": table(jax, beside), "jax_version": next((row["jax"] for row in jax.values()), ""),
        "memory": table(store.under("memory/"), memory, left=0),
    }  # fmt: skip


def _faster(row: Any) -> float:
    return min(row["sampla"], row["jvps, then vjps"])


if __name__ == "__main__":
    main()
