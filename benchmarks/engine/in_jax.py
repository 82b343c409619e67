"""The published formulation in JAX, on three of the networks of networks.py; benchmarks.engine runs it.

    PYTHON -m benchmarks.engine.in_jax SECONDS K [K ...] [--many '{"LeNet": 4, ...}']

--many: these networks alone, each with so many times its batch. JAX_PLATFORMS says where it runs, by default the CPU.
PYTHON is that of an environment with JAX and nothing else. One thread; everything is compiled before it is timed, and a
network's own forward and backward takes turns with its products. Prints one JSON list.
"""

import argparse
import json
import os
from collections.abc import Callable
from math import prod
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # after the flags, which it reads once
import jax.numpy as jnp
from experiments.common.timing import interleaved  # of the standard library alone
from jax import lax

AT_ONCE = 8
Point = dict[str, Any]


class Drawn:
    """Weights as they are asked for, normal and scaled by the number of inputs."""

    def __init__(self) -> None:
        self.point: Point = {}

    def __call__(self, name: str, *shape: int) -> None:
        key, inputs = jax.random.key(len(self.point)), shape[0] if len(shape) == 2 else prod(shape[1:])
        self.point[name] = jax.random.normal(key, shape) / inputs**0.5


def convolved(x: Any, kernel: Any, stride: int = 1, padding: str | list[tuple[int, int]] = "VALID") -> Any:
    """NCHW by OIHW."""
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NCHW", "OIHW", "NCHW"))


def lenet() -> tuple[Callable[[Point, Any], Any], Point, Any]:
    """On 64 images of 28 x 28."""
    draw = Drawn()
    for name, shape in {"1": (8, 1, 5, 5), "2": (16, 8, 5, 5), "3": (256, 96), "4": (96, 10)}.items():
        draw(f"w{name}", *shape)
    draw.point |= {"b1": jnp.zeros(8), "b2": jnp.zeros(16), "b3": jnp.zeros(96), "b4": jnp.zeros(10)}

    def pooled(x: Any) -> Any:
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")

    def network(p: Point, x: Any) -> Any:
        x = pooled(jax.nn.relu(convolved(x, p["w1"]) + p["b1"][:, None, None]))
        x = pooled(jax.nn.relu(convolved(x, p["w2"]) + p["b2"][:, None, None]))
        x = jax.nn.relu(x.reshape(len(x), -1) @ p["w3"] + p["b3"])
        return x @ p["w4"] + p["b4"]

    return network, draw.point, jax.random.uniform(jax.random.key(99), (64, 1, 28, 28))


def resnet18() -> tuple[Callable[[Point, Any], Any], Point, Any]:
    """For 32 x 32 images, 100 classes; normalisation with fixed statistics and fixed scale, as the posterior has it."""
    draw, same = Drawn(), [(1, 1), (1, 1)]
    draw("stem", 64, 3, 3, 3)
    plan, inside = [], 64
    for outside, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        plan += [(inside, outside, stride), (outside, outside, 1)]
        inside = outside
    for number, (ins, outs, stride) in enumerate(plan):
        draw(f"{number}a", outs, ins, 3, 3)
        draw(f"{number}b", outs, outs, 3, 3)
        if stride != 1 or ins != outs:
            draw(f"{number}s", outs, ins, 1, 1)
    draw("head", 512, 100)
    draw.point["bias"] = jnp.zeros(100)
    shrink = (1 + 1e-5) ** -0.5

    def network(p: Point, x: Any) -> Any:
        x = jax.nn.relu(shrink * convolved(x, p["stem"], 1, same))
        for number, (_, _, stride) in enumerate(plan):
            inner = jax.nn.relu(shrink * convolved(x, p[f"{number}a"], stride, same))
            inner = shrink * convolved(inner, p[f"{number}b"], 1, same)
            short = f"{number}s"
            x = jax.nn.relu(inner + (shrink * convolved(x, p[short], stride) if short in p else x))
        return x.mean((2, 3)) @ p["head"] + p["bias"]

    return network, draw.point, jax.random.normal(jax.random.key(99), (8, 3, 32, 32))


