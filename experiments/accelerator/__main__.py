"""Everything that wants an accelerator, most valuable first, in the time that there is.

    python -m experiments.accelerator --budget SECONDS [--stages NAME,NAME] --root DIR --checkpoints DIR --out DIR
    python -m experiments.accelerator --tiny --out DIR     # every stage on the CPU, without data: a minute
    python -m experiments.accelerator --check              # what is here and what is missing
    python -m experiments.accelerator --page DIR           # results.md and pictures from what was brought back

A stage that cannot end within the budget, by what earlier stages have measured, is not begun; every stage is a process
of its own (in a tiny run they share one), and what it finds is written when it ends. The same command again goes on
where it stopped. README.md beside this file has the commands for a machine that is lent for a quarter of an hour.
"""

import platform
from importlib.util import find_spec
from pathlib import Path

import torch

from experiments.accelerator import START, against_jax, classifiers, engine, probe, smoke, tomography
from experiments.accelerator.page import write
from experiments.accelerator.run import here, run
from experiments.accelerator.stage import Place, Stage
from experiments.common.command import command
from experiments.common.devices import device_name
from experiments.common.page import RESULTS
from experiments.common.process import apart

STAGES: tuple[Stage, ...] = (
    *probe.STAGES, *smoke.STAGES, *classifiers.STAGES, *engine.STAGES, *classifiers.CIFAR10_STAGES, *tomography.STAGES,
    *against_jax.STAGES,
)  # fmt: skip
"""Most valuable first."""
MODULES = (
    "torch", "numpy", "scipy", "sklearn", "safetensors", "tqdm", "PIL", "matplotlib", "jinja2", "skimage", "pytest",
    "xdist", "torchmetrics", "laplace", "jax",
)  # fmt: skip
_FEW = 9
"""Of these so many are needed by everything; the stages that need another one say so, and are left out."""


def chosen(names: str) -> list[Stage]:
    """The stages of these names, or of names that begin so: "cifar100" is "cifar100-train" and all others of it.

    Raises:
        SystemExit: for a name that no stage has.
    """
    wanted = [name for name in names.replace(" ", ",").split(",") if name]
    for name in wanted:
        if not any(_named(stage, name) for stage in STAGES):
            raise SystemExit(f"expected stages among {', '.join(s.name for s in STAGES)}, got {name!r}.")
    return [stage for stage in STAGES if not wanted or any(_named(stage, name) for name in wanted)]


def _named(stage: Stage, name: str) -> bool:
    return stage.name == name or stage.name.startswith(f"{name}-")


def checked() -> str:
    """What is here, in a few lines."""
    missing = [name for name in MODULES if find_spec(name) is None]
    needed = [name for name in missing if name in MODULES[:_FEW]]
    others = [name for name in missing if name not in needed]
    device = device_name("cuda") if torch.cuda.is_available() else "none"
    return "\n".join([
        f"python {platform.python_version()}, torch {torch.__version__}, accelerator: {device}",
        f"missing and needed: {', '.join(needed) or 'nothing'}",
        f"missing, with the stages that want it left out: {', '.join(others) or 'nothing'}",
    ])  # fmt: skip


def place_of(device: str, root: Path, checkpoints: Path, out: Path, cache: Path | None, tiny: bool) -> Place:
    """Where the stages run."""
    device = device or ("cuda" if torch.cuda.is_available() and not tiny else "cpu")
    return Place(device, *(p.absolute() for p in (root, checkpoints, out, cache or out / "cache")), tiny=tiny)


def main() -> None:
    """The command line."""
    asked = command(
        __doc__, RESULTS / "accelerator", "cifar10/, cifar100/ and ct/", "the published networks of CIFAR-10",
        threads=None, budget=(540.0, "seconds, from the start of the command"),
        stages=("", "names or beginnings of names, with commas between them; default: all"),
        tiny=(False, "every stage on the CPU, with images that it makes"), device=("", "default: the accelerator"),
        back=(Path, "folder for what is to be brought back: few files, none above 16 MiB"),
        check=(False, "say what is here and what is missing"), page=(Path, "write the pages of this folder's results"),
    )  # fmt: skip
    if asked.check:
        print(checked())
    elif asked.page is not None:
        write(asked.page)
    else:
        if asked.tiny:
            torch.set_num_threads(1)
        place = place_of(asked.device, asked.root, asked.checkpoints, asked.out, asked.cache, asked.tiny)
        stages = chosen(asked.stages)
        run(stages, place, asked.budget, START, here if asked.tiny else apart, asked.threads, asked.back)


if __name__ == "__main__":
    main()
