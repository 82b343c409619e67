"""What a fit to all of CIFAR-100 would take on this machine, from measured products on a few images.

    python -m experiments.classification.cifar100_plan --root DIR [--images 64] [--columns 2]

Times depend on the network's shape, not on its weights: an untrained one is measured. Writes OUT/plan.md.
"""

import platform
from time import process_time

import torch
from torch.nn.functional import cross_entropy

from experiments.classification.cifar100 import FULL
from experiments.common.command import parser
from experiments.common.facts import GIB, peak_memory
from experiments.common.images import Images, cifar
from experiments.common.networks import cifar100_network
from experiments.common.page import RESULTS, write_page
from sampla.core.allocator import freed_memory_kept
from sampla.features import NetworkFeatures, select_parameters
from sampla.inference.memory_plan import SOLVER_BLOCKS
from sampla.likelihoods import Categorical
from sampla.model import LinearModel

_BATCH = 32
_PASSES = (8, 15, 30)
"""Products of the whole fit: between a g-prior that EM settles quickly and one at the linear mode."""
_BLOCKS = SOLVER_BLOCKS + 1
"""(K, P) blocks of the final solve and its noise, as ``la.plan`` counts them."""
_SPACE = 64
"""Krylov vectors of EM."""


def main() -> None:
    """Measure and write."""
    options = parser(__doc__, RESULTS / "cifar100", "cifar100/")
    options.add_argument("--images", type=int, default=64)
    options.add_argument("--columns", type=int, default=2, help="K of the measured product")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    images = cifar(arguments.root, "cifar100", "train", count=arguments.images)
    torch.manual_seed(0)
    network = cifar100_network().eval()
    features = NetworkFeatures(network, select_parameters(network)[0])
    size, before = features.layout.total, peak_memory()
    with freed_memory_kept():
        ordinary = _ordinary(network, images)
        model = LinearModel(features, Categorical(), images.batches(_BATCH))
        vectors = torch.randn(arguments.columns, size)
        LinearModel(features, Categorical(), images.rows(slice(_BATCH)).batches(_BATCH)).curvature_product(vectors)
        start = process_time()  # the first product also pays for fresh memory
        model.curvature_product(vectors)
        product = (process_time() - start) / (len(images) * arguments.columns)
    each = product * FULL.images * FULL.samples  # seconds of a pass
    rows = [
        [f"{count}", f"{each:,.0f}", f"{count * each / 3600:,.0f}", f"{count * each / 86400:,.1f}"] for count in _PASSES
    ]
    write_page(
        arguments.out / "plan.md", "experiments/classification/plan.md.j2", images=arguments.images,
        columns=arguments.columns, torch=torch.__version__, python=platform.python_version(), product=product,
        ordinary=ordinary, memory=(peak_memory() - before) / GIB, full=FULL, rows=rows, size=size, blocks=_BLOCKS,
        vectors=4 * size * FULL.samples * _BLOCKS / GIB, space=_SPACE,
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