def vit_small() -> tuple[Callable[[Point, Any], Any], Point, Any]:
    """ViT-S/16 on 64 x 64 images: 17 tokens; normalisation layers fixed."""
    draw, width, heads = Drawn(), 384, 6
    draw("patches", 3 * 16 * 16, width)
    for n in range(12):
        shapes = {"q": (width, 3 * width), "o": (width, width), "u": (width, 1536), "d": (1536, width)}
        for name, shape in shapes.items():
            draw(f"{n}{name}", *shape)
            draw.point[f"{n}{name}b"] = jnp.zeros(shape[1])
    draw("head", width, 100)
    draw.point |= {"start": jnp.zeros((1, 1, width)), "places": 0.02 * jnp.ones((1, 17, width))}
    draw.point |= {"patch bias": jnp.zeros(width), "bias": jnp.zeros(100)}

    def normal(x: Any) -> Any:
        x = x - x.mean(-1, keepdims=True)
        return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)

    def attended(p: Point, n: int, x: Any) -> Any:
        batch, length, _ = x.shape
        q, k, v = jnp.split((x @ p[f"{n}q"] + p[f"{n}qb"]).reshape(batch, length, 3 * heads, -1), 3, axis=2)
        scores = jax.nn.softmax(jnp.einsum("blhd,bmhd->bhlm", q, k) / q.shape[-1] ** 0.5)
        return jnp.einsum("bhlm,bmhd->blhd", scores, v).reshape(batch, length, width) @ p[f"{n}o"] + p[f"{n}ob"]

    def network(p: Point, x: Any) -> Any:
        x = x.reshape(len(x), 3, 4, 16, 4, 16).transpose(0, 2, 4, 1, 3, 5).reshape(len(x), 16, -1)
        x = x @ p["patches"] + p["patch bias"]
        x = jnp.concatenate([jnp.broadcast_to(p["start"], (len(x), 1, width)), x], 1) + p["places"]
        for n in range(12):
            x = x + attended(p, n, normal(x))
            inner = jax.nn.gelu(normal(x) @ p[f"{n}u"] + p[f"{n}ub"], approximate=False)
            x = x + inner @ p[f"{n}d"] + p[f"{n}db"]
        return normal(x)[:, 0] @ p["head"] + p["bias"]

    return network, draw.point, jax.random.normal(jax.random.key(99), (8, 3, 64, 64))


NETWORKS = {"LeNet": lenet, "ResNet-18": resnet18, "ViT-S/16": vit_small}


def timed(name: str, count: int, seconds: float, many: int = 1) -> dict[str, Any]:
    """Median seconds of one forward and backward, and of J'J v for a sample over that."""
    network, point, x = NETWORKS[name]()
    x = jnp.concatenate([x] * many)

    @jax.jit  # weights and data are arguments: what depends on constants alone would be computed while compiling
    def ordinary(point: Point, x: Any) -> Any:
        return jax.grad(lambda p: (network(p, x) ** 2).sum())(point)

    @jax.jit
    def product(vectors: Point, point: Point, x: Any) -> Any:
        def pushed(tangents: Point) -> Any:
            return jax.vmap(lambda one: jax.jvp(lambda p: network(p, x), (point,), (one,))[1])(tangents)

        outputs, pull = jax.vjp(pushed, vectors)
        return pull(outputs)[0]

    parts = [min(AT_ONCE, count - done) for done in range(0, count, AT_ONCE)]
    vectors = [{k: jnp.ones((part, *v.shape)) for k, v in point.items()} for part in parts]
    contestants = {
        "own": lambda: jax.block_until_ready(ordinary(point, x)),
        "product": lambda: jax.block_until_ready([product(one, point, x) for one in vectors]),
    }
    interleaved(contestants, least=1, most=1)  # compiles
    found = interleaved(contestants, seconds)
    return {
        "network": name, "samples": count, "parameters": int(sum(v.size for v in point.values())),
        "forward + backward": found["own"], "published": found["product"] / count / found["own"],
        "jax": jax.__version__,
    }  # fmt: skip


def main() -> None:
    """Every network with every K."""
    asked = argparse.ArgumentParser()
    asked.add_argument("seconds", type=float)
    asked.add_argument("counts", type=int, nargs="+")
    asked.add_argument("--many", type=json.loads, default=dict.fromkeys(NETWORKS, 1))
    found = asked.parse_args()
    rows = [timed(n, k, found.seconds, times) for n, times in found.many.items() for k in found.counts]
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
