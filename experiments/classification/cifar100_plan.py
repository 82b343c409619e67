"""What a fit to all of CIFAR-100 would take on this machine, from measured products on a few images.

    python -m experiments.classification.cifar100_plan --root DIR [--images 64] [--columns 2]

Times depend on the network's shape, not on its weights: an untrained one is measured. Writes OUT/plan.md.
"""

import platform
from time import process_time

import torch
from torch.nn.functional import cross_entropy

from experiments.classification.cifar100 import EXPERIMENT
from experiments.common.command import command
from experiments.common.facts import GIB, peak_memory
from experiments.common.images import Images, cifar
from experiments.common.networks import cifar100_network
from experiments.common.page import RESULTS, table, write_page
from sampla.core.allocator import freed_memory_kept
from sampla.features import NetworkFeatures, select_parameters
from sampla.inference.memory_plan import SOLVER_BLOCKS
from sampla.likelihoods import Categorical
from sampla.model import LinearModel

_BATCH = 32
_PASSES = (8, 15, 30)
"""Products of the whole fit: between a g-prior that EM settles quickly and one at the linear mode."""
_SPACE = 64
"""Krylov vectors of EM."""


def main() -> None:
    """Measure and write."""
    more = {"images": (64, "that are measured on"), "columns": (2, "K of the measured product")}
    asked = command(__doc__, RESULTS / "cifar100", "cifar100/", **more)
    images = cifar(asked.root, "cifar100", "train", count=asked.images)
    torch.manual_seed(0)
    network = cifar100_network().eval()
    features = NetworkFeatures(network, select_parameters(network)[0])
    size, before = features.layout.total, peak_memory()
    with freed_memory_kept():
        ordinary = _ordinary(network, images)
        vectors = torch.randn(asked.columns, size)
        for measured in (images.rows(slice(_BATCH)), images):  # the first product also pays for fresh memory
            model = LinearModel(features, Categorical(), measured.batches(_BATCH))
            start = process_time()
            model.curvature_product(vectors)
        product = (process_time() - start) / (len(images) * asked.columns)
    full = EXPERIMENT.full
    each = product * full.images * full.samples  # seconds of a pass
    columns = {
        "passes of the fit": "{:d}".format,
        "s for a pass": lambda _: f"{each:,.0f}",
        "hours for the fit": lambda count: f"{count * each / 3600:,.0f}",
        "days": lambda count: f"{count * each / 86400:,.1f}",
    }
    write_page(
        asked.out / "plan.md", "experiments/classification/plan.md.j2", images=asked.images, columns=asked.columns,
        torch=torch.__version__, python=platform.python_version(), product=product, ordinary=ordinary, full=full,
        memory=(peak_memory() - before) / GIB, table=table(_PASSES, columns), size=size, space=_SPACE,
        blocks=SOLVER_BLOCKS + 1,  # of the final solve and its noise, as ``la.plan`` counts them
    )  # fmt: skip


def _ordinary(network: torch.nn.Module, images: Images) -> float:
    """Seconds of forward and backward for an image, as in training, in batches; the second batch is timed."""
    seconds = 0.0
    for inputs, labels in images.batches(_BATCH)[:2]:
        start = process_time()
        cross_entropy(network(inputs), labels).backward()
        seconds = (process_time() - start) / len(labels)
    network.zero_grad(set_to_none=True)
    return seconds


if __name__ == "__main__":
    main()
