"""What a fit to all of CIFAR-100 would take on this machine, from measured products on a few images.

    python experiments/cifar100_resnet18/plan.py --root DIR [--images 64] [--columns 2]

Times depend on the network's shape, not on its weights: an untrained one is measured. Writes plan.md beside itself.
"""

import argparse
import platform
import resource
import sys
from pathlib import Path
from time import process_time

import torch
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder that holds classification/

from classification.data import Images, cifar
from classification.networks import cifar100_network
from classification.sections import table
from config import FULL

from sampla._allocator import freed_memory_kept
from sampla.features import NetworkFeatures, select_parameters
from sampla.likelihoods import Categorical
from sampla.memoryplan import SOLVER_BLOCKS
from sampla.model import LinearModel

_BATCH = 32
_PASSES = (8, 15, 30)
"""Products of the whole fit: between a g-prior that EM settles quickly and one at the linear mode."""
_BLOCKS = SOLVER_BLOCKS + 1
"""(K, P) blocks of the final solve and its noise, as ``la.plan`` counts them."""
_SPACE = 64
"""Krylov vectors of EM."""
_GIB = 2**30


def main() -> None:
    """Measure and write."""
    arguments = _arguments()
    torch.set_num_threads(1)
    images = cifar(arguments.root, "cifar100", "train", count=arguments.images)
    torch.manual_seed(0)
    network = cifar100_network().eval()
    features = NetworkFeatures(network, select_parameters(network)[0])
    before = _peak()
    with freed_memory_kept():
        ordinary = _ordinary(network, images)
        model = LinearModel(features, Categorical(), images.batches(_BATCH))
        vectors = torch.randn(arguments.columns, features.layout.total)
        LinearModel(features, Categorical(), images.rows(slice(_BATCH)).batches(_BATCH)).curvature_product(vectors)
        start = process_time()  # the first product also pays for fresh memory
        model.curvature_product(vectors)
        product = (process_time() - start) / (len(images) * arguments.columns)
    text = _page(arguments, features.layout.total, ordinary, product, _peak() - before)
    (Path(__file__).parent / "plan.md").write_text(text, encoding="utf-8")
    print(text)


def _ordinary(network: torch.nn.Module, images: Images) -> float:
    """Seconds of forward and backward for an image, as in training, in batches; the second batch is timed."""
    seconds = 0.0
    for inputs, labels in images.batches(_BATCH)[:2]:
        start = process_time()
        cross_entropy(network(inputs), labels).backward()
        seconds = (process_time() - start) / len(labels)
    network.zero_grad(set_to_none=True)
    return seconds


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _page(arguments: argparse.Namespace, size: int, ordinary: float, product: float, memory: int) -> str:
    rows = [
        [f"{passes}", f"{product * FULL.images * FULL.samples:,.0f}", _hours(product, passes), _days(product, passes)]
        for passes in _PASSES
    ]
    vectors, space = 4 * size * FULL.samples * _BLOCKS / _GIB, 4 * size * _SPACE / _GIB
    head = ["passes of the fit", "s for a pass", "hours for the fit", "days"]
    return f"""\
# CIFAR-100, ResNet-18: what a fit would take

Written by `python experiments/cifar100_resnet18/plan.py --root DIR --images {arguments.images} --columns \
{arguments.columns}`: torch {torch.__version__}, python {platform.python_version()}, one thread of a CPU; CPU seconds.

Measured on {arguments.images} images: a product with M takes {product:.3f} s for an image and sample (K = \
{arguments.columns}), {product / ordinary:.2f} times an ordinary forward and backward of the same network \
({ordinary:.3f} s). Peak memory grew by {memory / _GIB:.2f} GiB, most of it activations of one batch.

Carried over to N = {FULL.images:,} and K = {FULL.samples}, the number of passes assumed:

{table(head, rows)}

Memory: P = {size:,} float32 numbers are {4 * size / 2**20:.0f} MiB, so that {_BLOCKS} blocks of K = {FULL.samples} \
vectors are {vectors:.1f} GiB; EM's Krylov space of {_SPACE} vectors is {space:.1f} GiB more. Neither N nor C enters.
"""


def _hours(product: float, passes: int) -> str:
    return f"{passes * product * FULL.images * FULL.samples / 3600:,.0f}"


def _days(product: float, passes: int) -> str:
    return f"{passes * product * FULL.images * FULL.samples / 86400:,.1f}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder that holds cifar100/")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--columns", type=int, default=2, help="K of the measured product")
    return parser.parse_args()


if __name__ == "__main__":
    main()
