"""Peak memory of one product with M against the number of outputs."""

from typing import Any

import torch
from experiments.common.facts import peak_memory
from torch import nn

from sampla import Categorical, NetworkFeatures
from sampla.core.chunks import Chunks
from sampla.model import LinearModel


def memory_of(case: dict[str, Any]) -> dict[str, Any]:
    """A product with M for K = 8 in a network with so many outputs, and how far it raised this process's peak."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, case["outputs"])).eval()
    inputs, targets = torch.randn(512, 64), torch.zeros(512, dtype=torch.long)
    features = NetworkFeatures(network, ["0.weight", "0.bias"])
    model = LinearModel(features, Categorical(), [(inputs, targets)], chunks=Chunks())
    model.survey()
    vectors = torch.randn(8, features.layout.total)
    before = peak_memory()
    model.curvature_product(vectors)
    peak = peak_memory()
    return {"outputs": case["outputs"], "MiB": peak / 2**20, "added MiB": (peak - before) / 2**20}
