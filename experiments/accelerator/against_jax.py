"""The engine beside the published formulation in JAX, on the same device, networks and batches."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

from experiments.accelerator.engine import MANY, WAYS
from experiments.accelerator.run import opened
from experiments.accelerator.stage import DONE, Cost, Place, Stage
from experiments.common.page import ROOT
from experiments.common.process import Case

_SAMPLES, _SECONDS, _LIMIT = 8, 1.5, 240.0


def against_jax(case: Case) -> Case:
    """Rows of benchmarks.engine.in_jax."""
    place = Place.of(case)
    many = json.dumps({"LeNet": 1} if place.device == "cpu" else {n: m for n, m in MANY.items() if n != "U-Net"})
    call = [sys.executable, "-m", "benchmarks.engine.in_jax", str(0.2 if place.tiny else _SECONDS)]
    call += [str(2 if place.tiny else _SAMPLES), "--many", many]
    limit = min(_LIMIT, max(place.seconds - 5, 1))
    done = subprocess.run(
        call, cwd=ROOT, env=_environment(place), stdout=subprocess.PIPE, timeout=limit, check=True
    )  # fmt: skip
    rows = json.loads(done.stdout)
    ours = {(r["network"], r["precision"]): r for r in opened(place).rows.get("engine", {}).get("rows", [])}
    lines = []
    for row in rows:
        own = [min(r[way] for way in WAYS[:2]) for (name, _), r in ours.items() if name == row["network"]]
        beside = f", sampla {1e3 * min(own):.2f}" if own and not place.tiny else ""
        lines.append(
            f"{row['network']}: JAX {1e3 * row['published'] * row['forward + backward']:.2f} ms a vector{beside}"
        )
    return {"rows": rows, DONE: "; ".join(lines)}


def _environment(place: Place) -> dict[str, str]:
    platform = "cuda" if place.device.startswith("cuda") else "cpu"
    return os.environ | {"JAX_PLATFORMS": platform, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def _other(place: Place) -> str:
    """Whether JAX finds the device."""
    if find_spec("jax") is None:
        return "not here: jax"
    call = [sys.executable, "-c", "import jax; jax.devices()"]
    tried = subprocess.run(call, env=_environment(place), capture_output=True, text=True, timeout=60, check=False)
    return "" if tried.returncode == 0 else f"JAX does not find the device: {(tried.stderr.splitlines() or [''])[-1]}"


def _cost(place: Place) -> Cost:
    return {"seconds": 15.0 if place.tiny else 90.0}


STAGES = (Stage("jax", against_jax, _cost, other=_other),)
